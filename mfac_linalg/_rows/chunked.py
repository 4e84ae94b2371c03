"""Rows of a task graph of Dask: every product is a pass over the chunks, computed by the workers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._backend.pytree import Part
from .._capacitance.system import triangle_above
from .._progress import SILENT, Progress
from .._typing import Array
from .dense import DenseRows
from .panels import descend, panel_width

Make = Callable[[Array], DenseRows]  # the rows of a chunk


@dataclass(frozen=True)
class ChunkedRows(Part):
    """`Rows` of a Dask array: d-sized results, and the m-sized ones that lead to them, are lazy."""

    gradients: Any  # the caller's
    matrix: Any  # the same, in chunks along d only
    exponent: int | None
    dtype: Any

    has_twin = False
    is_plain = False
    multiplies_by_entries = False
    can_change_dtype = True
    is_streamed = True
    is_movable = True
    source = None
    fingerprint = None

    @classmethod
    def of(cls, gradients: Any) -> "ChunkedRows":
        """The rows of a checked lazy array; for m ≥ d it becomes one chunk, since it is small."""
        check.chunked(gradients)
        m, d = gradients.shape
        matrix = _backend.without_empty_chunks(gradients)
        if m >= d:
            matrix = _backend.of_declared_dtype(matrix, "gradients").rechunk(-1)
        matrix = _backend.optimize_graph(matrix)
        return cls(gradients, matrix, None, _backend.result_dtype(gradients))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.matrix.shape

    @property
    def like(self) -> Array:
        """An array (0, d) in the chunks and the dtype of answers."""
        return _backend.cast(self.matrix[:0, :], _backend.result_dtype(self.matrix))

    def with_dtype(self, dtype: Any) -> "ChunkedRows":
        """The same rows, computed in another dtype."""
        return replace(self, dtype=dtype)

    def divide_by_power(self, exponent: int) -> "ChunkedRows":
        """The rows of 2^−exponent G."""
        return replace(self, exponent=exponent)

    def unscaled(self) -> "ChunkedRows":
        """The rows of G without scaling, computed in the dtype of the answers."""
        return replace(self, exponent=None, dtype=_backend.result_dtype(self.matrix))

    def largest(self) -> float:
        """The largest absolute entry of G: a pass."""
        return float(_backend.read(abs(self.matrix).max()))

    @property
    def _make(self) -> Make:
        widths = frozenset(self.matrix.chunks[1])
        return partial(_rows_of, self.shape[0], widths, self.matrix.dtype, exponent=self.exponent, dtype=self.dtype)

    def gram(self, column_scale: Array | None, progress: Progress) -> np.ndarray:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64, evaluated at once: the pass of a build."""
        m = self.shape[0]
        total = _backend.sum_blocks(partial(_gram, self._make), self.matrix, [column_scale], shape=(m, m))
        return _backend.compute(total, progress, "gram")

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k), float64."""
        shape = (self.shape[0], v.shape[1])
        return _backend.sum_blocks(
            partial(_project, self._make), _backend.rekey_graph(self.matrix, v), [v], shape=shape
        )

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, shape (d, k), for float64 a of shape (m, k)."""
        matrix = _backend.rekey_graph(self.matrix, a)
        return _backend.map_blocks(partial(_combine, self._make), matrix, [a], tail=a.shape[1:], dtype=self.dtype)

    def descend(self, r: Array, a: Array, column_scale: Array | None) -> tuple[Array, Array]:
        """Return r − diag(column_scale) Ĝᵀ a, and Ĝ diag(column_scale) times that, in one pass."""
        k = a.shape[1]
        step, matrix = partial(_descend, self._make), _backend.rekey_graph(self.matrix, a)
        return _backend.map_and_sum_blocks(
            step, matrix, [r, a, column_scale], tail=(k,), dtype=self.dtype, shape=(self.shape[0], k)
        )

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        return self.map_parts(_squares, row_scale)

    def map_parts(self, function: Callable[..., Array], *arguments: Any) -> Array:
        """function(rows of a chunk, *arguments), (width,) in float64, concatenated over the chunks: a pass."""
        step = partial(_with_rows, self._make, function)
        return _backend.map_blocks(step, self.matrix, arguments, tail=(), dtype=np.float64)

    def triangle(self, function: Callable[..., Array], *arguments: Any) -> np.ndarray:
        """The triangle of the stacked function(rows of a chunk, *arguments), (m, m), evaluated at once: a pass."""
        m, step = self.shape[0], partial(_with_rows, self._make, function)
        return _backend.read(_backend.sum_blocks(step, self.matrix, arguments, shape=(m, m), add=_triangle))

    def columns(self, j: Array) -> np.ndarray:
        """Ĝ[:, j], shape (m, len(j)), evaluated at once from the chunks that contain them."""
        wanted, place = np.unique(j, return_inverse=True)
        return DenseRows(_backend.read(self.matrix[:, wanted])[:, place], self.exponent, self.dtype).panel(slice(None))

    @property
    def block_rows(self) -> int:
        """Number of rows of a block that has all columns."""
        return panel_width(self.shape[1], np.float64)

    def row_block(self, rows: slice) -> np.ndarray:
        """Ĝ[rows, :], evaluated at once: used for m ≥ d only."""
        return DenseRows(_backend.read(self.matrix[rows, :]), self.exponent, self.dtype).panel(slice(None))


def _rows_of(height: int, widths: frozenset[int], declared: Any, block: np.ndarray, **options: Any) -> DenseRows:
    """The rows of a chunk, which must be as the graph declares it."""
    _backend.chunk_of_dtype(declared, "gradients", block)
    if block.shape[0] != height or block.shape[1] not in widths:
        msg = f"`gradients` must have chunks of the shape that they declare; got one of {block.shape}. "
        raise ValueError(msg + "Name the `chunks` of what map_blocks gives.")
    return DenseRows(block, **options)


def _gram(make: Make, block: np.ndarray, column_scale: np.ndarray | None) -> np.ndarray:
    return make(block).gram(column_scale, SILENT)


def _project(make: Make, block: np.ndarray, v: np.ndarray) -> np.ndarray:
    return make(block).project(v)


def _combine(make: Make, block: np.ndarray, a: np.ndarray) -> np.ndarray:
    return make(block).combine(a)


def _descend(
    make: Make, block: np.ndarray, r: np.ndarray, a: np.ndarray, column_scale: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    rows = make(block)
    return descend(rows.blocks(), r, _backend.cast(a, rows.dtype), column_scale)


def _squares(rows: DenseRows, row_scale: np.ndarray) -> np.ndarray:
    return rows.squares(row_scale)


def _triangle(parts: list[np.ndarray]) -> np.ndarray:
    return triangle_above(parts[0], parts[1:])


def _with_rows(make: Make, function: Callable[..., Array], block: np.ndarray, *arguments: Any) -> Array:
    return function(make(block), *arguments)
