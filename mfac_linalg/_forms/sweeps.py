"""Dual sweeps: (I + SᵀS)⁻¹u without the cancellation of u − Sᵀ A⁻¹ S u (docs/theory.md, "Dual sweeps")."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._condition import largest_kappa
from .._typing import Array

MAX_SWEEPS = 24  # duplicated rows at κ = 0.1/eps need up to twenty
CANCELLATION = 4.0  # stop where rounding is amplified by no more than this


def sweeps_for(kappa: float, dtype: str, *, float64_gram: bool) -> int:
    """Return the number of sweeps that bring the amplification κ down to order one where it cannot be watched.

    The first amplifies by 2κ at most, and stands alone where that is harmless. Another multiplies the error left by
    γ κ ε, ε of the dtype of the products. γ is 2 for float32, 0.2 with a Gram matrix in float64; in
    float64 it is 4, since the factor of A rounds too (docs/theory.md).
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
    """Sweeps of r and a towards a = S r, each of which keeps r + Sᵀa: at the end r = (I + SᵀS)⁻¹(r + Sᵀa).

    Where values can be read, and under `jit`, they end when q = (‖r‖ + ‖S‖ ‖δ‖)/‖r_after‖ ≤ `cancellation` in every
    column; on a device, which nothing is read from, and in a batch of torch.func their number is the one given.
    """

    rows: Any
    solve: Callable[[Array], Array]
    norm: Any  # ‖S‖₂; (n, 1) for a batch of n
    sweeps: int
    cancellation: float = CANCELLATION

    def from_zero(self, u: Array) -> tuple[Array, Array]:
        """From r = u, a = 0: (I + SᵀS)⁻¹u and its dual."""
        delta = self.solve(self.rows.project(u))
        r, y = self._descend(u, delta)
        return self._onwards(r, delta, y, self._settled(_norms(u), delta, r))

    def from_dual(self, y: Array, b: Array) -> tuple[Array, Array]:
        """From r = Sᵀy, y = A⁻¹b, which is (I + SᵀS)⁻¹Sᵀb already, swept on where Sᵀy itself cancels."""
        if self.rows.is_streamed:
            nothing = _backend.zeros((self.rows.shape[1], y.shape[1]), like=self.rows.like, dtype=self.rows.dtype)
            r, projection = self._descend(nothing, -y)
        else:
            r, projection = self.rows.combine(y), None
        return self._onwards(r, b - y, projection, self._settled(0.0, y, r))

    def _descend(self, r: Array, delta: Array) -> tuple[Array, Array | None]:
        """Return r − Sᵀδ, and S times that where the rows give it in the same pass."""
        if self.rows.is_streamed:
            return self.rows.descend(r, delta)
        return r - self.rows.combine(delta), None

    def _onwards(self, r: Array, a: Array, y: Array | None, settled: Any) -> tuple[Array, Array]:
        if _backend.is_traced(settled):
            return _backend.scan_until(settled, self._traced_sweep, (r, a), self.sweeps - 1)
        for _ in range(1, self.sweeps if settled is None else MAX_SWEEPS):
            if settled:
                break
            r, a, y, settled = self._sweep(r, a, y)
        return r, a

    def _sweep(self, r: Array, a: Array, y: Array | None) -> tuple[Array, Array, Array | None, Any]:
        delta = self.solve((self.rows.project(r) if y is None else y) - a)
        after, y = self._descend(r, delta)
        return after, a + delta, y, self._settled(_norms(r), delta, after)

    def _traced_sweep(self, r: Array, a: Array) -> tuple[Array, Array, Any]:
        r, a, _, settled = self._sweep(r, a, None)
        return r, a, settled

    def _settled(self, before: Any, delta: Array, after: Array) -> Any:
        """Whether q is small in every column; None where that cannot be known."""
        size = _norms(after)
        if size is None:
            return None
        grown = before + self.norm * _norms(delta) <= self.cancellation * size
        return _backend.namespace(grown).all(grown) if _backend.is_traced(grown) else np.all(_backend.read(grown))


def _norms(x: Array) -> Any:
    """Column norms in float64: on the host, or traced; None where they would have to be waited for."""
    norms = _backend.column_norms(_backend.stop_gradient(x)) if _backend.on_host(x) or _backend.is_traced(x) else None
    if norms is None:
        return None
    return _backend.to_float64(norms) if _backend.is_traced(x) else _backend.read(norms).astype(np.float64)
