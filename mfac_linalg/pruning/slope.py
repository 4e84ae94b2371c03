"""The model with a slope: α ḡᵀδ + ½ δᵀFδ, ḡ = Σ c_i g_i, and where it is least (docs/pruning.md, "With a slope")."""

from dataclasses import dataclass, replace
from typing import Any

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse
from .._static.woodbury import WoodburyRankOneInverse
from .._typing import Array


def check_slope(slope: Any) -> float:
    """Accept α ≥ 0, the weight of the mean gradient in the model."""
    return check.nonnegative("slope", slope, "Pass 1/B for rows that are means of B samples.")


def minimum_of_model(weights: Array, inverse: Inverse, slope: float) -> Array:
    """w̄ = w − α F⁻¹ḡ, where α ḡᵀδ + ½ δᵀFδ is least; ḡ = Σ c_i g_i with the c_i of F."""
    if slope == 0 or inverse.num_gradients == 0:
        return weights
    return weights - _backend.with_x64(State.solve_slope, inverse._unchanged, slope)[:, 0]


@dataclass(frozen=True)
class Descent:
    """The move to the minimum of the model with a slope, by a full matrix."""

    slope: Any  # α, or a function of the step
    damping: float | None  # λ; None: that of the step

    @classmethod
    def checked(cls, slope: Any, damping: Any) -> "Descent":
        """Accept the arguments of `prune`."""
        damping = None if damping is None else check.positive("slope_damping", damping, "Pass one λ for all steps.")
        return cls(slope if callable(slope) else check_slope(slope), damping)

    def require_slope(self, moves: int) -> None:
        """Refuse steps that would do nothing."""
        if moves and not callable(self.slope) and self.slope == 0:
            msg = f"`moves` must be 0 without a slope; got {moves}. Pass `slope`: 1/B for means of B samples."
            raise ValueError(msg)

    def at(self, step: int) -> "Descent":
        """The same with the α of a step."""
        if not callable(self.slope):
            return self
        try:
            return replace(self, slope=check_slope(self.slope(step)))
        except TypeError as error:
            msg = f"`slope` must be a number, or a function from the step to one; got {check.describe(self.slope)}. "
            raise TypeError(msg + f"For step {step}: {error}") from error

    def from_weights(self, weights: Array, gradients: Array, inverse: Inverse, unit: float) -> Array:
        """w̄; `inverse` is that of the step, and `unit` that of the damping."""
        if self.slope == 0:
            return weights
        if self.damping is not None or not isinstance(inverse, WoodburyRankOneInverse):
            damping = inverse.damping if self.damping is None else self.damping * unit
            inverse = WoodburyRankOneInverse(gradients, damping, whiten=False)
        return minimum_of_model(weights, inverse, self.slope)
