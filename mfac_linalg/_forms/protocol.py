"""What every form of M offers: the interface between an inverse as a value and the way its M is held."""

from typing import Any, Protocol

from .._typing import Array


class Form(Protocol):
    """M = (I + SᵀS)⁻¹ for scaled rows S (m, d).

    Vectors u are columns (d, k) in `dtype`, and so are answers of that size; what is m-sized is float64, and so are
    entries and scalars.
    """

    @property
    def rows(self) -> Any:
        """S: `project`, `combine`, `column_squares`, `like`, and what its class adds."""
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
        """Dual sweeps of a product where values cannot be read."""
        ...

    # --- products ---

    def solve(self, u: Array) -> Array:
        """M u, (d, k)."""
        ...

    def solve_with_dual(self, u: Array) -> tuple[Array, Array]:
        """M u, (d, k), and the dual a = S M u, (m, k); of blocks theirs, (blocks, m, k)."""
        ...

    def dual(self, u: Array) -> Array:
        """S M u, (m, k)."""
        ...

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b, (d, k), for b (m, k), by push-through."""
        ...

    def coupled(self, whole: Any, z: Array) -> Array:
        """M Sᵀ T z, (d, k), where T are the rows of another form of the same kind and gradients."""
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

    def element(self, i: Array, j: Array) -> Array:
        """M_ij for index arrays (n,), (n,)."""
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
        """The min(m, d) eigenvalues of SᵀS that the rows move, descending."""
        ...
