"""Rows that stay where they are, on a disk or in another memory, and are read by column panels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._errors import naming
from .._progress import reporter
from .._scaling.powers import ldexp
from .._typing import Array
from .fingerprint import Fingerprint, require_unchanged
from .panels import combination, descend, gram, long_product, scaled_squares, stretched

LEAST_COLUMNS = 1024  # of a panel, or all there are
SMALL_ARRAYS, VECTORS = 48, 36  # bytes for each of min(m, d)² and of m + d that a build and a query take besides
WIDENED_VECTORS = 52  # the same where float32 rows are computed with in float64
OBJECTS = 2**14  # bytes of what is no array
PANEL_BYTES = 28 * 2**20  # read at a time: under the 32 MB from which the C library gives memory back at once
PIECE, PIECE_BYTES = 2**20, 24  # numbers computed with at a time, and bytes for each of them


@dataclass(frozen=True)
class StreamedRows(Part):
    """The same protocol as DenseRows: one panel is computed with, in like's library, while the next is read."""

    gradients: Any  # an array, or anything with shape, dtype and slices
    like: Array  # (0, d)
    exponent: int | None
    dtype: Any
    width: int  # columns read at a time
    shows_progress: bool = False  # of each pass
    fingerprint: Fingerprint | None = None  # of an array in the host's memory

    is_plain = False
    is_sparse = False
    is_dense = True
    is_streamed = True
    is_movable = False

    @property
    def source(self) -> Any:
        """The array that blocks may be views of, if there is one."""
        return self.gradients if _backend.is_array(self.gradients) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        with naming("gradients"):
            m, d = self.gradients.shape
        return m, d

    def with_dtype(self, dtype: Any) -> "StreamedRows":
        """The same rows, computed in another dtype."""
        return replace(self, dtype=dtype)

    def divide_by_power(self, exponent: int) -> "StreamedRows":
        """The rows of 2^−exponent G, for G as it stands."""
        return replace(self, exponent=exponent)

    def unscaled(self) -> "StreamedRows":
        """The rows of G as it stands, computed in the dtype of the answers."""
        require_unchanged(self)
        return replace(self, exponent=None, dtype=_backend.result_dtype(self.like))

    def largest(self) -> float:
        """The largest absolute entry of G."""
        xp = _backend.namespace(self.like)
        largest = [float(_backend.read(xp.max(xp.abs(block)))) for _, block in self.blocks()]
        return float(np.max(largest))

    def column_slices(self, start: int = 0) -> list[slice]:
        """Column slices of the blocks, from a column on."""
        return [cut for panel in self._panels(start) for cut in self._cuts(panel)]

    def _panels(self, start: int) -> list[slice]:
        dim = self.shape[1]
        return [slice(a, min(a + self.width, dim)) for a in range(start, dim, self.width)]

    def _cuts(self, panel: slice) -> list[slice]:
        """What is computed with at a time: memory of this size is used again, larger pieces are new each time."""
        width = max(1, PIECE // self.shape[0])
        return [slice(start, min(start + width, panel.stop)) for start in range(panel.start, panel.stop, width)]

    def _read(self, columns: slice) -> Array:
        return _backend.read_block(self.gradients, (slice(None), columns), like=self.like)

    def _computed(self, block: Array) -> Array:
        block = _backend.cast(block, self.dtype)
        return block if self.exponent is None else ldexp(block, -self.exponent)

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        return self._computed(self._read(columns))

    def blocks(self, start: int = 0) -> Iterator[tuple[slice, Array]]:
        """Column slices and Ĝ[:, columns], from panels that are read while the one before is used."""
        panels = self._panels(start)
        reading = _backend.read_ahead(self._read, panels)
        for columns, panel in reporter(self.shows_progress)(reading, "pass over the rows", len(panels)):
            for cut in self._cuts(columns):
                yield cut, self._computed(panel[:, cut.start - columns.start : cut.stop - columns.start])

    @property
    def block_rows(self) -> int:
        """Rows read at a time where all columns are, for m ≥ d."""
        m, d = self.shape
        return max(1, min(PIECE, m * self.width // 2) // d)  # numbers of a piece, or half of those of a panel

    def row_block(self, rows: slice) -> Array:
        """Ĝ[rows, :] in the computing dtype."""
        return self._computed(_backend.read_block(self.gradients, (rows, slice(None)), like=self.like))

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j)), in runs of neighbours."""
        wanted, place = np.unique(_backend.read(j), return_inverse=True)
        starts = np.flatnonzero(np.diff(wanted, prepend=-2) > 1)
        stops = [*starts[1:], len(wanted)][: len(starts)]
        runs = [slice(int(wanted[a]), int(wanted[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]
        parts = [self._read(columns) for columns in runs] or [self._read(slice(0, 0))]
        found = _backend.namespace(self.like).concat(parts, axis=1)
        return self._computed(_backend.take_columns(found, _backend.index_like(place, like=found)))

    def gram(self, column_scale: Array | None, progress: Any) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64: panels in the computing dtype, float64 across panels."""
        stage = f"gram of 2^{-(self.exponent or 0)} G in {_backend.dtype_name(self.dtype)}"
        done, found = progress.restore(stage)
        total = _backend.to_device_of(found["gram"], like=_backend.to_float64(self.like)) if found else None
        blocks = replace(self, shows_progress=False).blocks(done)  # a bar of its own
        for _ in progress(self.column_slices(done), "gram"):
            columns, block = next(blocks)
            part = gram(block if column_scale is None else block * column_scale[columns, 0])
            total = part if total is None else total + part
            progress.save(stage, columns.stop, partial(_as_gram, total))
        return total

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k), float64."""
        return sum(long_product(block, v[columns, :]) for columns, block in self.blocks())

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, shape (d, k), for float64 a of shape (m, k)."""
        a = _backend.from_float64(a, like=self.like, dtype=self.dtype)
        return _backend.namespace(a).concat([combination(block, a) for _, block in self.blocks()], axis=0)

    def descend(self, r: Array, a: Array, column_scale: Array | None) -> tuple[Array, Array]:
        """Return r − diag(column_scale) Ĝᵀ a, and Ĝ diag(column_scale) times that, in one pass."""
        a = _backend.from_float64(a, like=self.like, dtype=self.dtype)
        return descend(stretched(self.blocks(), column_scale), r, a)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        return scaled_squares(self.blocks(), row_scale)


