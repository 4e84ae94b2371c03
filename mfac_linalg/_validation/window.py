"""Checks of the gradients that a window receives."""

from typing import Any

from .. import _backend
from .._typing import Array
from .arrays import FLOATING, check_compatible, check_same_library, refuse_masked
from .words import describe


def check_gradient_values(name: str, g: Any) -> None:
    """Accept a floating array whose values can be read."""
    refuse_masked(name, g)
    if not _backend.is_array(g) or not _backend.is_supported(g):
        msg = f"`{name}` must be an array in memory, of an array-API library; got {type(g).__name__}. Convert it first."
        raise TypeError(msg)
    if _backend.dtype_name(g.dtype) not in FLOATING:
        msg = f"`{name}` must be float16, bfloat16, float32 or float64; got {describe(g)}. Cast it."
        raise TypeError(msg)
    if not _backend.is_concrete(g):
        msg = f"`{name}` must have values now; got {describe(g)}, which is traced. "
        raise TypeError(msg + "Under jit use mfac_linalg.jax.SlidingWindowState.")


def as_window_dtype(name: str, g: Array, like: Array) -> Array:
    """Return an array of like's library and device in its dtype; for 16-bit rows it must have that dtype."""
    if not _backend.is_narrow(like):
        return check_compatible(name, g, like, like.dtype)
    check_same_library(name, g, like)
    if g.dtype != like.dtype:
        wanted = _backend.dtype_name(like.dtype)
        msg = f"`{name}` must have dtype {wanted}; got {describe(g)}. Cast it to {wanted}."
        raise TypeError(msg)
    return g
