"""The library under JAX's transformations: the window, rows of gradients, and a transformation for Optax."""

from .gradients import iter_gradients, mean_gradients, per_sample_gradients
from .optimizer import scale_by_mfac
from .window import SlidingWindowState

__all__ = ["SlidingWindowState", "iter_gradients", "mean_gradients", "per_sample_gradients", "scale_by_mfac"]
