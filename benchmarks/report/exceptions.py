"""The cases in which a peer is faster than the library."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contents.markdown import table
from benchmarks.report import words
from benchmarks.report.cases import PROMISED, Case, Figure, Results


def lines(results: Results) -> Iterator[str]:
    """Two tables: peers whose answer is as good, and peers whose answer is not."""
    every = results.of()
    good = [(case, case.fastest_good) for case in every if case.gain is not None and case.gain < 1]
    yield f"With an answer as good (R ≤ {PROMISED}), case by case: {len(good)} of {len(every)}."
    if good:
        head = ["question", "(m, d)", "κ", "mfac_linalg", "the peer", "its time", "its R", "times faster", "reason"]
        yield table(
            head,
            [
                _row(case, peer, results.cost_of_call(case))
                for case, peer in sorted(good, key=lambda pair: _order(pair[0]))
            ],
        )
    worse = [(case, peer) for case in every for peer in case.peers if _is_faster_and_wrong(case, peer)]
    yield f"With R over {PROMISED}, peer by peer: what a faster answer costs in digits."
    if worse:
        yield table(
            ["question", "the peer", "cases", "times faster, most", "its R", "R of mfac_linalg"], _by_peer(worse)
        )


def _order(case: Case) -> tuple[int, float, tuple[int, int]]:
    return list(words.TITLES).index(case.query), case.kappa, case.size


def _is_faster_and_wrong(case: Case, peer: Figure) -> bool:
    return peer.seconds < case.ours.seconds and not peer.is_good


def _row(case: Case, peer: Figure, cost_of_call: float) -> list[str]:
    return [
        *(words.TITLES[case.query], words.size(*case.size), words.power(case.kappa)),
        *(words.seconds(case.ours.seconds), peer.name, words.seconds(peer.seconds), words.error(peer.error)),
        *(words.ratio(case.ours.seconds / peer.seconds), reason(case, peer, cost_of_call)),
    ]


def reason(case: Case, peer: Figure, cost_of_call: float) -> str:
    """Why the peer is faster, as far as the figures say it; a call costs so many seconds however small G is."""
    known = words.REASONS.get((peer.name, case.query))
    if known:
        return known
    beyond = case.ours.seconds - peer.seconds
    if case.limit <= beyond / 4 and beyond <= words.CALLS * cost_of_call:
        return f"the cost of a call: {words.seconds(beyond)} more, where the limit is {words.seconds(case.limit)}"
    if case.query in words.SERIAL and case.size[0] < words.SERIAL_ROWS:
        return words.SERIAL_REASON
    return words.GENERAL_REASONS.get(case.query, "–")


def _by_peer(worse: list[tuple[Case, Figure]]) -> Iterator[list[str]]:
    found: dict[tuple[str, str], list[tuple[Case, Figure]]] = {}
    for case, peer in worse:
        found.setdefault((case.query, peer.name), []).append((case, peer))
    for (query, name), pairs in sorted(found.items(), key=lambda item: (_order(item[1][0][0])[0], item[0][1])):
        most = max(case.ours.seconds / peer.seconds for case, peer in pairs)
        errors = _span([peer.error for _, peer in pairs])
        ours = _span([case.ours.error for case, _ in pairs])
        yield [words.TITLES[query], name, str(len(pairs)), words.ratio(most), errors, ours]


def _span(values: list[float]) -> str:
    least, most = words.error(min(values)), words.error(max(values))
    return least if least == most else f"{least} to {most}"
