"""F itself: the same rows and scalings as its inverse, no factorisation."""

from typing import Any

import numpy as np

from . import _backend
from . import _validation as check
from ._forms.state import State
from ._operator import SymmetricOperator
from ._repr import as_call, as_table
from ._typing import Array

SHOWN = ("m", "window", "d", "blocks", "damping", "dtype", "device")  # the facts of an inverse that hold for F


@_backend.methods_outside_graphs
class Forward(SymmetricOperator):
    """F = Λ + Σ c_i g_i g_iᵀ as an operator of shape (d, d): the `forward` property of an inverse.

    It follows its inverse: that of a window slides with it. A copy or a pickle has a copy of the inverse.
    """

    def __init__(self, inverse: Any) -> None:
        self._inverse = inverse

    @property
    def _current(self) -> State:
        return self._inverse._current

    @property
    def _like(self) -> Array:
        return self._inverse._like

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._inverse.dim

    @property
    def dtype(self) -> Any:
        """Dtype of the answers."""
        return self._inverse.dtype

    @property
    def device(self) -> Any:
        """Device of the answers."""
        return self._inverse.device

    def matvec(self, x: Array) -> Array:
        """F x for x of shape (d,) or (d, 1), real or complex. Cost: two passes over the rows."""
        return self._vector_product(State.multiply, x, "x")

    def matmat(self, X: Array) -> Array:  # noqa: N803 (one letter, as in the formulas)
        """F X for X of shape (d, k), real or complex."""
        return self._matrix_product(State.multiply, X, "X")

    def rmatvec(self, x: Array) -> Array:
        """The product of the transpose with x: `matvec`, by symmetry."""
        return self.matvec(x)

    def rmatmat(self, X: Array) -> Array:  # noqa: N803
        """The product of the transpose with X: `matmat`, by symmetry."""
        return self.matmat(X)

    def diagonal(self) -> Array:
        """The diagonal of F, shape (d,). Cost: one pass over the rows."""
        return _backend.with_x64(State.forward_diagonal, self._unchanged)

    def trace(self) -> Array:
        """Trace of F. Cost: as `diagonal`."""
        return _backend.with_x64(State.forward_trace, self._unchanged)

    def logdet(self) -> Array:
        """The logarithm of det F. Cost: O(m)."""
        return -_backend.with_x64(State.logdet, self._unchanged)

    def to_dense(self) -> Array:
        """F as a (d, d) array, refused for d > 16,384. Cost: O(d²m) time, O(d²) memory."""
        check.dense(self.shape[0])
        return _backend.with_x64(_backend.symmetric_part, self.matmat(_backend.with_x64(self._units, self._like)))

    def _units(self, like: Array) -> Array:
        """The unit vectors, (d, d)."""
        index = _backend.index_like(np.arange(self.dim), like=like)
        return _backend.unit_columns(index, self.dim, like=like, dtype=self.dtype)

    def eigenvalues(self) -> Array:
        """The min(m, d) eigenvalues that the gradients move, descending; the rest are λ. Cost: O(m³).

        Raises
        ------
        ValueError
            Vector damping: F and I + SᵀS then have different eigenvalues.
        """
        self._current.require_scalar("forward.eigenvalues")
        return _backend.with_x64(State.eigenvalues, self._unchanged)

    def condition_number(self) -> Array:
        """‖F‖ ‖F⁻¹‖, for scalar damping. Cost: O(m³)."""
        self._current.require_scalar("condition_number")
        return _backend.with_x64(State.condition_number, self._unchanged)

    def effective_rank(self) -> Array:
        """Σ s/(1 + s), s the eigenvalues of Λ^-½ (F − Λ) Λ^-½: σ/(σ + λ) for scalar damping. Cost: O(m³)."""
        return _backend.with_x64(State.effective_rank, self._unchanged)

    def _describe(self) -> dict[str, str]:
        return {name: fact for name, fact in self._inverse._describe().items() if name in SHOWN}

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self._describe())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._describe())
