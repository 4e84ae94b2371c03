"""The diagonal of M = I − WᵀW: entries that lose digits by cancellation are computed again as sums of squares."""

from typing import Any, Protocol

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance, add_identity
from .._condition import kappa_of
from .._rows.panels import slices
from .._rows.whitened import REDO_BELOW
from .._typing import Array
from .protocol import Form

REDO_COLUMNS = 64  # columns solved at a time
GATHERED = 2**23  # numbers of small matrices factored at a time
DOWNDATE_RESOLVED = 1e10  # κ up to which A − s sᵀ is accurate enough: its relative error is κ eps of float64


class WoodburyForm(Form, Protocol):
    """The dual form, by what the functions here ask of it."""

    @property
    def float64_capacitance(self) -> Capacitance:
        """A = I + S Sᵀ, as accurate as entries need."""
        ...

    @property
    def has_consistent_columns(self) -> bool:
        """Whether S e_j and A agree to rounding in float64: those of `columns` and `float64_capacitance`."""
        ...

    def columns(self, j: Array) -> Array:
        """w_j = L⁻¹ S e_j as columns."""
        ...


def refine(form: WoodburyForm, diagonal: Array, *, like: Array, norm: Any) -> Array:
    """Compute the small entries again by one of two formulas without subtraction."""
    small = _small_entries(diagonal, like=like, norm=norm, num_rows=form.shape[0])
    if small.shape[0] == 0:
        return diagonal
    index = _backend.index_like(small, like=like)
    return _backend.replace_entries(diagonal, small, exact_entries(form, index, like=like, norm=norm))


def exact_entries(form: WoodburyForm, j: Array, *, like: Array, norm: Any) -> Array:
    """M_jj for sorted columns j, by an m × m system for each where that is accurate enough, else by products."""
    is_read = _backend.on_host(like) and isinstance(norm, float)
    if not (is_read and form.has_consistent_columns and kappa_of(norm) <= DOWNDATE_RESOLVED):
        return _by_products(form, j)
    parts = []
    for chunk in slices(j.shape[0], max(1, GATHERED // form.shape[0] ** 2)):
        part = _by_downdates(form, j[chunk])
        parts.append(_by_products(form, j[chunk]) if part is None else part)
    return _backend.namespace(parts[0]).concat(parts)


def _by_downdates(form: WoodburyForm, j: Array) -> Array | None:
    """M_jj = 1/(1 + s_jᵀ A_j⁻¹ s_j) with A_j = A − s_j s_jᵀ, for S without its column s_j: O(m³), no pass over G.

    None if rounding makes an A_j indefinite.
    """
    capacitance = form.float64_capacitance
    s = capacitance.cholesky @ _backend.to_float64(form.columns(j))
    others = add_identity(capacitance.scaled_gram) - s.T[:, :, None] * s.T[:, None, :]
    lower = _backend.cholesky(others)
    if lower is None:
        return None
    return 1 / (1 + _backend.column_squares(_backend.solve_triangular(lower, s.T[:, :, None]))[:, 0])


def _by_products(form: WoodburyForm, j: Array) -> Array:
    """M_jj = ‖r‖² + ‖a‖² with r = M e_j and a = S r: one product for each j, in chunks of columns."""
    one_by_one = form.rows.is_streamed and not _backend.is_lazy(form.rows.like)  # within `memory_limit`
    parts = []
    for chunk in slices(j.shape[0], 1 if one_by_one else REDO_COLUMNS):
        r, a = form.solve_with_dual(
            _backend.unit_columns(j[chunk], form.shape[1], like=form.rows.like, dtype=form.dtype)
        )
        parts.append(_backend.to_float64(_backend.column_squares(r)) + _backend.column_squares(a))
    return _backend.namespace(parts[0]).concat(parts)


def _small_entries(diagonal: Array, *, like: Array, norm: Any, num_rows: int) -> Array:
    """Sorted indices of small entries; where values cannot be read, of as many as there can be, since Σ‖w_j‖² ≤ m."""
    if _backend.on_host(like) and _backend.is_concrete(diagonal):
        return _backend.asarray(np.flatnonzero(_backend.read(diagonal) < REDO_BELOW), like=diagonal)
    if _backend.is_lazy(diagonal):
        return _backend.evaluate(_backend.namespace(diagonal).nonzero(diagonal < REDO_BELOW)[0])
    if isinstance(norm, float) and norm**2 * REDO_BELOW < 1:
        return diagonal[:0]
    xp = _backend.namespace(diagonal)
    return xp.sort(xp.argsort(diagonal)[: min(diagonal.shape[0], int(num_rows / (1 - REDO_BELOW)))])
