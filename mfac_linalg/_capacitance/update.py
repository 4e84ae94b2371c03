"""The Cholesky factor of a window's A = I + S Sᵀ, on the host in float64, updated in O(m²) per change."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from .. import _backend
from .._errors import breakdown
from .system import POWER_STEPS, Capacitance

QR_BLOCK = 16  # columns: the most for which SciPy uses one thread
SERIAL_ROWS = 64  # rows: the most for which it uses one thread for any number of columns
DRIFT = 256 * float(np.finfo(np.float64).eps)  # largest backward error of the m × m solve without refactorisation
NORM_TOLERANCE = 0.1  # largest relative change of ‖S‖² without a further power step
BLOCK_SHARE = 8  # exchanging more than an eighth of the rows at once costs more than a new factorisation


class ScaledGram(Protocol):
    """B = S Sᵀ, (m, m)."""

    @property
    def largest_diagonal(self) -> float:
        """The largest entry of its diagonal, which is its largest."""

    def rows(self, positions: slice) -> np.ndarray:
        """Some rows of B."""

    def times(self, x: np.ndarray) -> np.ndarray:
        """B x for x (m, k)."""


@dataclass(frozen=True)
class CurrentCholesky:
    """L with A = L Lᵀ, and ‖S‖, as an immutable value; each change returns another one.

    L may use one of two arrays that changes overwrite in turns: see `WindowState` for how long it is valid.
    """

    cholesky: np.ndarray  # L, (m, m)
    direction: np.ndarray  # (m,) towards the largest eigenvalue of A
    memory: tuple[np.ndarray, ...]  # two arrays for the factors of a full window, used in turns
    norm: float = 0.0  # ‖S‖₂, from below
    num_factorizations: int = 0  # full factorisations so far

    @classmethod
    def empty(cls, window: int) -> "CurrentCholesky":
        """The factor of no rows, with memory for the factors of a full window, which is allocated on first use."""
        return cls(np.zeros((0, 0)), np.zeros(0), _memory(window))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"memory": len(self.memory[0])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, memory=_memory(state["memory"]))

    def with_own_memory(self) -> "CurrentCholesky":
        """The same with memory of its own, so that changes never overwrite this L."""
        return replace(self, memory=_memory(len(self.memory[0])))

    def update(self, is_kept: np.ndarray, scaled_gram: ScaledGram, count: int) -> "CurrentCholesky | None":
        """The factor of `count` rows: those of this one where `is_kept`, then new ones; None if it must be refactored.

        That is so if many rows change, or if the residual of a solve is more than rounding.
        """
        num_kept = int(np.count_nonzero(is_kept))
        num_added = count - num_kept
        if max(len(is_kept) - num_kept, num_added) * BLOCK_SHARE > max(count, BLOCK_SHARE):
            return None
        padded = factor_without(self.cholesky, is_kept, num_added, self.memory)
        new = scaled_gram.rows(slice(num_kept, None))
        lower = factor_with(padded, new[:, :num_kept].T, np.eye(num_added) + new[:, num_kept:])
        if lower is None:
            return None
        updated, drift = self._with_norm(lower, self._start_directions(is_kept, num_added), scaled_gram)
        return updated if drift <= DRIFT else None

    def refactor(self, is_kept: np.ndarray, scaled_gram: ScaledGram, count: int) -> "CurrentCholesky":
        """The same factor, computed from the Gram matrix in O(m³)."""
        whole = scaled_gram.rows(slice(None))
        capacitance = Capacitance.factor(whole) if np.all(np.isfinite(whole)) else None
        if capacitance is None:
            raise breakdown(size=count, kappa=float(1 + np.trace(whole)), dtype="float64")
        directions = self._start_directions(is_kept, count - int(np.count_nonzero(is_kept)))
        direction = np.sum(directions, axis=1, keepdims=True)
        for _ in range(POWER_STEPS):
            direction = _unit(whole @ direction)
        return replace(self, num_factorizations=self.num_factorizations + 1)._with_norm(
            capacitance.cholesky, direction, scaled_gram
        )[0]

    def _start_directions(self, is_kept: np.ndarray, num_added: int) -> np.ndarray:
        """Two orthonormal columns (or zeros): the previous direction, and the new rows."""
        previous = self.direction[is_kept]
        columns = np.zeros((len(previous) + num_added, 2))
        columns[: len(previous), 0], columns[len(previous) :, 1] = _unit(previous), 1 / math.sqrt(num_added or 1)
        return columns

    def _with_norm(
        self, lower: np.ndarray, directions: np.ndarray, scaled_gram: ScaledGram
    ) -> tuple["CurrentCholesky", float]:
        """With another L, ‖S‖ from one more power step, and the drift of L: ‖A y − z‖ / (‖A‖ ‖y‖) for y = A⁻¹ z.

        The power step starts from the Ritz vector of the directions, so that a new row has its right weight. z is a
        fixed vector of random signs. One product with the Gram matrix serves both. If ‖S‖² changes, more power steps
        follow.
        """
        if not len(lower):
            return replace(self, cholesky=lower, direction=np.zeros(0), norm=0.0), 0.0
        z = _signs(len(lower))
        y = _backend.factor_solve(lower, z)
        before = self.norm**2
        for _ in range(POWER_STEPS):
            product = scaled_gram.times(np.concatenate([directions, y], axis=1))
            images = product[:, :-1]
            direction = images @ np.linalg.eigh(directions.T @ images)[1][:, -1]
            largest = float(np.linalg.norm(direction))
            if abs(largest - before) <= NORM_TOLERANCE * before:
                break
            before, directions = largest, _unit(direction)[:, None]
        drift = np.linalg.norm(product[:, -1:] + y - z) / ((1 + largest) * np.linalg.norm(y))
        norm = math.sqrt(max(largest, scaled_gram.largest_diagonal))
        return replace(self, cholesky=lower, direction=direction, norm=norm), float(drift)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x) or 1.0)


@lru_cache(maxsize=8)
def _signs(count: int) -> np.ndarray:
    """A fixed vector of ±1, (count, 1)."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (count, 1))
    signs.flags.writeable = False
    return signs


