"""Whitened rows W = L⁻¹ S: one element of F⁻¹ is then one short dot product."""

from dataclasses import dataclass
from typing import Any

from .. import _backend
from .._dual import SmallSystem
from .._pytree import Part
from .panels import column_slices, long_product, slices
from .scaled import ScaledRows

Array = Any
PAIRS = 4096  # pairs of columns gathered at a time
BLOCK_ROWS = 64


@dataclass(frozen=True)
class WhitenedRows(Part):
    """W and L, which together are S = L W: the same products as ScaledRows, without G."""

    rows: Array  # W, (m, d)
    system: SmallSystem

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        return self.rows

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    def project(self, u: Array) -> Array:
        """S u = L (W u), shape (m, k), float64."""
        return self.system.lower @ long_product(lambda columns: self.rows[:, columns], u)

    def combine(self, a: Array) -> Array:
        """Sᵀ a = Wᵀ (Lᵀ a), shape (d, k)."""
        a = _backend.from_float64(self.system.lower.T @ a, like=self.rows, dtype=self.rows.dtype)
        return self.rows.T @ a

    def panel(self, columns: slice) -> Array:
        """S[:, columns] in W's dtype."""
        lower = _backend.from_float64(self.system.lower, like=self.rows, dtype=self.rows.dtype)
        return lower @ self.rows[:, columns]

    def whitened(self, j: Array) -> Array:
        """W[:, j]."""
        return _backend.take_columns(self.rows, j)

    def whitened_panels(self) -> Any:
        """W by column panels; whole where its rows are read in order and no temporary is made."""
        if _backend.is_row_major(self.rows):
            yield self.rows
            return
        for columns in column_slices(*self.shape):
            yield self.rows[:, columns]

    def pair_products(self, i: Array, j: Array) -> Array:
        """w_iᵀ w_j for index arrays of one shape (n,).

        Gathering columns of a row-major W touches one cache line per number: for many pairs a block of rows at a time
        is transposed first, so that a line holds the numbers of one column.
        """
        if _backend.is_row_major(self.rows) and i.shape[0] > PAIRS:
            blocks = (_backend.transposed_copy(self.rows[block, :]) for block in slices(self.shape[0], BLOCK_ROWS))
            return sum(_column_products(block.T, i, j) for block in blocks)
        return _column_products(self.rows, i, j)


def _column_products(rows: Array, i: Array, j: Array) -> Array:
    """Products of the columns i and j of a few rows, a chunk of pairs at a time."""
    xp = _backend.namespace(rows)
    take = _backend.take_columns
    return xp.concat([xp.vecdot(take(rows, i[c]).T, take(rows, j[c]).T) for c in slices(i.shape[0], PAIRS)])


def whiten(rows: ScaledRows, system: SmallSystem, *, dtype: Any, overwrite: bool, progress: Any) -> WhitenedRows:
    """Return W = L⁻¹ S, in `dtype`, written over the caller's G or into one new array where arrays can be written."""
    source = rows.rows.gradients
    lower = _backend.from_float64(system.lower, like=source, dtype=rows.dtype)
    writable = _backend.is_writable(source) and not _backend.is_differentiated(lower)
    if writable and rows.dtype == dtype and _backend.solves_in_place(source):
        return WhitenedRows(_in_place(rows, lower, overwrite=overwrite, progress=progress), system)
    panels = progress(rows.rows.column_slices(), "whiten")
    if not writable:
        parts = [_backend.cast(_backend.solve_triangular(lower, rows.panel(columns)), dtype) for columns in panels]
        return WhitenedRows(_backend.namespace(source).concat(parts, axis=1), system)
    out = source if overwrite else _backend.empty(rows.shape, like=source, dtype=dtype)
    for columns in panels:
        out[:, columns] = _backend.cast(_backend.solve_triangular(lower, rows.panel(columns)), dtype)
    return WhitenedRows(out, system)


def _in_place(rows: ScaledRows, lower: Array, *, overwrite: bool, progress: Any) -> Array:
    """S, written panel by panel, and then L⁻¹ S by one solve in place."""
    source = rows.rows.gradients
    out = source if overwrite else _backend.empty(rows.shape, like=source, dtype=rows.dtype)
    for columns in progress(rows.rows.column_slices(), "scale"):
        rows.write_panel(columns, out[:, columns])
    _backend.solve_triangular_in_place(lower, out)
    return out
