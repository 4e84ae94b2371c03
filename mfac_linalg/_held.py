"""What a window holds, as a value: its rows, their ages and weights, and the factor of A, in float64 on the host."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from . import _backend
from ._dual import POWER_STEPS, SmallSystem, factor_solve, factor_with, factor_without
from ._errors import breakdown
from ._forms.dual import DualForm
from ._forms.primal import PrimalForm
from ._metric import Metric
from ._ring import Ring
from ._rows.scaled import ScaledRows
from ._state import State
from ._sweeps import sweeps_for

Array = Any
DRIFT = 256 * float(np.finfo(np.float64).eps)  # backward error of the m × m solve that asks for a new factorisation
SHARPEN = 0.01  # κ ε of float32
LEAST_WEIGHT = 1e-250  # of a decayed row: its reciprocal is still a number
BLOCK_SHARE = 8  # to exchange more than an eighth of the rows at once is dearer than to factor anew


@dataclass(frozen=True)
class Rules:
    """What stays as it is while a window slides."""

    window: int
    dim: int
    normalization: str
    decay: float
    precision: str

    def coefficients(self, ages: np.ndarray) -> np.ndarray:
        """c_i of each position, for positions listed by age, oldest first."""
        m = len(ages)
        divisor = {"mean": m, "sum": 1, "window": self.window}[self.normalization]
        c = np.empty(m)
        c[ages] = np.maximum(self.decay ** np.arange(m - 1.0, -1.0, -1.0), LEAST_WEIGHT) / divisor
        return c


@dataclass(frozen=True)
class Held:
    """m rows, known by their position in the factor of A = I + S Sᵀ; each change returns another Held."""

    rules: Rules
    metric: Metric
    ring: Ring
    ages: np.ndarray  # (m,) position of each age, oldest first
    lower: np.ndarray  # (m, m) factor of A
    direction: np.ndarray  # (m,) towards the largest eigenvalue of A
    memory: tuple[np.ndarray, ...]  # for the factors of a full window, one step after the other
    norm: float = 0.0  # ‖S‖₂, from below
    factorizations: int = 0

    @classmethod
    def empty(cls, rules: Rules, metric: Metric, ring: Ring) -> "Held":
        """No rows."""
        none = np.zeros(0)
        return cls(rules, metric, ring, none.astype(int), np.zeros((0, 0)), none, _memory(rules))

    def __getstate__(self) -> dict[str, Any]:
        fields = type(self).__dataclass_fields__.keys() - {"memory"}
        return {name: value for name, value in vars(self).items() if name in fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, memory=_memory(state["rules"]))

    @property
    def count(self) -> int:
        """M."""
        return len(self.ages)

    @property
    def kappa(self) -> float:
        """κ = 1 + ‖S‖²."""
        return 1 + self.norm**2

    @property
    def is_primal(self) -> bool:
        """Whether there are as many rows as parameters, so that the d × d matrix serves queries."""
        return self.count >= self.rules.dim

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        return "float64" if self.is_primal else _backend.dtype_name(self.ring.dtype)

    @cached_property
    def row_scale(self) -> np.ndarray:
        """√(c_i / level) 2^exponent, (m,): S = row_scale ∘ rows ∘ root."""
        return np.ldexp(np.sqrt(self.rules.coefficients(self.ages) / self.metric.level), self.ring.exponents)

    @classmethod
    def placed(cls, rules: Rules, damping: Any, buffer: Array) -> "Held":
        """No rows, in a buffer of zeros, under a checked damping."""
        computing = _backend.namespace(buffer).float64 if rules.precision == "high" else _backend.result_dtype(buffer)
        return cls.empty(rules, _metric(damping, computing), Ring.empty(buffer, computing, computing))

    # --- changes --------------------------------------------------------------------------------------------------

    def appended(self, g: Array) -> "Held":
        """With g (d,) as the newest row, without the oldest where the window was full."""
        full = self.count == self.rules.window
        return self._exchanged(self.ages[:1] if full else self.ages[:0], g, age=self.count - full)

    def replaced(self, age: int, g: Array) -> "Held":
        """With g (d,) in place of the row of that age."""
        return self._exchanged(self.ages[age : age + 1], g, age=age)

    def removed(self, age: int) -> "Held":
        """Without the row of that age."""
        dropped = self.ages[age : age + 1]
        return self._without(dropped)._following(self, dropped)

    def extended(self, block: Array) -> "Held":
        """With the rows of a block (k, d), at most `window` of them, as the newest, in a ring of its own."""
        dropped = self.ages[: max(0, self.count + block.shape[0] - self.rules.window)]
        kept = self._without(dropped)
        ages = np.append(kept.ages, np.arange(kept.count, kept.count + block.shape[0]))
        return replace(kept, ring=kept.ring.joined(block, self.metric.root), ages=ages)._following(self, dropped)

    def under(self, damping: Any) -> "Held":
        """The same rows under another, checked damping."""
        metric = _metric(damping, self.ring.dtype)
        same = metric.root is None and self.metric.root is None
        ring = self.ring if same else self.ring.measured_by(metric.root, sharply=False)
        return replace(self, metric=metric, ring=ring)._refactored()

    def _exchanged(self, dropped: np.ndarray, g: Array, *, age: int) -> "Held":
        """Without some positions, and with g in a slot that was free before, as the row of that age."""
        kept = self._without(dropped)
        ring = kept.ring.written(g, self.ring.free_slot(), self.metric.root)
        return replace(kept, ring=ring, ages=np.insert(kept.ages, age, kept.count))._following(self, dropped)

    def _without(self, dropped: np.ndarray) -> "Held":
        """Without some positions, and not yet with a factor of its own."""
        positions = np.delete(np.arange(self.count), dropped)
        ages = np.searchsorted(positions, self.ages[~np.isin(self.ages, dropped)])
        return replace(self, ring=self.ring.kept(positions), ages=ages, direction=self.direction[positions])

    # --- the factor -----------------------------------------------------------------------------------------------

    def _following(self, before: "Held", dropped: np.ndarray) -> "Held":
        """With a factor of its own A.

        It comes from that of before where few rows changed, none of the others' scales, and the residual of a solve is
        that of rounding; else it is made anew.
        """
        kept = before.count - len(dropped)
        added = self.count - kept
        changed = replace(self, direction=np.append(self.direction, np.ones(added)))
        few = max(len(dropped), added) * BLOCK_SHARE <= max(self.count, BLOCK_SHARE)
        if few and np.array_equal(self.row_scale[:kept], np.delete(before.row_scale, dropped)):
            padded = factor_without(before.lower, dropped, added, self.memory)
            gram = changed.gram_rows(slice(kept, None))
            lower = factor_with(padded, gram[:, :kept].T, np.eye(added) + gram[:, kept:])
            if lower is not None:
                done, drift = replace(changed, lower=lower)._measured()
                if drift <= DRIFT and not done._needs_float64:
                    return done
        return changed._refactored()

    def _refactored(self) -> "Held":
        """With a factor made anew from the Gram matrix."""
        gram = self.gram_rows(slice(None))
        system = SmallSystem.factor(gram) if np.all(np.isfinite(gram)) else None
        if system is None:
            raise breakdown(size=self.count, kappa=float(1 + np.trace(gram)), dtype="float64")
        direction = self.direction
        for _ in range(POWER_STEPS):
            direction = gram @ (direction / (np.linalg.norm(direction) or 1.0))
        done = replace(self, lower=system.lower, direction=direction, factorizations=self.factorizations + 1)
        done = done._measured()[0]
        if not done._needs_float64:
            return done
        return replace(done, ring=done.ring.measured_by(self.metric.root, sharply=True))._refactored()

    @property
    def _needs_float64(self) -> bool:
        """Whether κ ε is too large for sweeps to contract well with a float32 Gram matrix; it is sharp from then on."""
        risky = self.kappa * float(np.finfo(np.float32).eps) > SHARPEN
        return risky and not self.ring.is_sharp and _backend.supports_float64(self.ring.buffer)

    def _measured(self) -> tuple["Held", float]:
        """With ‖S‖ from one more power step, and the drift of the factor: ‖A y − z‖ / (‖A‖ ‖y‖) for a y = A⁻¹ z.

        z holds signs without a pattern, the same ones each time. One product with the Gram matrix serves both.
        """
        if not self.count:
            return replace(self, norm=0.0), 0.0
        z = np.random.default_rng(0).choice([-1.0, 1.0], (self.count, 1))
        y = factor_solve(self.lower, z)
        x = self.direction[:, None] / (np.linalg.norm(self.direction) or 1.0)
        bx, by = np.split(self.ring.gram_times(self.row_scale, np.concatenate([x, y], axis=1)), 2, axis=1)
        largest = float(np.linalg.norm(bx))
        drift = np.linalg.norm(by + y - z) / ((1 + largest) * np.linalg.norm(y))
        return replace(self, direction=bx[:, 0], norm=math.sqrt(largest)), float(drift)

    def gram_rows(self, positions: slice) -> np.ndarray:
        """Rows of B = S Sᵀ."""
        return self.ring.gram_rows(self.row_scale, positions)

    # --- as an inverse --------------------------------------------------------------------------------------------

    @cached_property
    def on_host(self) -> State:
        """The inverse with its small system on the host: a product moves m numbers each way."""
        return self._state(lambda x: x, on_host=True)

    @cached_property
    def beside(self) -> State:
        """The inverse with its small system beside the rows, brought there once for all queries."""
        buffer = self.ring.buffer
        if _backend.is_numpy(buffer) or not _backend.supports_float64(buffer):
            return self.on_host
        float64 = _backend.namespace(buffer).float64
        return self._state(lambda x: _backend.asarray(x, like=buffer, dtype=float64), on_host=False)

    def _state(self, bring: Callable[[np.ndarray], Array], *, on_host: bool) -> State:
        scale = bring(self.row_scale[:, None])
        rows = ScaledRows(self.ring.rows(on_host=on_host), scale, self.metric.root)
        sharp = self.ring.is_sharp
        if self.is_primal:
            system = SmallSystem.factor(rows.normal())
            if system is None:
                raise breakdown(size=self.rules.dim, kappa=self.kappa, dtype="float64")
            form: Any = PrimalForm(rows, system, self.norm)
        else:
            sweeps = sweeps_for(self.kappa, self.arithmetic, sharp_gram=sharp)
            system = SmallSystem(lambda: bring(self.gram_rows(slice(None))), bring(self.lower))
            form = DualForm(rows, None, system, self.norm, sweeps)
        order = None if np.array_equal(self.ages, np.arange(self.count)) else self.ages
        dtype = _backend.result_dtype(self.ring.buffer)
        return State(form, self.metric, scale, None, self.kappa, dtype, sharp, order)

    # --- as a dictionary ------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Copies of all that makes the next step the same to the bit."""
        every = np.arange(self.count)
        unscaled = np.ones(self.count)
        return {
            "rows": replace(self.ring, exponents=np.zeros_like(every)).copied(every),
            "exponents": self.ring.exponents.copy(),
            "slots": self.ring.slots.copy(),
            "ages": self.ages.copy(),
            "gram": self.ring.gram_rows(unscaled, slice(None)),
            "factor": self.lower.copy(),
            "direction": self.direction.copy(),
            "norm": self.norm,
            "sharp": self.ring.is_sharp,
            "factorizations": self.factorizations,
        }

    def filled(self, state: dict[str, Any]) -> "Held":
        """An empty Held with what `as_dict` gave."""
        slots, ages, exponents = (np.array(state[name], dtype=int) for name in ("slots", "ages", "exponents"))
        empty = self.ring.measured_by(None, sharply=bool(state["sharp"]))
        ring = Ring.restored(state["rows"], np.array(state["gram"]), slots, exponents, empty)
        lower, direction = np.array(state["factor"], order="F"), np.array(state["direction"])
        done = replace(self, ring=ring, ages=ages, lower=lower, direction=direction)
        return replace(done, norm=float(state["norm"]), factorizations=int(state["factorizations"]))

    def rows_by_age(self) -> Array:
        """A copy of the gradients, oldest first."""
        return self.ring.copied(self.ages)


def _memory(rules: Rules) -> tuple[np.ndarray, ...]:
    """Two arrays for factors, which take no memory before they are written to."""
    return tuple(np.empty((rules.window, rules.window)) for _ in range(2))


def _metric(damping: Any, dtype: Any) -> Metric:
    """The metric of a damping, its level on the host as all that is small in a window."""
    metric = Metric.of(damping, dtype)
    level = metric.level if isinstance(metric.level, float) else float(_backend.read(metric.level))
    return Metric(level, metric.root)
