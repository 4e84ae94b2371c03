"""Checks of all entries of a window's state dictionary before any are used."""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import FLOATING
from .entries import compression_of
from .memory import check_row_memory, check_window_memory
from .numbers import check_count, check_flag, check_fraction, check_size
from .window import check_gradient_values
from .words import describe

SMALL_NDIM = {"slots": 1, "ages": 1, "exponents": 1, "direction": 1, "gram": 2, "factor": 2}  # (m,) or (m, m)
PLACES, FLOATS = ("slots", "ages", "exponents"), ("direction", "gram", "factor")
NUMBERS = ("norm", "sharp", "factorizations")
COMPRESSION = ("density", "block_size", "dtype", "error_feedback")
LARGEST_ROW_EXPONENT = 2200  # of a row: twice what float64 has, for rows that were scaled twice
LARGEST_NORM = 1e154  # whose square is a float
DESCRIBED = "Pass what `state_dict` returned."


def check_window_state(state: Any, version: int, rules: tuple[str, ...]) -> None:
    """Accept a dictionary of `state_dict`: complete, with entries of the right types, in range, and consistent."""
    if not isinstance(state, dict):
        msg = f"`state` must be a dictionary; got {describe(state)}. {DESCRIBED}"
        raise TypeError(msg)
    given = state.get("version")
    if not isinstance(given, numbers.Integral) or given != version:
        msg = f"`state` must have version {version}; got {given!r:.60}. Use the library that wrote it."
        raise ValueError(msg)
    names = _row_names(state)
    needed = (*rules, "damping", *names)
    if missing := [name for name in needed if name not in state]:
        msg = f"`state` must hold {', '.join(missing)}; got {', '.join(map(str, state)):.200}. {DESCRIBED}"
        raise ValueError(msg)
    window, dim = check_size("window", state["window"]), check_size("dim", state["dim"])
    check_window_memory(window, dim)
    _check_compression(compression_of(state))
    if names:
        _check_rows(state, window, dim)
        _check_small(state, len(state["slots"]), window)
        _check_numbers(state)


def _row_names(state: dict[str, Any]) -> tuple[str, ...]:
    """The entries of a window with a dtype and a device, besides its options; () before its first gradient."""
    rows = ("values", "indices", "gradient_dtype") if compression_of(state) is not None else ("rows",)
    names = (*SMALL_NDIM, *NUMBERS)
    return (*rows, *names) if any(name in state for name in (*names, "rows", "values")) else ()


def _check_compression(compression: Any) -> None:
    """Accept None, or the arguments of `TopK`, which checks their values."""
    if compression is None:
        return
    if not isinstance(compression, dict) or set(compression) | {"dtype"} != set(COMPRESSION):
        names = ", ".join(f"compression.{name}" for name in COMPRESSION)
        msg = f"`state` must hold {names}, or none of them; got {compression!r:.100}. "
        raise ValueError(msg + DESCRIBED)
    check_fraction("compression.density", compression["density"], DESCRIBED)


def _check_rows(state: dict[str, Any], window: int, dim: int) -> None:
    """Accept rows (m, d), or the entries of compressed ones, (m, n), m ≤ window."""
    compression = compression_of(state)
    name = "rows" if compression is None else "values"
    rows = state[name]
    check_gradient_values(f"state['{name}']", rows)
    m = _length("slots", state["slots"])
    width = dim if compression is None else _check_entries(state, rows, compression)
    if tuple(rows.shape) != (m, width) or m > window:
        msg = (
            f"`state['{name}']` must have shape {(m, width)} for dim = {dim}, the {m} entries of `slots` and a window "
        )
        raise ValueError(msg + f"of {window}; got {describe(rows)}. Keep entries together.")
    itemsize = {"float64": 8, "float32": 4}.get(_backend.dtype_name(rows.dtype), 2)
    check_row_memory(window, rows.shape[1], itemsize)


