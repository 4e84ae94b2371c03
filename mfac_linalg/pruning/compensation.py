"""A damping θ of the compensation, by which removed weights count as uncertain (docs/pruning.md)."""

from typing import Any

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._scaling.powers_of_two import ldexp
from .._static.restrict import restrict
from .._typing import Array

AUTO = "auto"


def check_compensation_damping(value: Any) -> float | str:
    """Accept θ in [0, 1], or "auto" for the one that the rows choose."""
    if isinstance(value, str):
        return check.choice("compensation_damping", value, (AUTO,))
    cure = 'Pass 0 for the minimum of the model, 1 for about the sum of single changes, or "auto".'
    damping = check.nonnegative("compensation_damping", value, cure)
    if damping > 1:
        msg = f"`compensation_damping` must be in [0, 1]; got {check.describe(value)}. {cure}"
        raise ValueError(msg)
    return damping


def compensate(state: State, removed: Array, mask: Array, slope: float, damping: float | str) -> Array:
    """The change of the weights that stay, (d,), for `removed` (d,), the weights where the mask is False."""
    if state.form.shape[0] == 0:
        return _backend.namespace(removed).zeros_like(removed)
    theta = optimism(restrict(state, mask), state, removed, slope) ** 2 if isinstance(damping, str) else damping
    among_staying = restrict(state, mask, theta)
    change = among_staying.solve_cross(state, removed[:, None])[:, 0]
    return change if slope == 0 else change - among_staying.solve_slope(slope)[:, 0]


def optimism(among_staying: State, state: State, removed: Array, slope: float) -> float:
    """By how much the compensation leaves more in rows that it has not seen than in its own, as a share of the damage.

    Squared, it is the θ of "auto".
    """
    z, power = state.scaling.solution_to_scaled(removed[:, None], state.form.dtype, "weights")
    shift = ldexp(slope * state.row_scale, -_backend.like_small_system(power))
    sums = among_staying.form.cross_validate(state.form, z, shift)
    excess, squares = (float(_backend.read(x).sum()) for x in sums)
    return min(1.0, excess / squares) if squares > 0 else 0.0
