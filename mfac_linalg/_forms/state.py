"""An inverse as an immutable value: a form of M and the scalings around it; every query is a function of these."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import ESTIMATE, Part
from .._rows.protocol import GivenRows
from .._rows.scaled import ScaledRows
from .._rows.whitened import WhitenedRows
from .._scaling.powers_of_two import column_exponents, ldexp, mantissa
from .._scaling.sqrt_damping import DampingScaling, as_positive_result, as_result, require_digits, scalar_like
from .._typing import Array
from .dual import DualForm
from .protocol import Form

LEAST_SCALE = 1e-60  # of λ and 1/λ, up to which G Gᵀ can be recovered from S Sᵀ
ORDINARY_KAPPA = 2.0**50
HARMLESS_REACH = 20  # powers of two between float64 coefficients and one that fit into any dtype


@dataclass(frozen=True)
class State(Part):
    """The data of an inverse. Immutable; a registered pytree under JAX."""

    form: Form
    scaling: DampingScaling
    row_scale: Array  # √(c_i / λ₀), (m, 1) float64: S = row_scale ∘ G ∘ column_scale
    rows: GivenRows | None  # the caller's G, if it is referenced
    kappa: Any = field(metadata=ESTIMATE)
    dtype: Any  # of results
    float64_gram: bool  # whether the Gram matrix was computed in float64
    order: Array | None = None  # position in `form` of each of the caller's rows; None for the same order
    wide: bool = False  # whether rows, weights or dampings span too much for float32 arithmetic

    # --- products ---

    def solve(self, v: Array, name: str | None = "v") -> Array:
        """F⁻¹ v for v (d, k); `name`, here and below, is that of the argument in errors."""
        u, power = self.scaling.to_scaled(v, self.form.dtype, name or "v")
        return self._from_scaled(self.form.solve(u), power, name)

    def solve_gradients(self, c: Array, name: str = "coefficients") -> Array:
        """F⁻¹ Gᵀ c for c (m, k)."""
        if self.order is not None:
            place = _backend.namespace(self.order).argsort(self.order)
            c = _backend.take_rows(c, _backend.index_like(place, like=c))
        return self._solve_in_span(_backend.to_float64(c) / self.row_scale, name)

    def solve_slope(self, slope: float) -> Array:
        """α F⁻¹ Gᵀ c, (d, 1), for the c_i of F itself: α M Sᵀ C^½ 1 in the coordinates of `solve_scaled`.

        The result is added to the weights, so that it may underflow.
        """
        return self._solve_in_span(slope * self.row_scale, "slope", scale=1.0, least=math.inf)

    def _solve_in_span(self, b: Array, name: str, *, scale: Any = None, least: float | None = None) -> Array:
        """Λ^-½ M Sᵀ b √λ₀/scale for b (m, k)."""
        power = column_exponents(b, name, reach=HARMLESS_REACH)
        b = b if isinstance(power, int) else ldexp(b, -power)
        r = self.form.solve_in_span(b)
        power = power if isinstance(power, int) else _backend.index_like(power, like=r)
        return self._from_scaled(r, power, name, scale=scale, least=self._rounding(b) if least is None else least)

    def _rounding(self, b: Array | None = None) -> float:
        """The rounding of an S b or Sᵀ b that vanishes in exact arithmetic, for b of order one or in host memory."""
        size = float(np.max(np.abs(_backend.read(b)), initial=0.0)) if b is not None and _backend.on_host(b) else 1.0
        kappa = self.kappa if isinstance(self.kappa, float) else 1.0
        return size * float(np.finfo(_backend.dtype_name(self.dtype)).eps) * math.sqrt(kappa - 1)

    def dual(self, v: Array) -> Array:
        """The a with F⁻¹v = Λ⁻¹(v − Gᵀa), for v (d, k)."""
        u, power = self.scaling.to_scaled(v, self.form.dtype)
        _, a = self.form.solve_with_dual(u)
        values = ldexp(self.row_scale * a, _backend.like_small_system(power))
        return self._result(self._by_row(values), "v", self._by_row(a), least=self._rounding())

    def project(self, v: Array, name: str = "v") -> Array:
        """G F⁻¹ v for v (d, k), shape (m, k): C⁻¹ times the dual, C^-½ S M Λ^-½ v."""
        u, power = self.scaling.to_scaled(v, self.form.dtype, name)
        dual = self.form.dual(u)
        values = dual / (self.row_scale * self._sqrt_scale_like(self.row_scale))
        values = ldexp(values / self._sqrt_scale_like(values), _backend.like_small_system(power))
        return self._result(self._by_row(values), name, self._by_row(dual), least=self._rounding())

    @property
    def _may_leave_range(self) -> bool:
        """Whether κ is so large that results may leave the range of their dtype."""
        return not (isinstance(self.kappa, float) and self.kappa < ORDINARY_KAPPA)

    def _from_scaled(self, r: Array, power: Any, name: str | None, *, scale: Any = None, least: float = 0.0) -> Array:
        return self.scaling.from_scaled(
            r, power, self.dtype, name, scale=scale, check_range=self._may_leave_range, least=least
        )

    def _by_row(self, values: Array) -> Array:
        """Values (…, m, k) or (m,), reordered from the form's rows to the caller's."""
        if self.order is None:
            return values
        return _backend.take_rows(values, _backend.index_like(self.order, like=values))

    def solve_cross(self, other: "State", x: Array) -> Array:
        """F⁻¹ Gᵀ C Ĝ x for x (d, k), where Ĝ are the gradients of another state with the same damping, by push-through.

        The result is added to x, so that it may underflow.
        """
        z, power = self.scaling.solution_to_scaled(x, self.form.dtype, "weights")
        return self._from_scaled(self.form.solve_cross(other.form, z), power, "weights", scale=1.0, least=math.inf)

    def to_scaled(self, x: Array) -> tuple[Array, Any]:
        """Λ^½ x/√λ₀ · 2^−power for x (d,), float64, of order one; and power."""
        wide = _backend.namespace(x).float64 if _backend.supports_float64(x) else self.form.dtype
        z, power = self.scaling.solution_to_scaled(x[:, None], wide, "weights")
        return _backend.to_float64(z[:, 0]), power

    def solve_scaled(self, y: Array, power: Any) -> Array:
        """√λ₀ Λ^-½ M y · 2^power for y (d,), float64: F⁻¹ in the units of `to_scaled` on both sides.

        The result is added to x, so that it may underflow.
        """
        y = _backend.from_float64(y, like=self.form.rows.like, dtype=self.form.dtype)
        return self._from_scaled(self.form.solve(y[:, None]), power, "weights", scale=1.0, least=math.inf)[:, 0]

    def apply_square_root(self, v: Array, name: str | None = "v") -> Array:
        """B v with B Bᵀ = F⁻¹."""
        u, power = DampingScaling(1.0, None).to_scaled(v, self.form.dtype)
        return self._from_scaled(self.form.apply_square_root(u), power, name, scale=self.scaling.scale**0.5)

    def quadratics(self, v: Array, name: str = "v") -> Array:
        """vᵀF⁻¹v for each column of v (d, k), shape (k,): sums of squares."""
        u, power = self.scaling.to_scaled(v, self.form.dtype, name)
        total = self.form.quadratics(u)
        fraction, shift = mantissa(self.scaling.scale)
        power = 2 * _backend.like_small_system(power) - _backend.like_small_system(shift)
        values = ldexp(total / scalar_like(fraction, total), power)
        return self._positive_result(values, name, _backend.column_squares(u))

    def row_quadratics(self) -> Array:
        """g_iᵀF⁻¹g_i for each of the caller's rows, shape (m,): C⁻¹ times the leverages."""
        leverages = self.form.leverages()
        roots = scalar_like(self._sqrt_scale_like(self.row_scale) * self.row_scale[:, 0], leverages)  # √c
        return self._positive_result(self._by_row(leverages / roots / roots), None, self._by_row(leverages))

    # --- entries ---

    def floor(self) -> Array:
        """Half of 1/(1 + ‖S‖²_F), a lower bound of the eigenvalues of each block of M; `kappa` may be too small.

        Half of it: only rounding brings a value near, so that clipping loses no derivative.
        """
        return 0.5 / (1 + self.form.trace_bound())

    def diagonal(self) -> Array:
        """The diagonal of F⁻¹, float64."""
        return self.scaling.over_damping(self.bounded_diagonal())

    def bounded_diagonal(self) -> Array:
        """The diagonal of M, float64, within [1/κ, 1]."""
        values = self.form.diagonal()
        return _backend.namespace(values).clip(values, self.floor(), 1.0)

    def diagonal_entries(self) -> Array:
        """The diagonal of F⁻¹ in the user's dtype."""
        return self._lazy_result(self.diagonal())

    def element(self, i: Array, j: Array) -> Array:
        """F⁻¹_ij for flat index arrays."""
        return self._scaled_entries(self.form.element(i, j), i == j, self._sqrt_damping_at(i), self._sqrt_damping_at(j))

    def submatrix(self, i: Array, j: Array) -> Array:
        """F⁻¹[i][:, j]."""
        left, right = self._sqrt_damping_at(i), self._sqrt_damping_at(j)
        left = left if isinstance(left, float) else left[:, None]
        return self._scaled_entries(self.form.submatrix(i, j), i[:, None] == j[None, :], left, right)

    def columns(self, j: Array) -> Array:
        """F⁻¹[:, j], solved like any right-hand side."""
        dim, like = self.form.shape[1], self.form.rows.like
        return self.solve(_backend.unit_columns(j, dim, like=like, dtype=self.dtype), None)

    def _sqrt_damping_at(self, j: Array) -> Any:
        if self.scaling.column_scale is None:
            return 1.0
        return self.scaling.sqrt_damping(_backend.entries(self.scaling.column_scale[:, 0], j))

    def _scaled_entries(self, values: Array, on_diagonal: Array, left: Any, right: Any) -> Array:
        """M_ij / √(λ_i λ_j), clipped to the bounds of M.

        A result that underflows is refused on the diagonal, or where M_ij is larger than its rounding.
        """
        xp = _backend.namespace(values)
        on_diagonal = _backend.index_like(on_diagonal, like=values)
        least = xp.where(on_diagonal, self.floor(), -xp.ones_like(values))
        values = xp.where(values > 1, xp.ones_like(values), xp.where(values < least, least, values))
        scaled = values / self._scale_like(values) if self.scaling.column_scale is None else values / left / right
        result = self._result(scaled, None, values, least=float(np.finfo(_backend.dtype_name(self.dtype)).eps))
        if _backend.on_host(result):
            require_digits(_backend.read(result)[_backend.read(on_diagonal)], self.dtype, None)
        return result

    def _scale_like(self, like: Array) -> Any:
        """λ₀ for products with `like`."""
        return scalar_like(self.scaling.scale, like)

    def _sqrt_scale_like(self, like: Array) -> Any:
        return scalar_like(self.scaling.scale**0.5, like)

    def _result(self, values: Array, name: str | None = None, unscaled: Any = None, *, least: float = 0.0) -> Array:
        """A small result, evaluated at once, in the user's library and dtype."""
        unscaled, like = None if unscaled is None else _backend.evaluate(unscaled), self.form.rows.like
        return as_result(_backend.evaluate(values), name, like=like, dtype=self.dtype, unscaled=unscaled, least=least)

    def _positive_result(self, values: Array, name: str | None = None, unscaled: Array | None = None) -> Array:
        """The same for numbers ≥ 0, each of which needs its digits."""
        unscaled, like = None if unscaled is None else _backend.evaluate(unscaled), self.form.rows.like
        return as_positive_result(_backend.evaluate(values), name, like=like, dtype=self.dtype, unscaled=unscaled)

    def _lazy_result(self, values: Array) -> Array:
        """Positive numbers (d,) in the user's library and dtype, lazy for lazy rows."""
        like = self.form.rows.like
        return as_positive_result(_backend.as_lazy(values, like=like), None, like=like, dtype=self.dtype)

    # --- scalars ---

    def logdet(self) -> Array:
        """The logarithm of det F⁻¹."""
        return self._result(self.form.logdet() - self.scaling.log_determinant(self.form.shape[1], like=self.row_scale))

    def trace(self) -> Array:
        """The trace of F⁻¹."""
        diagonal = self.diagonal()
        return self._positive_result(_backend.namespace(diagonal).sum(diagonal))

    # --- F itself ---

    def multiply(self, x: Array, name: str = "x") -> Array:
        """F x for x (d, k)."""
        z, power = self.scaling.solution_to_scaled(x, self.form.dtype, name)
        return self.scaling.apply_damping(
            z + self.form.gram_matvec(z), power, self.dtype, name, check_range=self._may_leave_range
        )

    def forward_diagonal(self) -> Array:
        """The diagonal of F."""
        return self._lazy_result(self._forward_diagonal())

    def forward_trace(self) -> Array:
        """Trace of F."""
        diagonal = self._forward_diagonal()
        return self._positive_result(_backend.namespace(diagonal).sum(diagonal))

    def _forward_diagonal(self) -> Array:
        return self.scaling.times_damping(1 + cast(ScaledRows | WhitenedRows, self.form.rows).column_squares())

    # --- the spectrum ---

    def eigenvalues(self) -> Array:
        """λ (1 + s), descending."""
        s = self.form.spectrum()
        return self._positive_result((1 + s) * self._scale_like(s))

    def condition_number(self) -> Array:
        """‖F‖ ‖F⁻¹‖ = (1 + s₁)/(1 + s_d), s_d = 0 for m < d."""
        s = self.form.spectrum()
        largest = 1 + _backend.namespace(s).sum(s[:1])  # an empty window has none
        return self._result(largest / (1 + s[-1]) if s.shape[0] == self.form.shape[1] else largest)

    def effective_rank(self) -> Array:
        """Σ s/(1 + s)."""
        s = self.form.spectrum()
        return self._result(_backend.namespace(s).sum(s / (1 + s)))

    # --- its parts ---

    def require_scalar(self, name: str) -> None:
        """Refuse a query that is defined for scalar damping only."""
        if self.scaling.column_scale is not None:
            msg = f"`{name}` must have scalar damping; got an array of shape ({self.form.shape[1]},). "
            raise ValueError(msg + "Build with one float λ.")

    @property
    def whitened(self) -> WhitenedRows | None:
        """W, if it is stored."""
        return self.form.whitened if isinstance(self.form, DualForm) else None

    def gram(self) -> Array | None:
        """G Gᵀ in float64, if it can be recovered from the form: for scalar damping, m < d and unscaled G."""
        m, d = self.form.shape
        rescaled = self.rows is not None and self.rows.exponent is not None
        scale = self.scaling.scale
        extreme = isinstance(scale, float) and not LEAST_SCALE < scale < 1 / LEAST_SCALE
        if m >= d or rescaled or extreme or self.scaling.column_scale is not None:
            return None
        return cast(DualForm, self.form).capacitance.scaled_gram / self.row_scale / self.row_scale.T

    def gradients(self) -> Array:
        """The caller's G, or diag(row_scale)⁻¹ S diag(column_scale)⁻¹."""
        if self.rows is not None:
            return self.rows.gradients
        rows = self.form.rows
        scale = _backend.from_float64(self.row_scale, like=rows.like, dtype=rows.dtype)
        block = cast(WhitenedRows, rows).unwhiten() / scale
        return block if self.scaling.column_scale is None else block / self.scaling.column_scale[:, 0]
