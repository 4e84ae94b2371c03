"""Rows on a disk or in the memory of another device, read by column panels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._errors import naming
from .._progress import Progress, reporter
from .._scaling.powers_of_two import ldexp
from .._typing import Array
from .fingerprint import Fingerprint, require_unchanged
from .panels import combination, descend, gram, long_product, scaled_squares

LEAST_COLUMNS = 1024  # of a panel, if there are so many
SMALL_ARRAYS, VECTORS = 48, 36  # bytes for each of min(m, d)² and of m + d, in a build and a query
WIDENED_VECTORS = 52  # the same for float32 rows in float64 arithmetic
OBJECTS = 2**14  # bytes of Python objects
PANEL_BYTES = 28 * 2**20  # read at a time: from 32 MB on the C library releases memory at once
PIECE, PIECE_BYTES = 2**20, 24  # numbers in one operation, and bytes for each of them


@dataclass(frozen=True)
class StreamedRows(Part):
    """`Rows` that are streamed: while one panel is used, in like's library, the next one is read."""

    gradients: Any  # an array, or anything with shape, dtype and slices
    like: Array  # (0, d)
    exponent: int | None
    dtype: Any
    width: int  # columns read at a time
    shows_progress: bool = False  # of each pass
    fingerprint: Fingerprint | None = None  # of an array in the host's memory

    has_twin = False
    is_plain = False
    multiplies_by_entries = False
    can_change_dtype = True
    is_streamed = True
    is_movable = False

    @property
    def source(self) -> Any:
        """The array of which blocks may be views, if there is one."""
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
        """The rows of 2^−exponent G."""
        return replace(self, exponent=exponent)

    def unscaled(self) -> "StreamedRows":
        """The rows of G without scaling, computed in the dtype of the answers."""
        require_unchanged(self)
        return replace(self, exponent=None, dtype=_backend.result_dtype(self.like))

    def largest(self) -> float:
        """The largest absolute entry of G."""
        xp = _backend.namespace(self.like)
        largest = [float(_backend.read(xp.max(xp.abs(block)))) for _, block in self.blocks()]
        return float(np.max(largest))

    def column_slices(self, start: int = 0) -> list[slice]:
        """Column slices of the blocks, beginning at column `start`."""
        return [cut for panel in self._panels(start) for cut in self._pieces(panel)]

    def _panels(self, start: int) -> list[slice]:
        dim = self.shape[1]
        return [slice(a, min(a + self.width, dim)) for a in range(start, dim, self.width)]

    def _pieces(self, panel: slice) -> list[slice]:
        """The columns of one operation each: memory of this size is reused, larger pieces are allocated each time."""
        width = max(1, PIECE // self.shape[0])
        return [slice(start, min(start + width, panel.stop)) for start in range(panel.start, panel.stop, width)]

    def _read(self, columns: slice) -> Array:
        return _backend.read_block(self.gradients, (slice(None), columns), like=self.like)

    def _to_computed(self, block: Array) -> Array:
        block = _backend.cast(block, self.dtype)
        return block if self.exponent is None else ldexp(block, -self.exponent)

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        return self._to_computed(self._read(columns))

    def blocks(self, start: int = 0) -> Iterator[tuple[slice, Array]]:
        """Column slices and Ĝ[:, columns], from panels that are read ahead."""
        panels = self._panels(start)
        reading = _backend.read_ahead(self._read, panels)
        for columns, panel in reporter(self.shows_progress)(reading, "pass over the rows", len(panels)):
            for piece in self._pieces(columns):
                yield piece, self._to_computed(panel[:, piece.start - columns.start : piece.stop - columns.start])

    @property
    def block_rows(self) -> int:
        """Number of rows of a block that has all columns, for m ≥ d."""
        m, d = self.shape
        return max(1, min(PIECE, m * self.width // 2) // d)  # the numbers of a piece, or half of those of a panel

    def row_block(self, rows: slice) -> Array:
        """Ĝ[rows, :] in the computing dtype."""
        return self._to_computed(_backend.read_block(self.gradients, (rows, slice(None)), like=self.like))

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j)), in runs of neighbours."""
        wanted, place = np.unique(_backend.read(j), return_inverse=True)
        starts = np.flatnonzero(np.diff(wanted, prepend=-2) > 1)
        stops = [*starts[1:], len(wanted)][: len(starts)]
        runs = [slice(int(wanted[a]), int(wanted[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]
        parts = [self._read(columns) for columns in runs] or [self._read(slice(0, 0))]
        block = _backend.namespace(self.like).concat(parts, axis=1)
        return self._to_computed(_backend.take_columns(block, _backend.index_like(place, like=block)))

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64: panels in the computing dtype, float64 across panels."""
        stage = f"gram of 2^{-(self.exponent or 0)} G in {_backend.dtype_name(self.dtype)}"
        start, arrays = progress.restore(stage)
        total = _backend.to_device_of(arrays["gram"], like=_backend.to_float64(self.like)) if arrays else None
        blocks = replace(self, shows_progress=False).blocks(start)  # the build has its own bar
        for _ in progress(self.column_slices(start), "gram"):
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
        return descend(self.blocks(), r, a, column_scale)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        return scaled_squares(self.blocks(), row_scale)


def _as_gram(total: Array) -> dict[str, Array]:
    return {"gram": _backend.read(total)}


def least_memory(shape: tuple[int, int], itemsize: int, *, widened: bool = False) -> int:
    """Return the bytes of memory of a build or a query with the narrowest panels."""
    m, d = shape
    width = LEAST_COLUMNS if m < d else max(1, PIECE // m)  # for m ≥ d few products use columns
    return _fixed_memory(shape, widened) + m * min(d, width) * (2 * itemsize + PIECE_BYTES)


def width_within(limit: int, shape: tuple[int, int], itemsize: int, *, widened: bool = False) -> int:
    """Return the panel width that keeps a build and a query within `limit` bytes."""
    m, d = shape
    room = limit - _fixed_memory(shape, widened)
    width = (room - PIECE * PIECE_BYTES) // (m * 2 * itemsize)
    if m * width < PIECE:  # a panel is one piece
        width = room // (m * (2 * itemsize + PIECE_BYTES))
    return max(1, min(d, width, width_read(m, itemsize)))


def width_read(num_rows: int, itemsize: int) -> int:
    """Return the panel width where memory allows it."""
    return max(LEAST_COLUMNS, PANEL_BYTES // (num_rows * itemsize))


def _fixed_memory(shape: tuple[int, int], widened: bool) -> int:
    """Bytes that do not depend on the panels: the small system, vectors and objects."""
    vectors = WIDENED_VECTORS if widened else VECTORS
    return SMALL_ARRAYS * min(shape) ** 2 + vectors * sum(shape) + OBJECTS
