"""The text of ``docs/performance.md``."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.contents.markdown import table
from benchmarks.report import exceptions, tables, words
from benchmarks.report.cases import BUSY, PROMISED, Case, Results
from benchmarks.report.words import bullets, fill

PICTURES = {
    "performance-roofline.png": "Flops a second against flops a byte, with the machine's two roofs.",
    "performance-d.png": "Time against the number of parameters d.",
    "performance-m.png": "Time against the number of gradients m.",
}
COMMAND = "python -m benchmarks.peers"


def written(results: Results) -> str:
    """The page."""
    parts = [
        "# Performance",
        _opening(results),
        "## How it is measured",
        _protocol(results),
        "## In short",
        *_summary(results),
        "## Pictures",
        *(f"![{text}]({name})" for name, text in PICTURES.items()),
        *tables.questions(results),
        "## All contenders at one size",
        *tables.all_contenders(results),
        "## PyTorch and JAX",
        *tables.libraries(results),
        "## Five lines of NumPy",
        *tables.five_lines(results),
        "## Where a peer is faster",
        *exceptions.lines(results),
        "## What was not answered",
        _absent(results),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _opening(results: Results) -> str:
    return fill(
        f"The time of every kind of query, next to other ways to the same answer and the limits of the machine. "
        f"`python -m benchmarks.report` writes this page from [peers.json](../benchmarks/results/peers.json), which "
        f"`{COMMAND}` measures; no number is typed by hand. "
        f"[benchmarks/README.md](../benchmarks/README.md) says how to repeat it."
    )


def _protocol(results: Results) -> str:
    return bullets([*_machines(results), *_rules(results)])


def _machines(results: Results) -> Iterator[str]:
    """One line for each machine and set of versions."""
    yield from dict.fromkeys(map(_machine, results.runs))
    rates = [case.entry["rates"] for case in results.cases]
    most = {name: max(rate[name] for rate in rates) / 1e9 for name in ("sgemm", "read")}
    large = max(results.cases, key=lambda case: case.size[0] * case.size[1])
    yield (
        f"Measured on {_days(results)}. The SGEMM rate is {words.three_digits(most['sgemm'])} GFLOP/s. "
        "A plain read of G has "
        f"{words.three_digits(large.entry['rates']['read'] / 1e9)} GB/s at {words.size(*large.size)}, and up to "
        f"{words.three_digits(most['read'])} GB/s at smaller sizes, from cache."
    )


def _days(results: Results) -> str:
    """The days of the runs that the figures are from."""
    days = sorted({results.runs[case.entry["run"]]["date"][:10] for case in results.cases})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _machine(run: dict[str, Any]) -> str:
    pools = sorted({re.sub(r", \d+ threads?$| None", "", pool) for pool in run["blas"]})
    versions = [f"{name} {version}" for name, version in sorted(run["versions"].items()) if version != "not installed"]
    cores, threads = words.counted(run["cores"], "core"), words.counted(run["threads"], "thread")
    return f"{run['processor']}, {cores}; {threads} for every library. {', '.join([*pools, *versions])}."


def _rules(results: Results) -> list[str]:
    kappas = ", ".join(map(words.power, results.kappas()))
    return [
        "Float32. The rows of G are noise around a common mean, drawn from a seed; λ is set by κ = ‖F‖/λ. "
        f"Here, κ is {kappas}; tables are for κ = {words.power(results.main_kappa())}, which real gradients have, "
        "unless they say otherwise.",
        "Every contender answers once, and the answers are compared with float64. "
        "R = ‖v − Fx‖/(‖F‖‖x‖ eps) is the backward error of x; for diagonals and elements it is the largest error "
        f"in eps/λ. The library promises R ≤ {PROMISED}, and an answer counts as good up to there.",
        "Then all contenders take turns in one process. A turn begins with calls that do not count. Times are medians.",
        "Iterative solvers stop at the residual of the library's answer, or at eps. "
        "The spectrum of these rows has three clusters, the easiest case for them.",
        "A limit is what plain BLAS takes in the same run for the least work that the answer needs: so many flops at "
        "the SGEMM rate, or so many passes over G.",
        *_busy(results),
    ]


def _busy(results: Results) -> list[str]:
    """What the sign means, where it is used."""
    if not any(tables.is_busy(figure) for case in results.cases for figure in case.figures.values()):
        return []
    return [f"A time with ~ is unreliable: other processes used more than {BUSY:.0%} of the machine meanwhile."]


def _summary(results: Results) -> Iterator[str]:
    yield fill(
        "Over all sizes and κ, medians. Times faster is a peer's time over the library's: of the fastest peer, and of "
        f"the fastest of those whose answer has R ≤ {PROMISED}, case by case. Time over limit is for G of at least a "
        "million numbers, where there is one."
    )
    head = ["question", "cases", "times faster", f"times faster, R ≤ {PROMISED}", "faster than each of these"]
    asked = {query: results.of(query=query) for query in words.TITLES}
    rows = [[words.TITLES[query], *_in_short(cases)] for query, cases in asked.items() if cases]
    yield table([*head, "time over limit", "largest R"], rows)


def _in_short(cases: list[Case]) -> Iterator[str]:
    gains = [case.gain for case in cases if case.gain is not None]
    yield str(len(cases))
    yield _median([case.gain_over_all for case in cases if case.gain_over_all is not None])
    yield _median(gains)
    yield f"{sum(gain >= 1 for gain in gains)} of {len(gains)}" if gains else "–"
    yield _median([case.ours.seconds / case.limit for case in _large(cases)])
    yield words.error(max(case.ours.error for case in cases))


def _median(values: list[float]) -> str:
    return words.ratio(statistics.median(values)) if values else "–"


def _large(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.size[0] * case.size[1] >= 10**6] or cases


def _absent(results: Results) -> str:
    """Which contender did not answer what, where, and why."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in results.cases:
        for name, reason in case.reasons.items():
            found.setdefault((name, reason), []).append(case)
    ordered = sorted(found.items(), key=lambda item: item[0])
    return bullets([f"{name}: {reason} ({_where(results, cases)})." for (name, reason), cases in ordered])


def _where(results: Results, cases: list[Case]) -> str:
    """The questions, and the sizes where these are not all."""
    queries = [query for query in words.TITLES if any(case.query == query for case in cases)]
    every = {case.size for case in results.cases if case.query in queries}
    sizes = sorted({case.size for case in cases})
    where = "" if set(sizes) == every else f" at {', '.join(words.size(*size) for size in sizes)}"
    return "; ".join(words.TITLES[query] for query in queries) + where