def _as_gram(total: Array) -> dict[str, Array]:
    return {"gram": _backend.read(total)}


def least_memory(shape: tuple[int, int], itemsize: int, *, widened: bool = False) -> int:
    """Return the bytes that a build and a query take with the narrowest panels."""
    m, d = shape
    width = LEAST_COLUMNS if m < d else max(1, PIECE // m)  # for m ≥ d few products are by columns
    return _fixed_memory(shape, widened) + m * min(d, width) * (2 * itemsize + PIECE_BYTES)


def width_within(limit: int, shape: tuple[int, int], itemsize: int, *, widened: bool = False) -> int:
    """Return the columns read at a time that keep a build and a query within `limit` bytes."""
    m, d = shape
    room = limit - _fixed_memory(shape, widened)
    width = (room - PIECE * PIECE_BYTES) // (m * 2 * itemsize)
    if m * width < PIECE:  # a panel is one piece
        width = room // (m * (2 * itemsize + PIECE_BYTES))
    return max(1, min(d, width, width_read(m, itemsize)))


def width_read(num_rows: int, itemsize: int) -> int:
    """Return the columns that are read at a time where memory allows it."""
    return max(LEAST_COLUMNS, PANEL_BYTES // (num_rows * itemsize))


def _fixed_memory(shape: tuple[int, int], widened: bool) -> int:
    """What does not depend on panels: the small system is min(m, d) × min(m, d)."""
    vectors = WIDENED_VECTORS if widened else VECTORS
    return SMALL_ARRAYS * min(shape) ** 2 + vectors * sum(shape) + OBJECTS
