"""What a window holds: its gradients in a ring of slots, their Gram matrix by slot, and the factor of A, in float64.

A `Held` is a value: each change returns another one and leaves the old one answering as before, for the only memory
that a change writes to is that of a free slot. The Gram matrix and the factor are NumPy arrays, on the host.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from . import _backend
from ._dual import POWER_STEPS, SmallSystem, factor_solve, factor_with, factor_without
from ._errors import breakdown
from ._forms.dual import DualForm
from ._forms.primal import PrimalForm
from ._metric import Metric
from ._rows.dense import DenseRows
from ._rows.scaled import ScaledRows
from ._rows.selected import SelectedRows
from ._scaling import comfortable, exponent, ldexp
from ._state import State
from ._sweeps import sweeps_for

Array = Any
DRIFT = 256 * float(np.finfo(np.float64).eps)  # backward error of the m × m solve that asks for a new factorisation
FOLLOWING_STEPS = 2  # of the power iteration, which goes on where the last step left it
LEAST_WEIGHT = 1e-250  # of a decayed row: its reciprocal is still a number
BLOCK_SHARE = 8  # more than an m-th part of the rows at once are factored anew


@dataclass(frozen=True)
class Rules:
    """What stays as it is while a window slides."""

    window: int
    dim: int
    normalization: str
    decay: float
    precision: str

    def coefficients(self, ages: np.ndarray) -> np.ndarray:
        """c_i for rows whose positions stand in `ages`, oldest first."""
        m = len(ages)
        divisor = {"mean": m, "sum": 1, "window": self.window}[self.normalization]
        c = np.empty(m)
        c[ages] = np.maximum(self.decay ** np.arange(m - 1.0, -1.0, -1.0), LEAST_WEIGHT) / divisor
        return c


@dataclass(frozen=True)
class Held:
    """m rows, each known by its position in the factor: `slots` says where it lies, `ages` which is how old."""

    rules: Rules
    metric: Metric
    buffer: Array  # (window + 1, d), 2^−exponents ∘ G by slot; finite everywhere
    products: np.ndarray  # its Gram matrix in the metric, by slot; meaningful between slots in use
    slots: np.ndarray  # (m,) slot of each position
    ages: np.ndarray  # (m,) position of each age, oldest first
    exponents: np.ndarray  # (m,)
    lower: np.ndarray  # (m, m), a factor of A
    direction: np.ndarray  # (m,), towards the largest eigenvalue of A
    norm: float = 0.0  # ‖S‖₂, from below
    factorizations: int = field(default=0)

    @classmethod
    def empty(cls, rules: Rules, metric: Metric, buffer: Array) -> "Held":
        """No rows, in a buffer of zeros."""
        none, capacity = np.zeros(0, dtype=int), buffer.shape[0]
        return cls(
            rules, metric, buffer, np.zeros((capacity, capacity)), none, none, none, np.zeros((0, 0)), np.zeros(0)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in type(self).__dataclass_fields__}

    @property
    def count(self) -> int:
        """M."""
        return len(self.slots)

    @property
    def kappa(self) -> float:
        """κ = 1 + ‖S‖²."""
        return 1 + self.norm**2

    @property
    def result_dtype(self) -> Any:
        """Dtype of answers."""
        return _backend.result_dtype(self.buffer)

    @property
    def computing_dtype(self) -> Any:
        """float64 for precision "high", else that of answers."""
        return _backend.namespace(self.buffer).float64 if self.rules.precision == "high" else self.result_dtype

    @cached_property
    def row_scale(self) -> np.ndarray:
        """√(c_i / level) 2^exponent, (m,): S = row_scale ∘ buffer[slots] ∘ root."""
        return np.ldexp(np.sqrt(self.rules.coefficients(self.ages) / self.metric.level), self.exponents)

    # --- changes ----------------------------------------------------------------------------------------------------

    def appended(self, g: Array) -> "Held":
        """With g (d,) as the newest row, without the oldest where the window was full."""
        full = self.count == self.rules.window
        kept = self._without(self.ages[:1] if full else self.ages[:0])
        return self._checked(kept._written(g, slot=self._free_slot(), age=kept.count))

    def replaced(self, age: int, g: Array) -> "Held":
        """With g (d,) in place of the row of that age."""
        kept = self._without(self.ages[age : age + 1])
        return self._checked(kept._written(g, slot=self._free_slot(), age=age))

    def removed(self, age: int) -> "Held":
        """Without the row of that age."""
        return self._checked(self._without(self.ages[age : age + 1]))

    def extended(self, block: Array) -> "Held":
        """With the rows of a block (k, d), oldest first, in a ring of their own; at most `window` of them."""
        stay = self._without(self.ages[: max(0, self.count + block.shape[0] - self.rules.window)])
        return self._checked(stay._joined(block))

    def with_metric(self, metric: Metric) -> "Held":
        """The same rows under another damping."""
        products = self.products
        if metric.root is not None or self.metric.root is not None:
            gram = _symmetric(self._span(self.slots).gram(metric.root, _silent))
            products = np.zeros_like(self.products)
            products[: len(gram), : len(gram)] = gram
        return self._checked(replace(self, metric=metric, products=products), anew=True)

    def _without(self, positions: np.ndarray) -> "Held":
        """Without the rows at some positions; the others keep their order. The factor follows in O(m²) for each."""
        keep = np.setdiff1d(np.arange(self.count), positions)
        lower = self.lower
        if len(positions) * BLOCK_SHARE <= self.count or len(positions) == 1:
            for position in np.sort(positions)[::-1]:
                lower = factor_without(lower, int(position), 1)
        ages = self.ages[~np.isin(self.ages, positions)]
        return replace(
            self,
            slots=self.slots[keep],
            ages=np.searchsorted(keep, ages),
            exponents=self.exponents[keep],
            lower=lower,
            direction=self.direction[keep],
        )

    def _free_slot(self) -> int:
        """The first slot that no row lies in: the ring has one more than the window."""
        return int(np.setdiff1d(np.arange(self.products.shape[0]), self.slots)[0])

    def _written(self, g: Array, *, slot: int, age: int) -> "Held":
        """With g in a slot, as the row of that age and the last position."""
        g, power = _normalised(g[None, :])
        buffer = _backend.write_row(self.buffer, slot, g[0, :])
        row = self._span(np.append(self.slots, slot), buffer).project(self._weighted(g.T))
        row = _backend.read(row)[:, 0]
        self.products[slot, : len(row)] = self.products[: len(row), slot] = row
        return replace(
            self,
            buffer=buffer,
            slots=np.append(self.slots, slot),
            ages=np.insert(self.ages, age, self.count),
            exponents=np.append(self.exponents, power),
            direction=np.append(self.direction, 1.0),
        )

    def _joined(self, block: Array) -> "Held":
        """With a block's rows as the newest, all rows copied to a new ring in the order of their positions."""
        block, powers = _normalised(block)
        m, k, xp = self.count, block.shape[0], _backend.namespace(block)
        old = _backend.take_rows(self.buffer, _backend.index_like(self.slots, like=self.buffer))
        spare = _backend.zeros((self.rules.window + 1 - m - k, block.shape[1]), like=block, dtype=block.dtype)
        buffer = xp.concat([old, block, spare], axis=0)
        products = np.zeros((self.rules.window + 1,) * 2)
        products[:m, :m] = self.products[np.ix_(self.slots, self.slots)]
        corner = DenseRows(block, None, self.computing_dtype).gram(self.metric.root, _silent)
        products[m : m + k, m : m + k] = _symmetric(corner)
        if m:
            cross = _backend.read(DenseRows(old, None, self.computing_dtype).project(self._weighted(block.T)))
            products[:m, m : m + k], products[m : m + k, :m] = cross, cross.T
        return replace(
            self,
            buffer=buffer,
            products=products,
            slots=np.arange(m + k),
            ages=np.append(self.ages, np.arange(m, m + k)),
            exponents=np.append(self.exponents, powers),
            direction=np.append(self.direction, np.ones(k)),
        )

    def _weighted(self, columns: Array) -> Array:
        """root² ∘ columns, in the computing dtype: what the rows are multiplied by for the Gram matrix."""
        columns = _backend.cast(columns, self.computing_dtype)
        return columns if self.metric.root is None else self.metric.root**2 * columns

    def _checked(self, changed: "Held", *, anew: bool = False) -> "Held":
        """The changed rows with a factor of their own A, made from what is left of the old one where that holds."""
        lower = None if anew else self._followed(changed)
        if lower is not None:
            done = replace(changed, lower=lower)._measured(FOLLOWING_STEPS)
            if done._drift <= DRIFT:
                return done
        done = replace(changed, lower=changed._factored(), factorizations=changed.factorizations + 1)
        return done._measured(POWER_STEPS)

    def _followed(self, changed: "Held") -> np.ndarray | None:
        """The factor of `changed`, from that of its leading rows, `changed.lower`; None where it must be made anew."""
        known = changed.lower.shape[0]
        added = changed.count - known
        before = dict(zip(self.slots.tolist(), self.row_scale.tolist(), strict=True))
        scale = changed.row_scale
        same = all(
            before.get(slot) == s
            for slot, s in zip(changed.slots[:known].tolist(), scale[:known].tolist(), strict=True)
        )
        if added < 0 or not same or added * BLOCK_SHARE > max(changed.count, BLOCK_SHARE):
            return None
        if not added:
            return changed.lower
        gram = changed.gram_rows(slice(known, None))
        return factor_with(changed.lower, gram[:, :known].T, np.eye(added) + gram[:, known:])

    def _weighs_alike(self, changed: "Held", known: int) -> bool:
        """Whether the leading rows of `changed` were here, with the same scale."""
        before = np.full(self.products.shape[0], np.nan)
        before[self.slots] = self.row_scale
        return np.array_equal(before[changed.slots[:known]], changed.row_scale[:known])

    # --- the small system -------------------------------------------------------------------------------------------

    def gram_rows(self, rows: slice) -> np.ndarray:
        """Rows of B = S Sᵀ."""
        return self.row_scale[rows, None] * self.products[np.ix_(self.slots[rows], self.slots)] * self.row_scale

    @cached_property
    def system(self) -> SmallSystem:
        """A = I + B, on the host."""
        return SmallSystem(self.gram_rows(slice(None)), self.lower)

    def _factored(self) -> np.ndarray:
        system = SmallSystem.factor(self.gram_rows(slice(None)))
        if system is None:
            raise breakdown(size=self.count, kappa=self.kappa, dtype="float64")
        return system.lower

    def _times(self, x: np.ndarray) -> np.ndarray:
        """B x for x (m, k), without a copy of the Gram matrix."""
        spread = np.zeros((self.products.shape[0], x.shape[1]))
        spread[self.slots] = self.row_scale[:, None] * x
        return self.row_scale[:, None] * (self.products @ spread)[self.slots]

    @cached_property
    def _drift(self) -> float:
        """‖A y − z‖ / (‖A‖ ‖y‖) for a z of signs, solved with the factor: eps where it is that of A."""
        if not self.count:
            return 0.0
        z = np.where(np.arange(self.count) * 2654435761 % 7 < 4, 1.0, -1.0)[:, None]
        y = factor_solve(self.lower, z)
        error = np.linalg.norm(self._times(y) + y - z)
        return float(error / max(np.linalg.norm(y), np.finfo(float).tiny) / max(1.0, self.norm**2))

    def _measured(self, steps: int) -> "Held":
        """With ‖S‖ by power steps from the direction of before."""
        x, value = self.direction[:, None], 0.0
        for _ in range(steps if self.count else 0):
            x = self._times(x / (np.linalg.norm(x) or 1.0))
            value = float(np.linalg.norm(x))
        return replace(self, direction=x[:, 0] / (np.linalg.norm(x) or 1.0), norm=math.sqrt(value))

    # --- as an inverse ----------------------------------------------------------------------------------------------

    def _span(self, slots: np.ndarray, buffer: Array | None = None) -> DenseRows:
        """The leading part of the ring that some slots lie in."""
        buffer = self.buffer if buffer is None else buffer
        stop = int(slots.max()) + 1 if len(slots) else 0
        return DenseRows(buffer if stop == buffer.shape[0] else buffer[:stop, :], None, self.computing_dtype)

    @cached_property
    def on_host(self) -> State:
        """The inverse with its small system on the host: a product moves m numbers each way."""
        return self._state(lambda x: x, on_host=True)

    @cached_property
    def beside(self) -> State:
        """The inverse with its small system beside the rows, brought there once for all queries."""
        if _backend.is_numpy(self.buffer) or not _backend.supports_float64(self.buffer):
            return self.on_host
        return self._state(
            lambda x: _backend.asarray(x, like=self.buffer, dtype=_backend.namespace(self.buffer).float64),
            on_host=False,
        )

    def _state(self, bring: Any, *, on_host: bool) -> State:
        scale = bring(self.row_scale[:, None])
        rows = ScaledRows(SelectedRows(self._span(self.slots), self.slots, on_host), scale, self.metric.root)
        arithmetic = _backend.dtype_name(self.computing_dtype)
        if self.count >= self.rules.dim:
            system = SmallSystem.factor(rows.normal())
            if system is None:
                raise breakdown(size=self.rules.dim, kappa=self.kappa, dtype="float64")
            form: Any = PrimalForm(rows, system, self.norm)
        else:
            sweeps = sweeps_for(self.kappa, arithmetic, sharp_gram=arithmetic == "float64")
            system = SmallSystem(bring(self.system.gram), bring(self.system.lower))
            form = DualForm(rows, None, system, self.norm, sweeps)
        order = None if np.array_equal(self.ages, np.arange(self.count)) else self.ages
        return State(form, self.metric, scale, None, self.kappa, self.result_dtype, arithmetic == "float64", order)

    def rows_by_age(self) -> Array:
        """A copy of the gradients, oldest first."""
        index = _backend.index_like(self.slots[self.ages], like=self.buffer)
        rows = _backend.take_rows(self.buffer, index)
        if not np.any(self.exponents):
            return rows
        return ldexp(rows, _backend.index_like(self.exponents[self.ages][:, None], like=rows))


