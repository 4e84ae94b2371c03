"""Some entries of each row, by the numbers of their columns: chosen, gathered and scattered as each library does it.

`index` (m, n) holds integers that rise along each row, `values` (m, n) what stands there.
"""

import sys
from typing import Any

import numpy as np

from .._typing import Array
from .kinds import has_int64, index_dtype, is_numpy, is_writable, namespace, supports_float64
from .lazy import is_lazy
from .libraries import is_cupy, is_jax, is_torch
from .memory import copy_of
from .sparse import compressed_rows
from .values import asarray, cast, index_like, read, zeros

TERMS = 128  # of one sum in float64


def largest_entries(x: Array, count: int) -> Array:
    """Return the columns of the `count` entries of largest magnitude in each row of x, rising, (m, count)."""
    xp, rest = namespace(x), x.shape[1] - count
    size = xp.abs(x)
    if is_numpy(x):
        chosen = np.argpartition(size, rest, axis=1)[:, rest:] if rest else np.argsort(size, axis=1)
    elif is_torch(x):
        chosen = sys.modules["torch"].topk(size, count, dim=1, sorted=False).indices
    elif is_jax(x):
        chosen = sys.modules["jax"].lax.top_k(size, count)[1]
    elif is_cupy(x):
        chosen = sys.modules["cupy"].argpartition(size, rest, axis=1)[:, rest:] if rest else xp.argsort(size, axis=1)
    else:
        chosen = xp.argsort(size, axis=1)[:, rest:]
    return xp.sort(chosen, axis=1)


def narrow_index(index: Array) -> Array:
    """Return integers below 2^16 in 16 bits."""
    return cast(index, namespace(index).uint16)


def wide_index(index: Array, starts: np.ndarray | int) -> Array:
    """Return 16-bit integers, plus an integer for all or one for each column, in a dtype to index with."""
    if is_numpy(index):
        wide = index.astype(np.int32)  # which SciPy's products take as they are
        wide += starts
        return wide
    wide = cast(index, index_dtype(index))
    return wide + (starts if isinstance(starts, int) else index_like(starts, like=index)[None, :])


def can_find_entries(x: Array) -> bool:
    """Return whether entries of arrays like x can be chosen and looked up, which takes 64-bit integers."""
    return _is_known(x) or has_int64(x)


def can_scatter(x: Array) -> bool:
    """Return whether `scattered_product` serves arrays like x, in float64."""
    return _is_known(x) and supports_float64(x)


def _is_known(x: Array) -> bool:
    return is_numpy(x) or is_torch(x) or is_jax(x) or is_cupy(x)


def can_multiply_sparse(x: Array) -> bool:
    """Return whether `sparse_rows` serves arrays like x."""
    return is_numpy(x)


def gathered_product(index: Array, values: Array, v: Array) -> Array:
    """Return Σ_e values[i, e] v[index[i, e], :], (m, k), for v (w, k): rows times v, in the dtype of both."""
    m, n = index.shape
    if is_numpy(v):  # rows in pieces, since the products of one row are added one after the other
        starts = np.arange(0, n, TERMS)
        ends = np.append(np.arange(m)[:, None] * n + starts, m * n)
        pieces = _csr(index, values, ends, v.shape[0]) @ v
        return pieces.reshape(m, len(starts), v.shape[1]).sum(axis=1)
    xp = namespace(v)
    gathered = xp.reshape(xp.take(v, xp.reshape(index, (-1,)), axis=0), (m, n, v.shape[1]))
    return xp.sum(values[:, :, None] * gathered, axis=1)


def scattered_product(index: Array, values: Array, a: Array, width: int) -> Array:
    """Return Σ_i Σ_e values[i, e] a[i, :] at index[i, e], (width, k), for a (m, k): the transposed rows times a."""
    m, n = index.shape
    if is_numpy(a):
        return sparse_rows(index, values, width).T @ a
    xp = namespace(a)
    parts = xp.reshape(values[:, :, None] * a[:, None, :], (m * n, a.shape[1]))
    total, place = zeros((width, a.shape[1]), like=a, dtype=a.dtype), xp.reshape(index, (-1,))
    if is_torch(a):
        return total.index_add(0, place, parts)
    if is_jax(a):
        return total.at[place].add(parts)
    sys.modules["cupy"].add.at(total, place, parts)
    return total


def sparse_rows(index: Array, values: Array, width: int) -> Any:
    """Return the entries as a sparse matrix (m, width), for NumPy's."""
    return _csr(index, values, np.arange(len(index) + 1) * index.shape[1], width)


def _csr(index: np.ndarray, values: np.ndarray, ends: np.ndarray, width: int) -> Any:
    """A sparse matrix of NumPy's entries, cut into rows at `ends`; nothing is copied for 32-bit integers throughout."""
    shape = (len(ends) - 1, width)
    return compressed_rows(values.reshape(-1), index.reshape(-1), ends.astype(np.int32), shape=shape)


def spread(index: Array, values: Array, width: int) -> Array:
    """Return a dense (m, width) of the entries whose columns are in [0, width)."""
    xp, m = namespace(values), index.shape[0]
    if not m:
        return zeros((0, width), like=values, dtype=values.dtype)
    place = xp.clip(index, -1, width) + 1  # what is outside goes to a column before or after
    if is_numpy(values) or (is_writable(values) and (is_torch(values) or is_cupy(values))):
        dense = zeros((m, width + 2), like=values, dtype=values.dtype)
        dense[index_like(np.arange(m), like=values)[:, None], place] = values
    elif is_jax(values):
        dense = xp.zeros((m, width + 2), dtype=values.dtype).at[np.arange(m)[:, None], place].set(values)
    else:
        keys = xp.reshape(place + index_like(np.arange(m)[:, None] * (width + 2), like=values), (-1,))
        wanted = index_like(np.arange(m * (width + 2)), like=values)
        dense = xp.reshape(look_up(keys, xp.reshape(values, (-1,)), wanted), (m, width + 2))
    inner = dense[:, 1:-1]
    return np.ascontiguousarray(inner) if is_numpy(inner) else inner


def look_up(keys: Array, values: Array, wanted: Array) -> Array:
    """Return the value of each wanted key, (w,), 0 where it is not among the rising keys (n,)."""
    xp = namespace(values)
    at = xp.clip(xp.searchsorted(keys, wanted), 0, keys.shape[0] - 1)
    found = xp.take(values, at)
    return xp.where(xp.take(keys, at) == wanted, found, xp.zeros_like(found))


def replace_entries(x: Array, index: Array, values: Array) -> Array:
    """Return a copy of x (d,) with x[index] = values for a rising index."""
    if is_numpy(x) or (is_writable(x) and (is_torch(x) or is_cupy(x))):
        updated = copy_of(x)
        updated[index] = values
        return updated
    xp = namespace(x)
    if is_lazy(x):  # its indices are on the host
        there, whole = np.zeros(x.shape, dtype=bool), np.zeros(x.shape, dtype=values.dtype)
        there[read(index)], whole[read(index)] = True, read(values)
        return xp.where(asarray(there, like=x), asarray(whole, like=x), x)
    positions = asarray(np.arange(x.shape[0]), like=x, dtype=index.dtype)
    place = xp.clip(xp.searchsorted(index, positions), 0, index.shape[0] - 1)
    return xp.where(xp.take(index, place) == positions, xp.take(values, place), x)
