"""The classes that JAX has to know as pytrees."""

from typing import Any

from . import _backend
from ._dual import SmallSystem
from ._forms.basis import BasisForm
from ._forms.dual import DualForm
from ._forms.primal import PrimalForm
from ._metric import Metric
from ._rows.dense import DenseRows
from ._rows.scaled import ScaledRows
from ._rows.whitened import WhitenedRows
from ._state import State

PARTS = (SmallSystem, BasisForm, DualForm, PrimalForm, Metric, DenseRows, ScaledRows, WhitenedRows, State)


def register(like: Any, public: type) -> None:
    """Register a public class and its parts, where `like` is a JAX array."""
    _backend.adopt(like, public, *PARTS)
