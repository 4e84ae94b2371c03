"""Rows of which some entries are stored, as many in each block of columns: products in time proportional to these."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._typing import Array
from .panels import combination, gram, long_product, panel_width, scaled_squares, slices
from .sparse import SparseRows

HOST_ENTRIES, DEVICE_ENTRIES = 2**18, 2**24  # read at a time: what is decoded stays in a cache of the host
MOST_TERMS = 512  # rows that are added up in float64 before their sum is added to those of others
SPARSE_SHARE = 1 / 16  # of entries, up to which a product of sparse rows with each other beats that of dense panels


@dataclass(frozen=True)
class Layout:
    """Where the entries of a row lie: `kept` in each whole block of columns, `kept_last` in what is left over."""

    dim: int
    block: int
    kept: int
    kept_last: int

    @classmethod
    def of(cls, dim: int, block_size: int, density: float) -> "Layout":
        """With at least a share `density` of every block."""
        block = min(block_size, dim)
        kept, last = (math.ceil(density * size * (1 - 1e-12)) for size in (block, dim % block))
        return cls(dim, block, kept, last)

    @property
    def whole(self) -> int:
        """The number of whole blocks."""
        return self.dim // self.block

    @property
    def entries(self) -> int:
        """N, of a row."""
        return self.whole * self.kept + self.kept_last

    @cached_property
    def starts(self) -> np.ndarray:
        """The first column of the block of each entry, (n,)."""
        first = np.arange(self.whole + 1, dtype=np.int32) * self.block
        return np.repeat(first, [self.kept] * self.whole + [self.kept_last])

    def runs(self, entries: int) -> list[tuple[slice, slice]]:
        """Columns and entries of runs of whole blocks that have at most so many entries, or are one block."""
        blocks = slices(self.whole, max(1, entries // self.kept))
        cut = [(_times(run, self.block), _times(run, self.kept)) for run in blocks]
        start = self.whole * self.block
        if start < self.dim:
            cut.append((slice(start, self.dim), slice(self.whole * self.kept, self.entries)))
        return cut

    def entries_of(self, columns: slice) -> slice:
        """The entries of all blocks that have some of these columns."""
        start, stop = columns.start // self.block, -(-columns.stop // self.block)
        return slice(start * self.kept, min(stop * self.kept, self.entries) if stop <= self.whole else self.entries)


def _times(run: slice, factor: int) -> slice:
    return slice(run.start * factor, run.stop * factor)


@dataclass(frozen=True)
class TopKRows(Part):
    """The same protocol as DenseRows for entries in 16-bit indices and values; sums are those of float64.

    Where a library cannot scatter, or has no float64, products are those of dense panels, made one after the other.
    """

    index: Array  # (m, n) uint16, in the block of each entry, rising in a block
    values: Array  # (m, n)
    layout: Layout
    dtype: Any  # the computing dtype of d-sized arrays

    is_plain = False
    fingerprint = None
    is_dense = True  # in that they can be computed in any dtype
    is_streamed = False
    source = None  # blocks are views of nothing

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.index.shape[0], self.layout.dim

    @property
    def is_sparse(self) -> bool:
        """Whether products of rows with rows go by their common entries."""
        share = self.layout.entries / self.layout.dim
        return _backend.can_multiply_sparse(self.values) and share <= SPARSE_SHARE

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        return self.values

    def with_dtype(self, dtype: Any) -> "TopKRows":
        """The same rows, computed in another dtype."""
        return TopKRows(self.index, self.values, self.layout, dtype)

    # --- dense parts ------------------------------------------------------------------------------------------------

    def column_slices(self) -> list[slice]:
        """Column slices of the panels: runs of whole blocks, or parts of one."""
        width = panel_width(self.shape[0], self.dtype)
        whole = max(1, width // self.layout.block) * self.layout.block
        return [
            slice(run.start + part.start, run.start + part.stop)
            for run in slices(self.layout.dim, whole)
            for part in slices(run.stop - run.start, width)
        ]

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        entries, parts = self.layout.entries_of(columns), []
        starts = self.layout.starts[entries] - columns.start
        for rows in slices(self.shape[0], max(1, HOST_ENTRIES // max(1, len(starts)))):
            index = _backend.wide_index(self.index[rows, entries], starts)
            values = _backend.cast(self.values[rows, entries], self.dtype)
            parts.append(_backend.spread(index, values, columns.stop - columns.start))
        return parts[0] if len(parts) == 1 else _backend.namespace(self.values).concat(parts, axis=0)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and Ĝ[:, columns]."""
        for columns in self.column_slices():
            yield columns, self.panel(columns)

    def take_rows(self, i: Array) -> Array:
        """Ĝ[i, :] for an index array."""
        chosen = TopKRows(
            _backend.take_rows(self.index, i), _backend.take_rows(self.values, i), self.layout, self.dtype
        )
        return chosen.panel(slice(0, self.layout.dim))

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j)): one pass over the entries, in each row of which every j is looked up."""
        dim, j = self.layout.dim, _backend.index_like(j, like=self.values)
        xp, parts = _backend.namespace(self.values), []
        if not self.shape[0]:
            return _backend.zeros((0, j.shape[0]), like=self.values, dtype=self.dtype)
        most = min(HOST_ENTRIES // max(self.layout.entries, j.shape[0]), (2**31 - 1) // dim)
        for rows in slices(self.shape[0], max(1, most)):
            first = _backend.index_like(np.arange(rows.stop - rows.start)[:, None] * dim, like=j)
            keys = _backend.cast(_backend.wide_index(self.index[rows, :], self.layout.starts), j.dtype) + first
            values = _backend.cast(self.values[rows, :], self.dtype)
            wanted = j[None, :] + first
            flat = (xp.reshape(x, (-1,)) for x in (keys, values, wanted))
            parts.append(xp.reshape(_backend.look_up(*flat), tuple(wanted.shape)))
        return xp.concat(parts, axis=0)

    # --- products ---------------------------------------------------------------------------------------------------

    @property
    def _by_entries(self) -> bool:
        return _backend.can_scatter(self.values)

    def _cells(self, columns: int) -> Iterator[tuple[slice, Iterator[tuple[slice, Array, Array]]]]:
        """Runs of columns, and for each the rows by runs: which, their columns in the run, their values in float64.

        For products with so many columns. One such cell is decoded at a time.
        """
        m = self.shape[0]
        most = HOST_ENTRIES if _backend.on_host(self.values) else DEVICE_ENTRIES
        most //= 1 if _backend.can_multiply_sparse(self.values) else max(1, columns)
        for run, entries in self.layout.runs(most // max(1, m)):
            size = max(1, min(MOST_TERMS, most // max(1, entries.stop - entries.start)))
            cuts = slices(m, size) if m else []
            yield run, map(partial(self._placed_cell, entries=entries, start=run.start), cuts)

    def _placed_cell(self, rows: slice, entries: slice, start: int) -> tuple[slice, Array, Array]:
        return (rows, *self._cell(rows, entries, start))

    def _cell(self, rows: slice, entries: slice, start: int) -> tuple[Array, Array]:
        index = _backend.wide_index(self.index[rows, entries], self.layout.starts[entries] - start)
        return index, _backend.to_float64(self.values[rows, entries])

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k), float64."""
        if not self._by_entries:
            return sum(long_product(panel, v[columns, :]) for columns, panel in self.blocks())
        xp = _backend.namespace(v)
        total = _backend.zeros((self.shape[0], v.shape[1]), like=self.values, dtype=xp.float64)
        for columns, cells in self._cells(v.shape[1]):
            part = _backend.to_float64(v[columns, :])
            products = [_backend.gathered_product(index, values, part) for _, index, values in cells]
            total = total + xp.concat(products, axis=0) if products else total
        return total

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, shape (d, k), for float64 a of shape (m, k)."""
        if self._by_entries:
            return self._combination(a, squared=False)
        a = _backend.from_float64(a, like=self.values, dtype=self.dtype)
        return _backend.namespace(a).concat([combination(panel, a) for _, panel in self.blocks()], axis=0)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        if not self._by_entries:
            return scaled_squares(self.blocks(), row_scale)
        return self.with_dtype(_backend.namespace(self.values).float64)._combination(row_scale**2, squared=True)[:, 0]

    def _combination(self, a: Array, *, squared: bool) -> Array:
        """Ĝᵀ a, or the same with the squares of the entries, in the computing dtype."""
        xp, parts = _backend.namespace(self.values), []
        a = _backend.from_float64(a, like=self.values, dtype=xp.float64)
        for columns, cells in self._cells(a.shape[1]):
            width = columns.stop - columns.start
            total = _backend.zeros((width, a.shape[1]), like=a, dtype=a.dtype)
            for rows, index, values in cells:
                kept = values * values if squared else values
                total = total + _backend.scattered_product(index, kept, a[rows, :], width)
            parts.append(_backend.cast(total, self.dtype))
        return xp.concat(parts, axis=0)

    def gram(self, column_scale: Array | None, progress: Any) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64."""
        del progress
        return self.cross(self, column_scale)

    def cross(self, other: "TopKRows", column_scale: Array | None) -> Array:
        """Ĝ diag(column_scale)² Ĥᵀ for the rows of another H of the same layout, shape (m, l), float64."""
        if self.is_sparse:
            return self._sparse_cross(other, column_scale)
        total = None
        for columns in self.column_slices():
            pair = [rows.panel(columns) for rows in ((self,) if other is self else (self, other))]
            if column_scale is not None:
                pair = [panel * _backend.cast(column_scale[columns, 0], self.dtype) for panel in pair]
            part = gram(pair[0]) if other is self else _backend.to_float64(_backend.matmul(pair[0], pair[1].T))
            total = part if total is None else total + part
        return total

    def _sparse_cross(self, other: "TopKRows", column_scale: Array | None) -> Array:
        total = np.zeros((self.shape[0], other.shape[0]))
        for columns, entries in self.layout.runs(HOST_ENTRIES // max(1, self.shape[0], other.shape[0])):
            ours, theirs = (rows._sparse(columns, entries) for rows in (self, other))
            if column_scale is not None:
                squares = _backend.to_float64(column_scale[columns, 0]) ** 2
                ours = _backend.with_values(ours, ours.data * squares[ours.indices])
            total += (ours @ theirs.T).toarray()
        return total

    def column_quadratic_forms(self, weights: Array) -> Array:
        """ĝ_jᵀ B ĝ_j for each column ĝ_j and B = weights (m, m), shape (d,), where `is_sparse`."""
        runs = self.layout.runs(HOST_ENTRIES // max(1, self.shape[0]))
        like = _backend.empty((0, 0), like=self.values, dtype=_backend.namespace(self.values).float64)
        parts = [SparseRows(None, self._sparse(*run), None, like).column_quadratic_forms(weights) for run in runs]
        return np.concatenate(parts)

    def _sparse(self, columns: slice, entries: slice) -> Any:
        index, values = self._cell(slice(None), entries, columns.start)
        return _backend.sparse_rows(index, values, columns.stop - columns.start)
