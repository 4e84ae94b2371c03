"""Dual sweeps: (I + SᵀS)⁻¹u without the cancellation of u − Sᵀ A⁻¹ S u (docs/theory.md, "Dual sweeps")."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from .. import _backend
from .._condition import kappa_of, largest_kappa
from .._rows.protocol import RowMatrix
from .._rows.scaled import ScaledRows
from .._rows.whitened import WhitenedRows
from .._typing import Array

MAX_SWEEPS = 24  # duplicated rows at κ = 0.1/eps need up to twenty
CANCELLATION = 4.0  # stop where rounding is amplified by no more than this
PUSH_THROUGH_CANCELLATION = 10.0  # by the rows, of a sum Sᵀy, where nothing is subtracted from a vector
SUM_ROUNDINGS = 2.0  # of ‖F‖ ‖x‖, that float32 may leave in this sum
RESIDUAL_ROUNDINGS = 4.0  # or where the residual is no more than this many roundings of ‖F‖ ‖x‖


def sweeps_for(kappa: float, dtype: str, *, float64_gram: bool) -> int:
    """Return the number of sweeps that bring the amplification κ down to order one where values cannot be read.

    The first sweep amplifies rounding by at most 2κ. Each further one multiplies the remaining error by γ κ ε, with ε
    of the dtype of the products. γ is 2 for float32, 0.2 with a Gram matrix in float64, and 4 for float64, where the
    factor of A is rounded in the same dtype (docs/theory.md).
    """
    if 2 * kappa <= CANCELLATION:
        return 1
    kappa = min(kappa, largest_kappa(dtype))
    gamma = 4.0 if dtype == "float64" else 0.2 if float64_gram else 2.0
    contraction = gamma * kappa * float(np.finfo(np.dtype(dtype)).eps)
    more = math.ceil(math.log(CANCELLATION / kappa) / math.log(contraction))
    return min(MAX_SWEEPS, 1 + max(1, more))


@dataclass(frozen=True)
class DualSweeps:
    """Sweeps of r and a towards a = S r. Each keeps r + Sᵀa, so that at the end r = (I + SᵀS)⁻¹(r + Sᵀa).

    They end when q = (‖r‖ + ‖S‖ ‖δ‖)/‖r_after‖ ≤ `cancellation` in every column, where values can be read and under
    `jit`. Where they can be read, a sharper bound by rows and then the residual decide on a larger q. On a device, and
    in a batch of torch.func, there are always `sweeps` of them.
    """

    rows: RowMatrix
    solve: Callable[[Array], Array]
    norm: Any  # ‖S‖₂; (n, 1) for a batch of n
    sweeps: int
    cancellation: float = CANCELLATION
    row_norms: Callable[[], Array] | None = None  # ν, the norms of the rows of L, (m,)
    wide_rows: Callable[[], RowMatrix] | None = None  # S in float64, for a sum Sᵀy that would lose its digits

    def from_zero(self, u: Array) -> tuple[Array, Array]:
        """From r = u, a = 0: (I + SᵀS)⁻¹u and its dual."""
        return self._continue(*self._sweep(u, 0.0, None, _norms(u)))

    def from_dual(self, y: Array, b: Array) -> tuple[Array, Array]:
        """From r = Sᵀy, y = A⁻¹b, which is (I + SᵀS)⁻¹Sᵀb: further sweeps follow if the sum Sᵀy cancels."""
        if self.rows.is_streamed:
            zero = _backend.zeros((self.rows.shape[1], y.shape[1]), like=self.rows.like, dtype=self.rows.dtype)
            r, projection = self._descend(zero, -y)
        else:
            r, projection = self.rows.combine(y), None
        size = _norms(r)
        if self.wide_rows is not None and self._rounding_shows(y, size):
            r, projection = _backend.cast(self.wide_rows().combine(y), self.rows.dtype), None
            size = _norms(r)
        is_done = self._is_done(0.0, y, size, PUSH_THROUGH_CANCELLATION)
        return self._continue(r, b - y, projection, size, is_done)

    def _rounding_shows(self, y: Array, size: Any) -> bool:
        """Whether the rounding of Sᵀy, ε Σ_i ‖s_i‖ |y_i|, may be larger than SUM_ROUNDINGS of ‖F‖ ‖Sᵀy‖.

        No sweep would correct it: they solve for Sᵀb as it follows from this Sᵀy.
        """
        if self.row_norms is None or size is None or _backend.is_traced(size):
            return False
        allowed = SUM_ROUNDINGS * kappa_of(self.norm) * size
        if (math.sqrt(y.shape[-2]) * self.norm * _norms(y) <= allowed).all():  # Σ ‖s_i‖² ≤ m ‖S‖²
            return False
        norms = _backend.read(_backend.stop_gradient(self.row_norms()))
        return bool((_weighted_sum(np.sqrt(np.maximum(norms * norms - 1, 0.0)), y) > allowed).any())

    def _descend(self, r: Array, delta: Array) -> tuple[Array, Array | None]:
        """Return r − Sᵀδ, and S times that where the rows give it in the same pass."""
        if self.rows.is_streamed:
            return cast(ScaledRows | WhitenedRows, self.rows).descend(r, delta)
        return _backend.subtract_over(r, self.rows.combine(delta)), None

    def _continue(self, r: Array, a: Array, y: Array | None, size: Any, is_done: Any) -> tuple[Array, Array]:
        """Sweep until `is_done`; size is ‖r‖, and y is S r where that is known."""
        if _backend.is_traced(is_done):
            return _backend.scan_until(is_done, self._traced_sweep, (r, a), self.sweeps - 1)
        for _ in range(1, self.sweeps if is_done is None else MAX_SWEEPS):
            if is_done:
                break
            y = self.rows.project(r) if y is None else y
            if is_done is not None and self._is_solved(size, y - a):
                break
            r, a, y, size, is_done = self._sweep(r, a, y, size)
        return r, a

    def _is_solved(self, size: Any, residual: Array) -> Any:
        """Whether the residual Sᵀ(S r − a) is that of a backward stable solution in every column; size is ‖r‖."""
        eps = float(np.finfo(_backend.dtype_name(self.rows.dtype)).eps)
        allowed = RESIDUAL_ROUNDINGS * eps * kappa_of(self.norm) * size
        return (self.norm * _norms(residual) <= allowed).all()

    def _sweep(self, r: Array, a: Any, y: Array | None, size: Any) -> tuple[Array, Array, Array | None, Any, Any]:
        delta = self.solve((self.rows.project(r) if y is None else y) - a)
        r, y = self._descend(r, delta)
        after = _norms(r)
        return r, a + delta, y, after, self._is_done(size, delta, after)

    def _traced_sweep(self, r: Array, a: Array) -> tuple[Array, Array, Any]:
        r, a, _, _, is_done = self._sweep(r, a, None, _norms(r))
        return r, a, is_done

    def _is_done(self, before: Any, delta: Array, after: Any, limit_by_rows: float = 0.0) -> Any:
        """Whether q is small in every column, or q by rows where that is known; None where values cannot be read.

        `before` and `after` are ‖r‖ and ‖r_after‖.
        """
        if after is None:
            return None
        is_small = before + self.norm * _norms(delta) <= self.cancellation * after
        if self.row_norms is not None and not (_backend.is_traced(is_small) or is_small.all()):
            limit = max(limit_by_rows, self.cancellation)
            is_small |= before + self._by_rows(self.row_norms(), delta) <= limit * after
        return _backend.namespace(is_small).all(is_small) if _backend.is_traced(is_small) else is_small.all()

    def _by_rows(self, row_norms: Array, delta: Array) -> np.ndarray:
        """‖ν‖/‖S‖ Σ_i ν_i |δ_i|, in place of ‖S‖ ‖δ‖: smaller where δ is that of few rows."""
        norms = _backend.read(_backend.stop_gradient(row_norms))
        return np.sqrt(np.sum(norms * norms, axis=-1, keepdims=True)) / self.norm * _weighted_sum(norms, delta)


def _weighted_sum(norms: np.ndarray, x: Array) -> np.ndarray:
    """Σ_i norms_i |x_i| for each column of x (…, m, k)."""
    return np.sum(norms[..., None] * np.abs(_backend.read(_backend.stop_gradient(x))), axis=-2)


def _norms(x: Array) -> Any:
    """Column norms in float64: on the host, or traced; None on a device, where reading them would wait for it."""
    if _backend.is_numpy(x):
        return np.sqrt(_backend.column_squares(x))
    norms = _backend.column_norms(_backend.stop_gradient(x)) if _backend.on_host(x) or _backend.is_traced(x) else None
    if norms is None:
        return None
    return _backend.to_float64(norms) if _backend.is_traced(x) else _backend.read(norms).astype(np.float64)
