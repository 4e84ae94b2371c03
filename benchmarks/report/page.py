"""The text of ``docs/performance.md``."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from benchmarks.contents.markdown import table
from benchmarks.report import exceptions, words
from benchmarks.report.cases import BUSY, LIBRARY, PROMISED, Case, Figure, Results

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
        *_questions(results),
        "## All contenders at one size",
        *_all_contenders(results),
        "## PyTorch and JAX",
        *_libraries(results),
        "## Where a peer is faster",
        *exceptions.lines(results),
        "## What was not answered",
        _absent(results),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def fill(text: str) -> str:
    """Text in lines of the pages' width; the lines of a list hang, and code is not broken."""
    hanging = "  " if text.startswith("- ") else ""
    whole = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.fill(whole, 120, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False)
    return lines.replace("\0", " ")


def bullets(items: Iterator[str] | list[str]) -> str:
    """A list."""
    return "\n".join(fill(f"- {item}") for item in items)


def _opening(results: Results) -> str:
    return fill(
        f"The time of every kind of query, beside other ways to the same answer and beside the limits of the machine. "
        f"`python -m benchmarks.report` writes this page from [peers.json](../benchmarks/results/peers.json), which "
        f"`{COMMAND}` measures; no number is typed by hand. "
        f"[benchmarks/README.md](../benchmarks/README.md) says how to repeat it."
    )


def _protocol(results: Results) -> str:
    return bullets([*_machines(results), *_rules(results)])


def _machines(results: Results) -> Iterator[str]:
    """One line a machine and set of versions."""
    seen = dict.fromkeys(
        (run["processor"], run["cores"], run["threads"], tuple(run["blas"]), tuple(sorted(run["versions"].items())))
        for run in results.runs
    )
    for processor, cores, threads, blas, versions in seen:
        names = ", ".join(f"{name} {version}" for name, version in versions if version != "not installed")
        yield f"{processor}, {cores} cores, {threads} threads; {'; '.join(blas)}; {names}."
    rates = [case.entry["rates"] for case in results.cases]
    most = {name: max(rate[name] for rate in rates) / 1e9 for name in ("sgemm", "read")}
    large = max(results.cases, key=lambda case: case.size[0] * case.size[1])
    yield (
        f"The SGEMM rate is {words.three_digits(most['sgemm'])} GFLOP/s. A plain read of G has "
        f"{words.three_digits(large.entry['rates']['read'] / 1e9)} GB/s at {words.size(*large.size)}, and up to "
        f"{words.three_digits(most['read'])} GB/s at smaller sizes, from cache."
    )


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
    if not any(is_busy(figure) for case in results.cases for figure in case.figures.values()):
        return []
    return [f"A time with ~ is unreliable: other processes used more than {BUSY:.0%} of the machine meanwhile."]


def is_busy(figure: Figure) -> bool:
    """Whether others disturbed it."""
    return figure.others > BUSY


def time(figure: Figure | None, query: str = "") -> str:
    """A figure's time, marked where it is unreliable; with the first call's where that makes what later ones use."""
    if figure is None:
        return "–"
    first = f", first {words.seconds(figure.first)}" if query in words.KEEPING else ""
    return ("~ " if is_busy(figure) else "") + words.seconds(figure.seconds) + first


