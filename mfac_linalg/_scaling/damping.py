"""Λ^±½ as exact scalings: from the user's coordinates into those where F = λ₀ Λ₀^½ (I + SᵀS) Λ₀^½, and back."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._errors import FactorizationError
from .._typing import Array
from .powers import column_exponents, exponent, exponents, ldexp, mantissa

HARMLESS_POWER, HARMLESS_BESIDE_ROOTS = 60, 36
NARROW_SPAN = {"float32": 48, "float64": 600}  # powers of two between dampings whose roots the dtype carries with ease
WIDEST_SPAN = 96  # for float32 alone, column by column brought to order one
LEAST = {"float32": 2.0**-140, "float64": 2.0**-1065}  # subnormal, with ten bits


@dataclass(frozen=True)
class DampingScaling(Part):
    """Λ = scale · diag(1/column_scale²), column_scale (d, 1); `scale`, λ₀, is λ itself or a power of four amid Λ."""

    scale: Any  # float, or a 0-d float64 array where it is traced or differentiated
    column_scale: Array | None
    wide: bool = False  # whether roots differ so much that what they multiply is brought to order one again

    @classmethod
    def of(cls, damping: Any, dtype: Any, *, wide: bool = False) -> "DampingScaling":
        """Split a checked damping into its scale and its shape."""
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
    def on_host(cls, damping: Any, dtype: Any) -> "DampingScaling":
        """The same with its scale on the host, as all that is small in a window."""
        scaling = cls.of(damping, dtype, wide=spans_widely(damping, dtype))
        scale = scaling.scale if isinstance(scaling.scale, float) else float(_backend.read(scaling.scale))
        return replace(scaling, scale=scale)

    def to_scaled(self, v: Array, dtype: Any, name: str = "v") -> tuple[Array, Any]:
        """Return u = column_scale ∘ v · 2^−power, comfortably scaled column by column, and power."""
        return self._times(v, self.column_scale, dtype, name)

    def solution_to_scaled(self, x: Array, dtype: Any, name: str = "x") -> tuple[Array, Any]:
        """Return z = x / root · 2^−power, and power: where F itself starts."""
        return self._times(x, None if self.column_scale is None else 1 / self.column_scale, dtype, name)

    def _times(self, v: Array, factor: Array | None, dtype: Any, name: str) -> tuple[Array, Any]:
        power = column_exponents(v, name)
        v = _backend.cast(v, dtype)
        if self.wide and factor is not None and _backend.is_concrete(v):
            return _balanced_product(v, factor)
        if not isinstance(power, int):
            v = ldexp(v, -_backend.index_like(power, like=v))
        return (v, power) if factor is None else self._normalised(factor * v, power)

    def _normalised(self, u: Array, power: Any) -> tuple[Array, Any]:
        """The same u · 2^power, with columns of order one where roots may have taken them far from it."""
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
        watched: bool = False,
        least: float = 0.0,
    ) -> Array:
        """Return x = column_scale ∘ r · 2^power / level, in dtype; an answer that does not fit raises on host arrays.

        `name`: of the argument that it is an answer to. `watched`: r need not be of order one. `least`: what may become
        zero of r.
        """
        fraction, shift = mantissa(self.scale if scale is None else scale)
        if self.column_scale is not None:
            r = self.column_scale * r
        harmless = 0 if watched else self._harmless(dtype)
        return fit(r, power - shift, dtype, name, over=fraction, harmless=harmless, least=least)

    def _harmless(self, dtype: Any) -> int:
        """The powers of two that take no answer out of its dtype."""
        if self.column_scale is None:
            return HARMLESS_POWER
        return 0 if self.wide or self.column_scale.dtype != dtype else HARMLESS_BESIDE_ROOTS

    def apply_damping(self, y: Array, power: Any, dtype: Any, name: str, *, watched: bool = False) -> Array:
        """Return y · 2^power · level / root: the way back of F itself."""
        fraction, shift = mantissa(self.scale)
        if self.column_scale is not None:
            y, power = self._normalised(y, power)
            y = y / self.column_scale
        harmless = 0 if watched else self._harmless(dtype)
        return fit(y * scalar_like(fraction, y), power + shift, dtype, name, harmless=harmless)

    def sqrt_damping(self, column_scale: Array) -> Array:
        """The √λ_j, float64, for entries root_j of `root`: nothing overflows that fits."""
        column_scale = _backend.to_float64(column_scale)
        return scalar_like(self.scale**0.5, column_scale) / column_scale

    def times_damping(self, values: Array) -> Array:
        """λ_j x_j for values x (d,), float64: nothing overflows that fits."""
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
    """A float stays one; a float64 array of the small system is brought beside like, in its dtype."""
    if isinstance(x, float | np.ndarray) and not _backend.is_array(x):
        return x
    return _backend.from_float64(x, like=like, dtype=like.dtype)


def span(damping: Array) -> Array:
    """The powers of two between the smallest and the largest of a damping per parameter, 0-d, float64."""
    xp = _backend.namespace(damping)
    return _backend.evaluate(_backend.to_float64(exponent(xp.max(damping)) - exponent(xp.min(damping))))


def _balanced_product(v: Array, factor: Array) -> tuple[Array, Array]:
    """The product u · 2^power of v (d, k) and a factor (d, 1), with columns of order one: nothing is lost between."""
    xp = _backend.namespace(v)
    sizes, factors = exponents(xp.abs(v)), exponents(factor)
    power = xp.max(xp.where(v == 0, xp.min(sizes + factors), sizes + factors), axis=0)
    return ldexp(ldexp(v, -sizes) * ldexp(factor, -factors), sizes + factors - power), power


def spans_widely(damping: Any, dtype: Any) -> bool:
    """Whether a damping, which is read, asks for more than its dtype computes with ease."""
    if not _backend.is_vector(damping):
        return False
    return float(_backend.read(_backend.with_x64(span, damping))) > NARROW_SPAN[_backend.dtype_name(dtype)]


def refuse_span(damping: Array) -> None:
    """Refuse what even float32 with care does not hold, where there is no float64."""
    powers = float(_backend.read(_backend.with_x64(span, damping)))
    if powers > WIDEST_SPAN:
        msg = f"`damping` must span less than 2^{WIDEST_SPAN} where products are those of float32; got 2^{powers:.0f}. "
        raise ValueError(msg + "Raise the smallest, lower the largest, or compute in float64.")


def fit(
    x: Array,
    power: Any,
    dtype: Any,
    name: str | None,
    *,
    over: Any = 1.0,
    harmless: int = HARMLESS_POWER,
    least: float = 0.0,
) -> Array:
    """Return x / over · 2^power in dtype, for x (d, k) and over of order one; `harmless` powers need no look at it.

    `name` is that of the argument to blame where it does not fit, here and below; None where there is only the inverse.
    """
    if isinstance(power, int) and abs(power) < harmless:
        return _backend.cast(x / scalar_like(over * 2.0**-power, x), dtype)  # one division: powers of two are exact
    return refuse_misfit(_backend.cast(ldexp(x / scalar_like(over, x), power), dtype), x, name, least=least)


def settle(
    values: Array, name: str | None, *, like: Array, dtype: Any, unscaled: Array | None = None, least: float = 0.0
) -> Array:
    """Float64 values of the small system, beside like in dtype; `unscaled` is what tells zeros from underflow."""
    settled = _backend.from_float64(values, like=like, dtype=dtype)
    return refuse_misfit(settled, values if unscaled is None else unscaled, name, least=least)


def settle_positive(
    values: Array, name: str | None, *, like: Array, dtype: Any, unscaled: Array | None = None
) -> Array:
    """The same for values ≥ 0 of which each has to have its digits, 1e-3; with no `unscaled` none of them is zero."""
    settled = _backend.from_float64(values, like=like, dtype=dtype)
    if not _backend.on_host(settled):
        return settled
    xp = _backend.namespace(settled)
    if not bool(xp.all(xp.isfinite(settled))):
        refuse_nonfinite_answer(settled, name)
    values = _backend.read(settled)
    require_digits(values if unscaled is None else values[_backend.read(unscaled) > 0], dtype, name)
    return settled


def require_digits(values: np.ndarray, dtype: Any, name: str | None) -> None:
    """Refuse positive entries that are zero, or too small for a relative error of 1e-3."""
    if np.any(values < LEAST[_backend.dtype_name(dtype)]):
        refuse_underflow(dtype, name)


def refuse_misfit(x: Array, unscaled: Array, name: str | None, *, least: float = 0.0) -> Array:
    """On host arrays an answer too large or too small for its dtype is an OverflowError, not infinity or zero.

    Too small is one whose largest entry, of a column, has lost bits, where that was above `least` before it was scaled.
    """
    if not _backend.on_host(x):
        return x
    xp = _backend.namespace(x)
    if not bool(xp.all(xp.isfinite(x))):
        refuse_nonfinite_answer(x, name)
    if 0 in x.shape:
        return x
    lost = _largest(x) < np.finfo(_backend.dtype_name(x.dtype)).tiny
    if np.any(lost) and np.any(lost & (_largest(unscaled) > least)):
        refuse_underflow(x.dtype, name)
    return x


def _largest(x: Array) -> np.ndarray:
    """The largest absolute entry of each column, or of what has none."""
    xp = _backend.namespace(x)
    axes = tuple(range(max(1, x.ndim - 1))) if x.ndim else None
    return _backend.read(xp.max(xp.abs(x), axis=axes))


def refuse_nonfinite_answer(x: Array, name: str | None) -> None:
    """Say why an answer is nan or infinite."""
    xp = _backend.namespace(x)
    if bool(xp.any(xp.isnan(x))):
        suspects = "a gradient that is held" if name is None else f"`{name}`, or a gradient that is held,"
        msg = f"The answer is not a number: {suspects} is not finite, or kappa = ‖F‖/damping is "
        msg += "beyond all that the arithmetic can resolve. Let go of that gradient, or raise `damping`."
        raise FactorizationError(msg)
    raise OverflowError(f"The answer does not fit into {_backend.dtype_name(x.dtype)}. " + _cure(name))


def refuse_underflow(dtype: Any, name: str | None) -> None:
    """Say that an answer, or an entry that is promised by itself, is below the smallest number of its dtype."""
    kind = _backend.dtype_name(dtype)
    msg = f"The answer is too small for {kind}, whose smallest normal number is {np.finfo(kind).tiny:.1e}. "
    raise OverflowError(msg + _cure(name))


def _cure(name: str | None) -> str:
    rest = "the gradients that are held by s and `damping` by s²."
    return f"Scale {rest}" if name is None else f"Scale `{name}`, or {rest}"
