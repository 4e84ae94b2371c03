"""Sparse matrices of SciPy and CuPy: their arrays, and the same pattern with other numbers."""

import sys
from typing import Any

import numpy as np

from .._typing import Array
from .libraries import is_cupy

ARRAYS = ("data", "indices", "indptr", "row", "col", "offsets")  # of the formats, by name


def is_sparse(x: object) -> bool:
    """Return whether x is a sparse matrix or array of scipy.sparse or cupyx.scipy.sparse."""
    return any(library.issparse(x) for library in _libraries())


def _libraries() -> list[Any]:
    """The sparse libraries that have been imported."""
    return [sys.modules[name] for name in ("scipy.sparse", "cupyx.scipy.sparse") if name in sys.modules]


def arrays_of(x: Any) -> list[Array]:
    """Return the arrays of a sparse matrix, in the formats that `in_arrays` returns."""
    return [getattr(x, name) for name in ARRAYS if hasattr(x, name)]


def in_arrays(x: Any) -> Any:
    """Return x if it is sorted CSR or CSC; else its CSR form: SciPy sorts the others in place at any time."""
    return x if x.format in ("csr", "csc") and x.has_canonical_format else _in_order(x.tocsr())


def has_sparse(x: Array) -> bool:
    """Return whether there are sparse matrices for x's library: SciPy's for NumPy, and CuPy's."""
    return isinstance(x, np.ndarray) or is_cupy(x)


def canonical_rows(x: Any) -> Any:
    """Return x in CSR form with float64 numbers and no duplicates, sharing the other arrays with x."""
    rows = _in_order(x.tocsr())
    return with_values(rows, rows.data.astype(np.float64, copy=False))


def _in_order(rows: Any) -> Any:
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def compressed_rows(data: Array, indices: Array, indptr: Array, *, shape: tuple[int, int]) -> Any:
    """Return the CSR matrix of three arrays, of SciPy for NumPy's and of CuPy for CuPy's."""
    if isinstance(data, np.ndarray):
        import scipy.sparse

        return scipy.sparse.csr_array((data, indices, indptr), shape=shape)
    import cupyx.scipy.sparse

    return cupyx.scipy.sparse.csr_matrix((data, indices, indptr), shape=shape)


def with_values(x: Any, data: Array) -> Any:
    """Return a CSR or CSC matrix with other numbers in the places of x's."""
    return type(x)((data, x.indices, x.indptr), shape=x.shape)
