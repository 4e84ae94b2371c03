"""The library under JAX's transformations."""

from .window import SlidingWindowState

__all__ = ["SlidingWindowState"]
