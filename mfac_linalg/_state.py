"""An inverse as a value: the form, the metric and the weights that make it, and every query as a function of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _backend
from ._errors import warn_if_unresolved
from ._metric import Metric, beside, fit, settle
from ._pytree import Part
from ._scaling import column_exponents, ldexp, mantissa
from ._validation import check_finite

Array = Any
HARMLESS_REACH = 20  # powers of two by which float64 coefficients may differ from one, whatever dtype they meet


@dataclass(frozen=True)
class State(Part):
    """Everything an inverse holds. Immutable; a registered pytree under JAX."""

    form: Any
    metric: Metric
    row_scale: Array  # √(c_i / level), (m, 1) float64: S = row_scale ∘ G ∘ root
    rows: Any  # the caller's G where it is kept, else None
    kappa: Any
    dtype: Any  # of results
    sharp: bool  # whether the Gram matrix was computed in float64
    order: Array | None = None  # position in `form` of each of the caller's rows; None as they stand

    # --- products ---

    def solve(self, v: Array) -> Array:
        """F⁻¹ v for v (d, k)."""
        u, power = self.metric.enter(v, self.form.dtype)
        return self.metric.leave(self.form.answer(u), power, self.dtype)

    def solve_gradients(self, c: Array) -> Array:
        """F⁻¹ Gᵀ c for c (m, k)."""
        if self.order is not None:
            place = _backend.namespace(self.order).argsort(self.order)
            c = _backend.take_rows(c, _backend.index_like(place, like=c))
        b = _backend.to_float64(c) / self.row_scale
        power = column_exponents(b, "coefficients", reach=HARMLESS_REACH)
        if isinstance(power, int):
            return self.metric.leave(self.form.solve_in_span(b), power, self.dtype)
        r = self.form.solve_in_span(ldexp(b, -power))
        return self.metric.leave(r, _backend.index_like(power, like=r), self.dtype)

    def dual(self, v: Array) -> Array:
        """The a with F⁻¹v = Λ⁻¹(v − Gᵀa), for v (d, k)."""
        u, power = self.metric.enter(v, self.form.dtype)
        _, a = self.form.solve(u)
        return self._home(self._by_row(ldexp(self.row_scale * a, _backend.beside_float64(power))))

    def project(self, v: Array) -> Array:
        """G F⁻¹ v for v (d, k), shape (m, k): C⁻¹ times the dual, C^-½ S M Λ^-½ v."""
        u, power = self.metric.enter(v, self.form.dtype)
        image = self.form.image(u) / self.row_scale
        return self._home(self._by_row(ldexp(image / self.level(image), _backend.beside_float64(power))))

    def _by_row(self, values: Array) -> Array:
        """Values (…, m, k) or (m,) of the form's rows, in the order of the caller's."""
        if self.order is None:
            return values
        return _backend.take_rows(values, _backend.index_like(self.order, like=values))

    def coupled(self, whole: "State", x: Array) -> Array:
        """F⁻¹ Gᵀ C Ĝ x for x (d, k), where Ĝ are the gradients of another state of the same metric, by push-through."""
        z, power = Metric(1.0, None).enter(x, self.form.dtype, "weights")
        if self.metric.root is not None:
            z = z / self.metric.root
        return self.metric.leave(self.form.coupled(whole.form, z), power, self.dtype, level=1.0)

    def root(self, v: Array) -> Array:
        """B v with B Bᵀ = F⁻¹."""
        u, power = Metric(1.0, None).enter(v, self.form.dtype)
        return self.metric.leave(self.form.root(u), power, self.dtype, level=self.metric.level**0.5)

    def sample(self, size: int, seed: int) -> Array:
        """Draws from N(0, F⁻¹) as columns."""
        shape, like = (self.form.shape[1], size), self.form.rows.like
        return self.root(_backend.standard_normal(shape, seed=seed, like=like, dtype=self.dtype))

    def path(self, v: Array, dampings: np.ndarray) -> Array:
        """F(λ_k)⁻¹ v as columns."""
        u, power = self.metric.enter(v, self.form.dtype)
        level = self.metric.level
        ratios = level / (dampings if isinstance(level, float) else _backend.asarray(dampings, like=level))
        if isinstance(self.kappa, float) and _backend.is_concrete(ratios):
            largest = float(np.max(_backend.read(ratios)))
            warn_if_unresolved(1 + (self.kappa - 1) * largest, self.form.arithmetic)
        r = self.form.path(u, ratios)
        fractions, shifts = np.frexp(dampings)
        fractions = _backend.asarray(fractions, like=r, dtype=r.dtype)
        shifts = _backend.asarray(shifts, like=r, dtype=_backend.index_dtype(r))
        return fit(r, power - shifts, self.dtype, over=fractions)

    def quadratic(self, v: Array) -> Array:
        """vᵀF⁻¹v for one v (d, 1)."""
        return self._home(self._quadratics(v)[0])

    def quadratics(self, v: Array) -> Array:
        """vᵀF⁻¹v for each column of v (d, k), shape (k,)."""
        return self._home(self._quadratics(v))

    def row_quadratics(self) -> Array:
        """g_iᵀF⁻¹g_i for each of the caller's rows, shape (m,): C⁻¹ times the leverages."""
        scale = self.row_scale[:, 0]
        values = self.form.leverages() / scale / scale
        return self._home(self._by_row(values / self.level(values)))

    def _quadratics(self, v: Array) -> Array:
        """(‖r‖² + ‖a‖²)/level, float64: sums of squares."""
        u, power = self.metric.enter(v, self.form.dtype)
        r, a = self.form.solve(u)
        duals = _backend.namespace(a).reshape(a, (-1, a.shape[-1]))  # of all blocks
        total = _backend.column_squares(_backend.to_float64(r)) + _backend.column_squares(duals)
        power = _backend.beside_float64(power)
        return ldexp(total / self.level(total), 2 * power)

    # --- entries ---

    def floor(self) -> Array:
        """Half of what no eigenvalue of a block of M is below, 1/(1 + ‖S‖²_F); `kappa` is known from below only.

        Half: no value comes near it but by rounding, so no derivative is lost to it.
        """
        return 0.5 / (1 + self.form.trace_bound())

    def diagonal(self) -> Array:
        """The diagonal of F⁻¹, float64; M's is within [1/κ, 1]."""
        values = self.form.diagonal()
        values = _backend.namespace(values).clip(values, self.floor(), 1.0)
        if self.metric.root is not None:
            values = values * _backend.to_float64(self.metric.root[:, 0]) ** 2
        return values / self.level(values)

    def diagonal_entries(self) -> Array:
        """The diagonal of F⁻¹ in the user's dtype."""
        return self._spread(self.diagonal())

    def element(self, i: Array, j: Array) -> Array:
        """F⁻¹_ij for flat index arrays."""
        return self._scaled_entries(self.form.element(i, j), self._roots(i), self._roots(j))

    def submatrix(self, i: Array, j: Array) -> Array:
        """F⁻¹[i][:, j]."""
        left, right = self._roots(i), self._roots(j)
        left = left if isinstance(left, float) else left[:, None]
        return self._scaled_entries(self.form.submatrix(i, j), left, right)

    def columns(self, j: Array) -> Array:
        """F⁻¹[:, j], solved like any right-hand side."""
        dim, like = self.form.shape[1], self.form.rows.like
        return self.solve(_backend.unit_columns(j, dim, like=like, dtype=self.dtype))

    def _roots(self, j: Array) -> Any:
        if self.metric.root is None:
            return 1.0
        return _backend.to_float64(_backend.entries(self.metric.root[:, 0], j))

    def _scaled_entries(self, values: Array, left: Any, right: Any) -> Array:
        return self._home(values * left * right / self.level(values))

    def level(self, like: Array) -> Any:
        return beside(self.metric.level, like)

    def _home(self, values: Array) -> Array:
        """A small answer, which is computed now, in the user's library and dtype."""
        return settle(_backend.small(values), like=self.form.rows.like, dtype=self.dtype)

    def _spread(self, values: Array) -> Array:
        """An answer of size d in the user's library and dtype, lazy where the rows are."""
        like = self.form.rows.like
        return settle(_backend.as_lazy(values, like=like), like=like, dtype=self.dtype)

    # --- scalars ---

    def logdet(self) -> Array:
        """The logarithm of det F⁻¹."""
        dim = self.form.shape[1]
        return self._home(self.form.logdet() - self.metric.log_determinant(dim, like=self.row_scale))

    def trace(self) -> Array:
        """The trace of F⁻¹."""
        diagonal = self.diagonal()
        return self._home(_backend.namespace(diagonal).sum(diagonal))

    # --- F itself ---

    def multiply(self, x: Array) -> Array:
        """F x for x (d, k)."""
        z, power = Metric(1.0, None).enter(x, self.form.dtype, "x")
        if self.metric.root is not None:
            z = z / self.metric.root
        return self.metric.raise_level(z + self.form.normal(z), power, self.dtype)

    def forward_diagonal(self) -> Array:
        """The diagonal of F."""
        return self._spread(self._forward_diagonal())

    def forward_trace(self) -> Array:
        """Trace of F."""
        diagonal = self._forward_diagonal()
        return self._home(_backend.namespace(diagonal).sum(diagonal))

    def _forward_diagonal(self) -> Array:
        squares = self.form.rows.column_squares()
        values = (1 + squares) * self.level(squares)
        return values if self.metric.root is None else values / _backend.to_float64(self.metric.root[:, 0]) ** 2

    # --- the spectrum ---

    def eigenvalues(self) -> Array:
        """λ (1 + s), descending."""
        s = self.form.spectrum()
        return self._home((1 + s) * self.level(s))

    def condition_number(self) -> Array:
        """‖F‖ ‖F⁻¹‖ = (1 + s₁)/(1 + s_d), s_d = 0 for m < d."""
        s = self.form.spectrum()
        largest = 1 + _backend.namespace(s).sum(s[:1])  # an empty window has none
        return self._home(largest / (1 + s[-1]) if s.shape[0] == self.form.shape[1] else largest)

    def effective_rank(self) -> Array:
        """Σ s/(1 + s)."""
        s = self.form.spectrum()
        return self._home(_backend.namespace(s).sum(s / (1 + s)))

    # --- certificates ---

    def backward_error(self, v: Array, x: Array) -> Array:
        """‖Λ^-½(v − Fx)‖ / (κ ‖Λ^½x‖)."""
        residual, _, z, _ = self._residual(v, x)
        size = _backend.column_norms(z) * beside(self.kappa, z)
        return _backend.small(_ratio(_backend.column_norms(residual), size))

    def relative_residual(self, v: Array, x: Array) -> Array:
        """‖v − Fx‖ / ‖v‖."""
        residual, u, _, root = self._residual(v, x)
        if root is not None:
            residual, u = residual / root, u / root
        return _backend.small(_ratio(_backend.column_norms(residual), _backend.column_norms(u)))

    def _residual(self, v: Array, x: Array) -> tuple[Array, Array, Array, Array | None]:
        """Λ^-½(v − Fx), Λ^-½v, Λ^½x in units in which v is of order one, and root."""
        check_finite("x", x)
        u, power = self.metric.enter(v, self.form.dtype)
        z, root = _backend.cast(x, self.form.dtype), self.metric.root
        fraction, shift = mantissa(self.metric.level)
        z = ldexp((z if root is None else z / root) * beside(fraction, z), shift - power)
        return u - (z + self.form.normal(z)), u, z, root

    # --- what it was built from ---

    def require_scalar(self, name: str) -> None:
        """Refuse a query that has a meaning for scalar damping only."""
        if self.metric.root is not None:
            dim = self.form.shape[1]
            msg = f"`{name}` must have scalar damping; got an array of shape ({dim},). Build with one float λ."
            raise ValueError(msg)

    @property
    def is_whitened(self) -> bool:
        """Whether W is held."""
        return getattr(self.form, "whitened", None) is not None

    def gram(self) -> Array | None:
        """G Gᵀ in float64, where it can be had from the form: for scalar damping, m < d and plain G."""
        m, d = self.form.shape
        rescaled = self.rows is not None and self.rows.exponent is not None
        if m >= d or rescaled or self.metric.root is not None:
            return None
        return self.form.system.gram / (self.row_scale * self.row_scale.T)

    def gradients(self) -> Array:
        """The caller's G, or S undone."""
        if self.rows is not None:
            return self.rows.gradients
        rows = self.form.rows
        scale = _backend.from_float64(self.row_scale, like=rows.like, dtype=rows.dtype)
        block = rows.unwhitened() / scale
        return block if self.metric.root is None else block / self.metric.root[:, 0]


def _ratio(above: Array, below: Array) -> Array:
    """Return above / below for one column, 0 for 0/0, infinity for a residual beside nothing."""
    xp = _backend.namespace(above)
    ratio = above / xp.where(below == 0, xp.ones_like(below), below)
    return xp.where((below == 0) & (above > 0), xp.full_like(ratio, xp.inf), ratio)[0]
