"""Masks from the dual of the joint problem, and a bound below all of them (docs/pruning.md, "From the dual").

D(a) = ½ ‖z‖² − ½ Σ_(j ∈ R(a)) μ_j² + aᵀ(S z − α C^½ 1) − ½ ‖a‖², with μ = z + Sᵀa and R(a) the largest |μ_j|, is
concave, and not above the objective of any mask. For R(a) it is that objective less ½ (a − a_R)ᵀA_R(a − a_R).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance
from .._typing import Array
from .joint import Masked
from .quotas import Quotas

NOTICEABLE, CLOSE = 1e-4, 1e-3  # of the objective: a change, and a gap that exchanges of pairs are not worth
SHARE, FEWEST = 0.05, 4  # of all weights, and for each row: the weights next to the thresholds, at most and at least
FLAT, EVALUATIONS = 0.1, 6  # of a search along a line
STALLED = 0.1  # of the gap: a step that raises the bound by less is the last


@dataclass(frozen=True)
class Found:
    """The best mask so far, and a bound below the objective of every mask."""

    best: Masked
    bound: float
    steps: int

    def is_within(self, tolerance: float) -> bool:
        """Whether no mask is better than the best by more than this share of its objective."""
        return self.best.objective - self.bound <= tolerance * self.best.objective


@dataclass(frozen=True)
class Point:
    """A point of the dual."""

    a: tuple[Array, ...]  # (m, 1) of each block
    moment: np.ndarray  # μ, (d,)

    @classmethod
    def zero(cls, masked: Masked) -> "Point":
        """The origin, where the largest |μ| are those of z and D ≥ 0."""
        return cls(tuple(0.0 * block.a for block in masked.blocks), np.concatenate([b.system.z for b in masked.blocks]))

    def gradients(self, masked: Masked) -> list[Array]:
        """A_R(a_R − a) by blocks: the derivative of D where R is the mask of the largest |μ|."""
        differences = (block.a - a for block, a in zip(masked.blocks, self.a, strict=True))
        return [x + block.gram @ x for block, x in zip(masked.blocks, differences, strict=True)]

    def value(self, masked: Masked) -> float:
        """D, from the minimum for the mask of the largest |μ|."""
        pairs = zip(self.gradients(masked), masked.blocks, self.a, strict=True)
        return masked.objective - sum(float(_backend.read(g * (block.a - a)).sum()) for g, block, a in pairs) / 2

    def moved(self, masked: Masked, quotas: Quotas, changed: int) -> "Point":
        """The point where D is about largest along a Newton step; `changed` weights were exchanged before it."""
        gradients = self.gradients(masked)
        steps = self._newton_steps(masked, quotas, gradients, changed)
        moves = [_backend.read(b.system.rows.combine(p))[:, 0] for b, p in zip(masked.blocks, steps, strict=True)]
        move, mask = np.concatenate(moves), masked.mask
        first = sum(float(_backend.read(g * p).sum()) for g, p in zip(gradients, steps, strict=True))
        square = sum(float(_backend.read(p * p).sum()) for p in steps)
        linear = first + float(self.moment[mask] @ move[mask])

        def derivative(t: float) -> float:
            moment = self.moment + t * move
            chosen = quotas.largest(np.abs(moment))
            return linear - t * square - float(moment[chosen] @ move[chosen])

        t = _zero_of(derivative, first)
        return Point(tuple(a + t * p for a, p in zip(self.a, steps, strict=True)), self.moment + t * move)

    def _newton_steps(self, masked: Masked, quotas: Quotas, gradients: list[Array], changed: int) -> list[Array]:
        """H⁻¹ times the derivative: H is A_R, and what the masks next to R add to it."""
        sizes = np.abs(self.moment)
        distances = np.abs(sizes / quotas.thresholds(masked.mask, sizes) - 1)
        distances[quotas.labels < 0] = np.inf
        most = min(int(SHARE * len(sizes)), len(sizes) - 1)
        count = min(max(2 * changed, FEWEST * gradients[0].shape[0]), most)
        width = float(np.partition(distances, count)[count])
        near = np.flatnonzero(distances <= width) if 0 < width < 1 else np.empty(0, np.int64)
        steps = []
        for block, gradient in zip(masked.blocks, gradients, strict=True):
            columns = block.system.columns
            j = near[(near >= columns.start) & (near < columns.stop)]
            capacitance = block.capacitance
            if len(j):
                spread = block.system.spread(j - columns.start, np.sign(self.moment[j]))
                capacitance = Capacitance.factor(block.gram + spread / (2 * width)) or capacitance
            steps.append(capacitance.solve(gradient))
        return steps


def by_dual(start: Masked, quotas: Quotas, steps: int) -> Found:
    """The best mask of those that Newton steps in the dual meet, from one to start with."""
    best, now, at, bound = start, start, Point.zero(start), 0.0
    for step in range(steps):
        after = now.with_mask(quotas.largest(np.abs(at.moment)))
        changed, now = int(np.count_nonzero(after.mask != now.mask)) if step else len(at.moment), after
        best = now if now.is_below(best) else best
        before, bound = bound, max(bound, at.value(now))
        found = Found(best, bound, step + 1)
        if found.is_within(NOTICEABLE) or (step and bound - before <= STALLED * (best.objective - bound)):
            return found
        at = at.moved(now, quotas, changed)
    return Found(best, bound, steps)


def _zero_of(decreasing: Callable[[float], float], first: float) -> float:
    """About where a decreasing function is zero that is `first` > 0 at 0, or below that."""
    low, high, t = (0.0, first), None, 1.0
    for _ in range(EVALUATIONS):
        value = decreasing(t)
        if abs(value) <= FLAT * first:
            return t
        low, high = ((t, value), high) if value > 0 else (low, (t, value))
        t = 2 * t if high is None else low[0] + (high[0] - low[0]) * max(0.1, min(0.9, low[1] / (low[1] - high[1])))
    return low[0]
