"""Entries of state dictionaries and files: converted to plain numbers and arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _backend
from .words import describe


def compression_of(state: dict[str, Any]) -> Any:
    """The arguments of a window's TopK, from a dictionary of their own or from dotted keys; None without TopK."""
    prefix = "compression."
    dotted = {name.removeprefix(prefix): x for name, x in state.items() if str(name).startswith(prefix)}
    return dotted or state.get("compression")


def as_window_state(state: Any, on_host: tuple[str, ...]) -> dict[str, Any]:
    """A mapping with the entries of `state_dict`: plain numbers and strings, small arrays of NumPy, 16-bit dtypes.

    `numpy.savez` turns numbers into arrays without axes, and bfloat16 into two bytes.
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
