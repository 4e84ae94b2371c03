"""Peak memory of a build in a process of its own, over the memory of G and W: `python -m benchmarks.peak_memory`.

The peak is G plus what the kernel's high-water mark of resident memory after the build is over the memory in use before
it, when a small build has loaded every module and BLAS buffer. The mark comes from Linux's /proc where there is one,
because the `ru_maxrss` of a child starts from that of the process that started it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.problems import PROBLEMS, Problem
from mfac_linalg import WoodburyRankOneInverse

MODES = {
    "W kept": {"whiten": True},
    "W in place of G": {"whiten": True, "overwrite_gradients": True},
    "G kept": {"whiten": False},
}
CEILING = 1.15


def resident(field: str) -> int:
    """Return this process's resident memory in bytes: "VmRSS" is today's, "VmHWM" the most so far.

    Without /proc it is the most so far for both.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def rise(problem: Problem, mode: str) -> int:
    """Return by how many bytes the high-water mark after one build is over the memory in use before it."""
    small = Problem(problem.num_gradients, 4 * problem.num_gradients)
    WoodburyRankOneInverse(small.gradients, small.damping, **MODES[mode]).matvec(small.random_vector)
    small.forget()
    gradients = problem.gradients
    before = resident("VmRSS")
    inverse = WoodburyRankOneInverse(gradients, problem.damping, **MODES[mode])
    after = resident("VmHWM")
    del inverse
    return after - before


def measure_peak(problem: Problem, mode: str) -> float:
    """Return the peak of a build in a fresh process over the memory that it is allowed: G + W, or G alone."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", "--rise", mode, str(PROBLEMS.index(problem))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    baseline = 4 * problem.num_gradients * problem.dim
    return (baseline + int(output)) / (2 * baseline if mode == "W kept" else baseline)


def peaks() -> Iterator[dict[str, object]]:
    """Yield the peak of every problem and mode, ready for JSON."""
    for problem in PROBLEMS:
        for mode in MODES:
            baseline, peak = "G + W" if mode == "W kept" else "G", measure_peak(problem, mode)
            yield {"problem": str(problem), "subject": mode, "peak": peak, "over": baseline, "met": peak <= CEILING}


def line(peak: dict[str, object]) -> str:
    """Return a peak in words."""
    verdict = "met" if peak["met"] else "MISSED"
    text = f"{peak['peak']:.3f} x ({peak['over']})"
    return f"{peak['problem']:>15}  {peak['subject']:<15}  peak {text}, target ≤ {CEILING}: {verdict}"


def main() -> int:
    """Print a line per problem and mode, and return 1 if a peak is over its ceiling."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__)
    parser.add_argument("--rise", nargs=2, metavar=("MODE", "PROBLEM"), help="what the fresh process is asked for")
    asked = parser.parse_args().rise
    if asked:
        print(rise(PROBLEMS[int(asked[1])], asked[0]))
        return 0
    met = True
    for peak in peaks():
        print(line(peak), flush=True)
        met = met and peak["met"]
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
