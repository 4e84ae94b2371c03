"""Measure everything in one process, interleaved, and print one table: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from benchmarks import peak_memory
from benchmarks.cases import Case, rounds
from benchmarks.figures import SHARE_KNOWN, Figure, Figures
from benchmarks.machine import measure
from benchmarks.neighbours import CLOCKS, QUIET, Clock, Patience, Timing, timed
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.static import CASES
from benchmarks.workbench import Workbench


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="write machine, versions, seeds and figures here")
    parser.add_argument("--gradients", type=int, nargs="*", help="only the problems with these m")
    parser.add_argument("--only", default="", help="only the operations whose name contains this")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="seconds to count; see README.md")
    parser.add_argument("--patience", type=float, default=0, help="minutes to wait, in all, for a quiet machine")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, nine short processes")
    return parser.parse_args(arguments)


class Runner:
    """Times cases in rounds, each with the machine's limits.

    Parameters
    ----------
    figures : Figures
        Where results go.
    patience : Patience
        How long to wait for neighbours.
    clock : {"wall", "cpu"}
        What seconds are counted.
    """

    def __init__(self, figures: Figures, patience: Patience, clock: Clock) -> None:
        self.figures = figures
        self.patience = patience
        self.clock = clock

    def run(self, problem: Problem, cases: list[Case]) -> None:
        """Check every case, then time all of them in rounds."""
        bench = Workbench(problem)
        checked = {case: case.checked_call(bench, self.clock) for case in cases}
        timings = {case: [timing] for case, (timing, _) in checked.items()}
        for turn in range(max(rounds(timing.seconds) for timing, _ in checked.values())):
            self.patience.wait()
            self.figures.add_limits(problem, measure(problem.gradients, clock=self.clock))
            for case, known in timings.items():
                if turn < rounds(known[0].seconds):
                    known.extend(self._time(case, bench))
            print(".", end="", file=sys.stderr, flush=True)
        for case, (first, *later) in timings.items():
            best, worst = (choose((first, *later), key=lambda timing: timing.seconds) for choose in (min, max))
            self.figures.add(Figure(problem, case, best, worst.seconds / best.seconds, checked[case][1]))

    def _time(self, case: Case, bench: Workbench) -> list[Timing]:
        """Time a short call three times, so that it follows its own kind as those of the limits do, a long one once.

        A long one is timed again where neighbours were busy and there is patience left.
        """
        self.patience.wait()
        timings = [timed(case.prepare(bench), self.clock)[0]]
        while len(timings) < 3 and self._wants_another(timings[-1]):
            timings.append(timed(case.prepare(bench), self.clock)[0])
        return timings

    def _wants_another(self, last: Timing) -> bool:
        if last.seconds <= SHARE_KNOWN:
            return True
        disturbed = last.others > QUIET and self.patience.left > 0
        if disturbed:
            self.patience.wait()
        return disturbed


def main() -> int:
    """Run the problems one after the other and return 1 if a target was missed."""
    options = parse()
    figures = Figures()
    runner = Runner(figures, Patience(60 * options.patience), options.clock)
    cases = [case for case in CASES if options.only in case.operation]
    for problem in PROBLEMS:
        if not options.gradients or problem.num_gradients in options.gradients:
            runner.run(problem, cases)
            problem.forget()
            gc.collect()
    print(f"\n{figures.table()}", flush=True)
    peaks = [] if options.no_memory else list(peak_memory.peaks())
    print("\n".join(["", "Peak memory of a build in a fresh process", *map(peak_memory.line, peaks)] if peaks else []))
    if options.json:
        figures.write(options.json, clock=options.clock, peak_memory=peaks)
    return 0 if figures.all_met() and all(peak["met"] for peak in peaks) else 1


if __name__ == "__main__":
    sys.exit(main())
