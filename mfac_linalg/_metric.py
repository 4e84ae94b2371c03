"""The way from the user's coordinates into those where F = λ₀ Λ₀^½ (I + SᵀS) Λ₀^½, and back, by exact scalings."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _backend
from ._pytree import Part
from ._scaling import column_exponents, exponent, ldexp, mantissa

Array = Any
HARMLESS_POWER = 60


@dataclass(frozen=True)
class Metric(Part):
    """Λ = level · diag(1/root²): `level` is λ itself, or a power of two near min(Λ) with root (d, 1)."""

    level: Any  # float, or a 0-d float64 array where it is traced or differentiated
    root: Array | None

    @classmethod
    def of(cls, damping: Any, dtype: Any) -> "Metric":
        """Split a checked damping into its level and its shape."""
        if isinstance(damping, float):
            return cls(damping, None)
        if damping.ndim == 0:
            return cls(_backend.to_float64(damping), None)
        xp = _backend.namespace(damping)
        power = exponent(xp.min(damping))
        root = 1 / xp.sqrt(ldexp(_backend.cast(damping, dtype), -power))
        one = _backend.to_float64(_backend.asarray(1.0, like=root, dtype=root.dtype))
        level = ldexp(one, _backend.beside_float64(power))
        readable = _backend.on_host(damping) or _backend.is_lazy(damping)
        return cls(float(_backend.read(level)) if readable else level, root[:, None])

    def enter(self, v: Array, dtype: Any, name: str = "v") -> tuple[Array, Any]:
        """Return u = root ∘ v · 2^−power, comfortably scaled column by column, and power."""
        power = column_exponents(v, name)
        if not isinstance(power, int):
            v = ldexp(v, -power)
        v = _backend.cast(v, dtype)
        return (v if self.root is None else self.root * v), power

    def leave(self, r: Array, power: Any, dtype: Any, *, level: Any = None) -> Array:
        """Return x = root ∘ r · 2^power / level, in dtype; an answer that does not fit raises on host arrays."""
        fraction, shift = mantissa(self.level if level is None else level)
        if self.root is not None:
            r = self.root * r
        return fit(r, power - shift, dtype, over=fraction)

    def raise_level(self, y: Array, power: Any, dtype: Any) -> Array:
        """Return y · 2^power · level / root: the way back of F itself."""
        fraction, shift = mantissa(self.level)
        if self.root is not None:
            y = y / self.root
        return fit(y * beside(fraction, y), power + shift, dtype)

    def log_determinant(self, dim: int, *, like: Array) -> Any:
        """Σ log λ_i, float64."""
        level = self.level
        total = dim * math.log(level) if isinstance(level, float) else dim * _backend.namespace(level).log(level)
        if self.root is None:
            return total
        logarithms = _backend.to_float64(_backend.namespace(self.root).log(self.root))
        return total - 2 * _backend.namespace(logarithms).sum(logarithms)


def beside(x: Any, like: Array) -> Any:
    """A float stays one; a float64 array of the small system is brought beside like, in its dtype."""
    if isinstance(x, float | np.ndarray) and not _backend.is_array(x):
        return x
    return _backend.from_float64(x, like=like, dtype=like.dtype)


def fit(x: Array, power: Any, dtype: Any, *, over: Any = 1.0) -> Array:
    """Return x / over · 2^power in dtype, for x and over of order one."""
    if isinstance(power, int) and abs(power) < HARMLESS_POWER:
        return _backend.cast(x / beside(over * 2.0**-power, x), dtype)  # one division: powers of two are exact
    return refuse_overflow(_backend.cast(ldexp(x / beside(over, x), power), dtype))


def settle(values: Array, *, like: Array, dtype: Any) -> Array:
    """Float64 values of the small system, beside like in dtype."""
    return refuse_overflow(_backend.from_float64(values, like=like, dtype=dtype))


def refuse_overflow(x: Array) -> Array:
    """On host arrays an answer too large for its dtype is an OverflowError, not a silent infinity."""
    xp = _backend.namespace(x)
    if _backend.on_host(x) and not bool(xp.all(xp.isfinite(x))):
        if bool(xp.any(xp.isnan(x))):
            msg = "The answer is not a number: `v`, or a gradient that is held, is not finite. "
            raise ValueError(msg + "Let go of it, or skip such steps.")
        name = _backend.dtype_name(x.dtype)
        msg = f"The answer does not fit into {name}. Scale `v`, or the gradients by s and `damping` by s²."
        raise OverflowError(msg)
    return x