def _summary(results: Results) -> Iterator[str]:
    rows = []
    for query, title in words.TITLES.items():
        cases = results.of(query=query)
        if not cases:
            continue
        gains = sorted(case.gain for case in cases if case.gain is not None)
        over = sorted(case.ours.seconds / case.limit for case in _large(cases))
        worst = max(case.ours.error for case in cases)
        wins = sum(gain >= 1 for gain in gains)
        middle = words.ratio(gains[len(gains) // 2]) if gains else "–"
        rows.append(
            [
                title,
                str(len(cases)),
                middle,
                f"{wins} of {len(gains)}",
                words.ratio(over[len(over) // 2]),
                words.error(worst),
            ]
        )
    yield fill(
        f"Over all sizes and κ. The peer is, case by case, the fastest of those whose answer has R ≤ {PROMISED}; "
        "times faster is its time over the library's. Time over limit is for G of at least a million numbers, "
        "where there is one."
    )
    head = [
        "question",
        "cases",
        "times faster, median",
        "faster than every peer",
        "time over limit, median",
        "largest R",
    ]
    yield table(head, rows)


def _large(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.size[0] * case.size[1] >= 10**6] or cases


def _questions(results: Results) -> Iterator[str]:
    """A table a question."""
    kappa = results.main_kappa()
    others = [other for other in results.kappas() if other != kappa]
    for query, title in words.TITLES.items():
        cases = results.of(query=query, kappa=kappa)
        if not cases:
            continue
        yield f"## {title}"
        yield fill(f"{words.MEANINGS[query]} Limit: {words.LIMITS[cases[0].entry['limit']]}.")
        head = [
            "(m, d)",
            "limit",
            LIBRARY,
            "R",
            "fastest peer",
            "time",
            "R",
            f"fastest peer with R ≤ {PROMISED}",
            "time",
        ]
        head += [f"times faster, κ = {words.power(each)}" for each in (kappa, *others)]
        yield table(head, [_row(results, case, others) for case in sorted(cases, key=lambda case: case.size)])


def _row(results: Results, case: Case, others: list[float]) -> list[str]:
    ours, fastest, good = case.ours, case.fastest, case.fastest_good
    cells = [words.size(*case.size), words.seconds(case.limit), time(ours, case.query), words.error(ours.error)]
    cells += [fastest.name, time(fastest, case.query), words.error(fastest.error)] if fastest else ["none", "–", "–"]
    same = good is not None and good is fastest
    cells += ["the same" if same else good.name if good else "none", "–" if same else time(good, case.query)]
    gains = [case.gain]
    for kappa in others:
        found = results.of(query=case.query, kappa=kappa, m=case.size[0], d=case.size[1])
        gains.append(found[0].gain if found else None)
    return cells + [words.ratio(gain) for gain in gains]


def _all_contenders(results: Results) -> Iterator[str]:
    m, d = results.largest(words.TITLES)
    cases = {case.query: case for case in results.of(kappa=results.main_kappa(), m=m, d=d)}
    queries = [query for query in words.TITLES if query in cases]
    answered = dict.fromkeys(name for query in queries for name in cases[query].figures)
    names = sorted(answered, key=lambda name: not name.startswith(LIBRARY))
    yield fill(f"{words.size(m, d)}, κ = {words.power(results.main_kappa())}: time, and R.")
    rows = [[name, *(_cell(cases[query].figures.get(name)) for query in queries)] for name in names]
    rows.append(["limit", *(words.seconds(cases[query].limit) for query in queries)])
    yield table(["", *(words.TITLES[query] for query in queries)], rows)


def _cell(figure: Figure | None) -> str:
    return f"{time(figure)}, {words.error(figure.error)}" if figure else "–"


def _libraries(results: Results) -> Iterator[str]:
    """Times on tensors over those on NumPy arrays."""
    yield fill(
        f"Time on tensors of the CPU over that on NumPy arrays, PyTorch's and JAX's, κ = "
        f"{words.power(results.main_kappa())}."
    )
    cases = [case for case in results.of(kappa=results.main_kappa()) if LIBRARY in case.figures]
    queries = [query for query in words.TITLES if any(case.query == query for case in cases)]
    rows = []
    for size in sorted({case.size for case in cases}):
        found = {case.query: case for case in cases if case.size == size}
        rows.append([words.size(*size), *(_relative(found.get(query)) for query in queries)])
    yield table(["(m, d)", *(words.TITLES[query] for query in queries)], rows)


def _relative(case: Case | None) -> str:
    if case is None:
        return "–"
    figures = [case.figures.get(f"{LIBRARY}, {library}") for library in ("PyTorch", "JAX")]
    return " / ".join(words.ratio(f.seconds / case.ours.seconds) if f else "–" for f in figures)


def _absent(results: Results) -> str:
    """Which contender did not answer what, where, and why."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in results.cases:
        for name, reason in case.reasons.items():
            found.setdefault((name, reason), []).append(case)
    ordered = sorted(found.items(), key=lambda item: item[0])
    return bullets([f"{name} {reason}: {_where(results, cases)}." for (name, reason), cases in ordered])


def _where(results: Results, cases: list[Case]) -> str:
    """The questions, and the sizes where these are not all."""
    queries = [query for query in words.TITLES if any(case.query == query for case in cases)]
    every = {case.size for case in results.cases if case.query in queries}
    sizes = sorted({case.size for case in cases})
    where = "" if set(sizes) == every else f" at {', '.join(words.size(*size) for size in sizes)}"
    return ", ".join(words.TITLES[query] for query in queries) + where