def _memory(window: int) -> tuple[np.ndarray, ...]:
    return tuple(np.empty((window, window)) for _ in range(2))


def factor_without(
    lower: np.ndarray, is_kept: np.ndarray, spare: int = 0, memory: tuple[np.ndarray, ...] = ()
) -> np.ndarray:
    """Return the factor of the rows and columns of A where `is_kept` (m,), with `spare` rows of the identity below it.

    It is written to the array in `memory` that has its shape and is not that of L: allocating memory may cost more
    than the update.

    Let J be the rows that remain and D the others: A_JJ = L_JJ L_JJᵀ + L_JD L_JDᵀ. This positive update is a QR
    factorisation of [L_JJᵀ; L_JDᵀ], which is stable for any number of updates.
    """
    remaining, dropped = np.flatnonzero(is_kept), np.flatnonzero(~is_kept)
    size = len(remaining)
    shape = (size + spare,) * 2
    free = (array for array in memory if array.shape == shape and not np.may_share_memory(array, lower))
    upper = next(free, None)
    upper = np.empty(shape) if upper is None else upper
    upper[:size, :size] = _remaining_block(lower, remaining, dropped).T
    upper[size:, :size], upper[:size, size:], upper[size:, size:] = 0, 0, np.eye(spare)
    if size and len(dropped):
        rest = np.zeros((len(dropped), len(upper)))
        rest[:, :size] = lower[remaining][:, dropped].T if len(dropped) > 1 else lower[remaining, dropped]
        _absorb(upper, rest)
    return upper.T


def _remaining_block(lower: np.ndarray, remaining: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """L_JJ: a view if the dropped rows are the first."""
    start = len(dropped)
    return lower[start:, start:] if start == 0 or dropped.max() < start else lower[np.ix_(remaining, remaining)]


def _absorb(upper: np.ndarray, rest: np.ndarray) -> None:
    """Overwrite U with the triangle of the QR factorisation of [U; rest], of any signs; `rest` is overwritten too.

    LAPACK's tpqrt factors a few columns at a time, and products update the others: tpqrt on all of U would wake the
    threads of SciPy's BLAS, which delay NumPy's for milliseconds.
    """
    from scipy.linalg.lapack import dtpqrt

    if len(upper) <= SERIAL_ROWS:
        upper[:] = dtpqrt(0, min(QR_BLOCK, len(upper)), upper, rest)[0]
        return
    for columns in (slice(start, start + QR_BLOCK) for start in range(0, len(upper), QR_BLOCK)):
        block = upper[columns, columns]
        upper[columns, columns], v, t, _ = dtpqrt(0, len(block), block, rest[:, columns])
        after = slice(columns.stop, None)
        change = t.T @ (upper[columns, after] + v.T @ rest[:, after])
        upper[columns, after] -= change
        rest[:, after] -= v @ change


def factor_with(padded: np.ndarray, cross: np.ndarray, corner: np.ndarray) -> np.ndarray | None:
    """Return the factor of [[A, C], [Cᵀ, D]] for C (m, k), written over that of A with rows of the identity below.

    None if by rounding D − CᵀA⁻¹C has no factor.
    """
    from scipy.linalg.lapack import dpotrf  # on first use, as all of SciPy's linear algebra

    m, k = cross.shape
    below = _backend.solve_triangular(padded, np.concatenate([cross, np.zeros((k, k))]))[:m].T
    square, failed = dpotrf(corner - below @ below.T, lower=1)
    if failed:
        return None
    padded[m:, :m], padded[m:, m:] = below, square
    return padded
