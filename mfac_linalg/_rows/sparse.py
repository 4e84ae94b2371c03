"""Sparse gradient rows: products in time proportional to the number of non-zeros."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._backend.pytree import Part
from .._progress import Progress
from .._scaling.powers_of_two import ldexp
from .._typing import Array
from .fingerprint import Fingerprint, require_unchanged
from .panels import column_slices, slices

GATHERED = 2**20  # numbers of A⁻¹ gathered at a time


@dataclass(frozen=True)
class SparseRows(Part):
    """`Rows` of a sparse matrix, in float64: its precision hardly matters for memory."""

    gradients: Any  # the caller's
    matrix: Any  # Ĝ = 2^−exponent · G in CSR, float64
    exponent: int | None
    like: Array  # (0, d), of the library and dtype of the answers
    fingerprint: Fingerprint | None = None  # of the caller's

    is_plain = False
    multiplies_by_entries = True
    can_change_dtype = False
    is_streamed = False
    is_movable = True

    @classmethod
    def of(cls, gradients: Any) -> "SparseRows":
        """Convert a matrix of any sparse format to CSR with float64 numbers; arrays that need no change are shared."""
        check.sparse(gradients)
        gradients = _backend.in_arrays(gradients)
        matrix = _backend.canonical_rows(gradients)
        like = _backend.empty((0, matrix.shape[1]), like=matrix.data, dtype=gradients.dtype)
        return cls(gradients, matrix, None, like, Fingerprint.of(gradients))

    @property
    def source(self) -> Any:
        """None: blocks are copies."""
        return None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.matrix.dtype

    def with_dtype(self, dtype: Any) -> "SparseRows":
        """The same rows, which always compute in float64."""
        return self

    def select_columns(self, columns: slice) -> "SparseRows":
        """The same rows in some columns."""
        return SparseRows(None, self._by_columns[:, columns].tocsr(), self.exponent, self.like[:, columns])

    def unscaled(self) -> "SparseRows":
        """The rows of G without scaling."""
        require_unchanged(self)
        return SparseRows.of(self.gradients)

    def largest(self) -> float:
        """The largest absolute entry."""
        data = self.matrix.data
        return float(abs(data).max()) if len(data) else 0.0

    def divide_by_power(self, exponent: int) -> "SparseRows":
        """The rows of 2^−exponent G."""
        matrix = _backend.with_values(self.matrix, ldexp(self.matrix.data, -exponent))
        return replace(self, matrix=matrix, exponent=exponent)

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """K = Ĝ diag(column_scale)² Ĝᵀ, shape (m, m)."""
        matrix = self.matrix
        if column_scale is not None:
            matrix = _backend.with_values(matrix, matrix.data * column_scale[:, 0][matrix.indices])
        return (matrix @ matrix.T).toarray()

    def project(self, v: Array) -> Array:
        """Ĝ v, shape (m, k)."""
        return self.matrix @ v

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, shape (d, k)."""
        return self.matrix.T @ a

    @property
    def _by_columns(self) -> Any:
        return self._once("by_columns", self.matrix.tocsc)

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], shape (m, len(j))."""
        return self._by_columns[:, j].toarray()

    def row_block(self, rows: slice) -> Array:
        """Ĝ[rows, :]."""
        return self.matrix[rows, :].toarray()

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and Ĝ[:, columns]."""
        for columns in column_slices(*self.shape, self.dtype):
            yield columns, self._by_columns[:, columns].toarray()

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, shape (d,)."""
        return (_backend.with_values(self.matrix, self.matrix.data**2).T @ row_scale**2)[:, 0]

    def column_quadratic_forms(self, weights: Array) -> Array:
        """ĝ_jᵀ B ĝ_j for each column ĝ_j and B = weights (m, m), shape (d,): Σ_j n_j² steps for n_j entries each."""
        matrix = self._by_columns
        totals = _backend.zeros(self.shape[1:], like=self.like, dtype=self.dtype)
        counts = _backend.read(matrix.indptr[1:] - matrix.indptr[:-1])
        for count in np.unique(counts[counts > 0]):
            same_count = np.flatnonzero(counts == count)
            for chunk in slices(len(same_count), max(1, GATHERED // int(count) ** 2)):
                columns = _backend.index_like(same_count[chunk], like=totals)
                at = matrix.indptr[columns][:, None] + _backend.index_like(np.arange(count), like=totals)
                rows, values = matrix.indices[at], matrix.data[at]
                selected = weights[rows[:, :, None], rows[:, None, :]]
                totals[columns] = (values[:, None, :] @ selected @ values[:, :, None])[:, 0, 0]
        return totals
