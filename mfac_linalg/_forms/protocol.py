"""The protocol of all forms of M: the queries that `State` puts to one."""

from typing import Any, Protocol

from .._rows.protocol import RowMatrix
from .._typing import Array


class Form(Protocol):
    """M = (I + SᵀS)⁻¹ for scaled rows S (m, d).

    Vectors u, and results of their size, are columns (d, k) in `dtype`; m-sized ones, entries and scalars are float64.
    """

    @property
    def rows(self) -> RowMatrix:
        """S."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        ...

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        ...

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        ...

    @property
    def sweeps(self) -> int:
        """Number of dual sweeps of a product where values cannot be read."""
        ...

    # --- products ---

    def solve(self, u: Array) -> Array:
        """M u, (d, k)."""
        ...

    def solve_with_dual(self, u: Array) -> tuple[Array, Array]:
        """M u, (d, k), and the dual a = S M u, (m, k); for blocks one for each, (blocks, m, k)."""
        ...

    def dual(self, u: Array) -> Array:
        """S M u, (m, k)."""
        ...

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b, (d, k), for b (m, k), by push-through."""
        ...

    def solve_cross(self, other: Any, z: Array) -> Array:
        """M Sᵀ T z, (d, k), where T are the rows of another form of the same class and gradients."""
        ...

    def cross_validate(self, other: Any, z: Array, shift: Array) -> tuple[Array, Array]:
        """‖e‖² − ‖a‖² and ‖b‖² of each block, (blocks,), for b = T z − shift and x = M Sᵀb: a = b − S x.

        e_i = b_i − s_iᵀx_i with x_i without row i. T are the rows of another form of the same class and gradients.
        """
        ...

    def gram_matvec(self, z: Array, power: int = 0) -> Array:
        """SᵀS z · 2^−power, (d, k)."""
        ...

    def apply_square_root(self, u: Array) -> Array:
        """M^½ u, (d, k)."""
        ...

    def path(self, u: Array, ratios: Array) -> Array:
        """Column k: (I + t_k SᵀS)⁻¹ u for u (d, 1) and ratios t (k,)."""
        ...

    def quadratics(self, u: Array) -> Array:
        """The uᵀM u of each column, (k,), a sum of squares."""
        ...

    # --- entries ---

    def element(self, i: Array, j: Array, *, total: int | None = None) -> Array:
        """M_ij for index arrays (n,), (n,); `total` is the number of entries of the query if this is a part of it."""
        ...

    def submatrix(self, i: Array, j: Array) -> Array:
        """M[i][:, j] for index arrays (n,) and (p,), (n, p)."""
        ...

    def diagonal(self) -> Array:
        """The diagonal of M, (d,)."""
        ...

    # --- scalars ---

    def leverages(self) -> Array:
        """The diagonal of S M Sᵀ, (m,)."""
        ...

    def trace_bound(self) -> Array:
        """A bound of ‖SᵀS‖, ()."""
        ...

    def logdet(self) -> Array:
        """The logarithm of det M, ()."""
        ...

    def spectrum(self) -> Array:
        """The min(m, d) largest eigenvalues of SᵀS, descending."""
        ...
