"""The library for PyTorch's models: rows of gradients."""

from .gradients import gathered_gradients, iter_gradients, mean_gradients, per_sample_gradients
from .parameters import Unravel

__all__ = ["Unravel", "gathered_gradients", "iter_gradients", "mean_gradients", "per_sample_gradients"]
