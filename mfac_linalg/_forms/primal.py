"""The primal form, for m ≥ d: every query uses the Cholesky factor of the d × d matrix I + SᵀS."""

from dataclasses import dataclass, field
from typing import Any

from .. import _backend
from .._backend.pytree import ESTIMATE, Part
from .._capacitance.system import Capacitance, add_identity
from .._rows.batched import BatchedRows
from .._rows.scaled import ScaledRows
from .._typing import Array
from .one_system import OneSystem


@dataclass(frozen=True)
class PrimalForm(OneSystem, Part):
    """M = (I + SᵀS)⁻¹ = UᵀU with U = L⁻¹, I + SᵀS = L Lᵀ: a diagonal entry is a sum of squares.

    Products, diagonal and spectrum are also those of a batch of blocks, with a leading axis.
    """

    rows: ScaledRows | BatchedRows
    capacitance: Capacitance
    norm: Any = field(metadata=ESTIMATE)  # ‖S‖₂
    sweeps: int = 1

    def _to_rows_dtype(self, x: Array) -> Array:
        return _backend.from_float64(x, like=self.rows.like, dtype=self.dtype)

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        return "float64"

    def solve_with_dual(self, u: Array) -> tuple[Array, Array]:
        """M u and the dual a = S M u (float64)."""
        r = self.solve(u)
        return r, self.rows.project(r)

    def solve(self, u: Array) -> Array:
        """M u alone."""
        return self._to_rows_dtype(self.capacitance.solve(_backend.to_float64(u)))

    def dual(self, u: Array) -> Array:
        """S M u (float64): the dual."""
        return self.rows.project(self.solve(u))

    def quadratics(self, u: Array) -> Array:
        """The ‖U u‖² = uᵀM u of each column u, float64."""
        return _backend.column_squares(self.capacitance.half_solve(_backend.to_float64(u)))

    @property
    def _wide_rows(self) -> ScaledRows | BatchedRows:
        """S in float64, unless rows are streamed: sums over more rows than columns may nearly cancel."""
        rows, like = self.rows, self.rows.like
        wide = rows.can_change_dtype and not rows.is_streamed and _backend.supports_float64(like)
        return rows.astype_float64() if wide else rows

    def _solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b, float64."""
        return self.capacitance.solve(_backend.to_float64(self._wide_rows.combine(b)))

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b."""
        return self._to_rows_dtype(self._solve_in_span(b))

    def residuals(self, b: Array) -> tuple[Array, Array]:
        """The a = b − S x with x = M Sᵀb, and e_i = b_i − s_iᵀx_i with x_i without row i; float64, for b (m, k).

        For a row with a leverage near one a_i is small, and both it and 1 − h_i cancel.
        """
        rows = self._wide_rows
        a = b - rows.project(_backend.from_float64(self._solve_in_span(b), like=rows.like, dtype=rows.dtype))
        return a, a / (1 - self.leverages())[..., None]

    def apply_square_root(self, u: Array) -> Array:
        """M^½ u = Q (I + s)^-½ Qᵀ u."""
        s, q = self.capacitance.spectrum()
        shrink = (1 / _backend.namespace(s).sqrt(1 + s))[..., None]
        return self._to_rows_dtype(q @ (shrink * (q.mT @ _backend.to_float64(u))))

    def path(self, u: Array, ratios: Array) -> Array:
        """Column k: (I + t_k SᵀS)⁻¹ u, by one eigendecomposition."""
        s, q = self.capacitance.spectrum()
        steps = _backend.to_device_of(ratios, like=s)[None, :]
        return self._to_rows_dtype(q @ ((q.mT @ _backend.to_float64(u)) / (1 + s[..., None] * steps)))

    def _half_columns(self, j: Array | None = None) -> Array:
        identity = add_identity(_backend.namespace(self.capacitance.cholesky).zeros_like(self.capacitance.cholesky))
        if j is not None:
            j = _backend.index_like(j, like=identity)
            identity = _backend.namespace(identity).take(identity, j, axis=1)
        return self.capacitance.half_solve(identity)

    def element(self, i: Array, j: Array, *, total: int | None = None) -> Array:
        """M_ij = u_iᵀu_j for flat index arrays."""
        xp = _backend.namespace(self.capacitance.cholesky)
        half = self._half_columns().T
        i, j = (_backend.index_like(x, like=half) for x in (i, j))
        return xp.vecdot(xp.take(half, i, axis=0), xp.take(half, j, axis=0))

    def submatrix(self, i: Array, j: Array) -> Array:
        """M[i][:, j]."""
        return self._half_columns(i).T @ self._half_columns(j)

    def diagonal(self) -> Array:
        """M_jj = ‖u_j‖², float64."""
        return _backend.column_squares(self._half_columns())

    def leverages(self) -> Array:
        """The diagonal of S M Sᵀ, ‖U s_i‖² for each row s_i, float64."""
        return self.rows.row_squares(self.capacitance.half_solve)

    def logdet(self) -> Array:
        """The logarithm of det M."""
        return -self.capacitance.logdet()

    def spectrum(self) -> Array:
        """Eigenvalues of SᵀS, descending."""
        return _backend.namespace(self.capacitance.scaled_gram).flip(self.capacitance.spectrum()[0], axis=-1)
