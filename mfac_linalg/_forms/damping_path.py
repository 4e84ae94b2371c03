"""The damping path F(λ_k)⁻¹v of one vector, for many dampings by one eigendecomposition."""

import math

import numpy as np

from .. import _backend
from .._errors import breakdown, warn_if_unresolved
from .._scaling.sqrt_damping import as_scaled_result
from .._typing import Array
from .state import State


def damping_path(state: State, v: Array, dampings: np.ndarray) -> Array:
    """F(λ_k)⁻¹ v for v (d, 1), (d, k), for an inverse of scalar damping; it warns where a λ_k is too small."""
    form, scale = state.form, state.scaling.scale
    u, power = state.scaling.to_scaled(v, form.dtype)
    ratios = scale / (dampings if isinstance(scale, float) else _backend.asarray(dampings, like=scale))
    if isinstance(state.kappa, float) and _backend.is_concrete(ratios):
        kappa = 1 + (state.kappa - 1) * float(np.max(_backend.read(ratios)))
        if not math.isfinite(kappa):
            raise breakdown(size=min(form.shape), kappa=math.inf, dtype=form.arithmetic)
        warn_if_unresolved(kappa, form.arithmetic)
    r = form.path(u, ratios)
    fractions, shifts = np.frexp(dampings)
    fractions = _backend.asarray(fractions, like=r, dtype=r.dtype)
    shifts = _backend.asarray(shifts, like=r, dtype=_backend.index_dtype(r))
    return as_scaled_result(r, power - shifts, state.dtype, "v", over=fractions)
