"""The tables of the page: a question each, all contenders, and ratios."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contents.markdown import table
from benchmarks.report import words
from benchmarks.report.cases import BUSY, LIBRARY, PROMISED, Case, Figure, Results
from benchmarks.report.words import fill


def is_busy(figure: Figure) -> bool:
    """Whether others disturbed it."""
    return figure.others > BUSY


def time(figure: Figure | None, query: str = "") -> str:
    """A figure's time, marked where it is unreliable; with the first call's where that makes what later ones use."""
    if figure is None:
        return "–"
    first = f", first {words.seconds(figure.first)}" if query in words.KEEPING else ""
    return ("~ " if is_busy(figure) else "") + words.seconds(figure.seconds) + first


def questions(results: Results) -> Iterator[str]:
    """A table a question."""
    kappa = results.main_kappa()
    others = [other for other in results.kappas() if other != kappa]
    for query, title in words.TITLES.items():
        cases = results.of(query=query, kappa=kappa)
        if not cases:
            continue
        yield f"## {title}"
        yield fill(f"{words.MEANINGS[query]} Limit: {words.LIMITS[cases[0].entry['limit']]}.")
        head = ["(m, d)", "limit", LIBRARY, "R", "fastest peer", "time", "R", "times faster"]
        head += [f"fastest peer with R ≤ {PROMISED}", "time", "times faster"]
        head += [f"times faster, κ = {words.power(other)}" for other in others]
        yield table(head, [_row(results, case, others) for case in sorted(cases, key=lambda case: case.size)])


def _row(results: Results, case: Case, others: list[float]) -> list[str]:
    ours, fastest, good = case.ours, case.fastest, case.fastest_good
    cells = [words.size(*case.size), words.seconds(case.limit), time(ours, case.query), words.error(ours.error)]
    cells += [fastest.name, time(fastest, case.query), words.error(fastest.error)] if fastest else ["none", "–", "–"]
    cells.append(words.ratio(case.gain_over_all))
    same = good is not None and good is fastest
    cells += ["the same" if same else good.name if good else "none", "–" if same else time(good, case.query)]
    gains = [case.gain]
    for kappa in others:
        found = results.of(query=case.query, kappa=kappa, m=case.size[0], d=case.size[1])
        gains.append(found[0].gain if found else None)
    return cells + [words.ratio(gain) for gain in gains]


def all_contenders(results: Results) -> Iterator[str]:
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


def libraries(results: Results) -> Iterator[str]:
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


def five_lines(results: Results) -> Iterator[str]:
    """Times over those of the five lines, whose answers have no digits where κ is large."""
    kappas = results.kappas()
    yield fill(
        f"The library's time over that of the five lines, κ = {' / '.join(map(words.power, kappas))}. "
        "The R of both are in the tables above."
    )
    queries = [query for query in words.TITLES if any(_over_five_lines(case) for case in results.of(query=query))]
    rows = []
    for m, d in sorted({case.size for case in results.cases}):
        found = {(case.query, case.kappa): case for case in results.of(m=m, d=d)}
        ratios = ([_over_five_lines(found.get((query, kappa))) for kappa in kappas] for query in queries)
        rows.append([words.size(m, d), *(" / ".join(map(words.ratio, each)) for each in ratios)])
    yield table(["(m, d)", *(words.TITLES[query] for query in queries)], rows)


def _over_five_lines(case: Case | None) -> float | None:
    peers = [peer for peer in case.peers if peer.name.startswith("five lines")] if case else []
    return case.ours.seconds / peers[0].seconds if peers else None
