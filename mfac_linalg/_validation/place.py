"""Arrays that stand for the place of a computation: the library, device and dtype that a user chooses."""

from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import FLOATING
from .words import describe


def as_empty_array(xp: Any, dtype: Any, device: Any) -> Array:
    """Return an empty array of a library, in a dtype, on a device; of NumPy for None."""
    library = np if xp is None else xp
    if not hasattr(library, "zeros"):
        msg = f"`xp` must be the module of an array library; got {describe(xp)}. Pass, for example, numpy or torch."
        raise TypeError(msg)
    try:
        if _backend.is_array(dtype):
            msg = "an array"
            raise TypeError(msg)
        like = _backend.empty_vector(library, dtype, device)
    except Exception as refused:  # each library has its own exception for an unknown dtype or device
        msg = f"`dtype` and `device` must be of `xp`; got {describe(dtype)} and {device!r:.60} ({refused}). "
        raise TypeError(msg + "Pass its own objects.") from refused
    if _backend.is_lazy(like):
        msg = f"`xp` must hold its arrays in memory; got {describe(xp)}. Pass numpy, or Dask's array as `gradients`."
        raise TypeError(msg)
    if not (_backend.is_concrete(like) or _backend.is_traced(like)):
        msg = f"`device` must hold values; got {_backend.device(like)}. Pass a device that computes."
        raise TypeError(msg)
    if _backend.dtype_name(like.dtype) not in FLOATING:
        msg = f"`dtype` must be float16, bfloat16, float32 or float64; got {dtype!r}. Pass one of these."
        raise TypeError(msg)
    return like


def as_compute_array(xp: Any, dtype: str, device: Any, gradients: Any) -> Array:
    """Return an empty array of the library and on the device of a computation; by default those of the gradients."""
    if xp is None:
        xp = _backend.namespace(gradients) if _backend.is_array(gradients) else np
        if device is None and _backend.is_array(gradients):
            device = _backend.device(gradients)
    like = as_empty_array(xp, "float32", device)
    if not _backend.offers_dtype(like, dtype):
        msg = f"`xp` must have {dtype}, the dtype of the results; got {describe(xp)}. Allow it there, or cast."
        raise TypeError(msg)
    if not _backend.is_concrete(like):
        msg = f"`device` must hold values; got {device!r}. Pass a device that computes."
        raise TypeError(msg)
    return as_empty_array(xp, dtype, device)
