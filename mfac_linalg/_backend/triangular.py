"""Solves and products with a triangle in NumPy, by blocks that its own BLAS multiplies.

SciPy has another BLAS. A triangular solve with several columns wakes its threads, which then wait for work for a tenth
of a second, in the way of NumPy's.
"""

from typing import NamedTuple

import numpy as np

SOLVED_ROWS = 32  # solved at a time
MULTIPLIED_ROWS = 96  # multiplied at a time: nothing above the diagonal but within these


class _Diagonal(NamedTuple):
    """The blocks on the diagonal of a triangle, and their inverses."""

    rows: list[slice]
    corners: list[np.ndarray]
    inverses: list[np.ndarray]


def solve_by_blocks(lower: np.ndarray, b: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """Return L⁻¹b, or L⁻ᵀb, for matrices of float64."""
    return _substitute(lower, b, _diagonal_of(lower), transposed=transposed)


def factor_solve_by_blocks(lower: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (L Lᵀ)⁻¹b for matrices of float64."""
    diagonal = _diagonal_of(lower)
    return _substitute(lower, _substitute(lower, b, diagonal, transposed=False), diagonal, transposed=True)


def invert_triangular(lower: np.ndarray) -> np.ndarray:
    """Return L⁻¹."""
    diagonal, inverse = _diagonal_of(lower), np.zeros(lower.shape)
    for rows, corner, corner_inverse in zip(*diagonal, strict=True):
        rest = -(lower[rows, : rows.start] @ inverse[: rows.start, : rows.start])
        first = corner_inverse @ rest
        inverse[rows, : rows.start] = first + corner_inverse @ (rest - corner @ first)
        inverse[rows, rows] = corner_inverse
    return inverse


def _diagonal_of(lower: np.ndarray) -> _Diagonal:
    size = len(lower)
    rows = [slice(start, min(start + SOLVED_ROWS, size)) for start in range(0, size, SOLVED_ROWS)]
    padded = np.zeros((len(rows), SOLVED_ROWS, SOLVED_ROWS)) + np.eye(SOLVED_ROWS)
    for corner, run in zip(padded, rows, strict=True):
        corner[: run.stop - run.start, : run.stop - run.start] = np.tril(lower[run, run])
    sizes, inverses = [run.stop - run.start for run in rows], np.linalg.inv(padded.mT).mT  # no pivots
    return _Diagonal(rows, *([x[:n, :n] for x, n in zip(xs, sizes, strict=True)] for xs in (padded, inverses)))


def _substitute(lower: np.ndarray, b: np.ndarray, diagonal: _Diagonal, *, transposed: bool) -> np.ndarray:
    """L⁻¹b or L⁻ᵀb. A block is solved by its inverse and refined once: it is then as accurate as by substitution."""
    x = np.empty(b.shape)
    blocks = list(zip(*diagonal, strict=True))
    for rows, corner, inverse in reversed(blocks) if transposed else blocks:
        if transposed:
            corner, inverse = corner.T, inverse.T
            known = lower[rows.stop :, rows].T @ x[rows.stop :]
        else:
            known = lower[rows, : rows.start] @ x[: rows.start]
        rest = b[rows] - known
        first = inverse @ rest
        x[rows] = first + inverse @ (rest - corner @ first)
    return x


def multiply_by_blocks(lower: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return L b for a matrix b of L's dtype, written to `out` where it is given: b itself, or of another dtype."""
    out = np.empty_like(b) if out is None else out
    is_direct = out.dtype == lower.dtype and not np.may_share_memory(out, b)
    scratch = None if is_direct else np.empty((min(MULTIPLIED_ROWS, len(b)), b.shape[1]), lower.dtype)
    for start in reversed(range(0, len(b), MULTIPLIED_ROWS)):  # the last rows first, which no others need
        rows = slice(start, min(start + MULTIPLIED_ROWS, len(b)))
        product = out[rows] if scratch is None else scratch[: rows.stop - start]
        np.matmul(lower[rows, : rows.stop], b[: rows.stop], out=product)
        if scratch is not None:
            out[rows] = product
    return out
