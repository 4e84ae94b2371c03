"""Slots of whole gradients, and the powers of two that keep their squares in range."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._rows.dense import DenseRows
from .._rows.selected import inverse_selection
from .._scaling.powers_of_two import exponent, ldexp, squares_in_safe_range
from .._typing import Array


@dataclass(frozen=True)
class DenseSlots:
    """Rows times powers of two in a (slots, d) array whose entries are all finite.

    `write_row` writes to a free slot; every other change allocates new slots or writes nothing. `WindowState` says how
    long a value is valid.
    """

    buffer: Array

    @classmethod
    def empty(cls, count: int, like: Array) -> "DenseSlots":
        """Slots of zeros for rows like those of an array (·, d)."""
        return cls(_backend.writable_zeros((count, like.shape[1]), like=like))

    @property
    def count(self) -> int:
        """Number of slots."""
        return self.buffer.shape[0]

    @property
    def like(self) -> Array:
        """An array (·, d) of the library, device and dtype of the gradients."""
        return self.buffer

    @property
    def is_exact(self) -> bool:
        """Whether a stored row is the gradient itself, to the last bit."""
        return True

    def without_rows(self) -> "DenseSlots":
        """The same memory, free for other rows."""
        return self

    def write_row(self, g: Array, slot: int) -> tuple["DenseSlots", Array, np.ndarray]:
        """Write g (d,) times 2^−power to a free slot; return that row as a column (d, 1) and power (1,) too."""
        g, power = divide_by_powers("g", g[None, :])
        return DenseSlots(_backend.write_row(self.buffer, slot, g[0, :])), g.T, power

    def skip_rows(self, block: Array) -> "DenseSlots":
        """Nothing remains of rows that pass through the window."""
        del block
        return self

    def append_block(self, old: np.ndarray, block: Array) -> tuple["DenseSlots", np.ndarray]:
        """New slots: some old rows, then those of a block (k, d), then spare ones; and the powers of the block."""
        block, powers = divide_by_powers("gradients", block)
        spare = self.count - len(old) - block.shape[0]
        zeros = _backend.zeros((spare, block.shape[1]), like=block, dtype=block.dtype)
        parts = [self._take_rows(old), block, zeros]
        return DenseSlots(_backend.namespace(block).concat(parts, axis=0)), powers

    def rows(self, slots: slice, dtype: Any) -> DenseRows:
        """A run of the slots as rows, computed in dtype."""
        whole = slots == slice(0, self.count)
        return DenseRows(self.buffer if whole else self.buffer[slots, :], None, dtype)

    def copy_rows(self, slots: np.ndarray, powers: np.ndarray) -> Array:
        """A copy of some rows times 2^powers, shape (k, d)."""
        rows = self._take_rows(slots)
        if not np.any(powers):
            return rows
        return _backend.cast(multiply_by_powers(_backend.cast(rows, _backend.result_dtype(rows)), powers), rows.dtype)

    def as_dict(self, slots: np.ndarray) -> dict[str, Any]:
        """Copies of the rows in some slots."""
        return {"rows": self._take_rows(slots)}

    def restore(self, state: dict[str, Any], slots: np.ndarray) -> "DenseSlots":
        """Fill some of these slots, which are empty, from what `as_dict` returned."""
        rows, place = state["rows"], inverse_selection(slots, self.count)
        padded = _backend.namespace(rows).concat([rows, _backend.zeros_like(rows, rows=1)], axis=0)
        return DenseSlots(_backend.take_rows(padded, _backend.index_like(place, like=rows)))

    def _take_rows(self, slots: np.ndarray) -> Array:
        return _backend.take_rows(self.buffer, _backend.index_like(slots, like=self.buffer))


def divide_by_powers(name: str, rows: Array) -> tuple[Array, np.ndarray]:
    """Rows times 2^−power, and power: 0 unless a row's squares would leave the safe range."""
    computing = _backend.cast(rows, _backend.result_dtype(rows))
    powers = row_exponents(name, computing, _backend.dtype_name(computing.dtype))
    if not np.any(powers):
        return rows, powers
    return _backend.cast(multiply_by_powers(computing, -powers), rows.dtype), powers


def row_exponents(name: str, rows: Array, dtype: str) -> np.ndarray:
    """Exponents of rows: 0 where their squares stay in the safe range of a dtype."""
    squares = _backend.read(_backend.column_squares(rows.T))
    is_safe = squares_in_safe_range(squares, dtype)
    if np.all(is_safe):
        return np.zeros(len(squares), dtype=int)
    xp = _backend.namespace(rows)
    largest = _backend.read(xp.max(xp.abs(rows), axis=1))
    if not np.all(np.isfinite(largest)):
        msg = f"`{name}` must be finite; got nan or infinity. Skip the step whose loss overflowed."
        raise ValueError(msg)
    return np.where(is_safe | (largest == 0), 0, _backend.read(exponent(rows, axis=1)))


def multiply_by_powers(rows: Array, powers: np.ndarray) -> Array:
    """Rows times 2^powers, themselves where all of these are 0."""
    return ldexp(rows, _backend.index_like(powers[:, None], like=rows)) if np.any(powers) else rows
