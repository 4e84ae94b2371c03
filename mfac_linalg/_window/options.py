"""The constructor options of a window."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._scaling.normalization import divisor_of
from .._scaling.sqrt_damping import refuse_span, spans_widely
from .._typing import Array
from .topk import TopK, check_compression

LEAST_WEIGHT = 1e-250  # of a decayed row: its reciprocal is still a number
NARROW_WEIGHTS = 1e-30  # smallest weight of a row that float32 products keep
STATE_OPTIONS = ("window", "dim", "normalization", "decay", "precision")  # in a state dictionary
STATE_ON_HOST = ("slots", "ages", "exponents", "gram", "factor", "direction")  # its small arrays
COMPRESSION = "compression."  # prefix of the arguments of a TopK in it


@dataclass(frozen=True)
class WindowOptions:
    """The arguments of a window that do not change while it slides."""

    window: int
    dim: int
    normalization: str
    decay: float
    precision: str
    compression: TopK | None

    @classmethod
    def checked(
        cls, window: Any, dim: Any, normalization: Any, decay: Any, precision: Any, compression: Any = None
    ) -> "WindowOptions":
        """From the arguments of a constructor."""
        window, dim = check.size("window", window), check.size("dim", dim)
        check.window_memory(window, dim)
        return cls(
            window,
            dim,
            check.choice("normalization", normalization, ("mean", "sum", "window")),
            check.fraction("decay", decay, "Pass 1.0 for no forgetting."),
            check.choice("precision", precision, ("default", "high")),
            check_compression(compression),
        )

    @property
    def decays_widely(self) -> bool:
        """Whether old rows count so little compared with new ones that products of both need float64."""
        return self.decay ** (self.window - 1) < NARROW_WEIGHTS

    def weights(self, count: int) -> np.ndarray:
        """decay^age of rows by age, oldest first."""
        if self.decay == 1:
            return np.ones(count)
        return np.maximum(self.decay ** np.arange(count - 1.0, -1.0, -1.0), LEAST_WEIGHT)

    def coefficients(self, ages: np.ndarray) -> np.ndarray:
        """c_i of each position, for positions listed by age, oldest first."""
        m = len(ages)
        c = np.empty(m)
        c[ages] = self.weights(m) / divisor_of(self.normalization, max(1, m), self.window)
        return c

    def as_dict(self) -> dict[str, Any]:
        """Numbers and words for a state dictionary, flat, without entries that are None."""
        compression = {} if self.compression is None else self.compression._as_dict()
        flat = {COMPRESSION + name: value for name, value in compression.items() if value is not None}
        return {name: getattr(self, name) for name in STATE_OPTIONS} | flat


def arguments_of(state: dict[str, Any]) -> dict[str, Any]:
    """What the constructor of a window is given for a state dictionary; one without compression may not say so."""
    compression = check.compression_of(state)
    options = {name: state[name] for name in STATE_OPTIONS}
    try:
        return options | {"compression": TopK(**compression) if compression else None}
    except (TypeError, ValueError) as refused:  # of `density`, which is compression.density here
        raise type(refused)(str(refused).replace("`", f"`{COMPRESSION}", 1)) from refused


def computing_dtype(options: WindowOptions, damping: Any, like: Array) -> Any:
    """The dtype that products of rows are computed in."""
    dtype = _backend.result_dtype(like)
    wide = options.precision == "high" or options.decays_widely or spans_widely(damping, dtype)
    if wide and _backend.supports_float64(like):
        return _backend.namespace(like).float64
    if _backend.is_vector(damping) and wide:
        refuse_span(damping)
    return dtype
