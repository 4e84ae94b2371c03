"""A selection of the rows of a larger array, in any order: the gradients of a window in its ring."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import ON_HOST, Part
from .._progress import Progress
from .._typing import Array
from .dense import DenseRows
from .topk import TopKRows


@dataclass(frozen=True)
class SelectedRows(Part):
    """`Rows` for m of the rows of another; products read all of those and drop the others."""

    rows: DenseRows | TopKRows
    select: np.ndarray = field(metadata=ON_HOST)  # (m,) the position of each row
    small_on_host: bool  # whether arrays with one entry per row are copied to the host, where the small system is

    is_plain = False
    fingerprint = None
    can_change_dtype = True
    is_streamed = False
    is_movable = True

    @property
    def multiplies_by_entries(self) -> bool:
        """Whether products of rows use their common non-zeros only."""
        return self.rows.multiplies_by_entries

    @property
    def source(self) -> Any:
        """The array of which blocks may be views."""
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
        """An array of the library and on the device of d-sized results."""
        return self.rows.like

    def with_dtype(self, dtype: Any) -> "SelectedRows":
        """The same rows, computed in another dtype."""
        return SelectedRows(self.rows.with_dtype(dtype), self.select, self.small_on_host)

    def column_slices(self) -> list[slice]:
        """Column slices of the panels."""
        return self.rows.column_slices()

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and the rows' columns."""
        for columns, block in self.rows.blocks():
            yield columns, self._select(block)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i g_ij)² for each column j, shape (d,), float64."""
        return self.rows.squares(self._scatter(row_scale))

    def column_quadratic_forms(self, weights: Array) -> Array:
        """g_jᵀ B g_j for each column g_j and B = weights (m, m), shape (d,), if `multiplies_by_entries`."""
        return cast(TopKRows, self.rows).column_quadratic_forms(self._scatter(self._scatter(weights).T).T)

    def panel(self, columns: slice) -> Array:
        """The rows' columns, in the computing dtype."""
        return self._select(self.rows.panel(columns))

    def row_block(self, rows: slice) -> Array:
        """A run of the rows, in the computing dtype."""
        return self.rows.take_rows(_backend.index_like(self.select[rows], like=self.like))

    def columns(self, j: Array) -> Array:
        """Columns j, shape (m, len(j))."""
        return self._select(self.rows.columns(j))

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """Rows diag(column_scale)² rowsᵀ, shape (m, m), float64."""
        return self._select_small(self._select_small(self.rows.gram(column_scale, progress)).T)

    def project(self, v: Array) -> Array:
        """Rows times v, shape (m, k), float64."""
        return self._select_small(self.rows.project(v))

    def sample_rows(self, row: int, step: int) -> tuple[np.ndarray, "SelectedRows"]:
        """Some rows, this one among them, of every `step`-th place: the indices, and the rows."""
        places, rows = cast(DenseRows, self.rows).sample_rows(int(self.select[row]), step)
        index = inverse_selection(self.select, self.rows.shape[0])[places]
        is_used = index < len(self.select)
        return index[is_used], SelectedRows(rows, np.flatnonzero(is_used), self.small_on_host)

    def _select_small(self, y: Array) -> Array:
        """The entries of these rows in y (slots, k), on the device of the small system."""
        return self._select(_backend.read(y) if self.small_on_host else y)

    def combine(self, a: Array) -> Array:
        """Σ a_i row_i, shape (d, k), for float64 a of shape (m, k)."""
        return self.rows.combine(self._scatter(a))

    def _scatter(self, a: Array) -> Array:
        """The entries a (m, k) of these rows among those of all rows, with zeros for the others."""
        place = inverse_selection(self.select, self.rows.shape[0])
        padded = _backend.namespace(a).concat([a, _backend.zeros_like(a, rows=1)], axis=0)
        return _backend.take_rows(padded, _backend.index_like(place, like=a))

    def _select(self, x: Array) -> Array:
        return _backend.take_rows(x, _backend.index_like(self.select, like=x))


def inverse_selection(select: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` positions, the index i with select[i] = position; m where no row is selected."""
    place = np.full(count, len(select))
    place[select] = np.arange(len(select))
    return place
