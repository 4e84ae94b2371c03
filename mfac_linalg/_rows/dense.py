"""Dense gradient rows G, read by column panels, never changed and never copied whole."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._progress import Progress
from .._scaling.powers_of_two import ldexp
from .._typing import Array
from .fingerprint import Fingerprint, require_unchanged
from .panels import (
    GRAM_COLUMNS,
    add_widened_gram,
    column_slices,
    combination,
    gram,
    long_product,
    scaled_squares,
    slices,
    weigh,
)

SMALL_SIZE = 2**16  # numbers


@dataclass(frozen=True)
class DenseRows(Part):
    """The rows of Ĝ = 2^−exponent · G, computed in `dtype` (at least the dtype in which G is stored)."""

    gradients: Array
    exponent: Any
    dtype: Any
    fingerprint: Fingerprint | None = None  # of a G that the user can write to

    multiplies_by_entries = False
    can_change_dtype = True
    is_streamed = False
    is_movable = True

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.gradients

    @property
    def source(self) -> Any:
        """G, of which blocks may be views."""
        return self.gradients

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.gradients.shape

    @property
    def is_plain(self) -> bool:
        """Whether Ĝ is the caller's G itself, so that no array of its size is needed."""
        return self.exponent is None and self.gradients.dtype == self.dtype

    @property
    def _needs_no_copy(self) -> bool:
        """Whether products use the caller's G itself."""
        return self._once("needs_no_copy", lambda: self.is_plain and _backend.is_blas_ready(self.gradients))

    @property
    def _is_small(self) -> bool:
        """Whether float64 costs next to nothing; nor is there a second panel, whose rounding would average out."""
        is_few = self.shape[0] * self.shape[1] <= SMALL_SIZE
        return is_few and _backend.on_host(self.gradients) and _backend.supports_float64(self.gradients)

    def with_dtype(self, dtype: Any) -> "DenseRows":
        """The same rows, computed in another dtype."""
        return replace(self, dtype=dtype)

    def select_columns(self, columns: slice) -> "DenseRows":
        """The same rows in some columns."""
        return DenseRows(self.gradients[:, columns], self.exponent, self.dtype)

    def sample_rows(self, row: int, step: int) -> tuple[np.ndarray, "DenseRows"]:
        """Every `step`-th row, this one among them, as a view: the indices, and the rows."""
        rows = slice(row % step, None, step)
        return np.arange(self.shape[0])[rows], DenseRows(self.gradients[rows, :], self.exponent, self.dtype)

    def unscaled(self) -> "DenseRows":
        """The rows of G without scaling, computed in the dtype of the answers."""
        require_unchanged(self)
        return replace(self, exponent=None, dtype=_backend.result_dtype(self.gradients))

    def largest(self) -> float:
        """The largest absolute entry of G."""
        xp = _backend.namespace(self.gradients)
        return float(_backend.read(xp.max(xp.abs(self.gradients))))

    def divide_by_power(self, exponent: Any) -> "DenseRows":
        """The rows of 2^−exponent G."""
        return replace(self, exponent=exponent)

    def column_slices(self) -> list[slice]:
        """Column slices of the panels; a traced array is one panel, which its compiler divides."""
        m, d = self.shape
        return column_slices(m, d, self.dtype) if _backend.is_concrete(self.gradients) else [slice(0, d)]

    def _to_computed(self, block: Array) -> Array:
        block = _backend.as_blas_ready(_backend.cast(block, self.dtype))
        return block if self.exponent is None else ldexp(block, -self.exponent)

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        return self._to_computed(self.gradients[:, columns])

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and Ĝ[:, columns]."""
        for columns in self.column_slices():
            yield columns, self.panel(columns)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,), float64."""
        return scaled_squares(self.blocks(), row_scale)

    def row_block(self, rows: slice) -> Array:
        """Ĝ[rows, :] in the computing dtype."""
        return self._to_computed(self.gradients[rows, :])

    def take_rows(self, i: Array) -> Array:
        """Ĝ[i, :] for an index array, in the computing dtype."""
        return self._to_computed(_backend.take_rows(self.gradients, i))

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j))."""
        return self._to_computed(_backend.take_columns(self.gradients, j))

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m), float64: panels in the computing dtype, float64 across panels."""
        if self._is_small and _backend.dtype_name(self.dtype) == "float32":
            return self.with_dtype(_backend.namespace(self.gradients).float64).gram(column_scale, progress)
        if _backend.is_numpy(self.gradients) and self.gradients.dtype != self.dtype == np.float64:
            return self._widened_gram(column_scale, progress)
        total = None
        for columns in progress(self.column_slices(), "gram"):
            panel = self.panel(columns)
            scaled = panel if column_scale is None else panel * column_scale[columns, 0]
            part = gram(scaled)
            total = part if total is None else total + part
        return total

    def _widened_gram(self, column_scale: Array | None, progress: Progress) -> np.ndarray:
        """The same in float64 for shorter rows of NumPy."""
        m, d = self.shape
        total = np.zeros((m, m))
        for columns in progress(slices(d, GRAM_COLUMNS), "gram"):
            scale = None if column_scale is None else column_scale[columns, 0]
            convert = self._to_computed if scale is None else partial(self._scaled, scale)
            add_widened_gram(total, self.gradients[:, columns], convert)
        return np.tril(total) + np.tril(total, -1).T

    def _scaled(self, scale: Array, block: Array) -> Array:
        return self._to_computed(block) * scale

    def cross(self, other: "DenseRows", column_scale: Array | None) -> Array:
        """Ĝ diag(column_scale)² Ĥᵀ for the rows of another H, shape (m, k), float64."""
        return self.project(weigh(other.gradients.T, column_scale, self.dtype))

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k), float64."""
        return long_product(self.gradients, v, None if self._needs_no_copy else self._to_computed)

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, shape (d, k), for float64 a of shape (m, k)."""
        a = _backend.from_float64(a, like=self.gradients, dtype=self.dtype)
        if self._needs_no_copy:
            return combination(self.gradients, a)
        return _backend.namespace(a).concat([combination(self.panel(c), a) for c in self.column_slices()], axis=0)