def _check_entries(state: dict[str, Any], values: Array, compression: dict[str, Any]) -> int:
    """Accept the entries of compressed rows; return the number of values of a row."""
    dtype, stored, least = state["gradient_dtype"], compression.get("dtype"), compression["density"] * state["dim"]
    if not isinstance(dtype, str) or dtype not in FLOATING or _backend.dtype_name(values.dtype) != (stored or dtype):
        msg = f"`state['gradient_dtype']` must be one of {', '.join(FLOATING)}, that of `values` where TopK has none; "
        raise ValueError(msg + f"got {describe(dtype)} with {describe(values)}. {DESCRIBED}")
    if not _backend.is_array(state["indices"]):
        msg = f"`state['indices']` must be an array of 16-bit integers; got {describe(state['indices'])}. {DESCRIBED}"
        raise TypeError(msg)
    if values.ndim != 2 or values.shape[1] < least - 1:
        msg = f"`state['values']` must hold density · dim entries a row, {least:.0f}; got {describe(values)}. "
        raise ValueError(msg + "Keep entries together.")
    return values.shape[1]


def _length(name: str, x: Any) -> int:
    if not (_backend.is_numpy(x) and x.ndim == 1):
        msg = f"`state['{name}']` must be a NumPy array of one axis; got {describe(x)}. {DESCRIBED}"
        raise TypeError(msg)
    return len(x)


def _check_small(state: dict[str, Any], m: int, window: int) -> None:
    """Accept the small arrays: slots and ages of m rows, a Gram matrix, and a lower triangle."""
    for name, ndim in SMALL_NDIM.items():
        x, shape = state[name], (m,) * ndim
        kind, wanted = ("iu", "integers") if name in PLACES else ("f", "float64")
        if not _backend.is_numpy(x) or x.dtype.kind not in kind or (kind == "f" and x.dtype != np.float64):
            wanted = wanted if _backend.is_numpy(x) else f"a NumPy array of {wanted}"
            msg = f"`state['{name}']` must be {wanted}; got {describe(x)}. Keep it out of casts."
            raise TypeError(msg)
        if x.shape != shape:
            msg = f"`state['{name}']` must have shape {shape}; got {describe(x)}. Keep entries together."
            raise ValueError(msg)
        if kind == "f" and not np.all(np.isfinite(x)):
            msg = f"`state['{name}']` must be finite; got nan or infinity. It was changed."
            raise ValueError(msg)
    slots, ages, exponents = (state[name].tolist() for name in PLACES)
    if len(set(slots)) < m or not all(0 <= slot <= window for slot in slots) or sorted(ages) != list(range(m)):
        msg = f"`state['slots']` and `state['ages']` must place each of {m} rows once, in {window + 1} slots; "
        raise ValueError(msg + f"got {slots!r:.60} and {ages!r:.60}. They were changed.")
    if not all(abs(e) <= LARGEST_ROW_EXPONENT for e in exponents):
        msg = f"`state['exponents']` must be within ±{LARGEST_ROW_EXPONENT}; got {exponents!r:.60}. They were changed."
        raise ValueError(msg)
    if not is_gram(state["gram"]):
        msg = "`state['gram']` must be symmetric with a diagonal ≥ 0; got one that is not. It was changed."
        raise ValueError(msg)
    if not is_lower(state["factor"]):
        msg = "`state['factor']` must be lower triangular without zeros on its diagonal; got one that is not. "
        raise ValueError(msg + "It was changed.")


def _check_numbers(state: dict[str, Any]) -> None:
    norm = state["norm"]
    if isinstance(norm, bool) or not isinstance(norm, numbers.Real):
        msg = f"`state['norm']` must be a float; got {describe(norm)}. {DESCRIBED}"
        raise TypeError(msg)
    if not 0 <= norm <= LARGEST_NORM:  # type: ignore[operator]  # of a Real
        msg = f"`state['norm']` must be in [0, {LARGEST_NORM:.3g}]; got {norm!r:.60}. It was changed."
        raise ValueError(msg)
    check_flag("state['sharp']", bool(state["sharp"]) if isinstance(state["sharp"], np.bool_) else state["sharp"])
    check_count("state['factorizations']", state["factorizations"])


def is_gram(x: np.ndarray, tolerance: float = 1e-9) -> bool:
    """Whether a finite matrix is symmetric, to rounding, with a diagonal ≥ 0."""
    largest = float(np.max(np.abs(x), initial=0.0))
    return bool(np.all(np.abs(x - x.T) <= tolerance * largest) and np.all(np.diagonal(x) >= 0))


def is_lower(x: np.ndarray) -> bool:
    """Whether a matrix is lower triangular, with no zero on its diagonal."""
    return not np.any(np.triu(x, 1)) and bool(np.all(np.diagonal(x)))
