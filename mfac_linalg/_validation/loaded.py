"""Arrays of a file in the library and on the device that they are loaded to, and whether these can store them."""

from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import check_precision_available
from .entries import compression_of

SMALL_MATRICES = ("gram", "factor")  # float64, where the library has it
ON_HOST = ("slots", "ages", "exponents", "direction", "small.index", "small.values")


def as_library_arrays(arrays: dict[str, tuple[np.ndarray, str]], like: Array) -> dict[str, Array]:
    """Convert arrays of a file to like's library and device; those of the small system go where that is."""
    converted = {}
    for name, (values, dtype) in arrays.items():
        of_window = name in SMALL_MATRICES and "slots" in arrays  # its small arrays are on the host
        if _backend.is_on_disk(values) or name in ON_HOST or of_window:
            converted[name] = values
        elif name in SMALL_MATRICES:
            converted[name] = _backend.to_device_of(values, like=_backend.to_float64(like))
        else:
            converted[name] = _as_library_array(name, values, dtype, like)
    return converted


def check_loadable(facts: dict[str, Any], arrays: dict[str, tuple[np.ndarray, str]], like: Array) -> None:
    """Refuse a library or device without what an inverse needs: float64, its precision, its compression."""
    if facts.get("precision") == "high":
        check_precision_available("high", like)
    if compression_of(facts) is not None and not _backend.can_find_entries(like):
        msg = f"`device` must have 64-bit integers for a compressed window; got {_backend.device(like)}. Pass another."
        raise TypeError(msg)
    if facts.get("sparse") is not None and not _backend.has_sparse(like):
        msg = f"`xp` must be numpy or cupy for sparse gradients; got {type(like).__module__}. Leave it out."
        raise TypeError(msg)
    for name, (_, dtype) in arrays.items():
        if dtype == "float64" and name not in (*SMALL_MATRICES, *ON_HOST) and not _backend.offers_dtype(like, dtype):
            msg = f"`xp` must have float64, the dtype of the stored `{name}`; got {type(like).__module__}. "
            raise TypeError(msg + "Allow float64 there, or pass another library, or none for NumPy.")


def _as_library_array(name: str, values: np.ndarray, dtype: str, like: Array) -> Array:
    try:
        return _backend.from_bits(values, dtype, like=like)
    except Exception as refused:  # each library has its own exception for an unknown dtype
        msg = f"`xp` must have {dtype}, the dtype of the stored `{name}`; got {type(like).__module__} ({refused}). "
        raise TypeError(msg + "Pass another library, or none for NumPy.") from refused
