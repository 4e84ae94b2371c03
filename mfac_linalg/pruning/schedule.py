"""How fast weights are removed: the number of them after each step (docs/pruning.md, "The path")."""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _validation as check
from .select import Budget, check_sparsity

Path = Callable[[int, float, float], float]
"""How many weights remain at a time t in [0, 1]: from the number at t = 0, and that at t = 1, not rounded."""
PATHS: dict[str, Path] = {
    "geometric": lambda present, exact, t: present * (exact / present) ** t,
    "cubic": lambda present, exact, t: exact + (present - exact) * (1 - t) ** 3,
    "linear": lambda present, exact, t: present + (exact - present) * t,
}


@dataclass(frozen=True)
class Schedule:
    """The number of steps, and how many weights remain after each."""

    removing: int  # steps
    path: Path | tuple[float, ...]  # or the sparsity after each step
    moves: int  # further steps, which remove nothing

    @classmethod
    def checked(cls, schedule: Any, steps: Any, moves: Any) -> "Schedule":
        """Accept a name, for so many steps, or the sparsity after each step; and the number of moves after them."""
        steps, moves = check.size("steps", steps), check.count("moves", moves)
        if isinstance(schedule, str):
            check.choice("schedule", schedule, tuple(PATHS))
            return cls(steps, PATHS[schedule], moves)
        schedule = schedule.tolist() if isinstance(schedule, np.ndarray) else schedule
        if not isinstance(schedule, Sequence):
            names = ", ".join(map(repr, PATHS))
            msg = (
                f"`schedule` must be one of {names}, or the sparsity after each step; got {check.describe(schedule)}. "
            )
            raise TypeError(msg + "Pass [0.4, 0.6, 0.7] for three steps to 0.7.")
        sparsities = tuple(check_sparsity(value, "schedule") for value in schedule)
        if steps not in (1, len(sparsities)):
            msg = f"`steps` must be the number of sparsities in `schedule`; got {steps} for {len(sparsities)}. "
            raise ValueError(msg + "Leave `steps` out.")
        for before, after in itertools.pairwise(sparsities):
            if after < before:
                msg = f"`schedule` must not fall: a removed weight stays removed; got {after:g} after {before:g}. "
                raise ValueError(msg + "Sort it.")
        return cls(len(sparsities), sparsities, moves)

    @property
    def steps(self) -> int:
        """The number of all steps."""
        return self.removing + self.moves

    def require_end(self, sparsity: Any) -> None:
        """Refuse sparsities of steps that do not end at the requested one, a float."""
        if callable(self.path):
            return
        if not isinstance(sparsity, numbers.Real):
            msg = f"`schedule` must be a name where `sparsity` is not one float; got {check.describe(self.path)}. "
            raise TypeError(msg + "Pass 'geometric', 'cubic' or 'linear', which are paths of every layer.")
        if not self.path or not math.isclose(self.path[-1], sparsity, abs_tol=1e-9):
            last = f"{self.path[-1]:g}" if self.path else "an empty one"
            msg = f"`schedule` must end at `sparsity`, {sparsity:g}; got {last}. Append it."
            raise ValueError(msg)

    def plan(self, budget: Budget, mask: Any) -> list[tuple[int, ...]]:
        """How many weights remain in each part of a budget after each step; the last numbers are the budget's."""
        parts = []
        for present, exact, last, size in budget.ends(mask):
            between = (self._count(step, present, exact, size) for step in range(1, self.removing))
            parts.append([*(min(present, max(last, count)) for count in between), *[last] * (1 + self.moves)])
        return list(zip(*parts, strict=True))

    def _count(self, step: int, present: int, exact: float, size: int) -> int:
        """The number of weights after a step of a part of this size, before it is clipped to those of the ends."""
        if callable(self.path):
            return round(self.path(present, exact, step / self.removing))
        return size - round(self.path[step - 1] * size)
