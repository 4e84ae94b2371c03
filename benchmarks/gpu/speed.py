"""The parts `speed` and `reads`: the time of every case beside plain work, and how often it reads the device."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.cases import Case, cases
from benchmarks.gpu.device import find_device
from benchmarks.gpu.host_reads import HostReads
from benchmarks.gpu.libraries import Library
from benchmarks.gpu.limits import Plain, of_device, of_problem, timed
from benchmarks.gpu.record import Json, Record
from benchmarks.problems import Problem

SIZES, DRY_SIZES = ((512, 1_000_000), (1024, 4_000_000)), ((8, 300), (12, 400))
KAPPAS = (1e2, 5e4)
CONTRACT, LAST_CALLS = 30, 8
COPIES = 5
"""Arrays of the size of the gradients that may be on the device at a time: a window is filled by way of some."""


def problems(library: Library, record: Record) -> Iterator[tuple[Problem, Any, Json]]:
    """Every problem with its gradients, drawn once for all κ of a size, and the fields that are saved of it.

    A size that the device has no memory for is left out, and saved as such. What fails in one problem does not stop the
    others.
    """
    device = find_device() if library.on_gpu else None
    found, left_out = record.fields["problems"], record.fields["left_out"]
    for m, d in SIZES if library.on_gpu else DRY_SIZES:
        needed = COPIES * 4 * m * d
        if device is not None and needed > device["memory_bytes"]:
            left_out.append({"num_gradients": m, "dim": d, "bytes_needed": needed})
            record.update()
            continue
        gradients = library.rows(m, d, Problem(m, d).seed)
        for kappa in KAPPAS:
            problem = Problem(m, d, kappa)
            found.append({**problem.description, "cases": [], "failure": None})
            yield problem, gradients, found[-1]
        del gradients
        gc.collect()


def measure(library: Library, record: Record, of: Callable[[Case, Problem, Any], Json]) -> None:
    """Save what `of` finds for every case of every problem, until no time is left."""
    record.update(problems=[], left_out=[])
    for problem, gradients, fields in problems(library, record):
        try:
            for case in cases(library, problem, gradients):
                if record.is_late:
                    record.update(status="out of time")
                    return
                fields["cases"].append({"name": case.name, **of(case, problem, gradients)})
                record.update()
                del case  # and with it the inverse, before a window takes its place
        except Exception:
            traceback.print_exc()
            fields["failure"] = traceback.format_exc(limit=-LAST_CALLS)
            gc.collect()
            record.update()
    found = record.fields["problems"]
    right = all(case.get("is_right", True) for fields in found for case in fields["cases"])
    record.update(status="passed" if right and not any(fields["failure"] for fields in found) else "failed")


def speed(library: Library, record: Record) -> None:
    """Time every case beside plain work; a wrong answer fails the part."""
    rates = of_device(library)
    record.update(rates=rates, plain=[])
    known: dict[tuple[int, ...], Plain] = {}

    def of(case: Case, problem: Problem, gradients: Any) -> Json:
        if gradients.shape not in known:
            plain = of_problem(library, gradients, rates["product"]["flops_per_second"])
            known[gradients.shape] = plain
            size = {"num_gradients": problem.num_gradients, "dim": problem.dim}
            record.fields["plain"].append(size | plain.as_dict())
        return time_case(library, case, known[gradients.shape])

    measure(library, record, of)


def time_case(library: Library, case: Case, plain: Plain) -> Json:
    """The seconds of a case, their ratio to plain work, and the error of one more answer."""
    timing = timed(library, case.call, case.argument)
    error = None
    if case.error is not None:
        given = case.argument()
        error = case.error(given, case.call(given))
    return {
        "limit": case.limit,
        "ratio": timing.seconds / getattr(plain, case.limit),
        "error": error,
        "is_right": error is None or error <= CONTRACT,
        **timing.as_dict(),
    }


def reads(library: Library, record: Record) -> None:
    """Count what every case copies from the device to the host, once it is warm."""
    counter = HostReads(library)
    record.update(known_reads=counter.known_reads)

    def of(case: Case, problem: Problem, gradients: Any) -> Json:
        library.wait(case.call(case.argument()))
        given = case.argument()
        library.wait(given)
        return counter.of(lambda: case.call(given))

    measure(library, record, of)
    if library.on_gpu and not counter.is_reliable:
        record.update(status="failed")
