"""Groups of weights that go together, and the small systems ([F⁻¹]_QQ)⁻¹ w_Q that say what each group costs.

All in the coordinates in which Λ is the identity, where F⁻¹ is M and w is z: the eigenvalues of a block of M are within
[1/κ, 1], and are held to that, κ ≤ 1 + ‖S‖²_F: no score is negative or unbounded whatever rounding did.
"""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse, check_inverse
from .._rows.panels import slices
from .._scaling.damping import scalar_like
from .._scaling.powers import exponents, ldexp
from .._typing import Array

ENTRIES = 2**22  # of M that are read at a time


def checked_weights(weights: Any, inverse: Any) -> Array:
    """A finite vector of weights beside an inverse, in its dtype."""
    check_inverse(inverse)
    w = check.vector("weights", weights, inverse._like, inverse.dtype, inverse.dim)
    check.finite("weights", w)
    return w


def checked_groups(groups: Any, inverse: Inverse) -> Array:
    """The indices of each group, (k, B) beside the inverse: of runs of B neighbours where B is given."""
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
            twice = int(values[1:][values[1:] == values[:-1]][0])
            msg = f"`groups` must hold each index once; got {twice} twice. Leave one out."
            raise ValueError(msg)
    return index


def group_systems(state: State, weights: Array, groups: Array) -> tuple[Array, Array, Any]:
    """M_QQ, (k, B, B), and z_Q · 2^−power, (k, B), of each group, float64, and power."""
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    z, power = state.to_scaled(weights)
    z = _backend.entries(z, _backend.index_like(flat, like=z))
    return _blocks(state, groups), _backend.namespace(z).reshape(z, groups.shape), power


def balanced(z: Array) -> tuple[Array, Array]:
    """Each z_Q · 2^−power with an entry of order one, and these powers, (k, 1): no square is lost."""
    xp = _backend.namespace(z)
    powers = exponents(_backend.stop_gradient(xp.max(xp.abs(z), axis=1, keepdims=True)))
    return ldexp(z, -powers), powers


def _blocks(state: State, groups: Array) -> Array:
    """M_QQ of each group: every entry above the diagonal is read once."""
    xp, (count, size) = _backend.namespace(groups), groups.shape
    above, beyond = np.triu_indices(size)
    i, j = (xp.take(groups, _backend.index_like(k, like=groups), axis=1) for k in (above, beyond))
    parts = []
    for chunk in slices(count, max(1, ENTRIES // len(above))):
        pairs = (xp.reshape(index[chunk, :], (-1,)) for index in (i, j))
        parts.append(state.form.element(*pairs))
    xp = _backend.namespace(parts[0])
    values = xp.reshape(xp.concat(parts), (count, len(above)))
    place = np.zeros((size, size), dtype=np.int64)
    place[above, beyond] = place[beyond, above] = np.arange(len(above))
    whole = xp.take(values, _backend.index_like(place.reshape(-1), like=values), axis=1)
    return xp.reshape(whole, (count, size, size))


def solved(blocks: Array, z: Array, floor: Array) -> tuple[Array, Array]:
    """The y = M_QQ⁻¹ z_Q of each group, (k, B), and z_Qᵀ y, (k,)."""
    xp = _backend.namespace(blocks)
    values, vectors = xp.linalg.eigh(blocks)
    ones = xp.ones_like(values)
    values = xp.clip(values, scalar_like(floor, values) * ones, ones)
    along = (vectors.mT @ z[:, :, None])[:, :, 0]
    return (vectors @ (along / values)[:, :, None])[:, :, 0], xp.sum(along**2 / values, axis=1)


def group_solutions(state: State, weights: Array, groups: Array) -> tuple[Array, Any]:
    """M_QQ⁻¹ z_Q · 2^−power in the places of the groups, zero elsewhere, (d,) float64, and power."""
    blocks, z, power = group_systems(state, weights, groups)
    y, _ = solved(blocks, z, state.floor())
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    y = _backend.namespace(y).reshape(y, (-1,))
    like = _backend.namespace(weights).zeros_like(weights)
    rest = _backend.zeros((weights.shape[0],), like=like, dtype=y.dtype) if _backend.supports_float64(like) else like
    return placed(_backend.from_float64(y, like=rest, dtype=rest.dtype), flat, rest), power


def placed(values: Array, index: Array, rest: Array) -> Array:
    """`rest` (d,) with values (n,) where the index says."""
    xp = _backend.namespace(index)
    order = xp.argsort(index)
    return _backend.replace_entries(rest, xp.take(index, order), _backend.namespace(values).take(values, order))
