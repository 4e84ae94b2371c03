"""The two classes of numerical trouble, and the words of a breakdown."""

import numpy as np


class FactorizationError(np.linalg.LinAlgError):
    """The m × m (or d × d) system could not be factored: the same class on every backend."""


class IllConditionedWarning(RuntimeWarning):
    """The condition number is beyond what the arithmetic in use can resolve; answers lose digits."""


def breakdown(*, size: int, kappa: float, dtype: object) -> FactorizationError:
    """Return the error of a factorisation that failed, with its likely causes in order."""
    msg = (
        f"The {size} × {size} system of this inverse could not be factored (kappa = ‖F‖/damping = {kappa:.3g}, "
        f"{dtype}). Likely causes, in order: (a) gradients so large that their Gram matrix "
        "overflows float64: divide gradients by s and damping by s²; (b) damping below the round-off of the Gram "
        'matrix: raise `damping` or pass precision="high".'
    )
    return FactorizationError(msg)


def beyond_arithmetic(*, kappa: float, limit: float, dtype: object, precision: str) -> str:
    """Return the text of an IllConditionedWarning."""
    cure = "raise `damping`" if precision == "high" else 'pass precision="high" or raise `damping`'
    return (
        f"kappa = ‖F‖/damping = {kappa:.3g} is beyond {limit:.1g}, the largest for which {dtype} arithmetic with "
        f'precision="{precision}" keeps its backward error; answers may lose all digits: {cure}.'
    )
