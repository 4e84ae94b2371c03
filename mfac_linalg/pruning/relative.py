"""A damping in units of the gradients."""

import math

import numpy as np

from .. import _backend
from .. import _validation as check
from .._scaling.powers_of_two import exponent, ldexp
from .._typing import Array


def relative_damping(gradients: Array, ratio: float) -> float:
    """Return ratio · mean ‖g_i‖²/d: a damping in units of the mean diagonal entry of Gᵀ G/m.

    Parameters
    ----------
    gradients : array, shape (m, d)
        The rows of G.
    ratio : float
        > 0; 1 damps every weight by as much as the average one curves.

    Returns
    -------
    float
        λ, in units of squared gradients.

    Raises
    ------
    TypeError, ValueError
        Gradients that are not a real floating array (m, d) with finite values, or are all zero; a ratio out of range.
    OverflowError
        A damping that float64 cannot represent.

    Notes
    -----
    Cost: one pass over the gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg.pruning import relative_damping
    >>> relative_damping(np.array([[3.0, 4.0], [0.0, 5.0]]), 0.1)
    1.25
    """
    check.gradients(gradients)
    check.values("gradients", gradients)
    ratio = check.positive("ratio", ratio, "Pass 1 to damp as much as the average weight curves.")
    check.finite("gradients", gradients)
    power, squares = (_backend.read(x) for x in _backend.with_x64(_scaled_squares, gradients))
    mean = float(np.mean(squares)) / gradients.shape[1]
    if not mean > 0:
        msg = "`gradients` must not all be zero, nor be empty; a damping in their units would be. Pass an absolute one."
        raise ValueError(msg)
    with np.errstate(over="ignore", under="ignore"):
        damping = float(np.ldexp(ratio, int(power)) * np.ldexp(mean, int(power)))
    if not 0 < damping < math.inf:
        msg = f"`gradients` must be such that `ratio` times their mean square is a number; got {damping}. Scale them."
        raise OverflowError(msg)
    return damping


def _scaled_squares(gradients: Array) -> tuple[Array, Array]:
    """The e of the largest entry, and ‖g_i‖² · 4^−e, float64."""
    wide = _backend.to_float64(gradients)
    power = exponent(wide)
    return power, _backend.column_squares(ldexp(wide, -power).T)
