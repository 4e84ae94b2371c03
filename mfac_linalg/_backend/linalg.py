"""Small factorisations, triangular solves and column sums, by each library's own routines."""

import contextlib
import os
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from .kinds import dtype_name, is_concrete, is_row_major, namespace
from .values import read

Array = Any
THREADED_SIZE, MOST_THREADS = 2**22, 8  # einsum reads no faster than one core can


def squares_without_copy(x: Array) -> bool:
    """Return whether `column_squares` makes no temporary of x's size."""
    return compat.is_numpy_array(x)


def column_squares(x: Array) -> Array:
    """Return the squared norms of the columns of x."""
    if not compat.is_numpy_array(x):
        return namespace(x).sum(x * x, axis=0)
    if x.size < THREADED_SIZE or not is_row_major(x):
        return _host_column_squares(x)
    from concurrent.futures import ThreadPoolExecutor  # on first use: it imports logging

    count = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(_host_column_squares, np.array_split(x, count)))


def _host_column_squares(x: np.ndarray) -> np.ndarray:
    """By einsum, which makes no temporary of x's size, in one thread."""
    return np.einsum("ij,ij->j", x, x)


def column_norms(x: Array) -> Array:
    """Return the norms of the columns of x."""
    return namespace(x).linalg.vector_norm(x, axis=0)


def cholesky(a: Array) -> Array | None:
    """Return the lower Cholesky factor, or None where there is none; traced or batched values are not tested."""
    if compat.is_torch_array(a):
        torch = sys.modules["torch"]
        factor, info = torch.linalg.cholesky_ex(a)
        return None if is_concrete(a) and int(info) else factor
    if compat.is_cupy_array(a):
        with sys.modules["cupyx"].errstate(linalg="raise"):
            return _attempt_cholesky(a)
    return _attempt_cholesky(a)


def _attempt_cholesky(a: Array) -> Array | None:
    with contextlib.suppress(np.linalg.LinAlgError):
        factor = namespace(a).linalg.cholesky(a)
        if compat.is_jax_array(a) and is_concrete(a) and not bool(np.isfinite(read(factor[-1, -1]))):
            return None
        return factor
    return None


def solve_triangular(lower: Array, b: Array, *, transposed: bool = False) -> Array:
    """Return L⁻¹b, or L⁻ᵀb, for a lower-triangular L."""
    matrix = lower.T if transposed else lower
    if compat.is_numpy_array(b):
        import scipy.linalg  # on first use: it would be most of the time that importing this package takes

        return scipy.linalg.solve_triangular(lower, b, lower=True, trans=int(transposed), check_finite=False)
    if compat.is_torch_array(b):
        torch = sys.modules["torch"]  # from the right, on bᵀ, which is in Fortran order: nothing is copied
        return torch.linalg.solve_triangular(matrix.T, b.T, upper=not transposed, left=False).T
    if compat.is_jax_array(b):
        return sys.modules["jax"].scipy.linalg.solve_triangular(lower, b, trans=int(transposed), lower=True)
    if compat.is_cupy_array(b):
        from cupyx.scipy.linalg import solve_triangular as solve

        return solve(lower, b, trans=int(transposed), lower=True, check_finite=False)
    return namespace(b).linalg.solve(matrix, b)


def multiplies_batches(x: Array) -> bool:
    """Return whether products with column panels of x are quick as one batch: of NumPy's, with BLAS for each panel."""
    return compat.is_numpy_array(x) and is_row_major(x)


def overwrites_blocks(x: Array) -> bool:
    """Return whether `solve_triangular_over` and `multiply_triangular_over` write over blocks like x."""
    return compat.is_numpy_array(x)


def solve_triangular_over(lower: Array, b: Array) -> Array:
    """Return L⁻¹b for a contiguous b, written over b where arrays of its kind can be."""
    return _triangular_over("trsm", lower, b) if overwrites_blocks(b) else solve_triangular(lower, b)


def multiply_triangular_over(lower: Array, b: Array) -> Array:
    """Return L b for a contiguous NumPy matrix b, written over b."""
    return _triangular_over("trmm", lower, b)


def _triangular_over(routine: str, lower: Array, b: Array) -> Array:
    import scipy.linalg

    (run,) = scipy.linalg.get_blas_funcs((routine,), (b,))
    if b.flags.f_contiguous:
        return run(1.0, lower, b, lower=1, overwrite_b=1)
    return run(1.0, lower, b.T, side=1, lower=1, trans_a=1, overwrite_b=1).T  # on bᵀ, in Fortran order: no copy


def linear_operator(inverse: Any) -> Any:
    """Return SciPy's LinearOperator over an inverse, or CuPy's for CuPy arrays."""
    if compat.is_cupy_array(inverse._like):
        from cupyx.scipy.sparse.linalg import LinearOperator
    else:
        from scipy.sparse.linalg import LinearOperator
    return LinearOperator(
        inverse.shape,
        matvec=inverse.matvec,
        rmatvec=inverse.matvec,
        matmat=inverse.matmat,
        rmatmat=inverse.matmat,
        dtype=dtype_name(inverse.dtype),
    )
