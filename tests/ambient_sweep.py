"""The whole table of ambient modes: ``python -m tests.ambient_sweep [--libraries numpy torch …] [--jobs 2]``.

Every mode of a library by itself, every class in every form, and every query, four times: of an inverse that is built
in the mode, of one that is asked in it, of one for which both is so, and of one that was asked in it before. Each
answer is compared to the bit with that without a mode. `ROUNDED` and `REFUSED` in ``tests/modes.py`` list what rightly
agrees to rounding only, or is refused, with the reasons. ``tests/test_ambient_modes.py`` is the part of this table that
every run of the tests looks at.

Prints the cells, the differences, the answers that these lists allow and the seconds of each library, then every
difference; the exit status says whether there are any.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from tests.ambient_queries import Asked, answer, inverses, queries, same
from tests.backends import PRESENT, Backend
from tests.modes import MODES, REFUSED, ROUNDED, agree

NAMES = {"numpy": "numpy", "torch": "torch:cpu", "jax": "jax", "strict": "strict:CPU_DEVICE", "dask": "dask"}
"""The backends, by the short names of the command line."""


def backends() -> dict[str, Backend]:
    """Those that are installed, by short name."""
    return {short: b for short, name in NAMES.items() for b in PRESENT if b.name == name}


@dataclass
class Tally:
    """Cells, seconds and differences, of one library or of part of it."""

    cells: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)
    listed: int = 0

    def join(self, other: "Tally") -> None:
        """Add what another process counted."""
        self.cells += other.cells
        self.seconds += other.seconds
        self.differences += other.differences
        self.listed += other.listed


def ask(query: Callable[[Asked], Any], asked: Asked) -> Any:
    """An answer or a refusal, as in the small table; other exceptions too, which are no reason to stop."""
    try:
        return answer(query, asked)
    except Exception as failed:  # to be named in the list of differences
        return f"{type(failed).__name__}: {failed}"


def answers_in(mode: Callable[[], Any], build: Callable[[], Any], asked: Asked) -> Iterator[tuple[str, str, Any]]:
    """Way, query and answer, for every way and query; a mode or a build that fails is an answer to all of them."""
    plain, found = asked.inverse, queries(asked.inverse)
    ways = {"built": (True, (False,)), "built and asked": (True, (True,)), "asked": (False, (True, False))}
    for way, (built_inside, asks) in ways.items():
        try:
            asked.inverse = inside(mode, build) if built_inside else build()
            for name, query in found.items():
                for asked_inside in asks:
                    got = inside(mode, ask, query, asked) if asked_inside else ask(query, asked)
                    yield way if asked_inside or built_inside else "asked before", name, got
        except Exception as failed:  # in entering or leaving the mode, or in building
            yield from ((way, name, f"{type(failed).__name__}: {failed}") for name in found)
        finally:
            asked.inverse = plain


def inside(mode: Callable[[], Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call function(*arguments) in a mode."""
    with mode():
        return function(*arguments)


def sweep(short: str, kind: str) -> Tally:
    """Every mode of a library on one class."""
    start, tally, backend = time.perf_counter(), Tally(), backends()[short]
    build = inverses(backend)[kind]
    asked = Asked(build(), backend)
    wanted = {name: answer(query, asked) for name, query in queries(asked.inverse).items()}
    for mode, context in MODES[backend.library]().items():
        for way, name, got in answers_in(context, build, asked):
            tally.cells += 1
            if same(got, wanted[name]):
                continue
            if agree(got, wanted[name], mode, name):
                tally.listed += 1
            else:
                tally.differences.append(f"{short}, {mode}, {kind}, {name} ({way}): {describe_answer(got)}")
    tally.seconds = time.perf_counter() - start
    return tally


def describe_answer(got: Any) -> str:
    """A refusal in its words, any other answer by its class."""
    text = f"{got!r}" if isinstance(got, str | Exception) else f"another {type(got).__name__}"
    return text if len(text) <= 200 else f"{text[:200]} …"


def plan(libraries: list[str]) -> list[tuple[str, str]]:
    """Libraries and classes, those first that compile."""
    found = [(short, kind) for short in libraries for kind in inverses(backends()[short])]
    return sorted(found, key=lambda part: part[0] != "jax")


def run(libraries: list[str], jobs: int) -> dict[str, Tally]:
    """Fill the table in `jobs` processes of one thread each; a process has one class at a time."""
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    tallies = {short: Tally() for short in libraries}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = {pool.submit(sweep, *part): part[0] for part in plan(libraries)}
        for done in as_completed(parts):
            tallies[parts[done]].join(done.result())
    return tallies


def main() -> int:
    """Print the table; the exit status says whether a mode changed an answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=list(NAMES), default=list(backends()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if missing := [short for short in arguments.libraries if short not in backends()]:
        parser.error(f"not installed: {', '.join(missing)}")
    tallies = run(arguments.libraries, arguments.jobs)
    print(f"{'library':10}{'modes':>8}{'cells':>10}{'differences':>14}{'listed':>10}{'seconds':>10}")
    for short, tally in tallies.items():
        modes = len(MODES[backends()[short].library]())
        counts = f"{modes:8}{tally.cells:10,}{len(tally.differences):14}{tally.listed:10}{tally.seconds:10.0f}"
        print(f"{short:10}{counts}")
    for (mode, query), why in ROUNDED.items():
        print(f"to rounding: {mode}, {query or 'all queries'}: {why}")
    for mode, (_, why) in REFUSED.items():
        print(f"may be refused: {mode}: {why}")
    wrong = [line for tally in tallies.values() for line in tally.differences]
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
