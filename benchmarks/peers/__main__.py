"""Time the library beside its peers: what the output does not hold yet is measured and added to it."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import threadpoolctl
import torch

from benchmarks.machine import describe, version
from benchmarks.peers import plan
from benchmarks.peers.queries import QUERIES
from benchmarks.peers.race import Pace, Race
from benchmarks.peers.store import Store
from benchmarks.problems import Problem

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
PACKAGES = ("jax", "linear_operator", "curvlinops-for-pytorch")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="two small sizes and short turns: a minute")
    add("--minutes", type=float, default=math.inf, help="start nothing after this time; the next run goes on")
    add("--gradients", type=int, nargs="*", help="only the sizes with these m")
    add("--dims", type=int, nargs="*", help="only the sizes with these d")
    add("--kappas", type=float, nargs="*", help="only these κ")
    add("--queries", nargs="*", choices=list(QUERIES), help="only these questions")
    add("--only", nargs="*", default=[], metavar="NAME", help="only the library and who has one of these in the name")
    add("--again", action="store_true", help="measure also what the output holds")
    add("--rounds", type=int, default=Pace.rounds, help="turns of each contender (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="of every library (default: %(default)s)")
    add("--memory", type=float, default=Pace.memory / 1e9, help="GB for all of them (default: %(default)g)")
    add("--patience", type=float, default=0, help="minutes to wait, in all, for other processes to pause")
    add("--output", type=Path, default=RESULTS, help="added to (default: benchmarks/results/peers.json)")
    return parser.parse_args(arguments)


def describe_run(threads: int) -> dict[str, Any]:
    """Machine, threads and versions, ready for JSON."""
    machine = describe()
    versions = {**machine["versions"], **{package: version(package) for package in PACKAGES}}
    return {**machine, "versions": versions, "threads": threads, "dtype": "float32"}


def line(figure: dict[str, Any], limit: float) -> str:
    """The figures of a contender in words."""
    if "reason" in figure:
        return f"    {figure['name']:<28} {figure['reason']}"
    milliseconds = 1e3 * figure["seconds"]
    return (
        f"    {figure['name']:<28} {milliseconds:11.4g} ms {figure['seconds'] / limit:8.2f} limits, R {figure['R']:.2g}"
    )


def races(options: argparse.Namespace, store: Store) -> Iterator[tuple[dict[str, Any], Race]]:
    """The questions that are to be asked, each with its race; one problem is in memory at a time."""
    contenders, pace = plan.contenders(options), plan.pace(options)
    for problem in plan.problems(options):
        key, race = {"m": problem.num_gradients, "d": problem.dim, "kappa": problem.kappa}, None
        for query in plan.queries(options):
            if options.again or not store.holds({**key, "query": query}):
                race = race or Race(problem, contenders, pace)
                yield {**key, "query": query}, race


def report(key: dict[str, Any], problem: Problem, figures: dict[str, Any]) -> None:
    """Print the figures of a question."""
    limit = figures["limit_seconds"]
    print(f"{problem} κ = {problem.kappa:g}, {key['query']}: {figures['limit']} {1e3 * limit:.4g} ms")
    print("\n".join(line(figure, limit) for figure in figures["contenders"]), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run until everything is measured or the time is over; 0 says that nothing is left."""
    options = parse(arguments)
    until = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(options.threads)
    with threadpoolctl.threadpool_limits(options.threads):
        store = Store(options.output, describe_run(options.threads))
        for key, race in races(options, store):
            if time.monotonic() > until:
                print("The time is over; the same command goes on from here.")
                return 1
            problem = race.problem
            figures = race.run(key["query"])
            store.add(key, {"seed": problem.seed, "damping": problem.damping, **figures})
            report(key, problem, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
