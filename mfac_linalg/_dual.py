"""The m × m system A = I + S Sᵀ, in float64. It knows nothing of d."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _backend
from ._pytree import CACHED, Part

Array = Any
POWER_STEPS = 12
QR_BLOCK = 16  # columns, the most that SciPy treats in one thread


@dataclass(frozen=True)
class SmallSystem(Part):
    """A = I + B for a positive semidefinite B (S Sᵀ, or SᵀS in the primal form), held by its factor A = L Lᵀ.

    The diagonal of L may have any signs.
    """

    source: Any  # B, or a function that makes it when it is asked for
    lower: Array  # L

    @property
    def gram(self) -> Array:
        """B."""
        return self._once("gram", self.source) if callable(self.source) else self.source

    @classmethod
    def factor(cls, gram: Array) -> "SmallSystem | None":
        """Factor I + gram; None where it has no factor, even from its eigenvalues."""
        lower = _backend.cholesky(add_identity(gram))
        if lower is None:
            lower = _factor_from_spectrum(gram)
        return None if lower is None else cls(gram, lower)

    def half_solve(self, b: Array) -> Array:
        """L⁻¹ b."""
        return _backend.solve_triangular(self.lower, b)

    def solve(self, b: Array) -> Array:
        """A⁻¹ b."""
        return factor_solve(self.lower, b)

    def inverse_factor(self, growth: float) -> Array | None:
        """L⁻¹, or None where L (L⁻¹S) might miss S by more than `growth` roundings: ‖|L| |L⁻¹| |S|‖ > growth ‖S‖."""
        xp = _backend.namespace(self.lower)
        inverse = _backend.solve_triangular(self.lower, add_identity(xp.zeros_like(self.lower)))
        rows = xp.sqrt(xp.linalg.diagonal(self.gram))
        grown = xp.abs(self.lower) @ (xp.abs(inverse) @ rows)
        return inverse if xp.linalg.vector_norm(grown) <= growth * xp.linalg.vector_norm(rows) else None

    def logdet(self) -> Array:
        """The logarithm of det A."""
        xp = _backend.namespace(self.lower)
        return 2 * xp.sum(xp.log(xp.abs(xp.linalg.diagonal(self.lower))))

    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues s ≥ 0 of B, ascending, and its eigenvectors Q: B = Q diag(s) Qᵀ; computed once."""
        return self._once("spectrum", lambda: nonnegative_spectrum(self.gram))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Make something once, where it holds for good: not fields, so that no pytree and no pickle carries them."""
        name = CACHED + name
        if name in vars(self):
            return vars(self)[name]
        made = make()
        first = made[0] if isinstance(made, tuple) else made
        if _backend.is_concrete(first) and not _backend.is_differentiated(first):
            vars(self)[name] = made
        return made


def factor_solve(lower: Array, b: Array) -> Array:
    """(L Lᵀ)⁻¹ b."""
    return _backend.solve_triangular(lower, _backend.solve_triangular(lower, b), transposed=True)


def add_identity(gram: Array) -> Array:
    """I + B."""
    xp = _backend.namespace(gram)
    return gram + _backend.asarray(np.eye(gram.shape[-1]), like=gram, dtype=xp.float64)


def nonnegative_spectrum(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, clipped at the zero that rounding may miss, and eigenvectors of a positive semidefinite B."""
    xp = _backend.namespace(gram)
    values, vectors = xp.linalg.eigh(gram)
    return xp.where(values > 0, values, xp.zeros_like(values)), vectors


def _factor_from_spectrum(gram: Array) -> Array | None:
    """Factor I + Q s Qᵀ where Cholesky failed by rounding: A has no eigenvalue below 1, so none is lost by s ≥ 0."""
    xp = _backend.namespace(gram)
    if not math.isfinite(float(_backend.read(xp.sum(gram)))):
        return None
    values, vectors = nonnegative_spectrum(gram)
    upper = xp.linalg.qr((vectors * xp.sqrt(1 + values)).T).R
    signs = xp.sign(xp.linalg.diagonal(upper))
    return (upper * signs[:, None]).T


