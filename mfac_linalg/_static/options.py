"""How to build: what the caller chose, and the float64 that widely spread dampings and rows need."""

from dataclasses import dataclass, replace
from typing import Any

from .. import _backend
from .._backend.pytree import Part
from .._progress import SILENT, Progress
from .._scaling.sqrt_damping import NARROW_SPAN, span
from .._typing import Array


@dataclass(frozen=True)
class Options(Part):
    """How to build."""

    dtype: Any
    precision: str
    whiten: bool | None  # whether W is made in the build; None: when queries of elements first gain from it
    overwrite: bool
    progress: Progress = SILENT
    wide: bool = False  # compute in float64, for dampings or rows that span too much for float32
    out: Any = None  # where W is written to outside memory: a Target or a Folder

    @property
    def has_twin(self) -> bool:  # type: ignore[override]
        """Whether nothing is written outside memory."""
        return self.out is None

    def computing_dtype(self, like: Array) -> Any:
        """float64 for precision "high", and for widened options where float64 exists, else the dtype of results."""
        is_float64 = self.precision == "high" or (self.wide and _backend.supports_float64(like))
        return _backend.namespace(like).float64 if is_float64 else self.dtype

    def for_span(self, damping: Any, like: Array) -> "Options":
        """The same, widened where a damping per parameter spans more than its dtype resolves."""
        if not (_backend.is_vector(damping) and (_backend.on_host(damping) or _backend.is_lazy(damping))):
            return self
        name = _backend.dtype_name(self.computing_dtype(like))
        return self if float(_backend.read(span(damping))) <= NARROW_SPAN[name] else self.widened()

    def widened(self) -> "Options":
        """The same, computed in float64; refused with `overwrite_gradients`, which needs G in its own dtype."""
        if self.overwrite and self.dtype_name == "float32":
            msg = "`overwrite_gradients` must be False here; got True, but `damping` or rows span too much for "
            raise ValueError(msg + "float32. Leave it out.")
        return replace(self, wide=True)

    @property
    def dtype_name(self) -> str:
        """Name of the dtype of results."""
        return _backend.dtype_name(self.dtype)
