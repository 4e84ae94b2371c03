"""What a window stores of its gradients where it keeps their largest entries, and the error that it feeds back."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._rows.panels import slices
from .._rows.selected import inverse_selection
from .._rows.topk import Layout, TopKRows
from .._typing import Array
from .slots import powers_of, scaled
from .topk import TopK

SELECTED = 2**20  # entries among which the largest are looked for at a time
HALF_EXPONENT = 15  # of the largest entry of a row in float16: in [2^14, 2^15), below its end at 65,504


@dataclass(frozen=True)
class TopKSlots:
    """The same interface as DenseSlots for rows c = topk(g + e), and the e that the next gradient meets.

    Rows are stored times powers of two; the error is kept as it is, in the dtype of the answers. Values are valid for
    as long as those of `DenseSlots`; the error is never written in place.
    """

    compression: TopK
    layout: Layout
    like: Array  # (0, d), of the library, device and dtype of the gradients
    index: Array  # (slots, n) uint16
    values: Array  # (slots, n)
    error: Array | None = None  # (d,), None for zero

    @classmethod
    def empty(cls, count: int, like: Array, compression: TopK) -> "TopKSlots":
        """Slots of zeros for gradients like those of an array (·, d)."""
        if not _backend.can_find_entries(like):
            msg = f"`compression` must be None on {_backend.device(like)}, which has no 64-bit integers; "
            raise TypeError(msg + f"got {compression}. Use a device that has them, or NumPy, PyTorch, JAX or CuPy.")
        layout = Layout.of(like.shape[1], compression.block_size, compression.density)
        dtype = _stored_dtype(compression, like)
        with _backend.no_grad_constants(like):
            index = _backend.zeros((count, layout.entries), like=like, dtype=_backend.namespace(like).uint16)
            values = _backend.zeros((count, layout.entries), like=like, dtype=dtype)
        return cls(compression, layout, like, index, values)

    def __getstate__(self) -> dict[str, Any]:
        return {name: _backend.picklable(value) for name, value in vars(self).items()}

    @property
    def count(self) -> int:
        """How many slots there are."""
        return self.index.shape[0]

    @property
    def dtype(self) -> Any:
        """Of the error, and of rows where they are dense."""
        return _backend.result_dtype(self.like)

    @property
    def holds_gradients(self) -> bool:
        """Whether a row is the gradient that came, to the last bit."""
        return self.layout.entries == self.layout.dim and self.values.dtype == self.like.dtype

    @property
    def feeds_back(self) -> bool:
        """Whether there is an error to keep."""
        return self.compression.error_feedback and not self.holds_gradients

    def cleared(self) -> "TopKSlots":
        """The same memory, of whose rows none matters any more, and no error."""
        return replace(self, error=None)

    # --- changes ----------------------------------------------------------------------------------------------------

    def write_row(self, g: Array, slot: int) -> tuple["TopKSlots", Array, np.ndarray]:
        """With the c of g (d,) times 2^−power in a free slot; that row as a column (d, 1), and power (1,)."""
        index, values, power, after = self._compressed("g", g)
        index_rows = _backend.write_row(self.index, slot, index)
        done = replace(after, index=index_rows, values=_backend.write_row(self.values, slot, values))
        column = TopKRows(index[None, :], values[None, :], self.layout, self.dtype).panel(slice(0, self.layout.dim)).T
        return done, column, power

    def skip_rows(self, block: Array) -> "TopKSlots":
        """As if the rows of a block had come and gone: what is left of them is the error."""
        after = self
        for i in range(block.shape[0] if self.feeds_back else 0):
            after = after._compressed("gradients", block[i, :])[-1]
        return after

    def append_block(self, kept: np.ndarray, block: Array) -> tuple["TopKSlots", np.ndarray]:
        """As many slots: those kept, in their order, the rows of a block (k, d), spare ones; the powers of the block.

        Row by row, since each meets what is left of those before it.
        """
        after, indices, values, powers = self, [], [], []
        for i in range(block.shape[0]):
            index, value, power, after = after._compressed("gradients", block[i, :])
            indices.append(index)
            values.append(value)
            powers.append(power)
        spare = self.count - len(kept) - len(powers)
        xp, done = _backend.namespace(block), []
        for old, new in zip(self._take_rows(kept), (indices, values), strict=True):
            done.append(xp.concat([old, xp.stack(new), _backend.zeros_like(old, rows=spare)], axis=0))
        return replace(after, index=done[0], values=done[1]), np.concatenate(powers)

    def _compressed(self, name: str, g: Array) -> tuple[Array, Array, np.ndarray, "TopKSlots"]:
        """Index (n,) and values (n,) of c times 2^−power, power (1,), and the same slots with the error after it."""
        total = _backend.cast(g, self.dtype)
        total = total if self.error is None else total + self.error
        try:
            power = self._powers(name, total[None, :])
        except ValueError:
            check.finite(name, g)
            msg = f"`{name}` and what is left of earlier gradients must have a finite sum; got one that overflows. "
            raise ValueError(msg + "Scale the gradients down, or `clear` the window.") from None
        index = self._largest(total)
        columns = _backend.wide_index(index[None, :], self.layout.starts)[0, :]
        chosen = _backend.take_rows(total, columns)[None, :]
        values = _backend.cast(scaled(chosen, -power), self.values.dtype)
        if not self.feeds_back:
            return index, values[0, :], power, self
        lost = chosen - scaled(_backend.cast(values, self.dtype), power)
        error = _backend.replace_entries(total, columns, lost[0, :])
        return index, values[0, :], power, replace(self, error=error)

    def _powers(self, name: str, rows: Array) -> np.ndarray:
        """Of two by which rows are divided for the dtype in which values are stored, (m,)."""
        stored = _backend.dtype_name(self.values.dtype)
        powers = powers_of(name, rows, stored)
        return powers - HALF_EXPONENT if stored == "float16" else powers

    def _largest(self, x: Array) -> Array:
        """The largest entries of each block of x (d,), as 16-bit indices in their blocks, (n,)."""
        xp, layout, parts = _backend.namespace(x), self.layout, []
        for run in slices(layout.whole, max(1, SELECTED // layout.block)):
            blocks = x[run.start * layout.block : run.stop * layout.block]
            parts.append(_backend.largest_entries(xp.reshape(blocks, (-1, layout.block)), layout.count))
        if layout.last_count:
            parts.append(_backend.largest_entries(x[layout.whole * layout.block :][None, :], layout.last_count))
        return _backend.narrow_index(xp.concat([xp.reshape(part, (-1,)) for part in parts]))

    # --- the rows ---------------------------------------------------------------------------------------------------

    def rows(self, slots: slice, dtype: Any) -> TopKRows:
        """A run of the slots as rows, computed in dtype."""
        return TopKRows(self.index[slots, :], self.values[slots, :], self.layout, dtype)

    def copy_rows(self, slots: np.ndarray, powers: np.ndarray) -> Array:
        """Some rows times 2^powers as they are in F, dense, shape (k, d), in the dtype of the answers."""
        rows = TopKRows(*self._take_rows(slots), self.layout, self.dtype)
        return scaled(rows.panel(slice(0, self.layout.dim)), powers)

    def _take_rows(self, slots: np.ndarray) -> tuple[Array, Array]:
        i = _backend.index_like(slots, like=self.index)
        return _backend.take_rows(self.index, i), _backend.take_rows(self.values, i)

    # --- elsewhere --------------------------------------------------------------------------------------------------

    def as_dict(self, slots: np.ndarray) -> dict[str, Any]:
        """Copies of what is in some slots, and of the error."""
        index, values = self._take_rows(slots)
        error = {} if self.error is None else {"error": _backend.copy_of(self.error)}
        return {"values": values, "indices": index, "gradient_dtype": _backend.dtype_name(self.like.dtype), **error}

    def restore(self, state: dict[str, Any], slots: np.ndarray) -> "TopKSlots":
        """With what `as_dict` gave in slots of these, which are empty."""
        self._require_fit(state, len(slots))
        place = _backend.index_like(inverse_selection(slots, self.count), like=self.like)
        padded = []
        for x in (state["indices"], state["values"]):
            rows = _backend.namespace(x).concat([x, _backend.zeros_like(x, rows=1)], axis=0)
            padded.append(_backend.take_rows(rows, place))
        error = state.get("error")
        return replace(
            self, index=padded[0], values=padded[1], error=None if error is None else _backend.copy_of(error)
        )

    def _require_fit(self, state: dict[str, Any], count: int) -> None:
        """Refuse entries that are not those of this layout: products would read beside their vectors."""
        wanted = {"indices": self.index, "values": self.values}
        for name, mine in wanted.items():
            shape = (count, self.layout.entries)
            check.shape(
                f"state['{name}']", state[name], shape, "Keep entries, dim and compression.block_size together."
            )
            if state[name].dtype != mine.dtype:
                msg = (
                    f"`state['{name}']` must be {_backend.dtype_name(mine.dtype)}; got {check.describe(state[name])}. "
                )
                raise TypeError(msg + "Keep it out of casts.")
        if count and self.feeds_back and state.get("error") is None:
            msg = "`state['error']` must hold what compression has not kept of the gradients; got none. "
            raise ValueError(msg + "Pass what `state_dict` returned.")
        if state.get("error") is not None:
            check.compatible("state['error']", state["error"], self.like, self.dtype)
            check.shape("state['error']", state["error"], (self.layout.dim,), "Keep entries together.")
            check.finite("state['error']", state["error"])
        columns = _backend.wide_index(state["indices"], self.layout.starts)
        ends = np.minimum(self.layout.starts + self.layout.block, self.layout.dim)
        xp = _backend.namespace(columns)
        if count and not _backend.read(xp.all(columns < _backend.index_like(ends, like=columns)[None, :])):
            msg = "`state['indices']` must lie within their blocks; got larger ones. Pass what `state_dict` returned."
            raise ValueError(msg)

    def import_rows(self, other: "TopKSlots", slots: np.ndarray, move: Any) -> tuple["TopKSlots", np.ndarray]:
        """The rows in some slots of others, and their error, brought here by `move`; further powers of the rows."""
        index, values = other._take_rows(slots)
        rows = _backend.cast(values, other.dtype)
        powers = self._powers("gradients", rows)
        rows = _backend.cast(move(scaled(rows, -powers)), self.values.dtype)
        state: dict[str, Any] = {"indices": _backend.to_device(index, _backend.device(rows)), "values": rows}
        if other.error is not None and self.feeds_back:
            state["error"] = move(other.error)
            check.finite("error", state["error"])
        return self.restore(state, np.arange(len(slots))), powers


def _stored_dtype(compression: TopK, like: Array) -> Any:
    """The dtype of the values beside like."""
    if compression.dtype is None:
        return like.dtype
    try:
        return _backend.named_dtype(compression.dtype, like=like)
    except (AttributeError, ImportError) as refused:
        msg = f"`dtype` of TopK must be one of the gradients' library; got {compression.dtype!r} ({refused}). "
        raise TypeError(msg + "Choose another; NumPy has bfloat16 where ml_dtypes is installed.") from refused
