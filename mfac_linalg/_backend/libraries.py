"""The library of an array, by its class: each class is looked at once."""

from typing import Any

import array_api_compat as compat
import numpy as np

_LIBRARIES = {
    "torch": compat.is_torch_array,
    "jax": compat.is_jax_array,
    "dask": compat.is_dask_array,
    "cupy": compat.is_cupy_array,
}
_library_of: dict[type, str | None] = {}


def library(x: Any) -> str | None:
    """Return the name of the library of x; None for another one, and for what is no array."""
    if isinstance(x, np.ndarray):  # of any dtype, JAX's float0 too
        return "numpy"
    known = _library_of.get(type(x), "")
    if known == "":
        known = next((name for name, is_of_library in _LIBRARIES.items() if is_of_library(x)), None)
        _library_of[type(x)] = known
    return known


def is_torch(x: Any) -> bool:
    """Return whether x is a tensor of PyTorch."""
    return library(x) == "torch"


def is_jax(x: Any) -> bool:
    """Return whether x is an array of JAX, traced or not."""
    return library(x) == "jax"


def is_dask(x: Any) -> bool:
    """Return whether x is an array of Dask."""
    return library(x) == "dask"


def is_cupy(x: Any) -> bool:
    """Return whether x is an array of CuPy."""
    return library(x) == "cupy"
