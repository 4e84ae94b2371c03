"""What follows from one capacitance matrix, in the dual form as in the primal one."""

import abc
from typing import Any

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

    def gram_matvec(self, z: Array, power: int = 0) -> Array:
        """SᵀS z · 2^−power."""
        return self.rows.combine(ldexp(self.rows.project(z), -power))

    def trace_bound(self) -> Array:
        """A bound of ‖SᵀS‖: its trace."""
        return self.capacitance.trace()
