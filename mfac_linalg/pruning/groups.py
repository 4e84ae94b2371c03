"""Solve with the diagonal blocks [F⁻¹]_QQ of groups of weights that are removed together.

All in the coordinates in which Λ is the identity, where F⁻¹ is M and w is z. The eigenvalues of a block of M are within
[1/κ, 1], κ ≤ 1 + ‖S‖²_F, and computed ones are clipped to it, so that no score is negative or unbounded by rounding.
"""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse, check_inverse
from .._rows.panels import slices
from .._scaling.powers_of_two import exponents, ldexp
from .._scaling.sqrt_damping import scalar_like
from .._typing import Array

ENTRIES_AT_A_TIME = 2**22  # of M


def check_weights(weights: Any, inverse: Any) -> Array:
    """Accept a finite vector of weights of an inverse's library, device and dtype."""
    check_inverse(inverse)
    w = check.vector("weights", weights, inverse._like, inverse.dtype, inverse.dim)
    check.finite("weights", w)
    return w


def check_groups(groups: Any, inverse: Inverse) -> Array:
    """Accept the indices of each group, (k, B), or a size B for runs of B neighbours; return (k, B)."""
    dim = inverse.dim
    if _backend.is_array(groups) and groups.ndim == 0 and _backend.on_host(groups) and _backend.is_integer(groups):
        groups = int(_backend.read(groups))
    if isinstance(groups, numbers.Integral):
        size = check.size("groups", groups)
        if dim % size:
            msg = f"`groups` must divide d = {dim}; got {size}. Pass the indices of each group, shape (k, B)."
            raise ValueError(msg)
        groups = np.arange(dim).reshape(-1, size)
    index = check.indices("groups", groups, dim, like=inverse._like)
    if index.ndim != 2 or 0 in index.shape:
        msg = f"`groups` must be B or have shape (k, B), none empty; got {check.describe(groups)}. Reshape it."
        raise ValueError(msg)
    if _backend.on_host(index):
        values = np.sort(_backend.read(index), axis=None)
        if np.any(values[1:] == values[:-1]):
            repeated = int(values[1:][values[1:] == values[:-1]][0])
            msg = f"`groups` must hold each index once; got {repeated} twice. Leave one out."
            raise ValueError(msg)
    return index


def group_systems(state: State, weights: Array, groups: Array) -> tuple[Array, Array, Any]:
    """M_QQ, (k, B, B), and z_Q · 2^−power, (k, B), of each group, float64, and power."""
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    z, power = state.to_scaled(weights)
    z = _backend.entries(z, _backend.index_like(flat, like=z))
    return _blocks(state, groups), _backend.namespace(z).reshape(z, groups.shape), power


def scale_to_order_one(z: Array) -> tuple[Array, Array]:
    """z_Q · 2^−power of each group, with an entry of order one, and the powers, (k, 1): no square underflows."""
    xp = _backend.namespace(z)
    powers = exponents(_backend.stop_gradient(xp.max(xp.abs(z), axis=1, keepdims=True)))
    return ldexp(z, -powers), powers


def _blocks(state: State, groups: Array) -> Array:
    """M_QQ of each group, (k, B, B); M is symmetric, and each entry is computed once."""
    xp, (count, size) = _backend.namespace(groups), groups.shape
    upper_rows, upper_columns = np.triu_indices(size)
    i, j = (xp.take(groups, _backend.index_like(k, like=groups), axis=1) for k in (upper_rows, upper_columns))
    parts = []
    for chunk in slices(count, max(1, ENTRIES_AT_A_TIME // len(upper_rows))):
        pairs = (xp.reshape(index[chunk, :], (-1,)) for index in (i, j))
        parts.append(state.form.element(*pairs, total=count * len(upper_rows)))
    xp = _backend.namespace(parts[0])
    values = xp.reshape(xp.concat(parts), (count, len(upper_rows)))
    position = np.zeros((size, size), dtype=np.int64)
    position[upper_rows, upper_columns] = position[upper_columns, upper_rows] = np.arange(len(upper_rows))
    blocks = xp.take(values, _backend.index_like(position.reshape(-1), like=values), axis=1)
    return xp.reshape(blocks, (count, size, size))


def solve_groups(blocks: Array, z: Array, floor: Array) -> tuple[Array, Array]:
    """Solutions y = M_QQ⁻¹ z_Q of each group, (k, B), and z_Qᵀ y, (k,); eigenvalues are clipped to [floor, 1]."""
    xp = _backend.namespace(blocks)
    values, vectors = xp.linalg.eigh(blocks)
    ones = xp.ones_like(values)
    values = xp.clip(values, scalar_like(floor, values) * ones, ones)
    coordinates = (vectors.mT @ z[:, :, None])[:, :, 0]
    return (vectors @ (coordinates / values)[:, :, None])[:, :, 0], xp.sum(coordinates**2 / values, axis=1)


def group_solutions(state: State, weights: Array, groups: Array) -> tuple[Array, Any]:
    """M_QQ⁻¹ z_Q · 2^−power at the indices of the groups, zero elsewhere, (d,) float64, and power."""
    blocks, z, power = group_systems(state, weights, groups)
    y, _ = solve_groups(blocks, z, state.floor())
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    y = _backend.namespace(y).reshape(y, (-1,))
    like = _backend.namespace(weights).zeros_like(weights)
    zeros = _backend.zeros((weights.shape[0],), like=like, dtype=y.dtype) if _backend.supports_float64(like) else like
    return scatter(_backend.from_float64(y, like=zeros, dtype=zeros.dtype), flat, zeros), power


def scatter(values: Array, index: Array, target: Array) -> Array:
    """A copy of `target` (d,) with values (n,) at the indices (n,)."""
    xp = _backend.namespace(index)
    order = xp.argsort(index)
    return _backend.replace_entries(target, xp.take(index, order), _backend.namespace(values).take(values, order))
