"""Checks of indices of parameters."""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .arrays import as_numpy, refuse_masked
from .words import describe

Array = Any


@_backend.in_plain_modes
def check_indices(name: str, j: Any, dim: int, *, like: Array) -> Array:
    """Accept an integer or integer array in [−d, d), as non-negative indices beside like."""
    if isinstance(j, bool) or (not isinstance(j, numbers.Integral | list | tuple) and not _backend.is_array(j)):
        msg = f"`{name}` must be an integer or an array of integers; got {describe(j)}. Round or cast it."
        raise TypeError(msg)
    refuse_masked(name, j)
    j = _backend.small(j)
    index = j if _backend.is_array(j) else as_numpy(name, j)
    if index.shape == (0,) and not _backend.is_array(j):
        index = index.astype(np.int64)
    if isinstance(index, np.ndarray) and index.dtype == object and all(isinstance(x, int) for x in index.flat):
        msg = f"`{name}` must be in [{-dim}, {dim}); got {describe(j)}. Indices count parameters, from 0."
        raise IndexError(msg)
    if not _backend.is_integer(index):
        msg = f"`{name}` must be an integer or an array of integers; got {describe(j)}. Round or cast it."
        raise TypeError(msg)
    if _backend.on_host(index) and 0 not in index.shape:
        values = _backend.read(index)
        if values.min() < -dim or values.max() >= dim:
            worst = values.min() if values.min() < -dim else values.max()
            msg = f"`{name}` must be in [{-dim}, {dim}); got {worst}. Indices count parameters, from 0."
            raise IndexError(msg)
    index = _backend.index_like(index, like=like)
    xp = _backend.namespace(index)
    return xp.where(index < 0, index + dim, index)


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
