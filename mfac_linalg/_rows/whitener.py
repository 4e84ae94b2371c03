"""How W = L⁻¹ S is computed from blocks of columns: by a product with L⁻¹ where that is accurate, else by a solve."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance, whitens_in_float32
from .._typing import Array
from .scaled import ScaledRows

LARGEST_GROWTH = 32.0  # a bound; measured errors are 0.02 to 0.4 of it (docs/theory.md, "Whitened rows")
SAMPLED_COLUMNS = 64  # of W, that are tested
LARGEST_ERROR = 4.0  # of them: ‖L W − S‖ in roundings, that of a solve


@dataclass(frozen=True)
class Whitener:
    """T ↦ L⁻¹ diag(row_scale) T for blocks of columns of S = diag(row_scale) T."""

    rows: ScaledRows  # S in the dtype that W is computed in
    factor: Array  # L⁻¹ diag(row_scale) for products, diag(row_scale)⁻¹ L for solves
    multiplies: bool

    @classmethod
    def of(
        cls, rows: ScaledRows, capacitance: Capacitance, dtype: Any, *, wide_rows: ScaledRows | None = None
    ) -> "Whitener":
        """The fastest one that is accurate enough for a W in `dtype`.

        `wide_rows` are S in float64 where κ asks for it. Where all columns of S are short a product in the dtype of
        `rows` is accurate all the same: it rounds in proportion to them.
        """
        if wide_rows is None or _has_short_columns(rows):
            inverse = _accurate_inverse(rows, capacitance, dtype)
            if inverse is not None:
                return cls(rows, inverse, multiplies=True)
        if wide_rows is not None:
            return cls.of(wide_rows, capacitance, dtype)
        lower = capacitance.cholesky / rows.row_scale
        return cls(rows, _backend.from_float64(lower, like=rows.like, dtype=rows.dtype), multiplies=False)

    def apply(self, block: Array, out: Array | None = None) -> Array:
        """Columns of W, in the dtype of `rows`, for a block of T; a product is written to `out` where it is given."""
        if self.multiplies:
            return _backend.multiply_triangular(self.factor, block, out)
        return _backend.solve_triangular_over(self.factor, _backend.own_copy(block, source=self.rows.rows.source))

    def blocks(self, blocks: Iterable[tuple[slice, Array]]) -> Iterator[tuple[slice, Array]]:
        """Column slices and W[:, columns] for such slices and blocks of T."""
        return ((columns, self.apply(block)) for columns, block in blocks)

    def panels(self, columns: Iterable[slice]) -> Iterator[tuple[slice, Array]]:
        """The same for rows in memory, by slices of columns."""
        return self.blocks((c, self.rows.unscaled_panel(c)) for c in columns)

    def column_squares(self) -> Array:
        """‖w_j‖² for each j, shape (d,), float64."""
        parts, block = [], None
        for _, unscaled in self.rows.unscaled_blocks():
            block = self.apply(unscaled, block if block is not None and block.shape == unscaled.shape else None)
            parts.append(_backend.to_float64(_backend.column_squares(block)))
        return _backend.namespace(parts[0]).concat(parts)

    def write(self, out: Array, columns: Iterable[slice]) -> None:
        """Write W to an array, which may be the caller's G: a product to the array itself, a solve over T in it."""
        if self.multiplies:
            for c in columns:
                _backend.multiply_triangular(self.factor, self.rows.unscaled_panel(c), out[:, c])
        elif _backend.can_overwrite_blocks(out) and out.dtype == self.rows.dtype:
            if not (out is self.rows.rows.source and self.rows.is_plain):
                self.rows.copy_unscaled(out)
            _backend.solve_triangular_over(self.factor, out)
        else:
            for c, block in self.panels(columns):
                out[:, c] = _backend.cast(block, out.dtype)


def _has_short_columns(rows: ScaledRows) -> bool:
    """Whether no ‖S e_j‖² is above the κ up to which W is computed in float32; False where that costs a pass."""
    if not _backend.can_overwrite_blocks(rows.like) or rows.is_streamed:
        return False
    squares = (_backend.column_squares(block) for _, block in rows.unscaled_blocks())
    largest = max(float(np.max(x, initial=0.0)) for x in squares) * float(np.max(rows.row_scale)) ** 2
    return whitens_in_float32(largest)


def _accurate_inverse(rows: ScaledRows, capacitance: Capacitance, dtype: Any) -> Array | None:
    """L⁻¹ diag(row_scale) in the dtype of rows if products with it are accurate enough for a W in `dtype`.

    NumPy multiplies at the speed of any matrix product, and solves with two thirds of it.
    """
    if not _backend.can_overwrite_blocks(rows.like) or rows.is_streamed:
        return None
    growth = LARGEST_GROWTH * float(np.finfo(dtype).eps) / float(np.finfo(rows.dtype).eps)
    inverse = capacitance.inverse_factor(growth)
    if inverse is None:
        return None
    factor = _backend.cast(inverse * rows.row_scale.T, rows.dtype)
    return factor if _is_accurate(factor, rows, capacitance, dtype) else None


def _is_accurate(factor: Array, rows: ScaledRows, capacitance: Capacitance, dtype: Any) -> bool:
    """Whether L W is S to a few roundings in a sample of columns: many similar rows round with a bias."""
    dim = rows.shape[1]
    sample = np.arange(0, dim, max(1, dim // SAMPLED_COLUMNS))[:SAMPLED_COLUMNS]
    expected = rows.columns(sample)
    whitened = _backend.cast(_backend.multiply_triangular(factor, rows.unscaled_columns(sample)), dtype)
    error = np.linalg.norm(capacitance.cholesky @ whitened - expected)
    return bool(error <= LARGEST_ERROR * np.finfo(dtype).eps * np.linalg.norm(expected))
