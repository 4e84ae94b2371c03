"""The diagonal of M = I − WᵀW, with its digits: entries that cancel are redone as sums of squares."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import _backend
from .._rows.panels import slices

Array = Any
REDO_BELOW = 1e-2  # an entry 1 − ‖w_j‖² under this has lost two digits or more
REDO_COLUMNS = 64  # columns solved at a time


def complement(panels: Iterable[Array]) -> Array:
    """1 − ‖w_j‖² for the columns of all panels, shape (d,), float64."""
    parts = [1 - _backend.to_float64(_backend.column_squares(panel)) for panel in panels]
    return _backend.namespace(parts[0]).concat(parts)


def refine(form: Any, diagonal: Array, *, like: Array, norm: Any) -> Array:
    """Redo the small entries by M_jj = ‖r‖² + ‖a‖², r = M e_j, a = S r, in which nothing is subtracted."""
    chosen = _small_entries(diagonal, like=like, norm=norm, num_rows=form.shape[0])
    if chosen.shape[0] == 0:
        return diagonal
    xp = _backend.namespace(diagonal)
    index = _backend.index_like(chosen, like=like)
    parts = []
    for chunk in slices(index.shape[0], REDO_COLUMNS):
        unit = _backend.unit_columns(index[chunk], form.shape[1], like=like, dtype=form.dtype)
        r, a = form.solve(unit)
        parts.append(_backend.to_float64(_backend.column_squares(r)) + _backend.column_squares(a))
    return _replace(diagonal, chosen, xp.concat(parts))


def _small_entries(diagonal: Array, *, like: Array, norm: Any, num_rows: int) -> Array:
    """Sorted indices to redo. Where values cannot be read: as many as there can be, since Σ‖w_j‖² ≤ m."""
    if _backend.on_host(like) and _backend.is_concrete(diagonal):
        return _backend.asarray(np.flatnonzero(_backend.read(diagonal) < REDO_BELOW), like=diagonal)
    if isinstance(norm, float) and norm**2 * REDO_BELOW < 1:
        return diagonal[:0]
    xp = _backend.namespace(diagonal)
    return xp.sort(xp.argsort(diagonal)[: min(diagonal.shape[0], int(num_rows / (1 - REDO_BELOW)))])


def _replace(x: Array, index: Array, values: Array) -> Array:
    """X with x[index] = values for a sorted index, without writing to x."""
    xp = _backend.namespace(x)
    positions = _backend.asarray(np.arange(x.shape[0]), like=x, dtype=index.dtype)
    place = xp.clip(xp.searchsorted(index, positions), 0, index.shape[0] - 1)
    return xp.where(xp.take(index, place) == positions, xp.take(values, place), x)
