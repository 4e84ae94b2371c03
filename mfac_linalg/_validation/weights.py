"""Checks of dampings and weights, which must be positive."""

import math
import numbers
from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import FLOATING, as_numpy, check_compatible, check_same_library, check_shape, check_values, refuse_masked
from .words import describe


def check_damping(damping: Any, like: Array, dtype: Any) -> Any:
    """Accept λ > 0 as a float (or a traced scalar, kept as an array), or a (d,) array, which is copied.

    Later calls use it, when the caller may have changed the original.
    """
    refuse_masked("damping", damping)
    is_number = isinstance(damping, numbers.Real) and not isinstance(damping, bool)
    if is_number or (_backend.is_array(damping) and damping.ndim == 0 and _backend.is_real(damping)):
        return _check_scalar_damping(damping, like)
    if not _backend.is_vector(damping):
        msg = f"`damping` must be a float > 0 or an array of shape ({like.shape[1]},); got {describe(damping)}. "
        raise TypeError(msg + "Pass λ itself, not its reciprocal.")
    damping = check_compatible("damping", damping, like, dtype)
    check_shape("damping", damping, (like.shape[1],), "Give one λ per parameter, or one float for all.")
    check_positive_entries("damping", damping)
    return _backend.copy_of(damping)


def check_block_damping(damping: Any, num_blocks: int, like: Array) -> Any:
    """Accept λ > 0 as a float, a (d,) array, or an array with one λ per block."""
    refuse_masked("damping", damping)
    dtype = _backend.result_dtype(like)
    if not (_backend.is_vector(damping) and tuple(damping.shape) == (num_blocks,)):
        return check_damping(damping, like, dtype)
    return check_damping(damping, _backend.empty((0, num_blocks), like=like, dtype=dtype), dtype)


def _check_scalar_damping(damping: Any, like: Array) -> Any:
    """Read the value where there is one; a scalar that is traced or differentiated stays an array."""
    if isinstance(damping, numbers.Real) or _backend.is_concrete(damping):
        try:
            value = float(damping if isinstance(damping, numbers.Real) else _backend.read(damping))
        except OverflowError:
            value = math.inf
        if not (math.isfinite(value) and value > 0):
            msg = f"`damping` must be finite and > 0; got {damping!r:.60}. Start from 1e-4 · mean(‖g‖²)/d if unsure."
            raise ValueError(msg)
        if isinstance(damping, numbers.Real) or not _backend.is_differentiated(damping):
            return value
    check_same_library("damping", damping, like)
    return _backend.copy_of(damping)


def check_scalar_damping(damping: Any, dim: int) -> float:
    """Accept λ > 0 as a float, or a (dim,) array of NumPy, before the library of the gradients is known."""
    return check_damping(damping, np.empty((0, dim)), np.dtype(float))


def check_dampings(dampings: Any, name: str = "dampings") -> np.ndarray:
    """Accept a non-empty sequence of floats > 0, as a float64 host array."""
    check_values(name, dampings)
    if _backend.is_array(dampings) and _backend.is_differentiated(dampings):
        msg = f"`{name}` must be constants of differentiation; got {describe(dampings)} that requires a gradient. "
        raise TypeError(msg + "Detach them, or build with a damping that has one.")
    values = _backend.read(dampings) if _backend.is_array(dampings) else as_numpy(name, dampings)
    is_listed = isinstance(dampings, list | tuple)
    if values.dtype.kind not in "fiu" or (is_listed and any(isinstance(x, bool | np.bool_) for x in dampings)):
        msg = f"`{name}` must be a sequence of floats > 0; got {describe(dampings)}. Convert them."
        raise TypeError(msg)
    if values.ndim != 1 or values.size == 0:
        msg = f"`{name}` must be a non-empty sequence of floats > 0; got {describe(dampings)}. Pass [x] for one."
        raise ValueError(msg)
    with np.errstate(over="ignore", under="ignore"):
        values = values.astype(np.float64)
    for value in values:
        if not (np.isfinite(value) and value > 0):
            msg = f"`{name}` must be finite and > 0; got {float(value)!r} among them. Remove it."
            raise ValueError(msg)
    return values


def check_weights(weights: Any, like: Array, num_gradients: int) -> Array | None:
    """Accept None or a (m,) array of finite weights > 0, which is copied."""
    if weights is None:
        return None
    if not _backend.is_array(weights):
        msg = f"`weights` must be an array of shape ({num_gradients},); got {describe(weights)}. Convert it first."
        raise TypeError(msg)
    refuse_masked("weights", weights)
    weights, like = _backend.evaluate_with_like(weights, "weights", like=like)
    check_same_library("weights", weights, like)
    if _backend.dtype_name(weights.dtype) not in FLOATING:
        msg = f"`weights` must be real floating; got {describe(weights)}. Cast it."
        raise TypeError(msg)
    check_shape("weights", weights, (num_gradients,), "Give one weight per gradient.")
    check_positive_entries("weights", weights)
    return _backend.copy_of(weights)


def check_positive_entries(name: str, x: Array) -> None:
    """Refuse a host array with an entry that is not finite and > 0; those on a device are read together in a build."""
    if not _backend.on_host(x):
        return
    with _backend.no_grad_constants(x):  # of a trace that it is a constant of
        is_bad = bool(_backend.read(has_bad_entry(x)))
    if is_bad:
        refuse_entries(name, x)


@_backend.in_plain_modes
def has_bad_entry(x: Array) -> Array:
    """1.0 where an entry is not finite and > 0, else 0.0, as a 0-d array of x's library."""
    xp = _backend.namespace(x)
    return xp.max(xp.where((x > 0) & (x < xp.inf), xp.zeros_like(x), xp.ones_like(x)))


def refuse_entries(name: str, x: Array) -> None:
    """Raise the error for an array with entries that are not finite and > 0."""
    msg = f"`{name}` must be finite and > 0 in every entry; got {describe(x)} with entries that are not. "
    raise ValueError(msg + "Raise them to the smallest value you can defend.")
