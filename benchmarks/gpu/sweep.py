"""The part `sweep`: the accuracy contract on many problems, by the tests' own sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from benchmarks.gpu.device import processes
from benchmarks.gpu.libraries import Library
from benchmarks.gpu.record import Json, Record
from mfac_linalg.testing import LIMIT
from tests.accuracy_sweep import Table, run, sweep_by_name

PROBLEMS, DRY_PROBLEMS, PORTION, MOST_JOBS, SHOWN = 500, 4, 25, 8, 20


def sweep(library: Library, record: Record) -> None:
    """Measure problems 0 to 499 on a library, in portions, each with and without whitening."""
    count = PROBLEMS if library.on_gpu else DRY_PROBLEMS
    portions = [list(range(start, min(start + PORTION, count))) for start in range(0, count, PORTION)]
    table, done = Table(), 0
    with contextlib.closing(_tables(library, portions)) as tables:
        for portion in tables:
            table.join(portion)
            done += PORTION
            record.update(problems=count, measured=min(done, count), **summary(table))
            if record.is_late:
                break
    if done < count:
        record.update(status="out of time")
    else:
        record.update(status="failed" if table.offenders else "passed")


def _tables(library: Library, portions: list[list[int]]) -> Generator[Table]:
    """The table of each portion, as they are done: in processes of their own on a GPU."""
    if not library.on_gpu:
        yield from (sweep_by_name(library.backend, portion) for portion in portions)
        return
    yield from run([(library.backend, portion) for portion in portions], processes(MOST_JOBS))


def summary(table: Table) -> Json:
    """The worst ratios, altogether and by dtype, precision, whitening and decade of κ."""
    rows = [
        {"arithmetic": row, "whiten": whiten, "decade": decade, "R": r, "forward": forward, "answers": answers}
        for (row, whiten, decade), (r, forward, answers) in sorted(table.worst.items())
    ]
    return {
        "limit": LIMIT,
        "answers": sum(row["answers"] for row in rows),
        "worst_R": max((row["R"] for row in rows), default=None),
        "worst_forward": max((row["forward"] for row in rows), default=None),
        "rows": rows,
        "builds_above_limit": len(table.offenders),
        "offenders": table.offenders[:SHOWN],
    }
