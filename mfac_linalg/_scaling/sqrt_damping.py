"""Scaling by Λ^±½: from the user's coordinates to those where F = Λ^½ (I + SᵀS) Λ^½, and back."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._errors import FactorizationError
from .._typing import Array
from .powers_of_two import column_exponents, exponent, exponents, ldexp, mantissa

# powers of two that take no result of order one out of its dtype, for scalar damping and for a damping per parameter
HARMLESS_POWER, HARMLESS_POWER_WITH_SCALE = 60, 36
NARROW_SPAN = {"float32": 48, "float64": 600}  # powers of two between dampings that need no care in the dtype
WIDEST_SPAN = 96  # the largest for float32 alone, with columns rescaled to order one
LEAST = {"float32": 2.0**-140, "float64": 2.0**-1065}  # subnormal, with ten bits


@dataclass(frozen=True)
class DampingScaling(Part):
    """Λ = scale · diag(1/column_scale²), column_scale (d, 1); `scale`, λ₀, is λ, or a power of four near Λ."""

    scale: Any  # float, or a 0-d float64 array where it is traced or differentiated
    column_scale: Array | None
    wide: bool = False  # whether column_scale spans so much that products with it are rescaled to order one

    @classmethod
    def of(cls, damping: Any, dtype: Any, *, wide: bool = False) -> "DampingScaling":
        """Split a checked damping into scale and column_scale."""
        if isinstance(damping, float):
            return cls(damping, None)
        if damping.ndim == 0:
            return cls(_backend.to_float64(damping), None)
        xp = _backend.namespace(damping)
        half = (exponent(xp.min(damping)) + exponent(xp.max(damping))) // 4
        column_scale = ldexp(1 / xp.sqrt(_backend.cast(damping, dtype)), half)
        one = _backend.to_float64(_backend.asarray(1.0, like=column_scale, dtype=column_scale.dtype))
        scale = ldexp(one, 2 * _backend.like_small_system(half))
        readable = _backend.on_host(damping) or _backend.is_lazy(damping)
        scale = float(_backend.read(scale)) if readable else scale
        return cls(scale, column_scale[:, None], wide or not _backend.is_concrete(damping))

    @classmethod
    def read(cls, damping: Any, dtype: Any) -> "DampingScaling":
        """The same with its scale on the host, where the small arrays of a window are."""
        scaling = cls.of(damping, dtype, wide=spans_widely(damping, dtype))
        scale = scaling.scale if isinstance(scaling.scale, float) else float(_backend.read(scaling.scale))
        return replace(scaling, scale=scale)

    def to_scaled(self, v: Array, dtype: Any, name: str = "v") -> tuple[Array, Any]:
        """Return u = column_scale ∘ v · 2^−power, with columns whose squares are in range, and power."""
        return self._times(v, self.column_scale, dtype, name)

    def solution_to_scaled(self, x: Array, dtype: Any, name: str = "x") -> tuple[Array, Any]:
        """Return z = x / column_scale · 2^−power, and power: the first step of a product with F."""
        return self._times(x, None if self.column_scale is None else 1 / self.column_scale, dtype, name)

    def _times(self, v: Array, factor: Array | None, dtype: Any, name: str) -> tuple[Array, Any]:
        power = column_exponents(v, name)
        v = _backend.cast(v, dtype)
        if self.wide and factor is not None and _backend.is_concrete(v):
            return _rescaled_product(v, factor)
        if not isinstance(power, int):
            v = ldexp(v, -_backend.index_like(power, like=v))
        return (v, power) if factor is None else self._rescale(factor * v, power)

    def _rescale(self, u: Array, power: Any) -> tuple[Array, Any]:
        """The same u · 2^power, with columns of order one if `wide`."""
        if not self.wide:
            return u, power
        more = exponent(u, axis=0)
        return ldexp(u, -more), power + more

    def from_scaled(
        self,
        r: Array,
        power: Any,
        dtype: Any,
        name: str | None,
        *,
        scale: Any = None,
        check_range: bool = False,
        least: float = 0.0,
    ) -> Array:
        """Return x = column_scale ∘ r · 2^power / scale, in dtype; a result that does not fit raises on host arrays.

        `name` is the argument to blame. With `check_range` r need not be of order one. Entries of r up to `least` may
        underflow.
        """
        fraction, shift = mantissa(self.scale if scale is None else scale)
        if self.column_scale is not None:
            r = self.column_scale * r
        harmless = 0 if check_range else self._harmless(dtype)
        return as_scaled_result(r, power - shift, dtype, name, over=fraction, harmless=harmless, least=least)

    def _harmless(self, dtype: Any) -> int:
        """The powers of two that take no result out of its dtype."""
        if self.column_scale is None:
            return HARMLESS_POWER
        return 0 if self.wide or self.column_scale.dtype != dtype else HARMLESS_POWER_WITH_SCALE

    def apply_damping(self, y: Array, power: Any, dtype: Any, name: str, *, check_range: bool = False) -> Array:
        """Return y · 2^power · scale / column_scale: the last step of a product with F."""
        fraction, shift = mantissa(self.scale)
        if self.column_scale is not None:
            y, power = self._rescale(y, power)
            y = y / self.column_scale
        harmless = 0 if check_range else self._harmless(dtype)
        return as_scaled_result(y * scalar_like(fraction, y), power + shift, dtype, name, harmless=harmless)

    def sqrt_damping(self, column_scale: Array) -> Array:
        """√λ_j, float64, for entries of column_scale, without avoidable overflow."""
        column_scale = _backend.to_float64(column_scale)
        return scalar_like(self.scale**0.5, column_scale) / column_scale

    def times_damping(self, values: Array) -> Array:
        """λ_j x_j for values x (d,), float64, without avoidable overflow."""
        if self.column_scale is None:
            return values * scalar_like(self.scale, values)
        roots = self.sqrt_damping(self.column_scale[:, 0])
        return values * roots * roots

    def over_damping(self, values: Array) -> Array:
        """x_j / λ_j for values x (d,), float64."""
        if self.column_scale is None:
            return values / scalar_like(self.scale, values)
        roots = self.sqrt_damping(self.column_scale[:, 0])
        return values / roots / roots

    def log_determinant(self, dim: int, *, like: Array) -> Any:
        """Σ log λ_i, float64."""
        scale = self.scale
        total = dim * math.log(scale) if isinstance(scale, float) else dim * _backend.namespace(scale).log(scale)
        if self.column_scale is None:
            return total
        logarithms = _backend.to_float64(_backend.namespace(self.column_scale).log(self.column_scale))
        return total - 2 * _backend.namespace(logarithms).sum(logarithms)


def scalar_like(x: Any, like: Array) -> Any:
    """A float unchanged; a float64 array of the small system on like's device, in its dtype."""
    if type(x) is float:  # not NumPy's, which would turn float32 into float64
        return x
    return _backend.from_float64(x, like=like, dtype=like.dtype)


