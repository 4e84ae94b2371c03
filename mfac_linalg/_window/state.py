"""The state of a window as a value: rows, ages, row scales, and the Cholesky factor of A, in float64 on the host."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance
from .._capacitance.update import CurrentCholesky
from .._condition import kappa_of
from .._errors import breakdown, unresolved_rows
from .._files.consistency import is_factor, refuse_mixed_state
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.state import State
from .._forms.sweeps import CANCELLATION, sweeps_for
from .._rows.scaled import ScaledRows
from .._scaling.damping import DampingScaling, refuse_span, spans_widely
from .._typing import Array
from .options import WindowOptions
from .ring import Ring, SlotGram
from .slots import DenseSlots
from .topk_slots import TopKSlots

FLOAT64_GRAM_KAPPA_EPS = 0.01  # κ ε of float32
FOLLOWED = CANCELLATION / 2  # in float64, where the factor has some roundings of the steps that led to it


@dataclass(frozen=True)
class WindowState:
    """m rows, known by their position in the factor of A = I + S Sᵀ; each change returns another WindowState.

    How long a state is valid: its rows, their Gram matrix and the factor stand on memory that is written in place. A
    change writes only to what the state that it starts from does not use. So of one line of changes the newest state
    and the one before it are valid, and no older one; a new damping takes memory of its own and does not count. Two
    changes that start from the same state spoil each other: a copy of a window is always a deep one.
    """

    options: WindowOptions
    damping: Any  # as the user gave it, an array of one's own
    scaling: DampingScaling
    ring: Ring
    ages: np.ndarray  # (m,) position of each age, oldest first
    row_scale: np.ndarray  # (m,) √(c_i / λ₀) 2^exponent: S = row_scale ∘ rows ∘ column_scale
    factor: CurrentCholesky

    @classmethod
    def empty(cls, options: WindowOptions, damping: Any, like: Array) -> "WindowState":
        """No rows, in slots for gradients like those of an array (·, d), under a checked damping."""
        computing = _computing(options, damping, like)
        count, compression, gram_dtype = options.window + 1, options.compression, computing
        if compression is None:
            stored: Any = DenseSlots.empty(count, like)
        else:
            stored = TopKSlots.empty(count, like, compression)
            if _backend.supports_float64(like):  # which costs sums over few entries nothing
                gram_dtype = _backend.namespace(like).float64
        none, ring = np.zeros(0), Ring.empty(stored, computing, gram_dtype)
        factor = CurrentCholesky.empty(options.window)
        return cls(options, damping, DampingScaling.on_host(damping, computing), ring, none.astype(int), none, factor)

    def without_rows(self) -> "WindowState":
        """The same place without rows."""
        factor = replace(CurrentCholesky.empty(self.options.window), num_factorizations=self.factor.num_factorizations)
        none = self.row_scale[:0]
        return replace(self, ring=self.ring.without_rows(), ages=self.ages[:0], row_scale=none, factor=factor)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in type(self).__dataclass_fields__}

    @property
    def count(self) -> int:
        """Number of rows held."""
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
        """With g (d,) as the newest row, without the oldest where the window was full."""
        full = self.count == self.options.window
        return self._exchange_row(self.ages[:1] if full else self.ages[:0], g, age=self.count - full)

    def append_and_solve(self, g: Array) -> tuple["WindowState", Array]:
        """With g (d,) as the newest row, and F⁻¹ g."""
        after = self.append_row(g)
        state = after.device_state if after.is_primal else after.host_state
        if not after.ring.stored.holds_gradients:
            return after, state.solve(_backend.cast(g, state.dtype)[:, None], "g")[:, 0]
        newest = np.zeros((after.count, 1))
        newest[-1] = 1.0
        c = _backend.asarray(newest, like=state.row_scale, dtype=state.row_scale.dtype)
        return after, state.solve_gradients(c, "g")[:, 0]

    def replace_row(self, age: int, g: Array) -> "WindowState":
        """With g (d,) in place of the row of that age."""
        return self._exchange_row(self.ages[age : age + 1], g, age=age)

    def remove_row(self, age: int) -> "WindowState":
        """Without the row of that age."""
        stays, ages = self._drop(self.ages[age : age + 1])
        return self._with_rows(self.ring.select_rows(stays), ages)._with_updated_cholesky(self, stays)

    def append_rows(self, block: Array) -> "WindowState":
        """With the rows of a block (k, d), the last `window` of them, as the newest, in a ring of its own."""
        passing = max(0, block.shape[0] - self.options.window)
        k = block.shape[0] - passing
        stays, ages = self._drop(self.ages[: max(0, self.count + k - self.options.window)])
        ring = self.ring.select_rows(stays).skip_rows(block[:passing, :])
        ring = ring.append_block(block[passing:, :], self.scaling.column_scale)
        ages = np.concatenate([ages, np.arange(len(ages), len(ages) + k)])
        return self._with_rows(ring, ages)._with_updated_cholesky(self, stays)

    def import_rows(self, other: "WindowState", move: Any) -> "WindowState":
        """An empty state with all that another holds, brought here by `move`."""
        if self.options.compression is None:
            return self.append_rows(move(other.rows_by_age())) if other.count else self
        ring = self.ring.import_rows(other.ring, self.scaling.column_scale, move)
        if not other.count:
            return replace(self, ring=ring)
        return self._with_rows(ring, other.ages)._refactor(np.zeros(0, dtype=bool))

    def with_damping(self, damping: Any) -> "WindowState":
        """The same rows under another, checked damping, with memory for factors of its own."""
        ring = replace(self.ring, dtype=_computing(self.options, damping, self.ring.like))
        scaling = DampingScaling.on_host(damping, ring.dtype)
        if not (scaling.column_scale is None and self.scaling.column_scale is None):
            ring = ring.with_gram(scaling.column_scale, float64=_backend.dtype_name(ring.dtype) == "float64")
        factor = self.factor.with_own_memory()
        return replace(self, damping=damping, scaling=scaling, factor=factor)._with_rows(ring, self.ages)._refactor()

    def _exchange_row(self, dropped: np.ndarray, g: Array, *, age: int) -> "WindowState":
        """Without some positions, and with g in a slot that was free before, as the row of that age."""
        stays, ages = self._drop(dropped)
        ring = self.ring.write_row(stays, g, self.scaling.column_scale)
        ages = np.concatenate([ages[:age], [len(ages)], ages[age:]])
        return self._with_rows(ring, ages)._with_updated_cholesky(self, stays)

    def _drop(self, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which positions stay, and what remains of `ages` when the others are gone."""
        stays = np.ones(self.count, dtype=bool)
        stays[dropped] = False
        return stays, (np.cumsum(stays) - 1)[self.ages[stays[self.ages]]]

    def _with_rows(self, ring: Ring, ages: np.ndarray) -> "WindowState":
        """With other rows, weighted by their ages, and still the factor of before."""
        scale = np.ldexp(np.sqrt(self.options.coefficients(ages)) / np.sqrt(self.scaling.scale), ring.exponents)
        largest, limits = float(np.max(scale, initial=0.0)), np.finfo(np.float64)
        if self.scaling.wide and not largest * largest * self.options.dim * limits.tiny <= limits.eps:
            raise unresolved_rows(_backend.dtype_name(ring.dtype))  # what underflows in products of rows would show
        return replace(self, ring=ring, ages=ages, row_scale=scale)

    def _with_updated_cholesky(self, before: "WindowState", stays: np.ndarray) -> "WindowState":
        """With a factor of its own: from that of before where the rows that stay kept their scales, else made anew."""
        kept = self.row_scale[: np.count_nonzero(stays)]
        if np.array_equal(kept, before.row_scale[stays]):
            factor = self.factor.update(stays, self.gram, self.count)
            if factor is not None and not self._needs_float64(factor):
                return replace(self, factor=factor)
        return self._refactor(stays)

    def _refactor(self, stays: np.ndarray | None = None) -> "WindowState":
        """With a factor of its own; all rows of the factor of before stay unless said otherwise."""
        stays = np.ones(self.count, dtype=bool) if stays is None else stays
        factor = self.factor.refactor(stays, self.gram, self.count)
        done = replace(self, factor=factor)
        if not self._needs_float64(factor):
            return done
        return replace(done, ring=self.ring.with_gram(self.scaling.column_scale, float64=True))._refactor()

    def _needs_float64(self, factor: CurrentCholesky) -> bool:
        """Whether κ ε is too large for sweeps to contract well with a float32 Gram matrix; float64 is for good."""
        risky = kappa_of(factor.norm) * float(np.finfo(np.float32).eps) > FLOAT64_GRAM_KAPPA_EPS
        return risky and not self.ring.has_float64_gram and _backend.supports_float64(self.ring.like)

    @property
    def gram(self) -> SlotGram:
        """B = S Sᵀ."""
        return self.ring.gram(self.row_scale)

    # --- as an inverse --------------------------------------------------------------------------------------------

    @cached_property
    def host_state(self) -> State:
        """The inverse with its small system on the host: a product moves m numbers each way."""
        return self._state(lambda x: x, on_host=True)

    @cached_property
    def device_state(self) -> State:
        """The inverse with its small system beside the rows, brought there once for all queries."""
        like = self.ring.like
        if _backend.is_numpy(like) or not _backend.supports_float64(like):
            return self.host_state
        float64 = _backend.namespace(like).float64
        return self._state(lambda x: _backend.asarray(x, like=like, dtype=float64), on_host=False)

    def _state(self, bring: Callable[[np.ndarray], Array], *, on_host: bool) -> State:
        scale = bring(self.row_scale[:, None])
        rows = ScaledRows(self.ring.rows(on_host=on_host), scale, self.scaling.column_scale)
        float64_gram = self.ring.has_float64_gram
        if self.is_primal:
            capacitance = Capacitance.primal(rows, rows.normal_matrix(), self.factor.norm)
            if capacitance is None:
                raise breakdown(size=self.options.dim, kappa=self.kappa, dtype="float64")
            form: Any = PrimalForm(rows, capacitance, self.factor.norm)
        else:
            sweeps = sweeps_for(self.kappa, self.arithmetic, float64_gram=float64_gram)
            gram = self.gram  # not this state, which holds the State: a circle would keep its arrays for longer
            capacitance = Capacitance(lambda: bring(gram.rows(slice(None))), bring(self.factor.cholesky))
            cancellation = CANCELLATION if self.arithmetic == "float32" else FOLLOWED
            form = DualForm(rows, None, capacitance, self.factor.norm, sweeps, cancellation, float64_gram)
        order = None if np.array_equal(self.ages, np.arange(self.count)) else self.ages
        dtype = _backend.result_dtype(self.ring.like)
        unscaled = bring(np.ldexp(self.row_scale, -self.ring.exponents)[:, None])
        return State(form, self.scaling, unscaled, None, self.kappa, dtype, float64_gram, order)

    # --- as a dictionary ------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Copies of all that makes the next step the same to the bit."""
        return {
            **self.ring.as_dict(),
            "ages": self.ages.copy(),
            "factor": self.factor.cholesky.copy(order="K"),
            "direction": self.factor.direction.copy(),
            "norm": self.factor.norm,
            "factorizations": self.factor.num_factorizations,
        }

    def restore(self, state: dict[str, Any]) -> "WindowState":
        """An empty state with what `as_dict` gave."""
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
        """Itself; refused where its parts do not belong together, factored anew where its factor is a poor one."""
        if not self.count:
            return self
        ones = np.ones((self.count, 1))
        rows = ScaledRows(self.ring.rows(on_host=True), ones, self.scaling.column_scale)
        plain, gram = (self.ring.gram(scale).rows(slice(None)) for scale in (ones[:, 0], self.row_scale))
        refuse_mixed_state(rows, plain, gram, self.factor.cholesky, self.factor.norm)
        return self if is_factor(gram, self.factor.cholesky) else self._refactor()

    def rows_by_age(self) -> Array:
        """A copy of the gradients, oldest first."""
        return self.ring.copy_rows(self.ages)


def _computing(options: WindowOptions, damping: Any, like: Array) -> Any:
    """The dtype that products of rows are computed in."""
    dtype = _backend.result_dtype(like)
    wide = options.precision == "high" or options.decays_widely or spans_widely(damping, dtype)
    if wide and _backend.supports_float64(like):
        return _backend.namespace(like).float64
    if _backend.is_vector(damping) and wide:
        refuse_span(damping)
    return dtype
