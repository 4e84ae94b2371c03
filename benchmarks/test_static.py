"""The cases of the static inverse under pytest-benchmark: each is checked, then timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.cases import Case, rounds
from benchmarks.figures import Figure, Figures
from benchmarks.machine import measure
from benchmarks.neighbours import Timing
from benchmarks.problems import PROBLEMS
from benchmarks.static import CASES
from benchmarks.workbench import Workbench


@pytest.fixture(scope="module", params=PROBLEMS, ids=str)
def bench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """Keep one problem's inverses, and release its gradients before the next problem starts."""
    yield Workbench(request.param)
    request.param.forget()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_static(case: Case, bench: Workbench, benchmark: object, figures: Figures) -> None:
    """The answer is right, and its time and ratios are in the figures."""
    problem, kept = bench.problem, []
    timing, error = case.checked_call(bench)
    figures.add_limits(problem, measure(problem.gradients))

    def prepare() -> tuple[tuple[object, ...], dict[str, object]]:
        kept.clear()
        return (case.prepare(bench),), {}

    # The result is kept until the next round, so that freeing it is not timed.
    benchmark.group = f"{problem} {case.operation}"
    benchmark.pedantic(lambda call: kept.append(call()), setup=prepare, rounds=rounds(timing.seconds), iterations=1)
    if benchmark.stats is not None:  # None under --benchmark-disable
        stats = benchmark.stats.stats
        figure = Figure(problem, case, Timing(stats.min, 0.0), stats.max / stats.min, error)
        figures.add(figure)
        benchmark.extra_info.update(figures.summary(figure))
