"""How to build: what the caller chose, and the float64 that widely spread dampings and rows need."""

from dataclasses import dataclass, replace
from typing import Any

from .. import _backend
from .._progress import SILENT, Progress
from .._scaling.damping import NARROW_SPAN, span
from .._typing import Array


@dataclass(frozen=True)
class Options:
    """How to build: what the caller chose, and the progress bar."""

    dtype: Any
    precision: str
    whiten: bool
    overwrite: bool
    progress: Progress = SILENT
    wide: bool = False  # compute in float64, for dampings or rows that span too much for float32
    out: Any = None  # what W is written to where that is not in memory: a Target or a Folder

    def computing_dtype(self, like: Array) -> Any:
        """float64 for precision "high", and for what spans much where there is float64, else the dtype of results."""
        float64_gram = self.precision == "high" or (self.wide and _backend.supports_float64(like))
        return _backend.namespace(like).float64 if float64_gram else self.dtype

    def for_span(self, damping: Any, like: Array) -> "Options":
        """The same for a damping, where that is at hand: one per parameter may span more than its dtype computes."""
        if not (_backend.is_vector(damping) and (_backend.on_host(damping) or _backend.is_lazy(damping))):
            return self
        name = _backend.dtype_name(self.computing_dtype(like))
        return self if float(_backend.read(span(damping))) <= NARROW_SPAN[name] else self.widened()

    def widened(self) -> "Options":
        """The same for what spans much; G is then asked for as it is."""
        if self.overwrite and self.dtype_name == "float32":
            msg = "`overwrite_gradients` must be False here; got True, but `damping` or rows span too much for "
            raise ValueError(msg + "float32. Leave it out.")
        return replace(self, wide=True)

    @property
    def dtype_name(self) -> str:
        """Of the results."""
        return _backend.dtype_name(self.dtype)
