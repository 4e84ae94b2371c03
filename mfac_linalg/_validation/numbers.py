"""Checks of numbers, words and flags."""

import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import _backend
from .arrays import check_values
from .words import describe

DENSE_LIMIT = 16_384  # parameters; a (d, d) array of float64 is then 2 GB


def check_dense(dim: int) -> None:
    """Refuse a d × d array of unreasonable size."""
    if dim > DENSE_LIMIT:
        msg = f"`to_dense` must have d ≤ {DENSE_LIMIT}; got d = {dim}. Use `columns`, `submatrix` or `matmat`."
        raise ValueError(msg)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Accept one of a few words."""
    if not isinstance(value, str):
        msg = f"`{name}` must be one of {', '.join(map(repr, choices))}; got {describe(value)}. Pass the word."
        raise TypeError(msg)
    if value not in choices:
        msg = f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}. Check the spelling."
        raise ValueError(msg)
    return choices[choices.index(value)]  # a plain string, also of NumPy's or an enumeration's


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Accept True or False, and None if `optional`."""
    if not (isinstance(value, bool) or (optional and value is None)):
        wanted = "True, False or None" if optional else "True or False"
        msg = f"`{name}` must be {wanted}; got {describe(value)}. Pass a bool."
        raise TypeError(msg)


def check_pair(name: str, value: Any) -> tuple[Any, Any]:
    """Accept an item of `name`, a tuple or list of inputs and targets."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        given = f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else describe(value)
        msg = f"`{name}` must be pairs of inputs and targets; got {given}. Pass a list of (inputs, targets), or a "
        raise TypeError(msg + "DataLoader that yields them.")
    return value[0], value[1]


def check_count(name: str, value: Any) -> int:
    """Accept a whole number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        msg = f"`{name}` must be a whole number; got {describe(value)}. Pass an int."
        raise TypeError(msg)
    if value < 0:
        msg = f"`{name}` must be ≥ 0; got {value}. Pass how many are wanted."
        raise ValueError(msg)
    if int(value) > sys.maxsize:
        msg = f"`{name}` must be at most {sys.maxsize}; got {value!r:.60}. Pass a smaller number."
        raise ValueError(msg)
    return int(value)


def check_function(name: str, value: Any, cure: str, *, optional: bool = False) -> None:
    """Accept a callable, and None if `optional`."""
    if not (callable(value) or (optional and value is None)):
        msg = f"`{name}` must be a function; got {describe(value)}. {cure}"
        raise TypeError(msg)


def check_size(name: str, value: Any) -> int:
    """Accept an integer ≥ 1."""
    count = check_count(name, value)
    if count < 1:
        msg = f"`{name}` must be at least 1; got {describe(value)}. Pass how many there are."
        raise ValueError(msg)
    return count


def check_block_sizes(sizes: Any, dim: int, name: str = "block_sizes") -> tuple[int, ...]:
    """Accept a width for all blocks, the last one possibly narrower, or widths that add up to dim."""
    check_values(name, sizes)
    if getattr(sizes, "ndim", None) == 0:
        sizes = sizes.item()
    if isinstance(sizes, numbers.Integral):
        size = min(check_size(name, sizes), dim)
        rest = dim % size
        return (size,) * (dim // size) + ((rest,) if rest else ())
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        msg = f"`{name}` must be an integer or a sequence of integers; got {describe(sizes)}. Pass one of these."
        raise TypeError(msg)
    checked = tuple(check_size(name, size) for size in sizes)
    if sum(checked) != dim:
        msg = f"`{name}` must add up to d = {dim}; got {len(checked)} sizes of {sum(checked)} columns in all. "
        raise ValueError(msg + "Give every column its block.")
    return checked


def check_memory_limit(limit: Any, least: int) -> int:
    """Accept a number of bytes ≥ least."""
    limit = check_count("memory_limit", limit)
    if limit < least:
        msg = f"`memory_limit` must be at least {least:,} bytes for gradients of this shape; got {limit:,}. Raise it, "
        raise ValueError(msg + "or cut the gradients in blocks of columns.")
    return limit


def check_fraction(name: str, value: Any, cure: str) -> float:
    """Accept a float in (0, 1]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        msg = f"`{name}` must be a float in (0, 1]; got {describe(value)}. {cure}"
        raise TypeError(msg)
    if not (0 < value <= 1 and float(value)):  # type: ignore[operator]  # of a Real; some round to zero
        msg = f"`{name}` must be in (0, 1]; got {describe(value)}. {cure}"
        raise ValueError(msg)
    return float(value)


def check_nonnegative(name: str, value: Any, cure: str) -> float:
    """Accept a finite float ≥ 0."""
    number = _as_float(name, value, "≥ 0", cure)
    if not 0 <= number < math.inf:
        msg = f"`{name}` must be finite and ≥ 0; got {describe(value)}. {cure}"
        raise ValueError(msg)
    return number


def check_positive(name: str, value: Any, cure: str) -> float:
    """Accept a finite float > 0, also as an array without axes."""
    check_values(name, value)
    if _backend.is_array(value) and value.ndim == 0:
        value = _backend.read(value).item()
    number = _as_float(name, value, "> 0", cure)
    if not 0 < number < math.inf:
        msg = f"`{name}` must be finite and > 0; got {describe(value)}. {cure}"
        raise ValueError(msg)
    return number


def _as_float(name: str, value: Any, wanted: str, cure: str) -> float:
    """A real number as a float, infinite for a large int."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        msg = f"`{name}` must be a float {wanted}; got {describe(value)}. {cure}"
        raise TypeError(msg)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_age(age: Any, count: int) -> int:
    """Accept the age of a stored gradient, from 0 for the oldest; negative ones count from the newest."""
    if isinstance(age, bool | np.bool_) or not isinstance(age, numbers.Integral):
        msg = f"`age` must be an integer; got {describe(age)}. Pass 0 for the oldest gradient, -1 for the newest."
        raise TypeError(msg)
    if not -count <= int(age) < count:
        msg = f"`age` must be in [-{count}, {count}); got {age}. The window holds {count} gradients."
        raise IndexError(msg)
    return int(age) % count