def largest_eigenvalue(gram: Array) -> Array:
    """Largest eigenvalue of B, from below, by a few power steps from a fixed random vector."""
    xp = _backend.namespace(gram)
    gram = _backend.stop_gradient(gram)
    unit = xp.max(xp.linalg.diagonal(gram))  # no entry of B is larger: squares do not overflow in these units
    gram = gram / xp.where(unit > 0, unit, xp.ones_like(unit))
    start = np.random.default_rng(0).standard_normal((gram.shape[0], 1))
    x = _backend.asarray(start, like=gram, dtype=xp.float64)
    for _ in range(POWER_STEPS):
        norm = xp.linalg.vector_norm(x)
        x = gram @ (x / xp.where(norm > 0, norm, xp.ones_like(norm)))
    return unit * xp.linalg.vector_norm(x)


# --- changes of a NumPy factor by rows, in O(m²) each ---------------------------------------------------------------


def factor_without(
    lower: np.ndarray, dropped: np.ndarray, spare: int = 0, memory: tuple[np.ndarray, ...] = ()
) -> np.ndarray:
    """Return the factor of A without some rows and columns, with `spare` rows of the identity below it.

    It is written to the array in `memory` that has its shape and does not hold L: new memory may cost more than all
    the rest.

    With K the rows that stay, A_KK = L_KK L_KKᵀ + C Cᵀ, C what they have in the columns that go: a positive change,
    made by a QR factorisation of [L_KKᵀ; Cᵀ], which is stable however often it is made.
    """
    kept = np.delete(np.arange(len(lower)), dropped)
    shape = (len(kept) + spare,) * 2
    free = (array for array in memory if array.shape == shape and not np.may_share_memory(array, lower))
    upper = next(free, None)
    upper = np.empty(shape) if upper is None else upper
    upper[: len(kept), : len(kept)] = _kept_block(lower, kept, dropped).T
    upper[len(kept) :, :], upper[:, len(kept) :] = 0, 0
    upper[range(len(kept), len(upper)), range(len(kept), len(upper))] = 1
    rest = np.zeros((len(dropped), len(upper)))
    rest[:, : len(kept)] = lower[np.ix_(kept, dropped)].T
    if len(dropped):
        _absorb(upper, rest)
    return upper.T


def _kept_block(lower: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """L_KK: a view where the rows that go are the first."""
    start = len(dropped)
    return lower[start:, start:] if start == 0 or dropped.max() < start else lower[np.ix_(kept, kept)]


def _absorb(upper: np.ndarray, rest: np.ndarray) -> None:
    """Make U the triangle of the QR factorisation of [U; rest], signs as they come; `rest` is used up.

    A few columns at a time by LAPACK's tpqrt, what follows by products: tpqrt on all of U wakes the threads of SciPy's
    BLAS, which then stand in the way of NumPy's for milliseconds.
    """
    from scipy.linalg.lapack import dtpqrt  # on first use, as all of SciPy's linear algebra

    for columns in (slice(start, start + QR_BLOCK) for start in range(0, len(upper), QR_BLOCK)):
        block = upper[columns, columns]
        upper[columns, columns], v, t, _ = dtpqrt(0, len(block), block, rest[:, columns])
        after = slice(columns.stop, None)
        change = t.T @ (upper[columns, after] + v.T @ rest[:, after])
        upper[columns, after] -= change
        rest[:, after] -= v @ change


def factor_with(padded: np.ndarray, cross: np.ndarray, corner: np.ndarray) -> np.ndarray | None:
    """Return the factor of [[A, C], [Cᵀ, D]] in the place of that of A, with rows of the identity below it, C (m, k).

    None where rounding leaves D − CᵀA⁻¹C without one.
    """
    m, k = cross.shape
    below = _backend.solve_triangular(padded, np.concatenate([cross, np.zeros((k, k))]))[:m].T
    square = _backend.cholesky(corner - below @ below.T)
    if square is None:
        return None
    padded[m:, :m], padded[m:, m:] = below, square
    return padded
