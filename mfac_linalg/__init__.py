"""Inverses of Fisher-like matrices, F = Λ + Σ c_i g_i g_iᵀ, without ever forming a d × d array."""

import sys as _sys
from importlib import import_module as _import_module

from ._errors import FactorizationError as FactorizationError
from ._errors import IllConditionedWarning as IllConditionedWarning
from ._errors import InvalidFileError as InvalidFileError
from ._load import load as load
from ._rows.protocol import GradientRows as GradientRows
from ._show_versions import show_versions as show_versions
from ._static.blocks import BlockDiagonalInverse as BlockDiagonalInverse
from ._static.woodbury import WoodburyRankOneInverse as WoodburyRankOneInverse
from ._version import __version__ as __version__
from ._window.inverse import SlidingWindowInverse as SlidingWindowInverse
from ._window.topk import TopK as TopK

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
    "show_versions",
]

if _sys.modules.get("hypothesis") is not None:  # `strategies.from_type` then knows the classes
    _import_module("mfac_linalg.testing._registration")
