"""Rows that lie in some order among those of a larger array: how a window finds its gradients in its ring."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._typing import Array


@dataclass(frozen=True)
class SelectedRows(Part):
    """The same protocol, for m of the rows of another; the others are read along and do not count."""

    rows: Any  # DenseRows or TopKRows
    select: np.ndarray  # (m,) where each row lies
    on_host: bool  # whether what has one entry a row is brought to the host, where the small system then is

    is_plain = False
    fingerprint = None
    is_dense = True
    is_streamed = False
    is_movable = True

    @property
    def is_sparse(self) -> bool:
        """Whether most entries are zero, and none of these is stored."""
        return self.rows.is_sparse

    @property
    def source(self) -> Any:
        """The array that blocks may be views of."""
        return self.rows.source

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return len(self.select), self.rows.shape[1]

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        return self.rows.like

    def with_dtype(self, dtype: Any) -> "SelectedRows":
        """The same rows, computed in another dtype."""
        return SelectedRows(self.rows.with_dtype(dtype), self.select, self.on_host)

    def column_slices(self) -> list[slice]:
        """Column slices of the panels."""
        return self.rows.column_slices()

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and the rows' columns."""
        for columns, block in self.rows.blocks():
            yield columns, self._selected(block)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i g_ij)² for each column j, shape (d,), float64."""
        return self.rows.squares(self._spread(row_scale))

    def column_quadratic_forms(self, weights: Array) -> Array:
        """g_jᵀ B g_j for each column g_j and B = weights (m, m), shape (d,), where the rows are sparse."""
        return self.rows.column_quadratic_forms(self._spread(self._spread(weights).T).T)

    def panel(self, columns: slice) -> Array:
        """The rows' columns, in the computing dtype."""
        return self._selected(self.rows.panel(columns))

    def row_block(self, rows: slice) -> Array:
        """A run of the rows, in the computing dtype."""
        return self.rows.take_rows(_backend.index_like(self.select[rows], like=self.like))

    def columns(self, j: Array) -> Array:
        """Columns j, shape (m, len(j))."""
        return self._selected(self.rows.columns(j))

    def gram(self, column_scale: Array | None, progress: Any) -> Array:
        """Rows diag(column_scale)² rowsᵀ, shape (m, m), float64."""
        return self._brought(self._brought(self.rows.gram(column_scale, progress)).T)

    def project(self, v: Array) -> Array:
        """Rows times v, shape (m, k), float64."""
        return self._brought(self.rows.project(v))

    def _brought(self, y: Array) -> Array:
        """The entries of the rows in y (slots, k), where the small system is."""
        return self._selected(_backend.read(y) if self.on_host else y)

    def combine(self, a: Array) -> Array:
        """Σ a_i row_i, shape (d, k), for float64 a of shape (m, k)."""
        return self.rows.combine(self._spread(a))

    def _spread(self, a: Array) -> Array:
        """What the rows have, shape (m, k), in their places among all, and zeros elsewhere."""
        place = places(self.select, self.rows.shape[0])
        padded = _backend.namespace(a).concat([a, _backend.zeros_like(a, rows=1)], axis=0)
        return _backend.take_rows(padded, _backend.index_like(place, like=a))

    def _selected(self, x: Array) -> Array:
        return _backend.take_rows(x, _backend.index_like(self.select, like=x))


def places(select: np.ndarray, count: int) -> np.ndarray:
    """Which of m rows lies in each of `count` places, for the places that they lie in; m where there is none."""
    place = np.full(count, len(select))
    place[select] = np.arange(len(select))
    return place
