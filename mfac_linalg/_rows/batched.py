"""S of many equal blocks of columns: a batch of small matrices, with one call for all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import _backend
from .._backend.pytree import Part
from .._typing import Array
from .dense import DenseRows
from .panels import product_width, row_runs, slices
from .scaled import ScaledRows


@dataclass(frozen=True)
class BatchedRows(Part):
    """S_b = diag(row_scale) Ĝ_b diag(column_scale_b) for blocks b of `size` columns; vectors are (count, size, k)."""

    rows: DenseRows  # in the columns of these blocks, (m, count · size)
    row_scale: Array  # (m, 1) float64
    column_scale: Array | None  # (count, size, 1)
    size: int

    multiplies_by_entries = False
    is_streamed = False
    can_change_dtype = True

    @property
    def shape(self) -> tuple[int, int]:
        """(m, size), of each block."""
        return self.rows.shape[0], self.size

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.rows.shape[1] // self.size

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.rows.like

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    def block(self, index: int) -> ScaledRows:
        """S of one block."""
        columns = slice(index * self.size, (index + 1) * self.size)
        column_scale = None if self.column_scale is None else self.column_scale[index, :, :]
        return ScaledRows(self.rows.select_columns(columns), self.row_scale, column_scale)

    def astype_float64(self) -> "BatchedRows":
        """The same rows, computed in float64."""
        wide = _backend.namespace(self.like).float64
        column_scale = None if self.column_scale is None else _backend.cast(self.column_scale, wide)
        return BatchedRows(self.rows.with_dtype(wide), self.row_scale, column_scale, self.size)

    def _gradients(self) -> Array:
        """Ĝ_b of every block, (count, m, size), in the computing dtype."""
        rows = self.rows.panel(slice(0, self.rows.shape[1]))
        xp, m = _backend.namespace(rows), self.shape[0]
        return xp.permute_dims(xp.reshape(rows, (m, self.count, self.size)), (1, 0, 2))

    def to_array(self) -> Array:
        """S_b of every block, (count, m, size), float64."""
        block = self.row_scale * _backend.to_float64(self._gradients())
        return block if self.column_scale is None else block * _backend.to_float64(self.column_scale).mT

    def row_blocks(self) -> Iterator[Array]:
        """S_b of every block, as a single block of rows."""
        yield self.to_array()

    def column_blocks(self) -> Iterator[Array]:
        """The columns of S_b as rows, of every block, as a single block."""
        yield self.to_array().mT

    def scaled_gram(self) -> Array:
        """S_bᵀS_b for size ≤ m, else S_b S_bᵀ, of every block, float64."""
        m, size = self.shape
        block = self.to_array()
        return block.mT @ block if size <= m else block @ block.mT

    def row_squares(self, function: Callable[[Array], Array]) -> Array:
        """‖function(s_i)‖² for each row s_i of every block, shape (count, m), float64."""
        return _backend.column_squares(function(self.to_array().mT))

    def project(self, u: Array) -> Array:
        """S_b u_b, shape (count, m, k), float64."""
        v = u if self.column_scale is None else self.column_scale * u
        gradients = self._gradients()
        cuts = slices(self.size, product_width(gradients[0, :, :], v[0, :, :]))
        return self.row_scale * sum(_backend.to_float64(_backend.matmul(gradients[:, :, c], v[:, c, :])) for c in cuts)

    def combine(self, a: Array) -> Array:
        """S_bᵀ a_b, shape (count, size, k), for float64 a of shape (count, m, k)."""
        c = _backend.from_float64(self.row_scale * a, like=self.like, dtype=self.dtype)
        gradients = self._gradients()
        runs = row_runs(self.shape[0], a.shape[-1])
        total = sum(_backend.matmul(gradients[:, rows, :].mT, c[:, rows, :]) for rows in runs)
        return total if self.column_scale is None else self.column_scale * total
