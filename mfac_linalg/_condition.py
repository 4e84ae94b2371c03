"""The condition number κ = ‖F‖/λ of a damped sum, and the largest that a dtype resolves."""

from typing import Any

import numpy as np


def kappa_of(norm: Any) -> Any:
    """κ = 1 + ‖S‖², for ‖S‖ as a number or an array; infinite where it overflows."""
    return 1 + norm * norm  # not norm**2, which a float refuses to overflow


def largest_kappa(dtype: str) -> float:
    """The κ = 0.1/eps up to which answers computed in dtype keep their backward error."""
    return 0.1 / float(np.finfo(np.dtype(dtype)).eps)
