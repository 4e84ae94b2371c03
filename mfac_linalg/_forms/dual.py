"""The dual form: M = I − Sᵀ A⁻¹ S with A = I + S Sᵀ (Woodbury), by dual sweeps."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import ESTIMATE, Part
from .._capacitance.system import Capacitance, float32_gram_shows, sum_loses_digits, whitens_in_float32
from .._condition import kappa_of
from .._progress import SILENT
from .._rows.batched import BatchedRows
from .._rows.scaled import ScaledRows
from .._rows.whitened import WhitenedRows, complement, whiten
from .._rows.whitener import Whitener
from .._typing import Array
from .diagonal import refine
from .one_system import OneSystem
from .sweeps import CANCELLATION, DualSweeps, sweeps_for


@dataclass(frozen=True)
class DualForm(OneSystem, Part):
    """M for m < d. Products use `rows`; elements use W where it is stored.

    Products and spectrum are also those of a batch of blocks, with a leading axis.
    """

    rows: ScaledRows | WhitenedRows | BatchedRows
    whitened: WhitenedRows | None
    capacitance: Capacitance
    norm: Any = field(metadata=ESTIMATE)  # ‖S‖₂
    sweeps: int
    cancellation: float = CANCELLATION
    float64_gram: bool = False  # whether the Gram matrix was computed in float64
    on_demand_dtype: Any = None  # of W, made when queries of elements first gain from it; None: never

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        return _backend.dtype_name(self.dtype)

    def solve_with_dual(self, u: Array) -> tuple[Array, Array]:
        """M u and the dual a = S M u (float64)."""
        return self._dual_sweeps.from_zero(u)

    def solve(self, u: Array) -> Array:
        """M u alone."""
        return self.solve_with_dual(u)[0]

    def dual(self, u: Array) -> Array:
        """S M u (float64): the dual."""
        return self.solve_with_dual(u)[1]

    def quadratics(self, u: Array) -> Array:
        """The ‖r‖² + ‖a‖² = uᵀM u of each column u, float64."""
        r, a = self.solve_with_dual(u)
        return _backend.column_squares(_backend.to_float64(r)) + _backend.column_squares(a)

    @property
    def _dual_sweeps(self) -> DualSweeps:
        rows, options = self.rows, dict[str, Any]()
        if isinstance(rows, ScaledRows) and rows.can_sample_rows:
            options["sample_rows"] = rows.sample_rows
        if self.arithmetic == "float32":  # L is float64, and more accurate
            options["row_norms"] = self.capacitance.row_norms
            if self._can_widen and self.whitened is None and self._unwhitened.can_change_dtype:
                options["wide_rows"] = self._unwhitened.astype_float64
                options["better_solve"] = lambda b: self.float64_capacitance.solve(b)
        return DualSweeps(rows, self.capacitance.solve, self.norm, self.sweeps, self.cancellation, **options)

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b by push-through, Sᵀ A⁻¹ b, with further sweeps if the sum Sᵀ a cancels."""
        return self._dual_sweeps.from_dual(self.capacitance.solve(b), b)[0]

    def residuals(self, b: Array) -> tuple[Array, Array]:
        """The a = b − S x with x = M Sᵀb, and e_i = b_i − s_iᵀx_i with x_i without row i; float64, for b (m, k)."""
        a, xp = self.capacitance.solve(b), _backend.namespace(b)
        return a, a / xp.linalg.diagonal(self.capacitance.inverse())[..., None]

    def apply_square_root(self, u: Array) -> Array:
        """M^½ u = u − Sᵀ Q diag(1/(√(1+s)(1+√(1+s)))) Qᵀ S u."""
        xp = _backend.namespace(self.capacitance.scaled_gram)
        s, q = self.float64_capacitance.spectrum()
        sqrt = xp.sqrt(1 + s)
        weights = (1 / (sqrt * (1 + sqrt)))[..., None]
        return u - self.rows.combine(q @ (weights * (q.mT @ self.rows.project(u))))

    def path(self, u: Array, ratios: Array) -> Array:
        """Column k: (I + t_k SᵀS)⁻¹ u for ratios t (k,), by one eigendecomposition and sweeps in each metric."""
        s, q = self.capacitance.spectrum()
        steps = _backend.to_device_of(ratios, like=self.capacitance.scaled_gram)[None, :]
        shrink = 1 / (1 + s[..., None] * steps)
        rows = StretchedRows(self.rows, steps**0.5)
        if isinstance(self.norm, float | np.ndarray) and _backend.is_concrete(ratios):
            norm: Any = self.norm * np.sqrt(_backend.read(ratios))
            largest = float(np.max(norm))
        else:
            norm, largest = self.norm * steps[0, :] ** 0.5, np.inf
        sweeps = sweeps_for(kappa_of(largest), self.arithmetic, float64_gram=False)
        return DualSweeps(rows, lambda b: q @ (shrink * (q.mT @ b)), norm, sweeps).from_zero(u)[0]

    @property
    def float64_capacitance(self) -> Capacitance:
        """The capacitance matrix for entries, log det and spectrum: by another pass over G if A is not accurate enough.

        Rows are whitened with such a factor.
        """
        if self.whitened:
            return self.capacitance
        if sum_loses_digits(self.norm):
            return self._once("float64_capacitance", self._capacitance_of_rows)
        if self._lacks_float64_gram:
            return self._once("float64_capacitance", self._with_float64_gram)
        return self.capacitance

    def _capacitance_of_rows(self) -> Capacitance:
        rows = cast(ScaledRows | BatchedRows, self.rows)
        return Capacitance.of_rows(self.capacitance.scaled_gram, rows.column_blocks())

    @property
    def _lacks_float64_gram(self) -> bool:
        """Whether the Gram matrix is float32, as products need it, and its rounding shows in entries."""
        if self.float64_gram or self.arithmetic == "float64" or not _backend.supports_float64(self.rows.like):
            return False
        is_small = isinstance(self.norm, float) and not float32_gram_shows(self.norm)  # it may be unknown
        return not is_small and self._unwhitened.can_change_dtype

    @property
    def has_consistent_columns(self) -> bool:
        """Whether S e_j and A agree to rounding in float64: those of `columns` and `float64_capacitance`."""
        return self.whitened is None and (self.float64_gram or self._lacks_float64_gram)

    def _with_float64_gram(self) -> Capacitance:
        rows = self._unwhitened.astype_float64()
        gram = rows.row_scale * rows.rows.gram(rows.column_scale, SILENT) * rows.row_scale.T
        return Capacitance.factor(gram) or self.capacitance

    def columns(self, j: Array) -> Array:
        """w_j = L⁻¹ S e_j as columns."""
        if self.whitened:
            return self.whitened.columns(j)
        return self.float64_capacitance.half_solve(self._unwhitened.columns(j))

    @property
    def _unwhitened(self) -> ScaledRows:
        return cast(ScaledRows, self.rows)  # the class of `rows` if there is no W

    def _whitened_for(self, count: int) -> WhitenedRows | None:
        """W for a query of `count` elements: made on demand, and kept, where it costs less than to solve for each.

        The query alone decides, not the ones before it, so that its answer is always the same.
        """
        on_demand = self.on_demand_dtype is not None and isinstance(self.norm, float) and 2 * count >= self.shape[1]
        return self._once("whitened", self._whiten) if on_demand and self.whitened is None else self.whitened

    def _whiten(self) -> WhitenedRows:
        return whiten(
            self._unwhitened,
            self.float64_capacitance,
            dtype=self.on_demand_dtype,
            wide_rows=self._wide_rows,
            overwrite=False,
            progress=SILENT,
        )

    @property
    def _wide_rows(self) -> ScaledRows | None:
        """S in float64 where κ asks for it in W."""
        resolved = isinstance(self.norm, float) and whitens_in_float32(kappa_of(self.norm))
        return self._unwhitened.astype_float64() if self._can_widen and not resolved else None

    @property
    def _can_widen(self) -> bool:
        return self.arithmetic != "float64" and _backend.supports_float64(self.rows.like)

    def element(self, i: Array, j: Array, *, total: int | None = None) -> Array:
        """M_ij = δ_ij − w_iᵀw_j for flat index arrays."""
        whitened = self._whitened_for(i.shape[0] if total is None else total)
        if whitened is not None:
            products = whitened.pair_products(i, j)
        else:
            products = _backend.vecdot(self.columns(i).T, self.columns(j).T)
        return _backend.to_float64(i == j) - _backend.to_float64(products)

    def submatrix(self, i: Array, j: Array) -> Array:
        """M[i][:, j]."""
        products = _backend.matmul(self.columns(i).T, self.columns(j))
        return _backend.to_float64(i[:, None] == j[None, :]) - _backend.to_float64(products)

    def diagonal(self) -> Array:
        """M_jj = 1 − ‖w_j‖², or ‖r‖² + ‖a‖² of the swept solution where that cancels; float64.

        It is kept, but for streamed rows, whose memory is limited.
        """
        return self._diagonal() if self.rows.is_streamed else self._once("diagonal", self._diagonal)

    def _diagonal(self) -> Array:
        if _backend.is_lazy(self.rows.like):
            values = self._unwhitened.map_parts(_diagonal_of_part, self.float64_capacitance)
            if not sum_loses_digits(self.norm):  # else entries are computed again, at once
                return values
        else:
            values = self._complement()
        if self.whitened and self.whitened.exact_diagonal is not None:
            index, exact = self.whitened.exact_diagonal
            if len(index) == 0:
                return values
            return _backend.replace_entries(
                values, _backend.index_like(index, like=values), _backend.to_device_of(exact, like=values)
            )
        return refine(self, values, like=self.rows.like, norm=self.norm)

    def _complement(self) -> Array:
        """The 1 − ‖w_j‖², (d,), float64."""
        if self.whitened:
            return complement(self.whitened.panels())
        rows = self._unwhitened
        if rows.multiplies_by_entries and not sum_loses_digits(self.norm):  # A⁻¹ is as accurate as S Sᵀ
            return 1 - rows.column_quadratic_forms(self.float64_capacitance.inverse())
        whitener = Whitener.of(rows, self.float64_capacitance, rows.dtype, wide_rows=self._wide_rows)
        return 1 - whitener.column_squares()

    def leverages(self) -> Array:
        """The diagonal of S M Sᵀ = I − A⁻¹, float64."""
        return self.float64_capacitance.leverages()

    def logdet(self) -> Array:
        """The logarithm of det M."""
        return -self.float64_capacitance.logdet()

    def spectrum(self) -> Array:
        """The m eigenvalues of S Sᵀ, descending: those of SᵀS but for zeros."""
        return _backend.namespace(self.capacitance.scaled_gram).flip(self.float64_capacitance.spectrum()[0], axis=-1)


def _diagonal_of_part(rows: ScaledRows, capacitance: Capacitance) -> Array:
    """The diagonal of M in some columns, by the capacitance matrix of all; float64, with an error of κ eps."""
    wide = rows.astype_float64()
    return 1 - Whitener.of(wide, capacitance, wide.dtype).column_squares()


@dataclass(frozen=True)
class StretchedRows(Part):
    """t_k S for column k: the rows in several metrics."""

    rows: ScaledRows | WhitenedRows | BatchedRows
    stretch: Array  # t, (1, k)

    multiplies_by_entries = False
    is_streamed = False  # two passes a sweep

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def like(self) -> Array:
        """An array of the library and on the device of d-sized results."""
        return self.rows.like

    def project(self, u: Array) -> Array:
        """t_k S u_k; u of shape (d, 1) is used for all k."""
        return self.stretch * self.rows.project(u)

    def combine(self, a: Array) -> Array:
        """t_k Sᵀ a_k."""
        return self.rows.combine(self.stretch * a)
