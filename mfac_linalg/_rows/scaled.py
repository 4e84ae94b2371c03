"""S = C^½ Ĝ Λ̂^-½: the rows in the coordinates where F = I + SᵀS, stored as G and two diagonal factors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._capacitance.system import triangle_above
from .._scaling.powers_of_two import exponents, ldexp
from .._typing import Array
from .chunked import ChunkedRows
from .dense import DenseRows
from .fingerprint import Fingerprint
from .panels import panel_width, scale_columns, slices
from .protocol import PanelRows, Rows
from .selected import SelectedRows
from .sparse import SparseRows
from .streamed import StreamedRows


@dataclass(frozen=True)
class ScaledRows(Part):
    """S = diag(row_scale) Ĝ diag(column_scale); no array of size m × d but the caller's G."""

    rows: Rows  # Ĝ
    row_scale: Array  # (m, 1) float64
    column_scale: Array | None  # (d, 1), None for scalar damping

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.rows.like

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint of the caller's G."""
        return self.rows.fingerprint

    @property
    def can_change_dtype(self) -> bool:
        """Whether `astype_float64` changes the dtype of the computation."""
        return self.rows.can_change_dtype

    @property
    def is_streamed(self) -> bool:
        """Whether a pass over G costs more than its arithmetic."""
        return self.rows.is_streamed

    @property
    def multiplies_by_entries(self) -> bool:
        """Whether products of rows use their common non-zeros only."""
        return self.rows.multiplies_by_entries

    @property
    def is_plain(self) -> bool:
        """Whether T, with S = diag(row_scale) T, is the caller's G itself."""
        return self.column_scale is None and self.rows.is_plain

    @property
    def _panels(self) -> PanelRows:
        return cast(PanelRows, self.rows)  # in memory, or read by panels

    def unscaled_panel(self, columns: slice) -> Array:
        """T[:, columns] = Ĝ[:, columns] diag(column_scale) in the computing dtype, perhaps a view of the caller's G."""
        block = self._panels.panel(columns)
        return block if self.column_scale is None else block * self.column_scale[columns, 0]

    def unscaled_blocks(self, start: int = 0) -> Iterator[tuple[slice, Array]]:
        """Column slices and T[:, columns]; for streamed rows beginning at column `start`."""
        blocks = cast(StreamedRows, self.rows).blocks(start) if start else self._panels.blocks()
        return scale_columns(blocks, self.column_scale)

    def unscaled_columns(self, j: Array) -> Array:
        """T[:, j] in the computing dtype: a copy."""
        block = self.rows.columns(j)
        return block if self.column_scale is None else block * _backend.entries(self.column_scale[:, 0], j)

    def copy_unscaled(self, out: Array) -> None:
        """Write T to a NumPy array of its shape, by panels in threads."""

        def copy(columns: slice) -> None:
            out[:, columns] = self.unscaled_panel(columns)

        _backend.in_threads(copy, self._panels.column_slices())

    def select_columns(self, columns: slice) -> "ScaledRows":
        """S[:, columns]."""
        column_scale = None if self.column_scale is None else self.column_scale[columns, :]
        return ScaledRows(cast(DenseRows, self.rows).select_columns(columns), self.row_scale, column_scale)

    @property
    def can_sample_rows(self) -> bool:
        """Whether products with a sample of the rows cost in proportion, without a copy."""
        rows = self.rows.rows if isinstance(self.rows, SelectedRows) else self.rows
        return isinstance(rows, DenseRows)

    def sample_rows(self, row: int, step: int) -> tuple[np.ndarray, "ScaledRows"]:
        """About every `step`-th row of S, this one among them, if `can_sample_rows`: the indices, and the rows."""
        index, rows = cast(DenseRows | SelectedRows, self.rows).sample_rows(row, step)
        return index, ScaledRows(rows, self.row_scale[index, :], self.column_scale)

    def astype_float64(self) -> "ScaledRows":
        """The same rows, computed in float64 where their dtype can be changed."""
        rows = self.rows.with_dtype(_backend.namespace(self.like).float64)
        column_scale = None if self.column_scale is None else _backend.cast(self.column_scale, rows.dtype)
        return ScaledRows(rows, self.row_scale, column_scale)

    def project(self, u: Array) -> Array:
        """S u, shape (m, k), float64."""
        return self.row_scale * self.rows.project(u if self.column_scale is None else self.column_scale * u)

    def combine(self, a: Array) -> Array:
        """Sᵀ a, shape (d, k)."""
        total = self.rows.combine(self.row_scale * a)
        return total if self.column_scale is None else self.column_scale * total

    def descend(self, r: Array, delta: Array) -> tuple[Array, Array]:
        """Return r − Sᵀδ, and S times that, in one pass over G."""
        rows = cast(StreamedRows | ChunkedRows, self.rows)
        after, product = rows.descend(r, self.row_scale * delta, self.column_scale)
        return after, self.row_scale * product

    def column_squares(self) -> Array:
        """‖S e_j‖² for each j, shape (d,), float64."""
        return self._scale_squares(self.rows.squares(self.row_scale))

    def column_quadratic_forms(self, inverse: Array) -> Array:
        """‖L⁻¹ S e_j‖² for each j by A⁻¹, shape (d,), if `multiplies_by_entries`."""
        rows = cast(SparseRows | SelectedRows, self.rows)
        return self._scale_squares(rows.column_quadratic_forms(self.row_scale * inverse * self.row_scale.T))

    def map_parts(self, function: Callable[..., Array], *arguments: Any) -> Array:
        """function(S[:, chunk], *arguments), of shape (width,), concatenated over the chunks of lazy rows."""
        rows = cast(ChunkedRows, self.rows)
        return rows.map_parts(partial(_with_scaled, function), self.row_scale, self.column_scale, *arguments)

    def _scale_squares(self, squares: Array) -> Array:
        return squares if self.column_scale is None else squares * _backend.to_float64(self.column_scale[:, 0]) ** 2

    def normal_matrix(self) -> Array:
        """SᵀS, shape (d, d), float64: for d ≤ m, by blocks of rows."""
        total = None
        for block in self.row_blocks():
            part = block.T @ block
            total = part if total is None else total + part
        return total

    def row_squares(self, function: Callable[[Array], Array]) -> Array:
        """‖function(s_i)‖² for each row s_i, shape (m,), float64: for d ≤ m, by blocks of rows as columns (d, k)."""
        parts = [_backend.column_squares(function(block.T)) for block in self.row_blocks()]
        return _backend.namespace(parts[0]).concat(parts)

    def row_blocks(self) -> Iterator[Array]:
        """Blocks of rows of S, float64."""
        m, d = self.shape
        column_scale = 1.0 if self.column_scale is None else _backend.to_float64(_backend.evaluate(self.column_scale)).T
        streamed = cast(StreamedRows | ChunkedRows, self.rows)
        for chunk in slices(m, streamed.block_rows if self.is_streamed else panel_width(d, np.float64)):
            block = self.row_scale[chunk, :] * _backend.to_float64(self.rows.row_block(chunk))
            yield block if self.column_scale is None else block * column_scale

    def exponents(self) -> Array:
        """E with the largest entry of each column of T in [2^(e−1), 2^e), (d,), float64; −inf where that is zero.

        Nothing overflows, for any column_scale.
        """
        if _backend.is_lazy(self.like):
            return self.map_parts(ScaledRows.exponents)
        parts = []
        for columns, block in self._panels.blocks():
            largest = _backend.namespace(block).max(_backend.namespace(block).abs(block), axis=0)
            powers = exponents(largest)
            if self.column_scale is not None:
                powers = powers + exponents(self.column_scale[columns, 0])
            powers, largest = (_backend.to_float64(_backend.cast(x, block.dtype)) for x in (powers, largest))
            xp = _backend.namespace(powers)
            parts.append(xp.where(largest > 0, powers, xp.full_like(powers, -xp.inf)))
        return _backend.namespace(parts[0]).concat(parts)

    def column_blocks(self) -> Iterator[Array]:
        """Blocks of columns of S as rows (n, m), float64; for lazy rows a matrix of the same triangle instead."""
        if _backend.is_lazy(self.like):
            rows = cast(ChunkedRows, self.rows)
            yield rows.triangle(partial(_with_scaled, ScaledRows._triangle), self.row_scale, self.column_scale)
            return
        wide = self.astype_float64() if _backend.supports_float64(self.like) else self
        for _, block in wide.unscaled_blocks():
            yield (self.row_scale * _backend.to_float64(block)).T

    def _triangle(self) -> Array:
        """The triangle of Sᵀ, (m, m)."""
        return triangle_above(np.zeros((self.shape[0],) * 2), self.column_blocks())

    def columns(self, j: Array) -> Array:
        """S[:, j], float64."""
        block = self.row_scale * _backend.to_float64(self.rows.columns(j))
        if self.column_scale is None:
            return block
        return block * _backend.to_float64(_backend.entries(self.column_scale[:, 0], j))


def _with_scaled(
    function: Callable[..., Array], rows: Rows, row_scale: Array, column_scale: Array, *arguments: Any
) -> Array:
    return function(ScaledRows(rows, row_scale, column_scale), *arguments)


def scaled_rows(rows: Any, power: Any, row_scale: Array, column_scale: Any) -> ScaledRows:
    """S for G = 2^power Ĝ; None for power uses the rows of G without scaling."""
    if power is None:
        return ScaledRows(rows, row_scale, column_scale)
    return ScaledRows(rows.divide_by_power(power), ldexp(row_scale, _backend.like_small_system(power)), column_scale)
