"""The joint minimum for a mask, block by block, and what single exchanges are worth (docs/pruning.md, "Exchanges").

In coordinates in which Λ = I, F = I + SᵀS, w is z, and b = S_S z_S − α C^½ 1. With A = I + S_R S_Rᵀ and a = A⁻¹b the
minimum is ½ ‖z_S‖² + ½ bᵀa − ½ α² Σ c_i, and q_j = s_jᵀA⁻¹s_j gives what a single weight saves or costs.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance
from .._errors import breakdown
from .._forms.blocks import BlockForm
from .._forms.state import State
from .._rows.panels import slices
from .._rows.scaled import ScaledRows
from .._scaling.powers_of_two import ldexp
from .._static.restrict import scaled_rows_of
from .._typing import Array

ROUNDING = 1e-12  # of the objective: a smaller decrease is none
COLUMNS_AT_A_TIME = 4096
SMALLEST = 1e-15  # of [F_RR⁻¹]_ii in units of 1/λ_i


@dataclass(frozen=True)
class System:
    """One block: its columns, S, z, and α C^½ 1."""

    columns: slice
    rows: ScaledRows
    z: np.ndarray  # (n,)
    shift: Array  # (m, 1)

    def solve(self, mask: np.ndarray, gram: Array | None = None) -> "Solved":
        """The joint minimum for a mask of these columns; gram = S_R S_Rᵀ where it is known."""
        gram = self.gram(np.flatnonzero(mask)) if gram is None else gram
        removed = _backend.asarray(np.where(mask, 0.0, self.z)[:, None], like=self.rows.like, dtype=self.rows.dtype)
        b = self.rows.project(removed) - self.shift
        capacitance = Capacitance.factor(gram)
        if capacitance is None:
            raise breakdown(size=len(self.shift), kappa=np.inf, dtype="float64")
        a = capacitance.solve(b)
        squares = float(np.sum(self.z[~mask] ** 2)) + float(_backend.read(b * a).sum())
        return Solved(self, mask, gram, capacitance, a, squares / 2)

    def gram(self, j: np.ndarray) -> Array:
        """S_j S_jᵀ of some columns, float64."""
        total = 0.0 * (self.shift @ self.shift.T)
        for part in slices(len(j), COLUMNS_AT_A_TIME):
            block = self.columns_at(j[part])
            total = total + block @ block.T
        return total

    def spread(self, j: np.ndarray, signs: np.ndarray) -> Array:
        """Σ_j (σ_j s_j − their mean)(…)ᵀ of some columns with signs σ, (m, m) float64."""
        gram, total = 0.0 * (self.shift @ self.shift.T), 0.0 * self.shift
        for part in slices(len(j), COLUMNS_AT_A_TIME):
            block = self.columns_at(j[part])
            gram = gram + block @ block.T
            total = total + block @ _backend.asarray(signs[part][:, None], like=block, dtype=block.dtype)
        return gram - total @ total.T / len(j)

    def columns_at(self, j: np.ndarray) -> Array:
        """S_j, float64."""
        return self.rows.columns(_backend.index_like(j, like=self.rows.like))


@dataclass(frozen=True)
class Solved:
    """The joint minimum of one block."""

    system: System
    mask: np.ndarray
    gram: Array  # S_R S_Rᵀ
    capacitance: Capacitance
    a: Array
    objective: float  # without − ½ α² Σ c_i

    def with_mask(self, mask: np.ndarray) -> "Solved":
        """The same for another mask."""
        back, away = np.flatnonzero(mask & ~self.mask), np.flatnonzero(~mask & self.mask)
        if len(back) + len(away) == 0:
            return self
        few = len(back) + len(away) < np.count_nonzero(mask)
        gram = self.gram + self.system.gram(back) - self.system.gram(away) if few else None
        return self.system.solve(mask, gram)

    @cached_property
    def curvature(self) -> np.ndarray:
        """1 + q_j of a removed weight, the Schur complement of F_jj, and 1 − q_i = [F_RR⁻¹]_ii of one that stays."""
        parts, every = [], np.arange(len(self.mask))
        for part in slices(len(every), COLUMNS_AT_A_TIME):
            half = self.capacitance.half_solve(self.system.columns_at(every[part]))
            parts.append(_backend.read(_backend.column_squares(half)))
        q = np.concatenate(parts)
        return np.where(self.mask, np.maximum(1 - q, SMALLEST), 1 + q)

    @cached_property
    def moment(self) -> np.ndarray:
        """−F(w + δ − w̄) of a removed weight, and the new value of one that stays: z_j + s_jᵀa of both."""
        return self.system.z + _backend.read(self.system.rows.combine(self.a))[:, 0]

    def products(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """s_iᵀA⁻¹s_j of pairs of columns."""
        used, place = np.unique(np.concatenate([i, j]), return_inverse=True)
        half = _backend.read(self.capacitance.half_solve(self.system.columns_at(used)))
        return np.sum(half[:, place[: len(i)]] * half[:, place[len(i) :]], axis=0)


@dataclass(frozen=True)
class Masked:
    """The joint minima of all blocks for a mask."""

    blocks: tuple[Solved, ...]

    @classmethod
    def of(cls, systems: Sequence[System], mask: np.ndarray) -> "Masked":
        """Those for a mask (d,)."""
        return cls(tuple(system.solve(mask[system.columns]) for system in systems))

    @property
    def objective(self) -> float:
        """Their sum."""
        return sum(block.objective for block in self.blocks)

    @property
    def mask(self) -> np.ndarray:
        """The mask of all weights."""
        return np.concatenate([block.mask for block in self.blocks])

    def concatenated(self, name: str) -> np.ndarray:
        """A property of all blocks, (d,)."""
        return np.concatenate([getattr(block, name) for block in self.blocks])

    def with_mask(self, mask: np.ndarray) -> "Masked":
        """The same for another mask."""
        return Masked(tuple(block.with_mask(mask[block.system.columns]) for block in self.blocks))

    def is_below(self, other: "Masked") -> bool:
        """Whether the objective is lower than another's, not by rounding alone."""
        return self.objective < (1 - ROUNDING) * other.objective

    def lower(self, pairs: np.ndarray) -> "Masked | None":
        """After the exchanges (k, 2) of a removed weight for another, if the objective is then lower."""
        if len(pairs) == 0:
            return None
        mask = self.mask
        mask[pairs[:, 0]], mask[pairs[:, 1]] = True, False
        after = self.with_mask(mask)
        return after if after.is_below(self) else None

    def changes(self, pairs: np.ndarray, moment: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        """The change of the objective by each exchange alone."""
        back, away = pairs.T
        cross = np.zeros(len(pairs))
        for block in self.blocks:
            columns = block.system.columns
            inside = [(x >= columns.start) & (x < columns.stop) for x in (back, away)]
            both = np.flatnonzero(inside[0] & inside[1])
            if len(both):
                cross[both] = block.products(back[both] - columns.start, away[both] - columns.start)
        value = moment[away] - cross * moment[back] / curvature[back]
        left = curvature[away] + cross**2 / curvature[back]
        return 0.5 * value**2 / left - 0.5 * moment[back] ** 2 / curvature[back]


def systems_of(state: State, w: Array, slope: float) -> tuple[list[System], int]:
    """The blocks, in units in which no square of w or of the slope overflows, and the power of two of that unit."""
    z, power = state.to_scaled(w)
    z, power = _backend.read(z), power if isinstance(power, int) else int(_backend.read(power)[0])
    shift = slope * state.row_scale
    largest = float(np.max(_backend.read(shift), initial=0.0))
    more = max(0, math.frexp(largest)[1] - power) if largest > 0 else 0
    z, shift, power = np.ldexp(z, -more), ldexp(shift, -power - more), power + more
    rows = scaled_rows_of(state)
    if rows.can_change_dtype and _backend.supports_float64(rows.like):
        rows = rows.astype_float64()
    if not isinstance(state.form, BlockForm):
        return [System(slice(0, len(z)), rows, z, shift)], power
    starts = np.cumsum([0, *(run.size for run in state.form.runs for _ in range(run.count))])
    columns = [slice(int(start), int(stop)) for start, stop in itertools.pairwise(starts)]
    return [System(c, rows.select_columns(c), z[c], shift) for c in columns], power
