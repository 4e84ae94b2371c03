"""Dual sweeps: (I + SᵀS)⁻¹u without the cancellation of u − Sᵀ A⁻¹ S u (docs/theory.md, "Dual sweeps")."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _backend
from ._errors import largest_kappa

Array = Any
MAX_SWEEPS = 24  # duplicated rows at κ = 0.1/eps need up to twenty
CANCELLATION = 4.0  # stop where rounding is amplified by no more than this


def sweeps_for(kappa: float, dtype: str, *, sharp_gram: bool) -> int:
    """Return the number of sweeps that bring the amplification κ down to order one where it cannot be watched.

    The first amplifies by 2κ at most, and stands alone where that is harmless. Another multiplies the error left by
    γ κ ε, ε of the dtype of the products. γ is 2 for float32, 0.2 with a sharp Gram matrix, computed in float64; in
    float64 it is 4, since the factor of A rounds too (docs/theory.md).
    """
    if 2 * kappa <= CANCELLATION:
        return 1
    kappa = min(kappa, largest_kappa(dtype))
    gamma = 4.0 if dtype == "float64" else 0.2 if sharp_gram else 2.0
    contraction = gamma * kappa * float(np.finfo(np.dtype(dtype)).eps)
    more = math.ceil(math.log(CANCELLATION / kappa) / math.log(contraction))
    return min(MAX_SWEEPS, 1 + max(1, more))


def dual_sweeps(
    rows: Any, solve: Callable[[Array], Array], r: Array, a: Array | None, *, norm: Any, sweeps: int
) -> tuple[Array, Array]:
    """Drive r + Sᵀa = u to a = S r, which is r = (I + SᵀS)⁻¹u, keeping r + Sᵀa.

    Where values can be read the rule q = (‖r‖ + ‖S‖ ‖δ‖)/‖r_after‖ ≤ 4 decides in every column; elsewhere the
    number of sweeps is the one given.
    """
    before = host_norms(r) if _backend.on_host(r) else None
    for sweep in range(1, MAX_SWEEPS + 1):
        projected = rows.project(r)
        delta = solve(projected if a is None else projected - a)
        r = r - rows.combine(delta)
        a = delta if a is None else a + delta
        if before is None or not _backend.on_host(r):  # traced rows make traced answers of a host vector
            if sweep == sweeps:
                break
            continue
        after = host_norms(r)
        if np.all(before + norm * host_norms(delta) <= CANCELLATION * after):
            break
        before = after
    return r, a


def host_norms(x: Array) -> np.ndarray:
    """Column norms, on the host, in float64."""
    return _backend.read(_backend.column_norms(_backend.stop_gradient(x))).astype(np.float64)
