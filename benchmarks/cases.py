"""A timed call: its operation, owner, check, limit and target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.machine import Limits
from benchmarks.neighbours import Clock, Timing, timed
from benchmarks.problems import Problem
from benchmarks.workbench import Workbench

NUMPY, TORCH = RECURSIONS = ("recursion, NumPy", "recursion, PyTorch")


@dataclass(frozen=True)
class Limit:
    """The time of an operation at the speed of the machine.

    Parameters
    ----------
    name : str
        In words.
    seconds : callable
        Of the problem and the machine's limits.
    """

    name: str
    seconds: Callable[[Problem, Limits], float]


@dataclass(frozen=True)
class Target:
    """The target of a case; the defaults require nothing.

    Parameters
    ----------
    ceiling : float
        At most this many times the limit.
    speedup : float
        At least this many times faster than the faster recursion.
    most_seconds : float
        At most these seconds at m = 512, and in proportion to m elsewhere.
    least_gradients : int
        The smallest m that the target is set for.
    """

    ceiling: float = math.inf
    speedup: float = 0.0
    most_seconds: float = math.inf
    least_gradients: int = 0


NO_TARGET = Target()


@dataclass(frozen=True)
class Case:
    """One call to be timed.

    Parameters
    ----------
    operation : str
        What it computes.
    subject : str
        Who computes it: one of `RECURSIONS`, or else the library, by what it keeps.
    limit : Limit
        What bounds it.
    prepare : callable
        Of the workbench: the call. What `prepare` does itself, such as copying G, is not timed.
    check : callable
        Of the workbench, what the call returned and `textbook=`, whether the looser bound of the recursion applies;
        raises if the answer is wrong, else returns its error as a multiple of eps.
    target : Target
        What the call should reach.
    """

    operation: str
    subject: str
    limit: Limit
    prepare: Callable[[Workbench], Callable[[], object]]
    check: Callable[..., float]
    target: Target = NO_TARGET

    def __str__(self) -> str:
        """Return the name under which pytest knows the case."""
        return f"{self.operation}: {self.subject}"

    def checked_call(self, bench: Workbench, clock: Clock = "wall") -> tuple[Timing, float]:
        """Make the call once, which warms it up; return its timing and the error of its answer over eps."""
        timing, result = timed(self.prepare(bench), clock)
        return timing, self.check(bench, result, textbook=self.subject in RECURSIONS)


def rounds(elapsed: float) -> int:
    """Return how often to time a call that takes `elapsed` seconds: up to seven times, about ten seconds in all."""
    return max(1, min(7, int(10 / elapsed)))