def span(damping: Array) -> Array:
    """The powers of two between the smallest and the largest entry of a damping, 0-d, float64."""
    xp = _backend.namespace(damping)
    return _backend.evaluate(_backend.to_float64(exponent(xp.max(damping)) - exponent(xp.min(damping))))


def _rescaled_product(v: Array, factor: Array) -> tuple[Array, Array]:
    """The product u · 2^power of v (d, k) and a factor (d, 1), with columns of order one; nothing overflows."""
    xp = _backend.namespace(v)
    sizes, factors = exponents(xp.abs(v)), exponents(factor)
    power = xp.max(xp.where(v == 0, xp.min(sizes + factors), sizes + factors), axis=0)
    return ldexp(ldexp(v, -sizes) * ldexp(factor, -factors), sizes + factors - power), power


def spans_widely(damping: Any, dtype: Any) -> bool:
    """Whether a damping spans more powers of two than its dtype can be used for without care; it is read."""
    if not _backend.is_vector(damping):
        return False
    return float(_backend.read(_backend.with_x64(span, damping))) > NARROW_SPAN[_backend.dtype_name(dtype)]


def refuse_span(damping: Array) -> None:
    """Refuse a damping that spans more than float32 can represent, on a device without float64."""
    powers = float(_backend.read(_backend.with_x64(span, damping)))
    if powers > WIDEST_SPAN:
        msg = f"`damping` must span less than 2^{WIDEST_SPAN} where products are those of float32; got 2^{powers:.0f}. "
        raise ValueError(msg + "Raise the smallest, lower the largest, or compute in float64.")


