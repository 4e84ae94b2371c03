"""Rows of gradients, pruning and an optimizer for models of PyTorch."""

from .._errors import not_installed

try:
    from .factored import factored_gradients
    from .fisher import fisher_gradients
    from .gradients import gathered_gradients, iter_gradients, mean_gradients, per_sample_gradients
    from .optimizer import MFAC
    from .parameters import Unravel
    from .pruning import prune_model
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise not_installed(what="mfac_linalg.torch", library="torch", extra="torch") from missing

__all__ = [
    "MFAC",
    "Unravel",
    "factored_gradients",
    "fisher_gradients",
    "gathered_gradients",
    "iter_gradients",
    "mean_gradients",
    "per_sample_gradients",
    "prune_model",
]
