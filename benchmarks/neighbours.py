"""The share of the machine that other processes use, which makes timings unreliable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
STAT = Path("/proc/stat")
QUIET = 0.05
"""Share of the cores that neighbours may use while the machine still counts as quiet."""


@dataclass(frozen=True)
class Timing:
    """One timed call: its seconds, and the share of all cores that other processes used meanwhile.

    The share is 0 where the system does not tell it, and rough for calls of a few clock ticks (10 ms each).
    """

    seconds: float
    others: float


def _others() -> float:
    """CPU seconds that all processes but this one have used since some fixed time; 0 where /proc does not tell."""
    if not STAT.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, STAT.read_text().split(maxsplit=11)[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - time.process_time()


def timed(call: Callable[[], object], clock: Clock = "wall") -> tuple[Timing, object]:
    """Return the timing of one call, and its result: handed on, so that freeing it is not timed.

    The "cpu" clock counts the seconds of all threads of this process: with one thread it is what the call would have
    taken on a quiet machine, but for caches and memory.
    """
    before, start, start_on_clock = _others(), time.perf_counter(), CLOCKS[clock]()
    result = call()
    seconds, elapsed = CLOCKS[clock]() - start_on_clock, time.perf_counter() - start
    share = (_others() - before) / (elapsed * (os.cpu_count() or 1))
    return Timing(seconds, min(1.0, max(0.0, share))), result


class Patience:
    """Waits for a quiet machine before a timing, for so many seconds in the whole run.

    Parameters
    ----------
    seconds : float
        0 never waits.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def wait(self) -> None:
        """Return when neighbours have been quiet for a fifth of a second, or when patience has run out."""
        while self.left > 0:
            timing, _ = timed(lambda: time.sleep(0.2))
            if timing.others <= QUIET:
                return
            self.left -= timing.seconds
