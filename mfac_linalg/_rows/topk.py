"""Rows with a fixed number of stored entries in each block of columns; the cost of a product is proportional to it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._progress import Progress
from .._typing import Array
from .panels import combination, gram, long_product, panel_width, scaled_squares, slices
from .sparse import SparseRows

HOST_ENTRIES, DEVICE_ENTRIES = 2**18, 2**24  # decoded at a time: on the host they stay in a cache
MOST_TERMS = 512  # rows in one float64 sum, before it is added to the total
SPARSE_SHARE = 1 / 16  # of stored entries, up to which a sparse product of rows with rows is faster than a dense one


@dataclass(frozen=True)
class Layout:
    """The entries of a row: `count` in each whole block of columns, `last_count` in the shorter last block."""

    dim: int
    block: int
    count: int
    last_count: int

    @classmethod
    def of(cls, dim: int, block_size: int, density: float) -> "Layout":
        """The layout with at least a share `density` of the entries of every block."""
        block = min(block_size, dim)
        count, last_count = (math.ceil(density * size * (1 - 1e-12)) for size in (block, dim % block))
        return cls(dim, block, count, last_count)

    @property
    def whole(self) -> int:
        """The number of whole blocks."""
        return self.dim // self.block

    @property
    def entries(self) -> int:
        """The number n of stored entries of a row."""
        return self.whole * self.count + self.last_count

    @cached_property
    def starts(self) -> np.ndarray:
        """The first column of the block of each entry, (n,)."""
        first = np.arange(self.whole + 1, dtype=np.int32) * self.block
        return np.repeat(first, [self.count] * self.whole + [self.last_count])

    def runs(self, entries: int) -> list[tuple[slice, slice]]:
        """Columns and entries of runs of whole blocks, each with at most `entries` entries or of one block."""
        blocks = slices(self.whole, max(1, entries // self.count))
        pairs = [(_times(run, self.block), _times(run, self.count)) for run in blocks]
        start = self.whole * self.block
        if start < self.dim:
            pairs.append((slice(start, self.dim), slice(self.whole * self.count, self.entries)))
        return pairs

    def entries_of(self, columns: slice) -> slice:
        """The entries of all blocks that overlap these columns."""
        start, stop = columns.start // self.block, -(-columns.stop // self.block)
        return slice(start * self.count, min(stop * self.count, self.entries) if stop <= self.whole else self.entries)


def _times(run: slice, factor: int) -> slice:
    return slice(run.start * factor, run.stop * factor)


@dataclass(frozen=True)
class TopKRows(Part):
    """`Rows` of stored entries, with 16-bit indices; sums are in float64.

    Where a library cannot scatter, or has no float64, products use dense panels, decoded one at a time.
    """

    index: Array  # (m, n) uint16, within the block of each entry, increasing in a block
    values: Array  # (m, n)
    layout: Layout
    dtype: Any  # the computing dtype of d-sized arrays

    is_plain = False
    fingerprint = None
    can_change_dtype = True
    is_streamed = False
    source = None  # blocks are copies

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.index.shape[0], self.layout.dim

    @property
    def multiplies_by_entries(self) -> bool:
        """Whether products of rows with rows use their common entries only."""
        share = self.layout.entries / self.layout.dim
        return _backend.can_multiply_sparse(self.values) and share <= SPARSE_SHARE

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.values

    def with_dtype(self, dtype: Any) -> "TopKRows":
        """The same rows, computed in another dtype."""
        return TopKRows(self.index, self.values, self.layout, dtype)

    # --- dense parts ---

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
        index, values = (_backend.take_rows(x, i) for x in (self.index, self.values))
        return TopKRows(index, values, self.layout, self.dtype).panel(slice(0, self.layout.dim))

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j)): one pass over the entries; every j is looked up in each row."""
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

    # --- products ---

    @property
    def _can_scatter(self) -> bool:
        return _backend.can_scatter(self.values)

    def _cells(self, columns: int) -> Iterator[tuple[slice, Iterator[tuple[slice, Array, Array]]]]:
        """Runs of columns; for each of them runs of rows, with their columns in the run and their float64 values.

        `columns` is the number of columns of the other factor. One cell, a run of rows in a run of columns, is decoded
        at a time.
        """
        m = self.shape[0]
        most = HOST_ENTRIES if _backend.on_host(self.values) else DEVICE_ENTRIES
        most //= 1 if _backend.can_multiply_sparse(self.values) else max(1, columns)
        for run, entries in self.layout.runs(most // max(1, m)):
            size = max(1, min(MOST_TERMS, most // max(1, entries.stop - entries.start)))
            row_runs = slices(m, size) if m else []
            yield run, map(partial(self._cell_with_rows, entries=entries, start=run.start), row_runs)

    def _cell_with_rows(self, rows: slice, entries: slice, start: int) -> tuple[slice, Array, Array]:
        return (rows, *self._cell(rows, entries, start))

    def _cell(self, rows: slice, entries: slice, start: int) -> tuple[Array, Array]:
        index = _backend.wide_index(self.index[rows, entries], self.layout.starts[entries] - start)
        return index, _backend.to_float64(self.values[rows, entries])

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k), float64."""
        if not self._can_scatter:
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
        if self._can_scatter:
            return self._combination(a, squared=False)
        a = _backend.from_float64(a, like=self.values, dtype=self.dtype)
        return _backend.namespace(a).concat([combination(panel, a) for _, panel in self.blocks()], axis=0)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        if not self._can_scatter:
            return scaled_squares(self.blocks(), row_scale)
        return self.with_dtype(_backend.namespace(self.values).float64)._combination(row_scale**2, squared=True)[:, 0]

    def _combination(self, a: Array, *, squared: bool) -> Array:
        """Ĝᵀ a, or the same with squared entries, in the computing dtype."""
        xp, parts = _backend.namespace(self.values), []
        a = _backend.from_float64(a, like=self.values, dtype=xp.float64)
        for columns, cells in self._cells(a.shape[1]):
            width = columns.stop - columns.start
            total = _backend.zeros((width, a.shape[1]), like=a, dtype=a.dtype)
            for rows, index, values in cells:
                entries = values * values if squared else values
                total = total + _backend.scattered_product(index, entries, a[rows, :], width)
            parts.append(_backend.cast(total, self.dtype))
        return xp.concat(parts, axis=0)

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64."""
        del progress
        return self.cross(self, column_scale)

    def cross(self, other: "TopKRows", column_scale: Array | None) -> Array:
        """Ĝ diag(column_scale)² Ĥᵀ for the rows of another H of the same layout, shape (m, l), float64."""
        if self.multiplies_by_entries:
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
            left, right = (rows._sparse(columns, entries) for rows in (self, other))
            if column_scale is not None:
                squares = _backend.to_float64(column_scale[columns, 0]) ** 2
                left = _backend.with_values(left, left.data * squares[left.indices])
            total += (left @ right.T).toarray()
        return total

    def column_quadratic_forms(self, weights: Array) -> Array:
        """ĝ_jᵀ B ĝ_j for each column ĝ_j and B = weights (m, m), shape (d,), if `multiplies_by_entries`."""
        runs = self.layout.runs(HOST_ENTRIES // max(1, self.shape[0]))
        like = _backend.empty((0, 0), like=self.values, dtype=_backend.namespace(self.values).float64)
        parts = [SparseRows(None, self._sparse(*run), None, like).column_quadratic_forms(weights) for run in runs]
        return np.concatenate(parts)

    def _sparse(self, columns: slice, entries: slice) -> Any:
        index, values = self._cell(slice(None), entries, columns.start)
        return _backend.sparse_rows(index, values, columns.stop - columns.start)
