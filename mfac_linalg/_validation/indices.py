"""Checks of indices of parameters."""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array
from .arrays import as_numpy, check_same_library, refuse_masked
from .words import describe


def check_indices(name: str, j: Any, dim: int, *, like: Array) -> Array:
    """Accept an integer or integer array in [−d, d), as non-negative indices on like's device, in a dtype for d.

    Indices on the host may be of any library. On a device, or traced, they must be of like's and are not read.
    """
    if type(j) is int and -dim <= j < dim:
        return _backend.index_like(np.asarray(j if j >= 0 else j + dim), like=like)
    if isinstance(j, bool) or (not isinstance(j, numbers.Integral | list | tuple) and not _backend.is_array(j)):
        _refuse_kind(name, j)
    refuse_masked(name, j)
    j = _backend.evaluate(j)
    index = j if _backend.is_array(j) else _listed(name, j)
    if isinstance(index, np.ndarray) and index.dtype == object:
        outside = [x for x in index.flat if isinstance(x, numbers.Integral) and not -dim <= int(x) < dim]
        if outside:
            _refuse_outside(name, outside[0], dim)
        _refuse_kind(name, j)
    if not _backend.is_integer(index):
        _refuse_kind(name, j)
    if not _backend.on_host(index):
        check_same_library(name, index, like)
        index = _backend.cast(index, _backend.index_dtype(like))
        return _counted_from_start(index, dim)
    values = _backend.read(index)
    values = values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)
    if values.size and (values.min() < -dim or values.max() >= dim):
        _refuse_outside(name, values.min() if values.min() < -dim else values.max(), dim)
    values = values.astype(np.int64)
    return _backend.index_like(np.where(values < 0, values + dim, values), like=like)


@_backend.in_plain_modes
def _counted_from_start(index: Array, dim: int) -> Array:
    """Indices in [0, d) for those in [−d, d)."""
    return _backend.namespace(index).where(index < 0, index + dim, index)


def _listed(name: str, j: Any) -> np.ndarray:
    """An integer, or lists of them, as an array; an object array for integers of more than 64 bits."""
    index = as_numpy(name, j)
    if not index.size:
        return index.astype(np.int64)
    values = np.asarray(j, dtype=object)
    if any(isinstance(x, bool | np.bool_) for x in values.flat):
        _refuse_kind(name, j)
    return values if index.dtype.kind in "fO" and all(isinstance(x, numbers.Integral) for x in values.flat) else index


def _refuse_kind(name: str, j: Any) -> None:
    msg = f"`{name}` must be an integer or an array of integers; got {describe(j)}. Round or cast it."
    raise TypeError(msg)


def _refuse_outside(name: str, worst: Any, dim: int) -> None:
    msg = f"`{name}` must be in [{-dim}, {dim}); got {worst}. Indices count parameters, from 0."
    raise IndexError(msg)


def check_vector_of_indices(name: str, j: Any, dim: int, *, like: Array) -> Array:
    """Accept a (k,) list or array of indices."""
    index = check_indices(name, j, dim, like=like)
    if index.ndim != 1:
        msg = f"`{name}` must have shape (k,); got shape {tuple(index.shape)}. Pass [j] for one index."
        raise ValueError(msg)
    return index


def broadcast_indices(i: Array, j: Array) -> tuple[Array, Array]:
    """Broadcast two index arrays against each other."""
    try:
        shape = np.broadcast_shapes(tuple(i.shape), tuple(j.shape))
    except ValueError as mismatch:
        msg = f"`i` and `j` must broadcast; got shapes {tuple(i.shape)} and {tuple(j.shape)}. Add axes with [:, None]."
        raise ValueError(msg) from mismatch
    xp = _backend.namespace(i)
    return xp.broadcast_to(i, shape), xp.broadcast_to(j, shape)
