"""Small factorisations, triangular solves and column sums, by each library's own routines."""

import contextlib
import functools
import sys
from functools import partial
from typing import Any

import numpy as np

from .._typing import Array
from .kinds import is_concrete, is_differentiated, is_numpy, is_row_major, namespace, on_host, supports_float64
from .lazy import is_lazy
from .lazy import solve_triangular as lazy_solve
from .libraries import is_cupy, is_jax, is_torch
from .modes import in_plain_modes
from .products import may_be_cast
from .threads import in_threads, thread_count
from .triangular import factor_solve_by_blocks, multiply_by_blocks, solve_by_blocks
from .values import cast, read

SERIAL_COLUMNS = 3  # LAPACK solves so many in one thread
THREADED_SIZE, THREADED_COLUMNS = 2**22, 2**14  # numbers whose squares are added in threads, not those of a panel
BLOCK_ROWS = 2**12  # terms of one sum in the computing dtype
FOLDED_COLUMNS = 2**10  # numbers that are added in one go
LONG_COLUMNS = 2**17  # of one sum of rows: more leave the cache


def squares_without_copy(x: Array) -> bool:
    """Return whether `column_squares` makes no temporary of x's size."""
    return is_numpy(x)


def column_squares(x: Array) -> Array:
    """Return the squared norms of the columns of x; for NumPy in float64, in which blocks of rows are added.

    Like all that follows here it takes a batch of matrices, with a leading axis, as well as one.
    """
    if not is_numpy(x):
        return namespace(x).sum(x * x, axis=-2)
    if x.ndim > 2:
        return np.einsum("...ij,...ij->...j", x, x).astype(np.float64)
    if x.shape[1] == 1:
        return np.vecdot(x.T, x.T).astype(np.float64)  # BLAS, which keeps partial sums
    is_long = x.size >= THREADED_SIZE and x.shape[1] >= THREADED_COLUMNS
    count, threads = -(-x.shape[1] // LONG_COLUMNS), thread_count() if is_long else 1
    if count > 1:  # equal panels, as many for each thread
        width = -(-x.shape[1] // (-(-count // threads) * threads))
        panels = [x[:, start : start + width] for start in range(0, x.shape[1], width)]
        return np.concatenate(in_threads(_squares_by_rows, panels) if threads > 1 else [*map(_squares_by_rows, panels)])
    if threads == 1:
        return _squares_by_rows(x)
    height = -(-x.shape[0] // threads)
    return sum(in_threads(_squares_by_rows, [x[start : start + height] for start in range(0, x.shape[0], height)]))


def _squares_by_rows(x: np.ndarray) -> np.ndarray:
    """The same by einsum, without a temporary of x's size, in one thread; of few columns several rows are one."""
    count, k = x.shape
    folds = min(count, FOLDED_COLUMNS // k) if k else 1
    if folds > 1 and x.flags.c_contiguous:
        whole = count // folds * folds
        folded = _squares_by_blocks(x[:whole].reshape(-1, folds * k)).reshape(folds, k)
        return folded.sum(axis=0) + _squares_by_blocks(x[whole:])
    return _squares_by_blocks(x)


def _squares_by_blocks(x: np.ndarray) -> np.ndarray:
    blocks = (x[start : start + BLOCK_ROWS] for start in range(0, max(1, x.shape[0]), BLOCK_ROWS))
    return sum(np.einsum("ij,ij->j", block, block).astype(np.float64) for block in blocks)


def column_norms(x: Array) -> Array:
    """Return the norms of the columns of x, in its dtype."""
    if is_numpy(x):
        return np.sqrt(column_squares(x)).astype(x.dtype)
    return namespace(x).linalg.vector_norm(x, axis=-2)


@in_plain_modes
def symmetric_part(a: Array) -> Array:
    """Return (A + Aᵀ)/2."""
    return (a + a.T) / 2


def cholesky(a: Array) -> Array | None:
    """Return the lower Cholesky factor, or None where there is none; traced or batched values are not tested."""
    if is_torch(a):
        torch = sys.modules["torch"]
        factor, info = torch.linalg.cholesky_ex(a)
        return None if is_concrete(a) and bool(info.any()) else factor
    if is_cupy(a):
        with sys.modules["cupyx"].errstate(linalg="raise"):
            return _attempt_cholesky(a)
    return _attempt_cholesky(a)


def _attempt_cholesky(a: Array) -> Array | None:
    if is_numpy(a):
        _lapack()  # for the solves that follow: Python 3.13 imports SciPy no more once the main thread has ended
    with contextlib.suppress(np.linalg.LinAlgError):
        factor = namespace(a).linalg.cholesky(a)
        if is_jax(a) and is_concrete(a) and not np.isfinite(read(factor[..., -1, -1])).all():
            return None
        return factor
    return None


@functools.cache
def _lapack() -> Any:
    """SciPy's LAPACK, imported on first use: it would be most of the import time of this package."""
    from scipy.linalg import lapack

    return lapack


def triangle(x: Array) -> Array:
    """Return R of the QR factorisation of x, of shape (…, n, k) with n ≥ k, without Q where a library can."""
    if is_numpy(x):
        return np.linalg.qr(x, mode="r")
    if is_torch(x) and not is_differentiated(x):
        return sys.modules["torch"].linalg.qr(x, mode="r").R
    return namespace(x).linalg.qr(x).R


def solve_triangular(lower: Array, b: Array, *, transposed: bool = False) -> Array:
    """Return L⁻¹b, or L⁻ᵀb, for a lower-triangular L."""
    if is_lazy(b):
        return lazy_solve(partial(solve_triangular, transposed=transposed), lower, b)
    matrix = lower.mT if transposed else lower
    if is_numpy(b) and lower.ndim > 2:
        right = np.broadcast_to(b, (*lower.shape[:-2], *b.shape[-2:]))
        solved = [solve_triangular(one, c, transposed=transposed) for one, c in zip(lower, right, strict=True)]
        return np.stack(solved)
    if is_numpy(b):
        if b.size == 0:
            return b.astype(lower.dtype)
        if b.ndim == 2 and b.shape[1] > SERIAL_COLUMNS:
            return solve_by_blocks(lower, b, transposed=transposed)
        if lower.flags.f_contiguous:
            return _lapack().dtrtrs(lower, b, lower=1, trans=int(transposed))[0]
        return _lapack().dtrtrs(lower.T, b, lower=0, trans=int(not transposed))[0]
    if is_torch(b):
        torch = sys.modules["torch"]
        if may_be_cast(lower, b) and supports_float64(b):  # its derivative has products in it
            wide = solve_triangular(cast(lower, torch.float64), cast(b, torch.float64), transposed=transposed)
            return cast(wide, b.dtype)
        # from the right, on bᵀ, which is in Fortran order: nothing is copied
        return torch.linalg.solve_triangular(matrix.mT, b.mT, upper=not transposed, left=False).mT
    if is_jax(b):
        return sys.modules["jax"].scipy.linalg.solve_triangular(lower, b, trans=int(transposed), lower=True)
    if is_cupy(b):
        from cupyx.scipy.linalg import solve_triangular as solve

        return solve(lower, b, trans=int(transposed), lower=True, check_finite=False)
    return namespace(b).linalg.solve(matrix, b)


def factor_solve(lower: Array, b: Array) -> Array:
    """Return (L Lᵀ)⁻¹b for a lower-triangular L, whose diagonal may have any signs."""
    if isinstance(b, np.ndarray) and b.ndim == 2 and lower.ndim == 2 and b.size:
        if b.shape[1] > SERIAL_COLUMNS:
            return factor_solve_by_blocks(lower, b)
        if lower.flags.f_contiguous:
            return _lapack().dpotrs(lower, b, lower=1)[0]
        return _lapack().dpotrs(lower.T, b, lower=0)[0]
    return solve_triangular(lower, solve_triangular(lower, b), transposed=True)


def can_multiply_batches(x: Array) -> bool:
    """Return whether products with column panels of x are fast as one batch, and each adds up several partial sums.

    So does BLAS for the contiguous rows of NumPy.
    """
    return is_numpy(x) and is_row_major(x)


def is_blas_ready(x: Array) -> bool:
    """Return whether products with a matrix x on the host go to BLAS as x lies in memory.

    NumPy and PyTorch multiply reversed or broadcast rows and every second column by loops of their own, in one running
    sum, which rows of equal entries round with a bias. (NumPy copies some of these first from 2.3 on.)
    """
    strides = _strides(x)
    if strides is None:
        return True
    (m, d), (down, across) = x.shape, strides
    return m * d == 0 or (across == 1 and (down >= d or m == 1)) or (down == 1 and (across >= m or d == 1))


def _strides(x: Array) -> tuple[float, ...] | None:
    """In entries, of a NumPy array or of a PyTorch tensor on the host that holds values; None for others."""
    if is_torch(x):
        return x.stride() if on_host(x) else None
    return tuple(stride / x.itemsize for stride in x.strides) if is_numpy(x) else None


def as_blas_ready(x: Array) -> Array:
    """Return x where BLAS takes it, else a copy that it takes."""
    if is_blas_ready(x):
        return x
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def can_overwrite_blocks(x: Array) -> bool:
    """Return whether `solve_triangular_over` writes over blocks like x, and `multiply_triangular` takes them."""
    return is_numpy(x)


def solve_triangular_over(lower: Array, b: Array) -> Array:
    """Return L⁻¹b for a contiguous b, written over b where arrays of its kind can be."""
    return _triangular_over("trsm", lower, b) if can_overwrite_blocks(b) else solve_triangular(lower, b)


def multiply_triangular(lower: Array, b: Array, out: Array | None = None) -> Array:
    """Return L b for NumPy matrices, written to `out` where it is given: b itself, or of another dtype."""
    if thread_count() > 1 or not (out is None or (out.flags.c_contiguous and out.dtype == b.dtype)):
        return multiply_by_blocks(lower, b, out)
    out = np.empty_like(b) if out is None else out  # without threads, SciPy's BLAS is the fastest
    np.copyto(out, b)
    return _triangular_over("trmm", lower, out)


def _triangular_over(routine: str, lower: Array, b: Array) -> Array:
    import scipy.linalg

    (run,) = scipy.linalg.get_blas_funcs((routine,), (b,))
    if b.flags.f_contiguous:
        return run(1.0, lower, b, lower=1, overwrite_b=1)
    return run(1.0, lower, b.T, side=1, lower=1, trans_a=1, overwrite_b=1).T  # on bᵀ, in Fortran order: no copy
