"""Exponents of arrays, and scaling by powers of two, which is exact."""

import math
from typing import Any

import numpy as np

from .. import _backend
from .._errors import refuse_nonfinite_values
from .._typing import Array

_REACH = {"float32": 126, "float64": 1022}  # 2^±reach is a normal number


def exponent(x: Array, *, axis: int | None = None) -> Any:
    """Return e with max|x| in [2^(e−1), 2^e), 1 where that is zero or not finite, as an array of integers."""
    xp = _backend.namespace(x)
    if x.shape[:1] == (0,):  # the rows of an empty window
        return _backend.zeros(x.shape[1:], like=x, dtype=_backend.index_dtype(x))
    return exponents(_backend.stop_gradient(xp.max(xp.abs(x), axis=axis)))


def exponents(largest: Array) -> Array:
    """Return e with each entry ≥ 0 in [2^(e−1), 2^e), 1 where that is zero or not finite."""
    xp = _backend.namespace(largest)
    usable = (largest > 0) & (largest < xp.inf)
    largest = xp.where(usable, largest, xp.ones_like(largest))
    power = xp.astype(xp.floor(xp.log2(largest)), _backend.index_dtype(largest)) + 1
    overshot = ldexp(xp.ones_like(largest), power - 1) > largest  # log2 rounds up just below a power of two
    return power - xp.astype(overshot, power.dtype)


def squares_in_safe_range(squares: Any, dtype: Any) -> Any:
    """Whether sums of squares of this size are neither overflowed nor partly underflowed; never in float16."""
    reach = 2.0 ** {"float64": 600, "float16": 0}.get(_backend.dtype_name(dtype), 80)
    return (squares > 1 / reach) & (squares < reach)


def column_exponents(v: Array, name: str, *, reach: int | None = None) -> Any:
    """Return the exponent of each column of v, or plain 0 where every norm is within 2^±reach.

    `reach` is a third of the exponents of v's dtype unless given. Only columns on the host are compared with it; on a
    device their exponents stay there.
    """
    if not _backend.on_host(v):
        return exponent(v, axis=0)
    largest = 4.0 ** (_REACH[_backend.dtype_name(v.dtype)] // 3 if reach is None else reach)
    squares = _backend.read(_backend.column_squares(_backend.stop_gradient(v)))
    if ((squares > v.shape[0] / largest) & (squares < largest)).all():
        return 0
    xp = _backend.namespace(v)
    if not np.all(_backend.read(xp.all(xp.isfinite(v)))):
        refuse_nonfinite_values(name)
    return exponent(v, axis=0)


def ldexp(x: Array, power: Any) -> Array:
    """Return x · 2^power, exactly unless the result leaves the normal range; power is an int or an integer array."""
    if isinstance(power, int):
        return _ldexp_int(x, power)
    return _backend.times_power(x, power, _REACH[_backend.dtype_name(x.dtype)])


def _ldexp_int(x: Array, power: int) -> Array:
    reach = _REACH[_backend.dtype_name(x.dtype)]
    power = max(-3 * reach, min(3 * reach, power))
    while power:
        step = max(-reach, min(reach, power))
        x, power = x * 2.0**step, power - step
    return x


def mantissa(x: Any) -> tuple[Any, Any]:
    """Return (f, e) with x = f · 2^e and |f| in [1/2, 1) for a Python float or a 0-d float64 array."""
    if isinstance(x, float):
        return math.frexp(x)
    power = exponent(x)
    return ldexp(x, -power), power
