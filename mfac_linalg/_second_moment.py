"""The root of a running mean of squared gradients, and the damping that it makes of a number."""

from typing import Any

from . import _backend

Array = Any
SMALLEST = 1e-8
"""Added to √v̂, in the unit of gradients: an entry whose gradients were all zero has a damping too."""


def followed(root: Array, share: Any, g: Array, beta2: Any) -> tuple[Array, Any]:
    """√v and the weight of gradients in v after one more gradient, from zero and zero on; no square overflows."""
    part = 1 - beta2
    return _backend.namespace(root).hypot(beta2**0.5 * root, part**0.5 * g), beta2 * share + part


def scale(root_mean_square: Array, share: Any) -> Array:
    """D^−½ of D = √v̂ + tiny, v̂ = v/share."""
    return (root_mean_square / share**0.5 + SMALLEST) ** -0.5
