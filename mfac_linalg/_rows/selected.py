"""Rows that lie in some order among those of a larger array: how a window finds its gradients in its ring."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._pytree import Part
from .dense import DenseRows
from .panels import scaled_squares

Array = Any


@dataclass(frozen=True)
class SelectedRows(Part):
    """The same protocol as DenseRows, for m of its rows; the others are read along and do not count."""

    rows: DenseRows
    select: np.ndarray  # (m,) where each row lies
    on_host: bool  # whether what has one entry a row is brought to the host, where the small system then is

    is_plain = False
    is_sparse = False
    is_dense = True
    is_streamed = False
    is_movable = True

    @property
    def source(self) -> Any:
        """The array that blocks may be views of."""
        return self.gradients

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return len(self.select), self.rows.shape[1]

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def gradients(self) -> Array:
        """The array that the rows lie in."""
        return self.rows.gradients

    like = gradients

    def computed_in(self, dtype: Any) -> "SelectedRows":
        """The same rows, computed in another dtype."""
        return SelectedRows(self.rows.computed_in(dtype), self.select, self.on_host)

    def column_slices(self) -> list[slice]:
        """Column slices of the panels."""
        return self.rows.column_slices()

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and the rows' columns."""
        for columns, block in self.rows.blocks():
            yield columns, self._selected(block)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i g_ij)² for each column j, shape (d,), float64."""
        return scaled_squares(self.blocks(), row_scale)

    def panel(self, columns: slice) -> Array:
        """The rows' columns, in the computing dtype."""
        return self._selected(self.rows.panel(columns))

    def row_block(self, rows: slice) -> Array:
        """A run of the rows, in the computing dtype."""
        block = _backend.take_rows(self.gradients, _backend.index_like(self.select[rows], like=self.gradients))
        return _backend.cast(block, self.dtype)

    def columns(self, j: Array) -> Array:
        """Columns j, shape (m, len(j))."""
        return self._selected(self.rows.columns(j))

    def project(self, v: Array) -> Array:
        """Rows times v, shape (m, k), float64."""
        y = self.rows.project(v)
        return self._selected(_backend.read(y) if self.on_host else y)

    def combine(self, a: Array) -> Array:
        """Σ a_i row_i, shape (d, k), for float64 a of shape (m, k)."""
        place = np.full(self.rows.shape[0], len(self.select))
        place[self.select] = np.arange(len(self.select))
        padded = _backend.namespace(a).concat([a, _backend.zeros_like(a, rows=1)], axis=0)
        return self.rows.combine(_backend.take_rows(padded, _backend.index_like(place, like=a)))

    def _selected(self, x: Array) -> Array:
        return _backend.take_rows(x, _backend.index_like(self.select, like=x))
