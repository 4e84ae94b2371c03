"""Whitened rows W = L⁻¹ S, by which an element of F⁻¹ is a dot product of length m."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._capacitance.system import Capacitance
from .._progress import Progress
from .._typing import Array
from .dense import DenseRows
from .fingerprint import Fingerprint
from .panels import slices, squares
from .protocol import RowMatrix
from .scaled import ScaledRows
from .streamed import StreamedRows
from .whitener import Whitener

REDO_BELOW = 1e-2  # a diagonal entry 1 − ‖w_j‖² under this has lost two digits or more
PAIRS = 1024  # of columns, gathered at a time: they fit into a cache
RUN = 2**15  # pairs that a thread takes at a time
BLOCK_ROWS = 64


@dataclass(frozen=True)
class WhitenedRows(Part):
    """W and L with S = L W: the same products as ScaledRows, without G."""

    matrix: DenseRows | StreamedRows  # W
    capacitance: Capacitance
    exact_diagonal: tuple[np.ndarray, np.ndarray] | None = None
    """Indices and accurate values of the 1 − ‖w_j‖² that cancel, where they were computed."""

    multiplies_by_entries = False

    @classmethod
    def of(cls, rows: Array, capacitance: Capacitance, *, is_shared: bool = False) -> "WhitenedRows":
        """The rows of a W in memory, which may be the caller's."""
        return cls(DenseRows(rows, None, rows.dtype, Fingerprint.of(rows) if is_shared else None), capacitance)

    @property
    def rows(self) -> Array:
        """W, (m, d)."""
        return self.matrix.gradients

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint of a W in the caller's memory."""
        return self.matrix.fingerprint

    @property
    def is_streamed(self) -> bool:
        """Whether W is read by panels from a file."""
        return self.matrix.is_streamed

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.matrix.shape

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.matrix.like

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.matrix.dtype

    def project(self, u: Array) -> Array:
        """S u = L (W u), shape (m, k), float64."""
        return self.capacitance.cholesky @ self.matrix.project(u)

    def combine(self, a: Array) -> Array:
        """Sᵀ a = Wᵀ (Lᵀ a), shape (d, k)."""
        return self.matrix.combine(self.capacitance.cholesky.T @ a)

    def descend(self, r: Array, delta: Array) -> tuple[Array, Array]:
        """Return r − Sᵀδ, and S times that, in one pass over a streamed W."""
        after, product = cast(StreamedRows, self.matrix).descend(r, self.capacitance.cholesky.T @ delta, None)
        return after, self.capacitance.cholesky @ product

    def column_squares(self) -> Array:
        """‖S e_j‖² for each j, shape (d,), float64."""
        return squares(self._factor_times(block) for _, block in self.matrix.blocks())

    def unwhiten(self) -> Array:
        """S, an array of W's size, in its dtype."""
        if not self.is_streamed:
            return self._factor_times(self.rows)
        parts = [self._factor_times(block) for _, block in self.matrix.blocks()]
        return _backend.namespace(self.like).concat(parts, axis=1)

    def _factor_times(self, block: Array) -> Array:
        lower = _backend.from_float64(self.capacitance.cholesky, like=self.like, dtype=self.dtype)
        return _backend.matmul(lower, block)

    def columns(self, j: Array) -> Array:
        """W[:, j]."""
        return self.matrix.columns(j)

    def panels(self) -> Iterator[Array]:
        """W by column panels; as one where its squares are summed without a temporary."""
        if not self.is_streamed and _backend.squares_without_copy(self.rows):
            yield self.rows
            return
        for _, block in self.matrix.blocks():
            yield block

    def pair_products(self, i: Array, j: Array) -> Array:
        """w_iᵀ w_j for index arrays of one shape (n,).

        Gathering columns of a row-major W touches one cache line per number. For many pairs, blocks of rows are
        transposed first, so that a cache line has the numbers of one column.
        """
        if not self.is_streamed and _backend.is_row_major(self.rows) and i.shape[0] > PAIRS:
            blocks = (_backend.transposed_copy(self.rows[block, :]) for block in slices(self.shape[0], BLOCK_ROWS))
            return sum(_pair_products(partial(_backend.take_rows, block), i, j) for block in blocks)
        return _chunked_products(lambda k: self.matrix.columns(k).T, i, j)


