"""F itself, beside its inverse: the same rows, the same metric, no factorisation needed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _backend
from . import _validation as check
from ._state import State

Array = Any


class Forward:
    """F = Λ + Σ c_i g_i g_iᵀ as an operator of shape (d, d); made by the `forward` property of an inverse.

    It answers for the inverse as it is when asked: that of a window slides with it.
    """

    __array_ufunc__ = None

    def __init__(self, current: Callable[[], State]) -> None:
        self._ask = current

    @property
    def _state(self) -> State:
        return self._ask()

    @property
    def shape(self) -> tuple[int, int]:
        """(d, d)."""
        dim = self._state.form.shape[1]
        return (dim, dim)

    @property
    def dtype(self) -> Any:
        """Dtype of the answers."""
        return self._state.dtype

    def matvec(self, x: Array) -> Array:
        """F x for x of shape (d,). Cost: two passes over the rows."""
        x = check.check_vector("x", x, self._state.form.rows.like, self.dtype, self.shape[0])
        return _backend.in_float64(State.multiply, self._state, x[:, None])[:, 0]

    def matmat(self, x: Array) -> Array:
        """F X for X of shape (d, k)."""
        x = check.check_columns("X", x, self._state.form.rows.like, self.dtype, self.shape[0])
        return _backend.in_float64(State.multiply, self._state, x)

    def __matmul__(self, x: Array) -> Array:
        if not _backend.is_array(x):
            return NotImplemented
        return self.matvec(x) if x.ndim == 1 else self.matmat(x)

    def diagonal(self) -> Array:
        """The diagonal of F, shape (d,). Cost: one pass over the rows."""
        return _backend.in_float64(State.forward_diagonal, self._state)

    def trace(self) -> Array:
        """Trace of F. Cost: as `diagonal`."""
        return _backend.in_float64(State.forward_trace, self._state)

    def logdet(self) -> Array:
        """The logarithm of det F. Cost: O(m)."""
        return -_backend.in_float64(State.logdet, self._state)

    def to_dense(self) -> Array:
        """F as a (d, d) array, refused for d > 16,384. Cost: O(d²m) time, O(d²) memory."""
        check.check_dense(self.shape[0])
        like = self._state.form.rows.like
        index = _backend.index_like(np.arange(self.shape[0]), like=like)
        units = _backend.unit_columns(index, self.shape[0], like=like, dtype=self.dtype)
        return _backend.symmetric_part(self.matmat(units))

    def eigenvalues(self) -> Array:
        """The min(m, d) eigenvalues that the gradients move, descending; the rest are λ. Cost: O(m³).

        Raises
        ------
        ValueError
            Vector damping: F and I + SᵀS then have different eigenvalues.
        """
        self._state.require_scalar("forward.eigenvalues")
        return _backend.in_float64(State.eigenvalues, self._state)

    def condition_number(self) -> Array:
        """‖F‖ ‖F⁻¹‖, for scalar damping. Cost: O(m³)."""
        self._state.require_scalar("condition_number")
        return _backend.in_float64(State.condition_number, self._state)

    def effective_rank(self) -> Array:
        """Σ s/(1 + s), s the eigenvalues of Λ^-½ (F − Λ) Λ^-½: σ/(σ + λ) for scalar damping. Cost: O(m³)."""
        return _backend.in_float64(State.effective_rank, self._state)

    def __repr__(self) -> str:
        return f"Forward(d={self.shape[0]}, m={self._state.form.shape[0]}, dtype={_backend.dtype_name(self.dtype)})"
