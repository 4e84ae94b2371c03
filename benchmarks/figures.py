"""Timings turned into figures: ratios to the machine's limits and to the recursions, targets, a table, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import RECURSIONS, Case
from benchmarks.machine import Limits, describe
from benchmarks.neighbours import QUIET, Timing
from benchmarks.problems import Problem

SHARE_KNOWN = 0.1
"""Seconds from which the neighbours' share of a timing means something."""

HEADINGS = (
    *("(m, d)", "operation", "by", "time", "limit", "time/limit"),
    *("x NumPy", "x PyTorch", "err/eps", "others", "targets"),
)


@dataclass(frozen=True)
class Figure:
    """One timed case at one problem: the best of the rounds; `spread` is the worst over the best."""

    problem: Problem
    case: Case
    best: Timing
    spread: float
    error: float

    @property
    def seconds(self) -> float:
        """Of the best round."""
        return self.best.seconds


class Figures:
    """All figures of one run, and the limits measured with them.

    Only ratios within one run mean anything: a shared machine is never twice the same.
    """

    def __init__(self) -> None:
        self._figures: list[Figure] = []
        self._limits: dict[Problem, Limits] = {}

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return bool(self._figures)

    def add_limits(self, problem: Problem, limits: Limits) -> None:
        """Record the limits at a problem; of several measurements the best of each is kept."""
        known = self._limits.get(problem)
        self._limits[problem] = known.better(limits) if known else limits

    def add(self, figure: Figure) -> None:
        """Record a figure."""
        self._figures.append(figure)

    def over_limit(self, figure: Figure) -> float:
        """Return the time as a multiple of the machine's limit."""
        return figure.seconds / figure.case.limit.seconds(figure.problem, self._limits[figure.problem])

    def speedups(self, figure: Figure) -> dict[str, float]:
        """Return how many times faster the figure is than each recursion that was timed on the same operation."""
        return {
            other.case.subject: other.seconds / figure.seconds
            for other in self._figures
            if other.case.subject in RECURSIONS
            and (other.problem, other.case.operation) == (figure.problem, figure.case.operation)
        }

    def verdicts(self, figure: Figure) -> list[tuple[str, bool]]:
        """Return each target that is set for the figure, in words, and whether it is met."""
        target, m = figure.case.target, figure.problem.num_gradients
        if m < target.least_gradients:
            return []
        slowest, most_seconds = min(self.speedups(figure).values(), default=math.inf), target.most_seconds * m / 512
        targets = [
            (f"≤ {target.ceiling:.3g} limits", self.over_limit(figure) <= target.ceiling, target.ceiling < math.inf),
            (f"≥ {target.speedup:.3g}x recursion", slowest >= target.speedup, target.speedup > 0),
            (f"≤ {most_seconds:.3g} s", figure.seconds <= most_seconds, most_seconds < math.inf),
        ]
        return [(words, met) for words, met, wanted in targets if wanted]

    def all_met(self) -> bool:
        """Whether no figure misses a target."""
        return all(met for figure in self._figures for _, met in self.verdicts(figure))

    def summary(self, figure: Figure) -> dict[str, object]:
        """Return a figure with its ratios and verdicts, ready for JSON or a benchmark's `extra_info`."""
        return {
            "problem": str(figure.problem),
            "operation": figure.case.operation,
            "subject": figure.case.subject,
            "seconds": figure.seconds,
            "worst_over_best": figure.spread,
            "others": figure.best.others,
            "machine": vars(self._limits[figure.problem]),
            "limit": figure.case.limit.name,
            "time_over_limit": self.over_limit(figure),
            "speedup": self.speedups(figure),
            "error_over_eps": figure.error,
            "targets": dict(self.verdicts(figure)),
        }

    def table(self) -> str:
        """Return the limits and one line per figure, aligned."""
        limits = [
            f"{problem!s:>15}: SGEMM {limits.sgemm / 1e9:.0f} GFLOP/s, G v {1e3 * limits.project:.2f} ms, "
            f"Gᵀa {1e3 * limits.combine:.2f} ms, reads {limits.read / 1e9:.1f} GB/s, "
            f"first writes {limits.fresh / 1e9:.1f} GB/s"
            for problem, limits in self._limits.items()
        ]
        rows = [HEADINGS, *(self._row(figure) for figure in self._figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(["Limits of this machine in this run", *limits, "", *lines])

    def _row(self, figure: Figure) -> tuple[str, ...]:
        speedups = self.speedups(figure) if figure.case.subject not in RECURSIONS else {}
        disturbed = figure.seconds > SHARE_KNOWN and figure.best.others > QUIET
        busy = " (machine busy)" if disturbed and self.verdicts(figure) else ""
        return (
            str(figure.problem),
            figure.case.operation,
            figure.case.subject,
            f"{1e3 * figure.seconds:.4g} ms".rjust(10),
            figure.case.limit.name,
            f"{self.over_limit(figure):.2f}".rjust(10),
            *(f"{speedups[name]:.1f}".rjust(7) if name in speedups else "" for name in RECURSIONS),
            f"{figure.error:.2g}".rjust(7),
            f"{figure.best.others:.0%}".rjust(6) if figure.seconds > SHARE_KNOWN else "",
            ", ".join(f"{words}: {'met' if met else 'MISSED'}" for words, met in self.verdicts(figure)) + busy,
        )

    def write(self, path: Path, **more: object) -> None:
        """Write machine, versions, seeds, limits, figures and anything else as JSON."""
        problems = [{**problem.description, "limits": vars(limits)} for problem, limits in self._limits.items()]
        content = {
            "machine": describe(),
            "problems": problems,
            "figures": list(map(self.summary, self._figures)),
            **more,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