def _pair_products(gather: Callable[[Array], Array], i: Array, j: Array) -> Array:
    """gather(i)·gather(j) for each pair; those of arrays of NumPy in threads."""
    runs = slices(i.shape[0], RUN) if _backend.is_numpy(i) and _backend.thread_count() > 1 else [slice(None)]
    over_runs = _backend.in_threads if len(runs) > 1 else map
    return _backend.namespace(i).concat(list(over_runs(lambda run: _chunked_products(gather, i[run], j[run]), runs)))


def _chunked_products(gather: Callable[[Array], Array], i: Array, j: Array) -> Array:
    """The same in one thread, in chunks of pairs."""
    xp = _backend.namespace(i)
    return xp.concat([_backend.vecdot(gather(i[c]), gather(j[c])) for c in slices(i.shape[0], PAIRS)])


def can_whiten(rows: RowMatrix) -> bool:
    """Whether W may be computed on demand: of an array in memory, in a dtype that W has too."""
    given = rows.rows if isinstance(rows, ScaledRows) else None
    return isinstance(given, DenseRows) and not _backend.is_narrow(given.gradients)


def whiten(
    rows: ScaledRows,
    capacitance: Capacitance,
    *,
    dtype: Any,
    overwrite: bool,
    progress: Progress,
    wide_rows: ScaledRows | None = None,
) -> WhitenedRows:
    """Return W = L⁻¹ S in `dtype`: in a new array, or over the caller's G with `overwrite`.

    `wide_rows` are S in float64 where κ asks for it, for a W that only elements use: a sum Sᵀy by W needs each w_j
    rounded once.
    """
    dense, whitener = cast(DenseRows, rows.rows), Whitener.of(rows, capacitance, dtype, wide_rows=wide_rows)
    source, panels = dense.gradients, progress(dense.column_slices(), "whiten")
    if not _backend.is_writable(source) or _backend.is_differentiated(capacitance.cholesky):
        parts = [_backend.cast(block, dtype) for _, block in whitener.panels(panels)]
        return WhitenedRows.of(_backend.namespace(source).concat(parts, axis=1), capacitance)
    out = source if overwrite else _backend.empty(rows.shape, like=source, dtype=dtype)
    whitener.write(out, panels)
    return WhitenedRows.of(out, capacitance, is_shared=overwrite)


def whiten_into(
    write: Callable[[slice, Array], None], rows: ScaledRows, capacitance: Capacitance, *, dtype: Any, progress: Progress
) -> np.ndarray:
    """Write W = L⁻¹ S, in `dtype`, by panels of streamed rows, and return the columns whose 1 − ‖w_j‖² cancels.

    A resumed build begins at the column where the earlier one stopped.
    """
    start, arrays = progress.restore("whiten")
    cancelled, streamed = [arrays.get("small", np.zeros(0, np.int64))], cast(StreamedRows, rows.rows)
    without_bar = replace(rows, rows=replace(streamed, shows_progress=False))  # the build has its own bar
    panels = Whitener.of(rows, capacitance, dtype).blocks(without_bar.unscaled_blocks(start))
    for _ in progress(streamed.column_slices(start), "whiten"):
        columns, block = next(panels)
        cancelled.append(columns.start + np.flatnonzero(_backend.read(complement([block])) < REDO_BELOW))
        write(columns, _backend.cast(block, dtype))
        progress.save("whiten", columns.stop, lambda: {"small": np.concatenate(cancelled)})
    return np.concatenate(cancelled)


def complement(panels: Iterable[Array]) -> Array:
    """1 − ‖w_j‖² for the columns of all panels, shape (d,), float64."""
    parts = [1 - _backend.to_float64(_backend.column_squares(panel)) for panel in panels]
    return _backend.namespace(parts[0]).concat(parts)