def _symmetric(gram: Array) -> np.ndarray:
    """A Gram matrix on the host, its upper triangle that of the lower: matrix products need not round them alike."""
    lower = np.tril(_backend.read(gram))
    return lower + np.tril(lower, -1).T


def _normalised(rows: Array) -> tuple[Array, np.ndarray]:
    """Rows times 2^−power, and power: 0 unless a row's squares would leave the comfortable range."""
    computing = _backend.cast(rows, _backend.result_dtype(rows))
    squares = _backend.read(_backend.column_squares(computing.T))
    if np.all(comfortable(squares, computing.dtype)):
        return rows, np.zeros(len(squares), dtype=int)
    largest = _backend.read(_backend.namespace(rows).max(_backend.namespace(rows).abs(computing), axis=1))
    if not np.all(np.isfinite(largest)):
        msg = "`g` must be finite; got nan or infinity. Skip the step whose loss overflowed."
        raise ValueError(msg)
    powers = _backend.read(exponent(computing, axis=1))
    powers = np.where(comfortable(squares, computing.dtype) | (largest == 0), 0, powers)
    scaled = ldexp(computing, _backend.index_like(-powers[:, None], like=computing))
    return _backend.cast(scaled, rows.dtype), powers


def _silent(loop: Any, text: str) -> Any:
    del text
    return loop
