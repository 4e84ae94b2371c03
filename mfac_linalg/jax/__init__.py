"""The library under JAX's transformations: the window, rows of gradients, and a transformation for Optax."""

from .fisher import fisher_gradients
from .gradients import iter_gradients, mean_gradients, per_sample_gradients
from .optimizer import scale_by_mfac
from .window import SlidingWindowState

__all__ = [
    "SlidingWindowState",
    "fisher_gradients",
    "iter_gradients",
    "mean_gradients",
    "per_sample_gradients",
    "scale_by_mfac",
]
