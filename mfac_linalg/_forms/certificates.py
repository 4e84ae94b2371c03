"""Backward error and residual of x as F⁻¹v, computed without overflow."""

import math

from .. import _backend
from .. import _validation as check
from .._scaling.powers_of_two import ldexp, mantissa
from .._scaling.sqrt_damping import scalar_like
from .._typing import Array
from .state import State

LARGE_KAPPA = 2.0**60  # above it, products of κ with numbers of order one may overflow float32


def backward_error(state: State, v: Array, x: Array) -> Array:
    """‖Λ^-½(v − Fx)‖ / (κ ‖Λ^½x‖)."""
    residual, _, z, power = _residual(state, v, x)
    size = _norms(z)
    return _ratio(state, ldexp(_norms(residual), power), size * scalar_like(state.kappa, size))


def relative_residual(state: State, v: Array, x: Array) -> Array:
    """‖v − Fx‖ / ‖v‖."""
    residual, u, _, power = _residual(state, v, x)
    if state.scaling.column_scale is not None:
        residual, u = residual / state.scaling.column_scale, u / state.scaling.column_scale
    return _ratio(state, ldexp(_norms(residual), power), _norms(u))


def _residual(state: State, v: Array, x: Array) -> tuple[Array, Array, Array, int]:
    """Λ^-½(v − Fx) · 2^−power, Λ^-½v and Λ^½x, the larger of order one, and power, near log₂ κ if that is large."""
    check.finite("x", x)
    form, scaling = state.form, state.scaling
    u, power = scaling.to_scaled(v, form.dtype)
    z, other = scaling.solution_to_scaled(x, form.dtype)
    fraction, shift = mantissa(scaling.scale)
    more = other + shift - power  # z is larger than u by 2^more
    above = max(more, 0) if isinstance(more, int) else _backend.namespace(more).clip(more, 0)
    z, u = ldexp(z * scalar_like(fraction, z), more - above), ldexp(u, -above)
    power = math.frexp(state.kappa)[1] if isinstance(state.kappa, float) and state.kappa > LARGE_KAPPA else 0
    return ldexp(u, -power) - (ldexp(z, -power) + form.gram_matvec(z, power)), u, z, power


def _ratio(state: State, above: Array, below: Array) -> Array:
    """Return above / below for each column: 0 for 0/0, infinity for any other residual over 0."""
    xp = _backend.namespace(above)
    ratio = above / xp.where(below == 0, xp.ones_like(below), below)
    ratio = xp.where((below == 0) & (above > 0), xp.full_like(ratio, xp.inf), ratio)
    return _backend.from_float64(_backend.evaluate(ratio), like=state.form.rows.like, dtype=state.form.dtype)


def _norms(x: Array) -> Array:
    """Norms of columns, float64."""
    return _backend.to_float64(_backend.column_norms(x))
