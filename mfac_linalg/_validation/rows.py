"""Checks of what a window takes in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import FLOATING, check_compatible, check_precision_available, check_same_library, refuse_masked
from .words import describe

SMALL = ("gram", "factor")  # float64, where the library has it
ON_HOST = ("slots", "ages", "exponents", "direction", "small.index", "small.values")


def check_place(xp: Any, dtype: Any, device: Any) -> Array:
    """Return an empty array of the library, dtype and device that a window is asked for."""
    library = np if xp is None else xp
    if not hasattr(library, "zeros"):
        msg = f"`xp` must be the module of an array library; got {describe(xp)}. Pass, for example, numpy or torch."
        raise TypeError(msg)
    try:
        if _backend.is_array(dtype):
            msg = "an array"
            raise TypeError(msg)
        like = _backend.empty_vector(library, dtype, device)
    except Exception as refused:  # every library has its own words for a dtype or a device that it does not have
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


def check_compute_place(xp: Any, dtype: str, device: Any, gradients: Any) -> Array:
    """Return an empty array of the library and on the device to compute with; of the gradients' own unless chosen."""
    if xp is None:
        xp = _backend.namespace(gradients) if _backend.is_array(gradients) else np
        if device is None and _backend.is_array(gradients):
            device = _backend.device(gradients)
    like = check_place(xp, "float32", device)
    if not _backend.offers_dtype(like, dtype):
        msg = f"`xp` must hold {dtype}, in which the answers are; got {describe(xp)}. Allow it there, or cast."
        raise TypeError(msg)
    if not _backend.is_concrete(like):
        msg = f"`device` must hold values; got {device!r}. Pass a device that computes."
        raise TypeError(msg)
    return check_place(xp, dtype, device)


def check_gradient_values(name: str, g: Any) -> None:
    """Accept an array of real floating numbers that has values now."""
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


def check_stored(name: str, g: Array, like: Array) -> Array:
    """Accept an array of like's library, device and dtype; a window of 16-bit rows takes no other dtype."""
    if not _backend.is_narrow(like):
        return check_compatible(name, g, like, like.dtype)
    check_same_library(name, g, like)
    if g.dtype != like.dtype:
        wanted = _backend.dtype_name(like.dtype)
        msg = f"`{name}` must have dtype {wanted}; got {describe(g)}. Cast it to {wanted}."
        raise TypeError(msg)
    return g


def check_loaded(arrays: dict[str, tuple[np.ndarray, str]], like: Array) -> dict[str, Array]:
    """Bring arrays from a file beside like: those of the small system where it lives, the others in their dtype."""
    placed = {}
    for name, (values, dtype) in arrays.items():
        if (
            _backend.is_on_disk(values) or name in ON_HOST or (name in SMALL and "slots" in arrays)
        ):  # all that is small in a window
            placed[name] = values
        elif name in SMALL:
            placed[name] = _backend.to_device_of(values, like=_backend.to_float64(like))
        else:
            placed[name] = _to_library(name, values, dtype, like)
    return placed


def check_loadable(facts: dict[str, Any], arrays: dict[str, tuple[np.ndarray, str]], like: Array) -> None:
    """Refuse a library or device that cannot hold what is stored: float64 arrays, its precision, its compression."""
    if facts.get("precision") == "high":
        check_precision_available("high", like)
    if compression_of(facts) is not None and not _backend.can_find_entries(like):
        msg = f"`device` must have 64-bit integers for a compressed window; got {_backend.device(like)}. Pass another."
        raise TypeError(msg)
    if facts.get("sparse") is not None and not _backend.has_sparse(like):
        msg = f"`xp` must be numpy or cupy for sparse gradients; got {type(like).__module__}. Leave it out."
        raise TypeError(msg)
    for name, (_, dtype) in arrays.items():
        if dtype == "float64" and name not in (*SMALL, *ON_HOST) and not _backend.offers_dtype(like, dtype):
            msg = f"`xp` must hold float64, of which the stored `{name}` is; got {type(like).__module__}. "
            raise TypeError(msg + "Allow float64 there, or pass another library, or none for NumPy.")


def _to_library(name: str, values: np.ndarray, dtype: str, like: Array) -> Array:
    try:
        return _backend.from_bits(values, dtype, like=like)
    except Exception as refused:  # every library has its own words for a dtype that it does not have
        msg = f"`xp` must hold {dtype}, of which the stored `{name}` is; got {type(like).__module__} ({refused}). "
        raise TypeError(msg + "Pass another library, or none for NumPy.") from refused


def compression_of(state: dict[str, Any]) -> Any:
    """The arguments of a window's TopK, which stand in a dictionary of their own or beside the rest; None without."""
    begin = "compression."
    beside = {name.removeprefix(begin): x for name, x in state.items() if str(name).startswith(begin)}
    return beside or state.get("compression")


def as_window_state(state: Any, on_host: tuple[str, ...]) -> dict[str, Any]:
    """A mapping as `state_dict` gives it: numbers and words as such, some arrays NumPy's, 16 bits with their dtype.

    What `numpy.savez` has written comes back as arrays without axes, and bfloat16 as two bytes.
    """
    if not isinstance(state, Mapping):
        msg = f"`state` must be a dictionary; got {describe(state)}. Pass what `state_dict` returned."
        raise TypeError(msg)
    return {name: _as_entry(name, state[name], to_host=name in on_host) for name in state}


def _as_entry(name: str, x: Any, *, to_host: bool) -> Any:
    if not _backend.is_array(x):
        return x
    x = _backend.unwrapped(x)
    if not _backend.is_concrete(x):
        msg = f"`state['{name}']` must have values now; got {describe(x)}, which has none. Pass what was saved."
        raise TypeError(msg)
    if not x.shape:
        return _backend.read(x).item()
    if _backend.is_numpy(x) and x.dtype.kind == "V" and x.dtype.itemsize == 2:
        return _backend.from_bits(x.view(np.uint16), "bfloat16", like=x)
    return _backend.native(_backend.read(x)) if to_host else x
