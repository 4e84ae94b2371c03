"""Slots of the largest entries of gradients, and the error that is fed back."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._rows.panels import slices
from .._rows.selected import inverse_selection
from .._rows.topk import Layout, TopKRows
from .._typing import Array
from .slots import multiply_by_powers, row_exponents
from .topk import TopK

SELECTED = 2**20  # entries among which the largest are looked for at a time
HALF_EXPONENT = 15  # of the largest entry of a row in float16: in [2^14, 2^15), below its end at 65,504


@dataclass(frozen=True)
class TopKSlots:
    """The interface of DenseSlots for rows c = topk(g + e), and the error e that is added to the next gradient.

    Rows are stored times powers of two, the error unscaled, in the dtype of the answers. Values are valid for as long
    as those of `DenseSlots`; the error is never written in place.
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
        """Number of slots."""
        return self.index.shape[0]

    @property
    def dtype(self) -> Any:
        """Of the error, and of rows where they are dense."""
        return _backend.result_dtype(self.like)

    @property
    def is_exact(self) -> bool:
        """Whether a stored row is the gradient itself, to the last bit."""
        return self.layout.entries == self.layout.dim and self.values.dtype == self.like.dtype

    @property
    def feeds_back(self) -> bool:
        """Whether the error is stored."""
        return self.compression.error_feedback and not self.is_exact

    def without_rows(self) -> "TopKSlots":
        """The same memory, free for other rows, and no error."""
        return replace(self, error=None)

    # --- changes ----------------------------------------------------------------------------------------------------

    def write_row(self, g: Array, slot: int) -> tuple["TopKSlots", Array, np.ndarray]:
        """Write the c of g (d,) times 2^−power to a free slot; return it as a column (d, 1) and power (1,) too."""
        index, values, power, after = self._compress("g", g)
        index_rows = _backend.write_row(self.index, slot, index)
        slots = replace(after, index=index_rows, values=_backend.write_row(self.values, slot, values))
        column = TopKRows(index[None, :], values[None, :], self.layout, self.dtype).panel(slice(0, self.layout.dim)).T
        return slots, column, power

    def skip_rows(self, block: Array) -> "TopKSlots":
        """Let the rows of a block pass through the window: only their error remains."""
        after = self
        for i in range(block.shape[0] if self.feeds_back else 0):
            after = after._compress("gradients", block[i, :])[-1]
        return after

    def append_block(self, old: np.ndarray, block: Array) -> tuple["TopKSlots", np.ndarray]:
        """New slots: some old rows, then those of a block (k, d), then spare ones; and the powers of the block.

        Row by row, since each is added to the error of those before it.
        """
        after, indices, values, powers = self, [], [], []
        for i in range(block.shape[0]):
            index, value, power, after = after._compress("gradients", block[i, :])
            indices.append(index)
            values.append(value)
            powers.append(power)
        spare = self.count - len(old) - len(powers)
        xp, parts = _backend.namespace(block), []
        for before, new in zip(self._take_rows(old), (indices, values), strict=True):
            parts.append(xp.concat([before, xp.stack(new), _backend.zeros_like(before, rows=spare)], axis=0))
        return replace(after, index=parts[0], values=parts[1]), np.concatenate(powers)

    def _compress(self, name: str, g: Array) -> tuple[Array, Array, np.ndarray, "TopKSlots"]:
        """Index (n,) and values (n,) of c times 2^−power, power (1,), and the same slots with the new error."""
        total = _backend.cast(g, self.dtype)
        total = total if self.error is None else total + self.error
        try:
            power = self._exponents(name, total[None, :])
        except ValueError:
            check.finite(name, g)
            msg = f"`{name}` and the error of earlier gradients must have a finite sum; got one that overflows. "
            raise ValueError(msg + "Scale the gradients down, or `clear` the window.") from None
        index = self._largest(total)
        columns = _backend.wide_index(index[None, :], self.layout.starts)[0, :]
        chosen = _backend.take_rows(total, columns)[None, :]
        values = _backend.cast(multiply_by_powers(chosen, -power), self.values.dtype)
        if not self.feeds_back:
            return index, values[0, :], power, self
        lost = chosen - multiply_by_powers(_backend.cast(values, self.dtype), power)
        error = _backend.replace_entries(total, columns, lost[0, :])
        return index, values[0, :], power, replace(self, error=error)

    def _exponents(self, name: str, rows: Array) -> np.ndarray:
        """Exponents of the powers of two that rows are divided by before they are stored, (m,)."""
        stored = _backend.dtype_name(self.values.dtype)
        powers = row_exponents(name, rows, stored)
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
        """Some rows of F, times 2^powers, dense, shape (k, d), in the dtype of the answers."""
        rows = TopKRows(*self._take_rows(slots), self.layout, self.dtype)
        return multiply_by_powers(rows.panel(slice(0, self.layout.dim)), powers)

    def _take_rows(self, slots: np.ndarray) -> tuple[Array, Array]:
        i = _backend.index_like(slots, like=self.index)
        return _backend.take_rows(self.index, i), _backend.take_rows(self.values, i)

    # --- saved states -------------------------------------------------------------------------------------------------

    def as_dict(self, slots: np.ndarray) -> dict[str, Any]:
        """Copies of the rows in some slots, and of the error."""
        index, values = self._take_rows(slots)
        error = {} if self.error is None else {"error": _backend.copy_of(self.error)}
        return {"values": values, "indices": index, "gradient_dtype": _backend.dtype_name(self.like.dtype), **error}

    def restore(self, state: dict[str, Any], slots: np.ndarray) -> "TopKSlots":
        """Fill some of these slots, which are empty, from what `as_dict` returned."""
        self._check_layout(state, len(slots))
        place = _backend.index_like(inverse_selection(slots, self.count), like=self.like)
        padded = []
        for x in (state["indices"], state["values"]):
            rows = _backend.namespace(x).concat([x, _backend.zeros_like(x, rows=1)], axis=0)
            padded.append(_backend.take_rows(rows, place))
        error = state.get("error")
        return replace(
            self, index=padded[0], values=padded[1], error=None if error is None else _backend.copy_of(error)
        )

    def _check_layout(self, state: dict[str, Any], count: int) -> None:
        """Refuse entries of another layout: products would read outside their vectors."""
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
            msg = "`state['error']` must be there, for `compression` feeds it back; got none. "
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
        """The rows in some slots of others, and their error, transferred by `move`; and further powers of the rows."""
        index, values = other._take_rows(slots)
        rows = _backend.cast(values, other.dtype)
        powers = self._exponents("gradients", rows)
        rows = _backend.cast(move(multiply_by_powers(rows, -powers)), self.values.dtype)
        state: dict[str, Any] = {"indices": _backend.to_device(index, _backend.device(rows)), "values": rows}
        if other.error is not None and self.feeds_back:
            state["error"] = move(other.error)
            check.finite("error", state["error"])
        return self.restore(state, np.arange(len(slots))), powers


def _stored_dtype(compression: TopK, like: Array) -> Any:
    """The dtype that values are stored in, in the library of like."""
    if compression.dtype is None:
        return like.dtype
    try:
        return _backend.named_dtype(compression.dtype, like=like)
    except (AttributeError, ImportError) as refused:
        msg = f"`dtype` of TopK must be one of the gradients' library; got {compression.dtype!r} ({refused}). "
        raise TypeError(msg + "Choose another; NumPy has bfloat16 where ml_dtypes is installed.") from refused
