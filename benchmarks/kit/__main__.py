"""Let mfac_linalg.testing look at inverses with published defects, and write docs/testing.md's figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import find, settings
from hypothesis.errors import NoSuchExample

from benchmarks.kit.defects import DEFECTS
from benchmarks.kit.page import with_figures
from benchmarks.kit.peers import PEERS, Peer
from benchmarks.machine import describe, version
from mfac_linalg.testing import CHECKS, Problem, check_inverse, strategies

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "testing-kit.json", ROOT / "docs" / "testing.md"
SEARCH = settings(database=None, derandomize=True, deadline=None)
PROBLEMS = strategies.problems("float32", decades=(0.1, 5.0), vector=False, weighted=False, normalization="mean")


def smallest_failure(make: Callable[[Problem], Any], check: str, examples: int = 400, **options: Any) -> str | None:
    """What `check_inverse` says of the smallest of some problems that fails a check; None if none does."""

    def fails(problem: Problem) -> bool:
        (result,) = check_inverse(make, problem, checks=[check], on_fail=None, **options)
        return result.status == "failed"

    try:
        problem = find(PROBLEMS, fails, settings=settings(SEARCH, max_examples=examples))
    except NoSuchExample:
        return None
    (result,) = check_inverse(make, problem, checks=[check], on_fail=None, **options)
    return str(result)


def look_at_defects() -> list[dict[str, Any]]:
    """Each published defect: whether its check finds it, the smallest example, and how long that took."""
    cases = []
    for defect in DEFECTS:
        start = time.perf_counter()
        text = smallest_failure(defect.make, defect.check)
        case = {"name": defect.make.__name__, "about": defect.make.__doc__, "seen": defect.seen, "check": defect.check}
        cases.append({**case, "seconds": round(time.perf_counter() - start, 2), "text": text})
        print(f"{defect.make.__name__}: {'found' if text else 'MISSED'} in {cases[-1]['seconds']} s")
    return cases


def look_at_peer(peer: Peer) -> dict[str, Any]:
    """Every check of a peer, with the smallest problem that fails."""
    import torch

    options = {"asarray": torch.from_numpy, "eps": peer.eps}
    found = {check: smallest_failure(peer.make, check, peer.examples, **options) for check in CHECKS}
    failed = {check: text for check, text in found.items() if text}
    print(f"{peer.name}: {', '.join(failed) or 'nothing'} failed")
    return {"name": peer.name, "package": peer.package, "version": version(peer.package), "failed": failed}


def main(arguments: list[str] | None = None) -> int:
    """Look, write the figures, and put them on the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kit", description=__doc__)
    parser.add_argument("--peers", action="store_true", help="look at linear_operator and curvlinops too")
    parser.add_argument("--page", action="store_true", help="measure nothing: only write the page again")
    options = parser.parse_args(arguments)
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not options.page:
        figures |= {"machine": describe(), "defects": look_at_defects()}
        figures |= {"peers": [look_at_peer(peer) for peer in PEERS]} if options.peers else {}
        RESULTS.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return int(not all(case["text"] for case in figures["defects"]))


if __name__ == "__main__":
    sys.exit(main())
