"""Consistency of stored parts: rows, their Gram matrix B = S Sᵀ, its factor, and ‖S‖.

Each is multiplied with one vector of signs, at the cost of one product with the rows, and O(m²). The vector is scaled
so that rows of any size count equally: products, factors and solves are accurate to rounding in each row for any κ.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _backend
from .._capacitance.system import SUM_RESOLVED, Capacitance, largest_eigenvalue
from .._rows.scaled import ScaledRows
from .._typing import Array
from .matrix_file import signs

SOLVED, BROKEN = 1e-9, 1e-5  # backward errors of a factor: at most that of a correct one, and surely that of none
SAME_ROWS = 1e-3  # error of a product with rows, relative to ‖B‖ ‖z‖ for rows scaled to equal size
SAME_STEPS, OTHER_STEPS = (0.9, 1.1), (0.1, 1.5)  # by which ‖S‖² may differ, by the steps of a build or of a window


def factor_error(gram: np.ndarray, factor: np.ndarray) -> float:
    """‖A y − z‖ / ((1 + ‖B‖) ‖y‖) for y = A⁻¹z by the factor of A = I + B; infinite if it is no number."""
    z = signs(len(gram))
    if not len(gram):
        return 0.0
    with np.errstate(all="ignore"):
        y = _backend.factor_solve(factor, z)
        error = _size(y + gram @ y - z) / (1 + largest(gram)) / _size(y)
    return float(error) if np.isfinite(error) else np.inf


def is_factor(gram: np.ndarray, factor: np.ndarray) -> bool:
    """Whether each row of the factor is accurate; a factor from eigenvalues need not be."""
    scale, z = _row_units(gram, 1.0), signs(len(gram))
    with np.errstate(all="ignore"):
        product = factor @ (factor.T @ (scale * z))
        missed = _size(scale * (product - scale * z - gram @ (scale * z)))
    return not len(gram) or bool(missed <= SOLVED * len(gram) * _size(z))


def _row_units(gram: np.ndarray, least: float) -> np.ndarray:
    """1/√(B_ii + least²), (m, 1): the scale by which rows longer than `least` get a norm near one."""
    return 1 / np.hypot(np.sqrt(np.diagonal(gram)), least)[:, None]


def largest(gram: np.ndarray) -> float:
    """‖B‖, from below, by a few power steps."""
    return float(largest_eigenvalue(gram)) if len(gram) else 0.0


def is_norm(norm: float, gram: np.ndarray, *, within: tuple[float, float]) -> bool:
    """Whether this is ‖S‖ as power steps find it, from below; they may differ by these factors of ‖S‖².

    A window takes the largest diagonal entry where its steps find less, or nothing but underflow.
    """
    found, (least, most) = largest(gram), within
    entry = float(np.max(np.diagonal(gram), initial=0.0)) * (1 - 1e-6)
    return min(least * found, entry) <= norm * norm <= min(most * found, float(np.trace(gram)) * (1 + 1e-6))


def is_gram_of(rows: ScaledRows, gram: np.ndarray, norm: float, *, primal: bool) -> bool:
    """Whether `gram` is S Sᵀ of these ScaledRows, or SᵀS in the primal form."""
    scale = _row_units(gram, min(1.0, norm) or float(np.max(_backend.read(rows.row_scale))))
    z = scale * signs(len(gram))
    if primal:
        found = rows.combine(rows.project(_array_like(z, rows.like, rows.dtype)))
    else:
        float64 = _backend.namespace(rows.row_scale).float64
        found = rows.project(rows.combine(_array_like(z, rows.row_scale, float64)))
    return _is_product(_backend.read(found), gram, scale)


def is_whitened(
    multiply: Callable[[np.ndarray], np.ndarray], capacitance: Capacitance, norm: float, roundings: float
) -> bool:
    """Whether W Wᵀ is I − L⁻¹L⁻ᵀ, and L W Wᵀ Lᵀ is B, for W Wᵀ times signs z, and times Lᵀz in units of the rows.

    The first has an error of `roundings`, which grows with κ until it hides any inconsistency. The second has an error
    of the rounding of each row, which hides only small entries of B.
    """
    gram, factor = _backend.read(capacitance.scaled_gram), _backend.read(capacitance.cholesky)
    z, scale = signs(len(gram)), _row_units(gram, min(1.0, norm) or 1.0)
    image = factor.T @ (scale * z)
    unit = max(float(np.max(np.abs(image))), float(np.finfo(np.float64).tiny))  # which any dtype holds
    product = multiply(np.concatenate([z, image / unit], axis=1)).astype(np.float64)
    expected = z - _backend.solve_triangular(factor, _backend.solve_triangular(factor, z, transposed=True))
    with np.errstate(all="ignore"):
        missed = _size(product[:, :1] - expected)
        fine = missed <= 10 * SAME_ROWS * _size(expected) + roundings * _size(z)
        return bool(fine) and _is_product(factor @ (product[:, 1:] * unit), gram, scale)


def are_whitened_columns(whitened: np.ndarray, capacitance: Capacitance, columns: np.ndarray) -> bool:
    """Whether L times these columns of W are those of S, to roundings of each product."""
    factor, whitened = _backend.read(capacitance.cholesky), whitened.astype(np.float64)
    with np.errstate(all="ignore"):
        allowed = np.abs(factor) @ (SAME_ROWS * np.abs(whitened) + float(np.finfo(np.float32).tiny))
        return bool(np.all(np.abs(factor @ whitened - columns) <= allowed))


def whitened_roundings(kappa: float, dtype: Any, *, float64_gram: bool) -> float:
    """The rounding of a product with W, relative to its vector: √κ roundings of W, κ of the Gram matrix.

    For a large κ that matrix is float64, and the factor is more accurate (`Capacitance.of_rows`).
    """
    eps = float(np.finfo(dtype).eps)
    of_gram = min(kappa, SUM_RESOLVED) * float(np.finfo(np.float64).eps) if float64_gram else kappa * eps
    return 30 * (kappa**0.5 * eps + of_gram)


def _is_product(found: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> bool:
    """Whether `found` is B times the scaled signs, in each row."""
    z = signs(len(gram))
    with np.errstate(all="ignore"):
        missed = _size(scale * (found.astype(np.float64) - gram @ (scale * z)))
        return bool(missed <= SAME_ROWS * largest(scale * gram * scale.T) * _size(z))


def refuse_mixed_state(rows: ScaledRows, plain: np.ndarray, gram: np.ndarray, factor: np.ndarray, norm: float) -> None:
    """Refuse the state of a window with inconsistent parts; `plain` is the Gram matrix of its rows."""
    checks = {
        "norm": is_norm(norm, gram, within=OTHER_STEPS),
        "factor": factor_error(gram, factor) <= BROKEN,
        "gram": is_gram_of(rows, plain, float(np.sqrt(np.trace(plain))), primal=False),
    }
    if wrong := [name for name, is_valid in checks.items() if not is_valid]:
        msg = f"`state` must hold parts of one window, finite ones; its {', '.join(wrong)} are of no window with its "
        msg += "rows (or values and indices), exponents, damping, decay and normalization. "
        raise ValueError(msg + "Pass what `state_dict` returned.")


def _array_like(z: np.ndarray, like: Array, dtype: Any) -> Array:
    return _backend.asarray(z, like=like, dtype=dtype)


def _size(x: np.ndarray) -> float:
    """‖x‖, without overflow of its squares."""
    unit = float(np.max(np.abs(x), initial=0.0))
    return unit * float(np.linalg.norm(x / unit)) if 0 < unit < np.inf else unit
