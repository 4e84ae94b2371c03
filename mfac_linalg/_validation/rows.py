"""Checks of what a window takes in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _backend
from .arrays import FLOATING, check_beside, check_same_library, refuse_masked
from .words import describe

Array = Any
SMALL = ("gram", "factor")  # float64, where the library has it
ON_HOST = ("slots", "ages", "exponents", "direction", "small.index", "small.values")


def check_place(xp: Any, dtype: Any, device: Any) -> Array:
    """Return an empty array of the library, dtype and device that a window is asked for."""
    library = np if xp is None else xp
    if not hasattr(library, "zeros"):
        msg = f"`xp` must be the module of an array library; got {describe(xp)}. Pass, for example, numpy or torch."
        raise TypeError(msg)
    try:
        like = _backend.empty_vector(library, dtype, device)
    except Exception as refused:  # every library has its own words for a dtype or a device that it does not have
        msg = f"`dtype` and `device` must be of `xp`; got {dtype!r} and {device!r} ({refused}). Pass its own objects."
        raise TypeError(msg) from refused
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
        msg = f"`{name}` must have values now; got a traced {describe(g)}. "
        raise TypeError(msg + "Under jit use mfac_linalg.jax.SlidingWindowState.")


def check_stored(name: str, g: Array, like: Array) -> Array:
    """Accept an array of like's library, device and dtype; a window of 16-bit rows takes no other dtype."""
    if not _backend.is_narrow(like):
        return check_beside(name, g, like, like.dtype)
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
            placed[name] = _backend.beside(values, like=_backend.to_float64(like))
        else:
            placed[name] = _beside(name, values, dtype, like)
    return placed


def check_loadable(arrays: dict[str, tuple[np.ndarray, str]], like: Array) -> None:
    """Refuse float64 arrays for a library that would make them float32."""
    for name, (_, dtype) in arrays.items():
        if dtype == "float64" and name not in (*SMALL, *ON_HOST) and not _backend.offers_dtype(like, dtype):
            msg = f"`xp` must hold float64, of which the stored `{name}` is; got {type(like).__module__}. "
            raise TypeError(msg + "Allow float64 there, or pass another library, or none for NumPy.")


def _beside(name: str, values: np.ndarray, dtype: str, like: Array) -> Array:
    try:
        return _backend.from_raw(values, dtype, like=like)
    except Exception as refused:  # every library has its own words for a dtype that it does not have
        msg = f"`xp` must hold {dtype}, of which the stored `{name}` is; got {type(like).__module__} ({refused}). "
        raise TypeError(msg + "Pass another library, or none for NumPy.") from refused


def as_window_state(state: Any, on_host: tuple[str, ...]) -> dict[str, Any]:
    """A mapping as `state_dict` gives it: numbers and words as such, some arrays NumPy's, 16 bits with their dtype.

    What `numpy.savez` has written comes back as arrays without axes, and bfloat16 as two bytes.
    """
    if not isinstance(state, Mapping):
        msg = f"`state` must be a dictionary; got {describe(state)}. Pass what `state_dict` returned."
        raise TypeError(msg)
    return {name: _as_entry(state[name], to_host=name in on_host) for name in state}


def _as_entry(x: Any, *, to_host: bool) -> Any:
    if not _backend.is_array(x):
        return x
    if not x.shape:
        return _backend.read(x).item()
    if _backend.is_numpy(x) and x.dtype.kind == "V" and x.dtype.itemsize == 2:
        return _backend.from_raw(x.view(np.uint16), "bfloat16", like=x)
    return _backend.read(x) if to_host else x


def check_window_state(state: dict[str, Any], version: int, rules: tuple[str, ...]) -> None:
    """Accept what `state_dict` gives: every entry there, shapes that fit together, the small arrays in float64."""
    if state.get("version") != version:
        msg = f"`state` must have version {version}; got {state.get('version')!r}. Use the library that wrote it."
        raise ValueError(msg)
    small = {"slots": 1, "ages": 1, "exponents": 1, "direction": 1, "gram": 2, "factor": 2}
    is_compressed = "compression.density" in state
    rows = ("values", "indices", "gradient_dtype") if is_compressed else ("rows",)
    held = (*small, *rows, "norm", "sharp", "factorizations") if "rows" in state or "values" in state else ()
    needed = (*rules, "damping", *held)
    if missing := [name for name in needed if name not in state]:
        msg = f"`state` must hold {', '.join(missing)}; got {sorted(state)}. Pass what `state_dict` returned."
        raise ValueError(msg)
    if not held:
        return
    check_gradient_values(f"state['{rows[0]}']", state[rows[0]])
    m = len(np.atleast_1d(state["slots"]))
    shapes: dict[str, tuple[int, ...]] = {name: (m,) * ndim for name, ndim in small.items()}
    if "rows" in rows:
        shapes["rows"] = (m, state["dim"])
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            msg = f"`state['{name}']` must have shape {shape}; got {describe(state[name])}. Keep entries together."
            raise ValueError(msg)
    for name in ("gram", "factor", "direction"):
        if state[name].dtype != np.float64:
            msg = f"`state['{name}']` must be float64; got {describe(state[name])}. Keep it out of casts."
            raise TypeError(msg)
    slots, ages = sorted(np.array(state["slots"]).tolist()), sorted(np.array(state["ages"]).tolist())
    if len(set(slots)) < m or not all(0 <= slot <= state["window"] for slot in slots) or ages != list(range(m)):
        msg = f"`state` must place each of its {m} rows once; got slots {slots} and ages {ages}. It was changed."
        raise ValueError(msg)
