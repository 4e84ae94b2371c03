"""What follows from one capacitance matrix, in the dual form as in the primal one."""

import abc
from typing import Any

from .. import _backend
from .._capacitance.system import Capacitance
from .._rows.protocol import RowMatrix
from .._scaling.powers_of_two import ldexp
from .._typing import Array


class OneSystem(abc.ABC):
    """A form of M with one capacitance matrix, A = I + S Sᵀ or I + SᵀS."""

    rows: RowMatrix  # S
    capacitance: Capacitance

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @abc.abstractmethod
    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b."""

    def solve_cross(self, other: "OneSystem", z: Array) -> Array:
        """M Sᵀ T z, where T are the rows of another form of the same gradients."""
        return self.solve_in_span(other.rows.project(z))

    @abc.abstractmethod
    def residuals(self, b: Array) -> tuple[Array, Array]:
        """The a = b − S x with x = M Sᵀb, and e_i = b_i − s_iᵀx_i with x_i without row i; float64, for b (m, k).

        They are A⁻¹b and [A⁻¹b]_i/[A⁻¹]_ii for A = I + S Sᵀ (docs/pruning.md, "A damping of the compensation").
        """

    def cross_validate(self, other: "OneSystem", z: Array, shift: Array) -> tuple[Array, Array]:
        """‖e‖² − ‖a‖² and ‖b‖², (blocks,), of the `residuals` of b = T z − shift, T the rows of another form."""
        b = other.rows.project(z) - shift
        xp = _backend.namespace(b)
        a, e = self.residuals(b)
        optimism, squares = (xp.sum(x, axis=(-2, -1)) for x in (e * e - a * a, b * b))
        return xp.reshape(optimism, (-1,)), xp.reshape(squares, (-1,))

    def gram_matvec(self, z: Array, power: int = 0) -> Array:
        """SᵀS z · 2^−power."""
        return self.rows.combine(ldexp(self.rows.project(z), -power))

    def trace_bound(self) -> Array:
        """A bound of ‖SᵀS‖: its trace."""
        return self.capacitance.trace()
