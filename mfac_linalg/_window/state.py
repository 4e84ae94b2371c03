"""The state of a window as a value: rows, ages, row scales, and the Cholesky factor of A, in float64 on the host."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance, float32_gram_serves_products
from .._capacitance.update import CurrentCholesky
from .._condition import kappa_of
from .._errors import breakdown, unresolved_rows
from .._files.consistency import is_factor, refuse_mixed_state
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.protocol import Form
from .._forms.state import State
from .._forms.sweeps import CANCELLATION, sweeps_for
from .._rows.scaled import ScaledRows
from .._scaling.sqrt_damping import DampingScaling
from .._typing import Array
from .options import WindowOptions, computing_dtype
from .recorded import with_recorded
from .ring import Ring, SlotGram
from .slots import DenseSlots
from .topk_slots import TopKSlots

UPDATED_CANCELLATION = CANCELLATION / 2  # in float64, where an updated factor has rounding of earlier steps


@dataclass(frozen=True)
class WindowState:
    """The state of a window of m rows, by their position in A = I + S Sᵀ; each change returns another WindowState.

    How long a state is valid: its rows, their Gram matrix and the factor are in memory that is written in place. A
    change writes only to memory that the state it starts from does not use. So of a sequence of changes the newest
    state and the one before it are valid, and no older one. A new damping allocates its own memory and does not count.
    Two changes that start from the same state overwrite each other: a copy of a window is always a deep one.

    The arrays are NumPy's where those of the library are in the host's memory.
    """

    options: WindowOptions
    damping: Any  # as given, an array copied
    scaling: DampingScaling
    ring: Ring
    ages: np.ndarray  # (m,) position of each age, oldest first
    row_scale: np.ndarray  # (m,) √(c_i / λ₀) 2^exponent: S = row_scale ∘ rows ∘ column_scale
    factor: CurrentCholesky
    like: Array  # (0, d) of the library, device and dtype of the gradients

    @classmethod
    def empty(cls, options: WindowOptions, damping: Any, like: Array) -> "WindowState":
        """No rows, in slots for gradients like those of an array (·, d), under a checked damping."""
        computing = computing_dtype(options, damping, like)
        count, compression, gram_dtype = options.window + 1, options.compression, computing
        if compression is None:
            storage: DenseSlots | TopKSlots = DenseSlots.empty(count, like)
        else:
            storage = TopKSlots.empty(count, like, compression)
            if _backend.supports_float64(like):  # free for sums over few entries
                gram_dtype = _backend.namespace(like).float64
        none, ring = np.zeros(0), Ring.empty(storage, computing, gram_dtype)
        factor = CurrentCholesky.empty(options.window)
        scaling = DampingScaling.read(damping, computing)
        return cls(options, damping, scaling, ring, none.astype(int), none, factor, like[:0, :])

    def without_rows(self) -> "WindowState":
        """The same memory and options without rows."""
        factor = replace(CurrentCholesky.empty(self.options.window), num_factorizations=self.factor.num_factorizations)
        none = self.row_scale[:0]
        empty = replace(self, ring=self.ring.without_rows(), ages=self.ages[:0], row_scale=none, factor=factor)
        return with_recorded(empty, self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in type(self).__dataclass_fields__}

    @property
    def is_by_numpy(self) -> bool:
        """Whether another library's arrays are computed by NumPy."""
        return _backend.is_numpy(self.ring.like) and not _backend.is_numpy(self.like)

    @property
    def count(self) -> int:
        """Number m of rows."""
        return len(self.ages)

    @property
    def kappa(self) -> float:
        """κ = 1 + ‖S‖²."""
        return float(kappa_of(self.factor.norm))

    @property
    def is_primal(self) -> bool:
        """Whether there are as many rows as parameters, so that the d × d matrix serves queries."""
        return self.count >= self.options.dim

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        return "float64" if self.is_primal else _backend.dtype_name(self.ring.dtype)

    # --- changes --------------------------------------------------------------------------------------------------

    def append_row(self, g: Array) -> "WindowState":
        """Add g (d,) as the newest row; drop the oldest where the window was full."""
        full = self.count == self.options.window
        return self._exchange_row(self.ages[:1] if full else self.ages[:0], g, age=self.count - full)

    def append_and_solve(self, g: Array) -> tuple["WindowState", Array]:
        """Add g (d,) as the newest row, and return F⁻¹ g too."""
        after = self.append_row(g)
        state = after.device_state if after.is_primal else after.host_state
        if not after.ring.storage.is_exact:
            return after, state.solve(_backend.cast(g, state.dtype)[:, None], "g")[:, 0]
        newest = np.eye(after.count, 1, 1 - after.count)
        c = _backend.asarray(newest, like=state.row_scale, dtype=state.row_scale.dtype)
        return after, state.solve_gradients(c, "g")[:, 0]

    def replace_row(self, age: int, g: Array) -> "WindowState":
        """Replace the row of an age by g (d,)."""
        return self._exchange_row(self.ages[age : age + 1], g, age=age)

    def remove_row(self, age: int) -> "WindowState":
        """Remove the row of an age."""
        keep, ages = self._drop(self.ages[age : age + 1])
        return self._with_rows(self.ring.select_rows(keep), ages)._with_updated_cholesky(self, keep)

    def append_rows(self, block: Array) -> "WindowState":
        """Add the rows of a block (k, d), the last `window` of them, as the newest; more than one in a new ring."""
        if block.shape[0] == 1:
            return self.append_row(block[0, :])
        num_skipped = max(0, block.shape[0] - self.options.window)
        k = block.shape[0] - num_skipped
        keep, ages = self._drop(self.ages[: max(0, self.count + k - self.options.window)])
        ring = self.ring.select_rows(keep).skip_rows(block[:num_skipped, :])
        ring = ring.append_block(block[num_skipped:, :], self.scaling.column_scale)
        ages = np.concatenate([ages, np.arange(len(ages), len(ages) + k)])
        return self._with_rows(ring, ages)._with_updated_cholesky(self, keep)

    def import_rows(self, other: "WindowState", move: Any) -> "WindowState":
        """Fill an empty state with the compressed rows of another, transferred by `move`."""
        ring = self.ring.import_rows(other.ring, self.scaling.column_scale, move)
        if not other.count:
            return replace(self, ring=ring)
        return self._with_rows(ring, other.ages)._refactor(np.zeros(0, dtype=bool))

    def with_damping(self, damping: Any) -> "WindowState":
        """The same rows under another, checked damping, with new memory for the factor."""
        ring = replace(self.ring, dtype=computing_dtype(self.options, damping, self.ring.like))
        scaling = DampingScaling.read(damping, ring.dtype)
        if not (scaling.column_scale is None and self.scaling.column_scale is None):
            ring = ring.with_gram(scaling.column_scale, float64=_backend.dtype_name(ring.dtype) == "float64")
        factor = self.factor.with_own_memory()
        after = replace(self, damping=damping, scaling=scaling, factor=factor)._with_rows(ring, self.ages)._refactor()
        return with_recorded(after, self)

    def _exchange_row(self, dropped: np.ndarray, g: Array, *, age: int) -> "WindowState":
        """Drop the rows at some positions, and write g to a free slot, as the row of an age."""
        keep, ages = self._drop(dropped)
        ring = self.ring.write_row(keep, g, self.scaling.column_scale)
        ages = np.concatenate([ages[:age], [len(ages)], ages[age:]])
        return self._with_rows(ring, ages)._with_updated_cholesky(self, keep)

    def _drop(self, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mask of the positions that stay, and the ages of these, renumbered."""
        keep = np.ones(self.count, dtype=bool)
        keep[dropped] = False
        return keep, (np.cumsum(keep) - 1)[self.ages[keep[self.ages]]]

    def _with_rows(self, ring: Ring, ages: np.ndarray) -> "WindowState":
        """Replace rows and row scales; the factor is still the old one."""
        scale = np.ldexp(np.sqrt(self.options.coefficients(ages)) / np.sqrt(self.scaling.scale), ring.exponents)
        largest, limits = float(np.max(scale, initial=0.0)), np.finfo(np.float64)
        if self.scaling.wide and not largest * largest * self.options.dim * limits.tiny <= limits.eps:
            raise unresolved_rows(_backend.dtype_name(ring.dtype))  # what underflows in products of rows would show
        return replace(self, ring=ring, ages=ages, row_scale=scale)

    def _with_updated_cholesky(self, before: "WindowState", keep: np.ndarray) -> "WindowState":
        """Update the factor from the one before; refactor where the rows that stay have other scales than before."""
        scales = self.row_scale[: np.count_nonzero(keep)]
        if np.array_equal(scales, before.row_scale[keep]):
            factor = self.factor.update(keep, self.gram, self.count)
            if factor is not None and not self._needs_float64(factor):
                return replace(self, factor=factor)
        return self._refactor(keep)

    def _refactor(self, keep: np.ndarray | None = None) -> "WindowState":
        """Factor A from its Gram matrix; `keep` tells the factor which of its old rows stay, all by default."""
        keep = np.ones(self.count, dtype=bool) if keep is None else keep
        factor = self.factor.refactor(keep, self.gram, self.count)
        updated = replace(self, factor=factor)
        if not self._needs_float64(factor):
            return updated
        return replace(updated, ring=self.ring.with_gram(self.scaling.column_scale, float64=True))._refactor()

    def _needs_float64(self, factor: CurrentCholesky) -> bool:
        """Whether sweeps may not contract with a float32 Gram matrix; float64 is then kept."""
        serves = self.ring.has_float64_gram or float32_gram_serves_products(factor.norm)
        return not serves and _backend.supports_float64(self.ring.like)

    @property
    def gram(self) -> SlotGram:
        """B = S Sᵀ."""
        return self.ring.gram(self.row_scale)

    # --- as an inverse --------------------------------------------------------------------------------------------

    @cached_property
    def host_state(self) -> State:
        """The inverse with its small system on the host: a product moves m numbers each way."""
        return self._state(lambda x: x, small_on_host=not _backend.is_numpy(self.ring.like))

    @cached_property
    def device_state(self) -> State:
        """The inverse with its small system on the device of the rows, transferred once for all queries."""
        like = self.ring.like
        if _backend.is_numpy(like) or not _backend.supports_float64(like):
            return self.host_state
        float64 = _backend.namespace(like).float64
        return self._state(lambda x: _backend.asarray(x, like=like, dtype=float64), small_on_host=False)

    def _state(self, transfer: Callable[[np.ndarray], Array], *, small_on_host: bool) -> State:
        scale = transfer(self.row_scale[:, None])
        rows = ScaledRows(self.ring.rows(small_on_host=small_on_host), scale, self.scaling.column_scale)
        float64_gram = self.ring.has_float64_gram
        if self.is_primal:
            capacitance = Capacitance.primal(rows.normal_matrix(), self.factor.norm, rows.row_blocks)
            if capacitance is None:
                raise breakdown(size=self.options.dim, kappa=self.kappa, dtype="float64")
            form: Form = PrimalForm(rows, capacitance, self.factor.norm)
        else:
            sweeps = sweeps_for(self.kappa, self.arithmetic, float64_gram=float64_gram)
            gram = self.gram  # not self, which caches the State: a reference cycle would keep its arrays for longer
            scaled_gram, cholesky = lambda: transfer(gram.rows(slice(None))), transfer(self.factor.cholesky)
            capacitance = Capacitance(scaled_gram, cholesky, diagonal=transfer(gram.diagonal))
            cancellation = CANCELLATION if self.arithmetic == "float32" else UPDATED_CANCELLATION
            form = DualForm(rows, None, capacitance, self.factor.norm, sweeps, cancellation, float64_gram)
        order = None if np.array_equal(self.ages, np.arange(self.count)) else self.ages
        dtype = _backend.result_dtype(self.ring.like)
        unscaled = transfer(np.ldexp(self.row_scale, -self.ring.exponents)[:, None])
        return State(form, self.scaling, unscaled, None, self.kappa, dtype, float64_gram, order)

    # --- as a dictionary ------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Copies of everything that the next step depends on, to the bit."""
        return {
            **self.ring.as_dict(),
            "ages": self.ages.copy(),
            "factor": self.factor.cholesky.copy(order="K"),
            "direction": self.factor.direction.copy(),
            "norm": self.factor.norm,
            "factorizations": self.factor.num_factorizations,
        }

    def restore(self, state: dict[str, Any]) -> "WindowState":
        """Fill an empty state from what `as_dict` returned."""
        slots, ages, exponents = (np.array(state[name], dtype=int) for name in ("slots", "ages", "exponents"))
        empty = self.ring.with_gram(None, float64=bool(state["sharp"]))
        ring = Ring.restore(state, slots, exponents, empty)
        factor = replace(
            self.factor,
            cholesky=np.array(state["factor"], order="K"),
            direction=np.array(state["direction"]),
            norm=float(state["norm"]),
            num_factorizations=int(state["factorizations"]),
        )
        return replace(self, factor=factor)._with_rows(ring, ages)

    def require_consistent(self) -> "WindowState":
        """Refuse parts that do not belong together; refactor where the factor is inaccurate."""
        if not self.count:
            return self
        ones = np.ones((self.count, 1))
        rows = ScaledRows(self.ring.rows(small_on_host=True), ones, self.scaling.column_scale)
        plain, gram = (self.ring.gram(scale).rows(slice(None)) for scale in (ones[:, 0], self.row_scale))
        refuse_mixed_state(rows, plain, gram, self.factor.cholesky, self.factor.norm)
        return self if is_factor(gram, self.factor.cholesky) else self._refactor()

    def rows_by_age(self) -> Array:
        """A copy of the gradients, oldest first."""
        return self.ring.copy_rows(self.ages)
