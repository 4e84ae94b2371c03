"""Which contenders, problems and questions a run is about."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from benchmarks.neighbours import Patience
from benchmarks.peers import curvlinops, dense, five_lines, library, linear_operator, paper, scipy_krylov
from benchmarks.peers.contender import Contender
from benchmarks.peers.queries import QUERIES
from benchmarks.peers.race import Pace
from benchmarks.problems import Problem

CONTENDERS: tuple[Contender, ...] = (
    *library.CONTENDERS,
    *five_lines.CONTENDERS,
    *linear_operator.CONTENDERS,
    *paper.CONTENDERS,
    *scipy_krylov.CONTENDERS,
    *curvlinops.CONTENDERS,
    *dense.CONTENDERS,
    *library.VARIANTS,
)
SIZES = (
    *((8, 100), (32, 1_000), (64, 1_000), (64, 10_000), (64, 100_000)),
    *((32, 100_000), (128, 100_000), (256, 100_000), (512, 100_000), (1024, 100_000)),
    *((64, 1_000_000), (512, 270_000), (1024, 1_000_000)),
)
KAPPAS = (5e4, 1e2, 5e5)
"""Real gradients have the first: it is measured first."""
QUICK_SIZES, QUICK_KAPPAS = ((8, 100), (32, 1_000)), (5e4, 1e2)
QUICK = Pace(rounds=3, run_in=0.002, counted=0.002)


def contenders(options: argparse.Namespace) -> list[Contender]:
    """The library and the contenders that were asked for; what is not installed is named."""
    names = [*options.only, library.NUMPY]
    chosen = [c for c in CONTENDERS if not options.only or c.name == names[-1] or any(n in c.name for n in names[:-1])]
    for package in sorted({package for c in chosen for package in c.needs if find_spec(package) is None}):
        left_out = sorted({c.name for c in chosen if package in c.needs})
        print(f"{package} is not installed; without it there is no {' and no '.join(left_out)}.", flush=True)
    return chosen


def pace(options: argparse.Namespace) -> Pace:
    """How long the turns of a run are."""
    if options.quick:
        return QUICK
    patience = Patience(60 * options.patience)
    return Pace(rounds=options.rounds, memory=1e9 * options.memory, patience=patience)


def problems(options: argparse.Namespace) -> Iterator[Problem]:
    """The problems that were asked for: all sizes at one κ, then at the next."""
    kappas: Sequence[float] = options.kappas or (QUICK_KAPPAS if options.quick else KAPPAS)
    for kappa in kappas:
        for m, d in QUICK_SIZES if options.quick else SIZES:
            if (not options.gradients or m in options.gradients) and (not options.dims or d in options.dims):
                yield Problem(m, d, kappa)


def queries(options: argparse.Namespace) -> list[str]:
    """The questions that were asked for, in the order in which they do not disturb each other."""
    return [query for query in QUERIES if not options.queries or query in options.queries]
