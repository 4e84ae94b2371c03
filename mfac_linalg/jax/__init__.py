"""The window as a pytree, rows of gradients, and a transformation for Optax, for use under `jit` and `vmap`."""

from .._errors import not_installed

try:
    from .fisher import fisher_gradients
    from .gradients import iter_gradients, mean_gradients, per_sample_gradients
    from .optimizer import scale_by_mfac
    from .window import SlidingWindowState
except ModuleNotFoundError as missing:
    if missing.name != "jax":
        raise
    raise not_installed(what="mfac_linalg.jax", library="jax", extra="jax") from missing

__all__ = [
    "SlidingWindowState",
    "fisher_gradients",
    "iter_gradients",
    "mean_gradients",
    "per_sample_gradients",
    "scale_by_mfac",
]
