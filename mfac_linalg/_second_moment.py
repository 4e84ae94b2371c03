"""The root of a running mean of squared gradients (RMS), and the damping that is made from it."""

from typing import Any

from . import _backend
from ._typing import Array

SMALLEST = 1e-8
"""Added to √v̂, in the unit of gradients, so that an entry whose gradients were all zero has a damping."""


def update_rms(rms: Array, bias_correction: Any, g: Array, beta2: Any) -> tuple[Array, Any]:
    """√v and the bias correction 1 − β₂ᵗ after one more gradient, starting from zeros; no square overflows."""
    part = 1 - beta2
    return _backend.namespace(rms).hypot(beta2**0.5 * rms, part**0.5 * g), beta2 * bias_correction + part


def inverse_sqrt_damping(rms: Array, bias_correction: Any) -> Array:
    """D^−½ of D = √v̂ + SMALLEST, v̂ = v / bias_correction."""
    return (rms / bias_correction**0.5 + SMALLEST) ** -0.5
