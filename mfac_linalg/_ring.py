"""The rows of a window in a ring of slots, and their Gram matrix by slot: what is d-sized in a window."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _backend
from ._rows.dense import DenseRows
from ._rows.selected import SelectedRows
from ._scaling import comfortable, exponent, ldexp

Array = Any


@dataclass(frozen=True)
class Ring:
    """Rows 2^exponent_i · buffer[slots_i], in the order of their positions; one slot more than there can be rows.

    A change writes to a slot that was free before it, or to a new ring: the old value goes on answering.
    """

    buffer: Array  # (slots, d), finite everywhere
    products: np.ndarray  # buffer diag(root)² bufferᵀ in float64, on the host; meaningful between rows
    slots: np.ndarray  # (m,)
    exponents: np.ndarray  # (m,), 0 unless the squares of a row leave the comfortable range
    dtype: Any  # that products of the rows are computed in
    gram_dtype: Any  # the same for the Gram matrix

    @classmethod
    def empty(cls, buffer: Array, dtype: Any, gram_dtype: Any) -> "Ring":
        """No rows, in a buffer of zeros."""
        none, capacity = np.zeros(0, dtype=int), buffer.shape[0]
        return cls(buffer, np.zeros((capacity, capacity)), none, none, dtype, gram_dtype)

    @classmethod
    def restored(cls, rows: Array, gram: np.ndarray, slots: np.ndarray, exponents: np.ndarray, empty: "Ring") -> "Ring":
        """Rows (m, d) put back into their slots of an empty ring, with their Gram matrix."""
        m, capacity = len(slots), empty.buffer.shape[0]
        place = np.full(capacity, m)
        place[slots] = np.arange(m)
        padded = _backend.namespace(rows).concat([rows, _backend.zeros_like(rows, rows=1)], axis=0)
        empty.products[np.ix_(slots, slots)] = gram
        buffer = _backend.take_rows(padded, _backend.index_like(place, like=rows))
        return replace(empty, buffer=buffer, slots=slots, exponents=exponents)

    def emptied(self) -> "Ring":
        """The same memory without rows."""
        return replace(self, slots=self.slots[:0], exponents=self.exponents[:0])

    def _free_slot(self) -> int:
        """The first slot without a row."""
        used = np.zeros(self.buffer.shape[0], dtype=bool)
        used[self.slots] = True
        return int(np.argmin(used))

    def kept(self, positions: np.ndarray) -> "Ring":
        """The rows at some positions, in their order."""
        return replace(self, slots=self.slots[positions], exponents=self.exponents[positions])

    def exchanged(self, stays: np.ndarray, g: Array, root: Array | None) -> "Ring":
        """The rows that stay, and g (d,) as the last, in a slot that was free before; one pass over the rows."""
        g, power = _normalised("g", g[None, :])
        slot = self._free_slot()
        buffer = _backend.write_row(self.buffer, slot, g[0, :])
        slots = np.append(self.slots[stays], slot)
        done = replace(self, buffer=buffer, slots=slots, exponents=np.append(self.exponents[stays], power))
        row = _backend.read(done.span(self.gram_dtype).project(self._weighted(g.T, root)))[:, 0]
        self.products[slot, : len(row)] = self.products[: len(row), slot] = row
        return done

    def joined(self, block: Array, root: Array | None) -> "Ring":
        """With the rows of a block (k, d) as the last, all of them copied to a new ring in the order of positions."""
        block, powers = _normalised("gradients", block)
        m, k, capacity = len(self.slots), block.shape[0], self.buffer.shape[0]
        old = _backend.take_rows(self.buffer, _backend.index_like(self.slots, like=self.buffer))
        spare = _backend.zeros((capacity - m - k, block.shape[1]), like=block, dtype=block.dtype)
        products = np.zeros_like(self.products)
        products[:m, :m] = self.products[np.ix_(self.slots, self.slots)]
        products[m : m + k, m : m + k] = _symmetric(DenseRows(block, None, self.gram_dtype).gram(root, _silent))
        if m:
            cross = _backend.read(DenseRows(old, None, self.gram_dtype).project(self._weighted(block.T, root)))
            products[:m, m : m + k], products[m : m + k, :m] = cross, cross.T
        buffer = _backend.namespace(block).concat([old, block, spare], axis=0)
        slots, exponents = np.arange(m + k), np.append(self.exponents, powers)
        return replace(self, buffer=buffer, products=products, slots=slots, exponents=exponents)

    @property
    def is_sharp(self) -> bool:
        """Whether the Gram matrix is computed in float64."""
        return _backend.dtype_name(self.gram_dtype) == "float64"

    def measured_by(self, root: Array | None, *, sharply: bool) -> "Ring":
        """The same rows with their Gram matrix made anew, in another metric or in float64; one Gram pass."""
        gram_dtype = _backend.namespace(self.buffer).float64 if sharply else self.gram_dtype
        products = np.zeros_like(self.products)
        gram = _symmetric(self.span(gram_dtype).gram(root, _silent)) if len(self.slots) else products[:0, :0]
        products[: len(gram), : len(gram)] = gram
        return replace(self, products=products, gram_dtype=gram_dtype)

    def _weighted(self, columns: Array, root: Array | None) -> Array:
        """What the rows are multiplied by for their Gram matrix with `columns`: root² ∘ columns."""
        columns = _backend.cast(columns, self.gram_dtype)
        return columns if root is None else _backend.cast(root, self.gram_dtype) ** 2 * columns

    def span(self, dtype: Any) -> DenseRows:
        """The leading slots, up to the last that holds a row, computed in dtype."""
        stop = int(self.slots.max()) + 1 if len(self.slots) else 0
        return DenseRows(self.buffer if stop == self.buffer.shape[0] else self.buffer[:stop, :], None, dtype)

    def rows(self, *, on_host: bool) -> SelectedRows:
        """The rows, for products."""
        return SelectedRows(self.span(self.dtype), self.slots, on_host)

    def gram(self, scale: np.ndarray) -> "ScaledGram":
        """diag(scale) GGᵀ diag(scale)."""
        return ScaledGram(self.products, self.slots, scale)

    def copied(self, positions: np.ndarray) -> Array:
        """A copy of the rows at some positions, shape (k, d)."""
        rows = _backend.take_rows(self.buffer, _backend.index_like(self.slots[positions], like=self.buffer))
        powers = self.exponents[positions][:, None]
        if not np.any(powers):
            return rows
        computing = _backend.cast(rows, _backend.result_dtype(rows))
        return _backend.cast(ldexp(computing, _backend.index_like(powers, like=rows)), rows.dtype)


@dataclass(frozen=True)
class ScaledGram:
    """B = diag(scale) GGᵀ diag(scale) for rows in slots, (m, m)."""

    products: np.ndarray
    slots: np.ndarray
    scale: np.ndarray

    @property
    def largest_diagonal(self) -> float:
        """The largest entry of its diagonal, which is its largest."""
        return float(np.max(self.scale**2 * self.products[self.slots, self.slots], initial=0.0))

    def rows(self, positions: slice) -> np.ndarray:
        """Some rows of B."""
        chosen = self.products[self.slots[positions]][:, self.slots]
        return self.scale[positions, None] * chosen * self.scale

    def times(self, x: np.ndarray) -> np.ndarray:
        """B x for x (m, k), with no copy of B."""
        spread = np.zeros((self.products.shape[0], x.shape[1]))
        spread[self.slots] = self.scale[:, None] * x
        return self.scale[:, None] * (self.products @ spread)[self.slots]


def _symmetric(gram: Array) -> np.ndarray:
    """A Gram matrix on the host, its upper triangle that of the lower: matrix products need not round them alike."""
    lower = np.tril(_backend.read(gram))
    return lower + np.tril(lower, -1).T


def _normalised(name: str, rows: Array) -> tuple[Array, np.ndarray]:
    """Rows times 2^−power, and power: 0 unless a row's squares would leave the comfortable range."""
    computing = _backend.cast(rows, _backend.result_dtype(rows))
    squares = _backend.read(_backend.column_squares(computing.T))
    usual = comfortable(squares, computing.dtype)
    if np.all(usual):
        return rows, np.zeros(len(squares), dtype=int)
    xp = _backend.namespace(rows)
    largest = _backend.read(xp.max(xp.abs(computing), axis=1))
    if not np.all(np.isfinite(largest)):
        msg = f"`{name}` must be finite; got nan or infinity. Skip the step whose loss overflowed."
        raise ValueError(msg)
    powers = np.where(usual | (largest == 0), 0, _backend.read(exponent(computing, axis=1)))
    scaled = ldexp(computing, _backend.index_like(-powers[:, None], like=computing))
    return _backend.cast(scaled, rows.dtype), powers


def _silent(loop: Any, text: str) -> Any:
    del text
    return loop
