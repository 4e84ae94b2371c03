"""The library for PyTorch's models: rows of gradients, and pruning."""

from .gradients import gathered_gradients, iter_gradients, mean_gradients, per_sample_gradients
from .parameters import Unravel
from .pruning import prune_model

__all__ = ["Unravel", "gathered_gradients", "iter_gradients", "mean_gradients", "per_sample_gradients", "prune_model"]