def as_scaled_result(
    x: Array,
    power: Any,
    dtype: Any,
    name: str | None,
    *,
    over: Any = 1.0,
    harmless: int = HARMLESS_POWER,
    least: float = 0.0,
) -> Array:
    """Return x / over · 2^power in dtype, for x (d, k) and over of order one; x is overwritten.

    Powers below `harmless` are not checked.

    `name`, here and below, is the argument to blame for overflow and underflow; None if there is only the inverse.
    """
    if isinstance(power, int) and abs(power) < harmless:
        divisor = scalar_like(over * 2.0**-power, x)  # one division: powers of two are exact
        return _backend.cast(_backend.divide_over(x, divisor), dtype)
    return check_range(_backend.cast(ldexp(x / scalar_like(over, x), power), dtype), x, name, least=least)


def as_result(
    values: Array, name: str | None, *, like: Array, dtype: Any, unscaled: Array | None = None, least: float = 0.0
) -> Array:
    """Float64 values of the small system on like's device in dtype; `unscaled` tells zeros from underflow."""
    result = _backend.from_float64(values, like=like, dtype=dtype)
    return check_range(result, values if unscaled is None else unscaled, name, least=least)


def as_positive_result(
    values: Array, name: str | None, *, like: Array, dtype: Any, unscaled: Array | None = None
) -> Array:
    """The same for values ≥ 0, each with a relative error below 1e-3; without `unscaled` none of them may be zero."""
    result = _backend.from_float64(values, like=like, dtype=dtype)
    if not _backend.on_host(result):
        return result
    xp = _backend.namespace(result)
    if not bool(xp.all(xp.isfinite(result))):
        refuse_nonfinite_answer(result, name)
    values = _backend.read(result)
    require_digits(values if unscaled is None else values[_backend.read(unscaled) > 0], dtype, name)
    return result


def require_digits(values: np.ndarray, dtype: Any, name: str | None) -> None:
    """Refuse positive entries that are zero, or too small for a relative error of 1e-3."""
    if np.any(values < LEAST[_backend.dtype_name(dtype)]):
        refuse_underflow(dtype, name)


def check_range(x: Array, unscaled: Array, name: str | None, *, least: float = 0.0) -> Array:
    """Raise OverflowError for a host array that is too large or too small for its dtype.

    It is too small if the largest entry of a column is subnormal, and was above `least` before it was scaled.
    """
    if not _backend.on_host(x):
        return x
    xp = _backend.namespace(x)
    if not bool(xp.all(xp.isfinite(x))):
        refuse_nonfinite_answer(x, name)
    if 0 in x.shape:
        return x
    is_subnormal = _largest(x) < np.finfo(_backend.dtype_name(x.dtype)).tiny
    if np.any(is_subnormal & (_largest(unscaled) > least)):
        refuse_underflow(x.dtype, name)
    return x


def _largest(x: Array) -> np.ndarray:
    """The largest absolute entry of each column of a matrix, or of a vector or number."""
    xp = _backend.namespace(x)
    axes = tuple(range(max(1, x.ndim - 1))) if x.ndim else None
    return _backend.read(xp.max(xp.abs(x), axis=axes))


def refuse_nonfinite_answer(x: Array, name: str | None) -> None:
    """Raise the error for a result with nan or infinity."""
    xp = _backend.namespace(x)
    if bool(xp.any(xp.isnan(x))):
        suspects = "a stored gradient" if name is None else f"`{name}`, or a stored gradient,"
        msg = f"The result is not a number: {suspects} is not finite, or kappa = ‖F‖/damping is "
        msg += "beyond the precision of the arithmetic. Remove that gradient, or raise `damping`."
        raise FactorizationError(msg)
    raise OverflowError(f"The result does not fit into {_backend.dtype_name(x.dtype)}. " + _range_advice(name))


def refuse_underflow(dtype: Any, name: str | None) -> None:
    """Raise the error for a result, or one of its entries, below the smallest number of its dtype."""
    kind = _backend.dtype_name(dtype)
    msg = f"The result is too small for {kind}, whose smallest normal number is {np.finfo(kind).tiny:.1e}. "
    raise OverflowError(msg + _range_advice(name))


def _range_advice(name: str | None) -> str:
    rest = "the stored gradients by s and `damping` by s²."
    return f"Scale {rest}" if name is None else f"Scale `{name}`, or {rest}"
