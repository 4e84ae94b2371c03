"""Inverses of Fisher-like matrices, F = Λ + Σ c_i g_i g_iᵀ, without ever forming a d × d array."""

from ._blocks import BlockDiagonalInverse as BlockDiagonalInverse
from ._errors import FactorizationError as FactorizationError
from ._errors import IllConditionedWarning as IllConditionedWarning
from ._errors import InvalidFileError as InvalidFileError
from ._loading import load as load
from ._rows.protocol import GradientRows as GradientRows
from ._topk import TopK as TopK
from ._version import __version__ as __version__
from ._window import SlidingWindowInverse as SlidingWindowInverse
from ._woodbury import WoodburyRankOneInverse as WoodburyRankOneInverse

__all__ = [
    "BlockDiagonalInverse",
    "FactorizationError",
    "GradientRows",
    "IllConditionedWarning",
    "InvalidFileError",
    "SlidingWindowInverse",
    "TopK",
    "WoodburyRankOneInverse",
    "load",
]
