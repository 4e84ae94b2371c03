"""Whitened rows W = L⁻¹ S: one element of F⁻¹ is then one short dot product."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import _backend
from .._dual import SmallSystem
from .._pytree import Part
from .panels import column_slices, combination, long_product, slices, squares
from .scaled import ScaledRows

Array = Any
PAIRS = 4096  # pairs of columns gathered at a time
BLOCK_ROWS = 64
SAMPLE, LARGEST_ERROR = 64, 4.0  # columns of W that are tried; roundings that L W may miss S by, as a solve does
LARGEST_GROWTH = 32.0  # a bound; the errors seen are a fiftieth to 0.4 of it (docs/theory.md, "Whitened rows")


@dataclass(frozen=True)
class WhitenedRows(Part):
    """W and L, which together are S = L W: the same products as ScaledRows, without G."""

    rows: Array  # W, (m, d)
    system: SmallSystem

    is_sparse = False
    is_streamed = False

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        return self.rows

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    def project(self, u: Array) -> Array:
        """S u = L (W u), shape (m, k), float64."""
        return self.system.lower @ long_product(self.rows, u)

    def combine(self, a: Array) -> Array:
        """Sᵀ a = Wᵀ (Lᵀ a), shape (d, k)."""
        a = _backend.from_float64(self.system.lower.T @ a, like=self.rows, dtype=self.rows.dtype)
        return combination(self.rows, a)

    def column_squares(self) -> Array:
        """‖S e_j‖² for each j, shape (d,), float64."""
        return squares(self._unwhitened(columns) for columns in column_slices(*self.shape, self.dtype))

    def unwhitened(self) -> Array:
        """S, an array of W's size, in its dtype."""
        return self._unwhitened(slice(0, self.shape[1]))

    def _unwhitened(self, columns: slice) -> Array:
        lower = _backend.from_float64(self.system.lower, like=self.rows, dtype=self.rows.dtype)
        return lower @ self.rows[:, columns]

    def whitened(self, j: Array) -> Array:
        """W[:, j]."""
        return _backend.take_columns(self.rows, j)

    def whitened_panels(self) -> Any:
        """W by column panels; whole where its squares are summed with no temporary."""
        if _backend.squares_without_copy(self.rows):
            yield self.rows
            return
        for columns in column_slices(*self.shape, self.dtype):
            yield self.rows[:, columns]

    def pair_products(self, i: Array, j: Array) -> Array:
        """w_iᵀ w_j for index arrays of one shape (n,).

        Gathering columns of a row-major W touches one cache line per number: for many pairs a block of rows at a time
        is transposed first, so that a line holds the numbers of one column.
        """
        if _backend.is_row_major(self.rows) and i.shape[0] > PAIRS:
            blocks = (_backend.transposed_copy(self.rows[block, :]) for block in slices(self.shape[0], BLOCK_ROWS))
            return sum(_pair_products(partial(_backend.take_rows, block), i, j) for block in blocks)
        return _pair_products(lambda k: _backend.take_columns(self.rows, k).T, i, j)


def _pair_products(gather: Callable[[Array], Array], i: Array, j: Array) -> Array:
    """gather(i)·gather(j), pair by pair, a chunk of pairs at a time."""
    xp = _backend.namespace(i)
    return xp.concat([xp.vecdot(gather(i[c]), gather(j[c])) for c in slices(i.shape[0], PAIRS)])


def whiten(rows: ScaledRows, system: SmallSystem, *, dtype: Any, overwrite: bool, progress: Any) -> WhitenedRows:
    """Return W = L⁻¹ S, in `dtype`, written over the caller's G or into one new array where arrays can be written."""
    source = rows.rows.gradients
    panels = progress(rows.rows.column_slices(), "whiten")
    blocks = whitened_blocks(rows, system, ((c, rows.unscaled_panel(c)) for c in panels), dtype=dtype)
    if not _backend.is_writable(source) or _backend.is_differentiated(system.lower):
        parts = [_backend.cast(block, dtype) for _, block in blocks]
        return WhitenedRows(_backend.namespace(source).concat(parts, axis=1), system)
    out = source if overwrite else _backend.empty(rows.shape, like=source, dtype=dtype)
    if _backend.overwrites_blocks(out) and rows.dtype == dtype:
        if not (overwrite and rows.is_plain):
            rows.copy_unscaled(out)
        return WhitenedRows(_half_solver(rows, system, dtype)(out), system)
    for columns, block in blocks:
        out[:, columns] = _backend.cast(block, dtype)
    return WhitenedRows(out, system)


def whitened_blocks(
    rows: ScaledRows, system: SmallSystem, blocks: Iterable[tuple[slice, Array]], *, dtype: Any
) -> Iterator[tuple[slice, Array]]:
    """Column slices and L⁻¹ S[:, columns] for blocks of T, in the dtype of rows, good enough for a W in `dtype`."""
    half_solve = _half_solver(rows, system, dtype)
    for columns, block in blocks:
        yield columns, half_solve(_backend.owned(block, source=rows.rows.source))


def _half_solver(rows: ScaledRows, system: SmallSystem, dtype: Any) -> Callable[[Array], Array]:
    """T ↦ L⁻¹ diag(row_scale) T for blocks of columns, over NumPy's: by TRMM with L⁻¹ where W in `dtype` bears it.

    TRMM runs nearly as fast as a matrix product, TRSM at two thirds of that.
    """
    if _backend.overwrites_blocks(rows.like) and not rows.is_streamed:
        growth = LARGEST_GROWTH * float(np.finfo(dtype).eps) / float(np.finfo(rows.dtype).eps)
        inverse = system.inverse_factor(growth)
        if inverse is not None:
            factor = _backend.cast(inverse * rows.row_scale.T, rows.dtype)
            multiply = partial(_backend.multiply_triangular_over, factor)
            if _bears(multiply, rows, system, dtype):
                return multiply
    lower = _backend.from_float64(system.lower / rows.row_scale, like=rows.like, dtype=rows.dtype)
    return partial(_backend.solve_triangular_over, lower)


def _bears(multiply: Callable[[Array], Array], rows: ScaledRows, system: SmallSystem, dtype: Any) -> bool:
    """Whether L W is S to a few roundings in a sample of columns: many rows that are alike round with a bias."""
    dim = rows.shape[1]
    sample = np.arange(0, dim, max(1, dim // SAMPLE))[:SAMPLE]
    wanted = rows.columns(sample)
    whitened = _backend.cast(multiply(rows.unscaled_columns(sample)), dtype)
    missed = np.linalg.norm(system.lower @ whitened - wanted)
    return bool(missed <= LARGEST_ERROR * np.finfo(dtype).eps * np.linalg.norm(wanted))
