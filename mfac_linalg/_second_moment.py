"""The root of a running mean of squared gradients, and the damping that it makes of a number."""

from typing import Any

from . import _backend
from ._typing import Array

SMALLEST = 1e-8
"""Added to √v̂, in the unit of gradients: an entry whose gradients were all zero has a damping too."""


def update_rms(rms: Array, bias_correction: Any, g: Array, beta2: Any) -> tuple[Array, Any]:
    """√v and the weight of gradients in v after one more gradient, from zero and zero on; no square overflows."""
    part = 1 - beta2
    return _backend.namespace(rms).hypot(beta2**0.5 * rms, part**0.5 * g), beta2 * bias_correction + part


def inverse_sqrt_damping(rms: Array, bias_correction: Any) -> Array:
    """D^−½ of D = √v̂ + tiny, v̂ = v/share."""
    return (rms / bias_correction**0.5 + SMALLEST) ** -0.5
