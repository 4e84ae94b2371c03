"""The library under JAX's transformations, and rows of gradients of JAX's functions."""

from .gradients import iter_gradients, mean_gradients, per_sample_gradients
from .window import SlidingWindowState

__all__ = ["SlidingWindowState", "iter_gradients", "mean_gradients", "per_sample_gradients"]
