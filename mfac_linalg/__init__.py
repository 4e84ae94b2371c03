"""Inverses of Fisher-like matrices, F = Λ + Σ c_i g_i g_iᵀ, without ever forming a d × d array."""

from ._blocks import BlockDiagonalInverse as BlockDiagonalInverse
from ._errors import FactorizationError as FactorizationError
from ._errors import IllConditionedWarning as IllConditionedWarning
from ._rows.protocol import GradientRows as GradientRows
from ._window import SlidingWindowInverse as SlidingWindowInverse
from ._woodbury import WoodburyRankOneInverse as WoodburyRankOneInverse

__version__ = "0.1.0"

__all__ = [
    "BlockDiagonalInverse",
    "FactorizationError",
    "GradientRows",
    "IllConditionedWarning",
    "SlidingWindowInverse",
    "WoodburyRankOneInverse",
]
