"""The rows of a window in a ring of slots, and their Gram matrix by slot: what is d-sized in a window."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from .. import _backend
from .._progress import SILENT
from .._rows.panels import weigh
from .._rows.selected import SelectedRows
from .._typing import Array
from .slots import DenseSlots
from .topk_slots import TopKSlots


@dataclass(frozen=True)
class Ring:
    """Rows 2^exponent_i times those in slots_i, in the order of their positions; there is one slot more than rows.

    A change writes to a slot that was free before it, or to a new ring: `WindowState` says how long one is valid.
    """

    storage: DenseSlots | TopKSlots
    gram_by_slot: np.ndarray  # rows diag(column_scale)² rowsᵀ by slot, in float64, on the host; meaningful between rows
    slots: np.ndarray  # (m,)
    exponents: np.ndarray  # (m,), 0 unless the squares of a row leave the safe range
    dtype: Any  # that products of the rows are computed in
    gram_dtype: Any  # the same for the Gram matrix

    @classmethod
    def empty(cls, storage: DenseSlots | TopKSlots, dtype: Any, gram_dtype: Any) -> "Ring":
        """No rows, in empty slots."""
        none = np.zeros(0, dtype=int)
        return cls(storage, np.zeros((storage.count, storage.count)), none, none, dtype, gram_dtype)

    @classmethod
    def restore(cls, state: dict[str, Any], slots: np.ndarray, exponents: np.ndarray, empty: "Ring") -> "Ring":
        """Fill an empty ring from what `as_dict` returned, slot by slot."""
        empty.gram_by_slot[np.ix_(slots, slots)] = np.array(state["gram"])
        return replace(empty, storage=empty.storage.restore(state, slots), slots=slots, exponents=exponents)

    def as_dict(self) -> dict[str, Any]:
        """Copies of the stored rows, of their slots, and of their Gram matrix."""
        return {
            **self.storage.as_dict(self.slots),
            "exponents": self.exponents.copy(),
            "slots": self.slots.copy(),
            "gram": self.gram(np.ones(len(self.slots))).rows(slice(None)),
            "sharp": self.has_float64_gram,
        }

    @property
    def like(self) -> Array:
        """An array (·, d) of the library, device and dtype of the gradients."""
        return self.storage.like

    def without_rows(self) -> "Ring":
        """The same memory without rows."""
        return replace(self, storage=self.storage.without_rows(), slots=self.slots[:0], exponents=self.exponents[:0])

    def _free_slot(self) -> int:
        """The first slot without a row."""
        used = np.zeros(self.storage.count, dtype=bool)
        used[self.slots] = True
        return int(np.argmin(used))

    def import_rows(self, other: "Ring", column_scale: Array | None, move: Any) -> "Ring":
        """The rows of another ring, and its compression error, transferred by `move`; one Gram pass."""
        storage, powers = cast(TopKSlots, self.storage).import_rows(cast(TopKSlots, other.storage), other.slots, move)
        slots, exponents = np.arange(len(other.slots)), other.exponents + powers
        return replace(self, storage=storage, slots=slots, exponents=exponents).with_gram(column_scale, float64=False)

    def select_rows(self, positions: np.ndarray) -> "Ring":
        """The rows at some positions, in their order."""
        return replace(self, slots=self.slots[positions], exponents=self.exponents[positions])

    def write_row(self, keep: np.ndarray, g: Array, column_scale: Array | None) -> "Ring":
        """Keep some rows, and write g (d,) as the last to a free slot; one pass over the rows."""
        slot = self._free_slot()
        storage, column, power = self.storage.write_row(g, slot)
        slots = np.append(self.slots[keep], slot)
        ring = replace(self, storage=storage, slots=slots, exponents=np.append(self.exponents[keep], power))
        row = _backend.read(ring.span(self.gram_dtype).project(weigh(column, column_scale, self.gram_dtype)))[:, 0]
        self.gram_by_slot[slot, : len(row)] = self.gram_by_slot[: len(row), slot] = row
        return ring

    def skip_rows(self, block: Array) -> "Ring":
        """Let the rows of a block (k, d) pass through the window: only a compression error remains of them."""
        return replace(self, storage=self.storage.skip_rows(block)) if block.shape[0] else self

    def append_block(self, block: Array, column_scale: Array | None) -> "Ring":
        """Add the rows of a block (k, d) as the last; all rows are copied to a new ring in the order of positions."""
        storage, powers = self.storage.append_block(self.slots, block)
        m, total = len(self.slots), len(self.slots) + block.shape[0]
        old, new = (storage.rows(slots, self.gram_dtype) for slots in (slice(0, m), slice(m, total)))
        gram_by_slot = np.zeros_like(self.gram_by_slot)
        gram_by_slot[:m, :m] = self.gram_by_slot[np.ix_(self.slots, self.slots)]
        gram_by_slot[m:total, m:total] = _symmetric(new.gram(column_scale, SILENT))
        if m:
            cross = _backend.read(cast(Any, old).cross(new, column_scale))
            gram_by_slot[:m, m:total], gram_by_slot[m:total, :m] = cross, cross.T
        slots, exponents = np.arange(total), np.append(self.exponents, powers)
        return replace(self, storage=storage, gram_by_slot=gram_by_slot, slots=slots, exponents=exponents)

    @property
    def has_float64_gram(self) -> bool:
        """Whether the Gram matrix is computed in float64."""
        return _backend.dtype_name(self.gram_dtype) == "float64"

    def with_gram(self, column_scale: Array | None, *, float64: bool) -> "Ring":
        """Recompute the Gram matrix, for another column scale or in float64; one Gram pass."""
        gram_dtype = _backend.namespace(self.like).float64 if float64 else self.gram_dtype
        gram_by_slot = np.zeros(self.gram_by_slot.shape)  # takes no memory until it is written to
        gram = _symmetric(self.span(gram_dtype).gram(column_scale, SILENT)) if len(self.slots) else gram_by_slot[:0, :0]
        gram_by_slot[: len(gram), : len(gram)] = gram
        return replace(self, gram_by_slot=gram_by_slot, gram_dtype=gram_dtype)

    def span(self, dtype: Any) -> Any:
        """The leading slots, up to the last with a row, as rows computed in dtype."""
        return self.storage.rows(slice(0, int(self.slots.max()) + 1 if len(self.slots) else 0), dtype)

    def rows(self, *, small_on_host: bool) -> SelectedRows:
        """The rows, for products."""
        return SelectedRows(self.span(self.dtype), self.slots, small_on_host)

    def gram(self, scale: np.ndarray) -> "SlotGram":
        """diag(scale) GGᵀ diag(scale)."""
        return SlotGram(self.gram_by_slot, self.slots, scale)

    def copy_rows(self, positions: np.ndarray) -> Array:
        """A copy of the rows at some positions, shape (k, d)."""
        return self.storage.copy_rows(self.slots[positions], self.exponents[positions])


@dataclass(frozen=True)
class SlotGram:
    """B = diag(scale) GGᵀ diag(scale) for rows in slots, (m, m)."""

    gram_by_slot: np.ndarray
    slots: np.ndarray
    scale: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        """Its diagonal, (m,)."""
        return self.scale**2 * self.gram_by_slot[self.slots, self.slots]

    @property
    def largest_diagonal(self) -> float:
        """The largest entry of its diagonal, which is its largest."""
        return float(np.max(self.diagonal, initial=0.0))

    def rows(self, positions: slice) -> np.ndarray:
        """Some rows of B."""
        chosen = self.gram_by_slot[self.slots[positions]][:, self.slots]
        return self.scale[positions, None] * chosen * self.scale

    def times(self, x: np.ndarray) -> np.ndarray:
        """B x for x (m, k), with no copy of B."""
        spread = np.zeros((self.gram_by_slot.shape[0], x.shape[1]))
        spread[self.slots] = self.scale[:, None] * x
        return self.scale[:, None] * (self.gram_by_slot @ spread)[self.slots]


def _symmetric(gram: Array) -> np.ndarray:
    """A Gram matrix on the host, its upper triangle that of the lower: matrix products need not round them alike."""
    lower = np.tril(_backend.read(gram))
    return lower + np.tril(lower, -1).T
