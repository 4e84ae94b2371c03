"""Whether what was stored belongs together: rows, their Gram matrix B = S Sᵀ, its factor, and ‖S‖.

One vector of signs is sent through each; that costs one product with the rows, and O(m²).
"""

from typing import Any

import numpy as np

from . import _backend
from ._dual import factor_solve, largest_eigenvalue
from ._matrix_file import signs

Array = Any
SOLVED, BROKEN = 1e-9, 1e-5  # backward errors of a factor: of any that was computed well, and of none that was
SAME_ROWS = 1e-3  # of a product with rows, relative to ‖B‖ ‖z‖
UNDER, OVER = 0.1, 1.5  # ‖S‖² by the few power steps of a window, in those of a check


def factor_error(gram: np.ndarray, factor: np.ndarray) -> float:
    """‖A y − z‖ / ((1 + ‖B‖) ‖y‖) for y = A⁻¹z by the factor of A = I + B; infinite where that is none."""
    z = signs(len(gram))
    if not len(gram):
        return 0.0
    with np.errstate(all="ignore"):
        y = factor_solve(factor, z)
        error = np.linalg.norm(y + gram @ y - z) / ((1 + largest(gram)) * np.linalg.norm(y))
    return float(error) if np.isfinite(error) else np.inf


def largest(gram: np.ndarray) -> float:
    """‖B‖, from below, by a few power steps."""
    return float(largest_eigenvalue(gram)) if len(gram) else 0.0


def is_norm(norm: float, gram: np.ndarray) -> bool:
    """Whether this is ‖S‖ as power steps find it, from below."""
    found = largest(gram)
    most = min(OVER * found, float(np.trace(gram)) * (1 + 1e-6))
    return UNDER * found <= norm * norm <= most  # it may be below the largest diagonal entry where the spectrum is flat


def is_gram_of(rows: Any, gram: np.ndarray, norm: float, *, primal: bool) -> bool:
    """Whether `gram` is S Sᵀ of these ScaledRows, or SᵀS in the primal form."""
    scale = float(np.max(_backend.read(rows.row_scale)))
    z = signs(len(gram))
    if primal:
        found = rows.combine(rows.project(_beside(z, rows, rows.dtype)) / scale / scale)
    else:
        float64 = _backend.namespace(rows.row_scale).float64
        found = rows.project(rows.combine(_beside(z / scale, rows.row_scale, float64))) / scale
    missed = _backend.read(found).astype(np.float64) - gram @ z / scale / scale
    return bool(np.linalg.norm(missed) <= SAME_ROWS * (norm / scale) ** 2 * np.linalg.norm(z))


def is_whitened(product: np.ndarray, factor: np.ndarray, roundings: float) -> bool:
    """Whether W Wᵀz is I − L⁻¹L⁻ᵀ times the signs z, to so many roundings of W relative to ‖z‖."""
    z = signs(len(factor))
    half = _backend.solve_triangular(factor, _backend.solve_triangular(factor, z, transposed=True))
    missed = np.linalg.norm(product.astype(np.float64) - (z - half))
    allowed = 10 * SAME_ROWS * np.linalg.norm(z - half) + roundings * np.linalg.norm(z)
    return bool(missed <= allowed) if np.isfinite(missed) else False


def refuse_mixed_state(rows: Any, plain: np.ndarray, gram: np.ndarray, factor: np.ndarray, norm: float) -> None:
    """Refuse the state of a window whose parts do not belong together: `plain` is the Gram matrix of these rows."""
    fine = {
        "norm": is_norm(norm, gram),
        "factor": factor_error(gram, factor) <= BROKEN,
        "gram": is_gram_of(rows, plain, float(np.sqrt(np.trace(plain))), primal=False),
    }
    if wrong := [name for name, is_fine in fine.items() if not is_fine]:
        msg = f"`state` must hold parts of one window, finite ones; its {', '.join(wrong)} are of no window with its "
        msg += "rows (or values and indices), exponents, damping, decay and normalization. "
        raise ValueError(msg + "Pass what `state_dict` returned.")


def _beside(z: np.ndarray, like: Any, dtype: Any) -> Array:
    return _backend.asarray(z, like=like if _backend.is_array(like) else like.like, dtype=dtype)
