"""What is timed: build, products, diagonal and a window's step, each with the error of its answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.libraries import Library
from benchmarks.problems import Problem
from mfac_linalg import SlidingWindowInverse, WoodburyRankOneInverse

EPS = float(np.finfo(np.float32).eps)
SAMPLE = 8
"""Entries of a diagonal that are compared with products."""


@dataclass(frozen=True)
class Case:
    """One call.

    Parameters
    ----------
    name : str
        What it is.
    limit : str
        The plain work that it is compared with, a field of `limits.Plain`.
    argument : callable
        Makes the argument of a call, which is not timed.
    call : callable
        The call of that argument.
    error : callable
        Of the argument and the answer: the error, in units of what the contract limits to 30.
    """

    name: str
    limit: str
    argument: Callable[[], Any]
    call: Callable[[Any], Any]
    error: Callable[[Any, Any], float] | None = None


def cases(library: Library, problem: Problem, gradients: Any) -> Iterator[Case]:
    """The calls of one problem, one after the other: what is no longer needed is free before the window is built."""
    damping = problem.damping
    yield Case("build", "gram", lambda: gradients, lambda g: WoodburyRankOneInverse(g, damping))
    inverse = WoodburyRankOneInverse(gradients, damping)
    row = problem.num_gradients // 2
    vectors = {
        "product of a random vector": lambda: library.normal((problem.dim,), problem.seed + 1),
        "product of a row": lambda: gradients[row, :],
    }
    error = partial(_ratio, library, inverse)
    for name, v in vectors.items():
        yield Case(name, "two_reads", v, inverse.matvec, error)
    yield Case(
        "diagonal", "one_read", lambda: None, lambda _: inverse.diagonal(), partial(_entries_off, library, inverse)
    )
    if library.compiles:
        product = partial(library.compiled(lambda inverse, v: inverse.matvec(v)), inverse)
        for name, v in vectors.items():
            yield Case(f"{name}, compiled", "two_reads", v, product, error)
    inverse = product = error = None
    window = SlidingWindowInverse.from_gradients(gradients, damping)
    seeds = itertools.count(problem.seed + 2)  # a gradient of its own for each step: equal rows would be dependent
    fresh = (library.rows(1, problem.dim, seed)[0, :] for seed in seeds)
    yield Case("step", "two_reads", lambda: next(fresh), window.append_matvec, partial(_ratio, library, window))


def _ratio(library: Library, inverse: Any, v: Any, x: Any) -> float:
    """R = ‖v − Fx‖/(‖F‖‖x‖ eps), by the library's own two passes."""
    return float(library.to_numpy(inverse.backward_error(v, x))) / EPS


def _entries_off(library: Library, inverse: Any, _: None, values: Any) -> float:
    """The largest difference of some entries of the diagonal from products with unit vectors, in eps/λ."""
    chosen = np.linspace(0, inverse.dim - 1, SAMPLE).astype(np.int32)
    units = np.zeros((inverse.dim, SAMPLE), dtype=np.float32)
    units[chosen, np.arange(SAMPLE)] = 1
    columns = library.to_numpy(inverse.matmat(library.asarray(units)))
    found = library.to_numpy(values)[chosen].astype(np.float64)
    error = np.max(np.abs(found - columns[chosen, np.arange(SAMPLE)]))
    return float(error) * inverse.damping / EPS
