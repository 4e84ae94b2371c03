"""The paper's recursions: the static one in NumPy and PyTorch, the dynamic one as printed and through LAPACK."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.machine import Limits
from benchmarks.peers.contender import Call, Contender, Question
from benchmarks.problems import Problem
from benchmarks.recursion import NumpyRecursion, TorchRecursion
from benchmarks.window import DynamicRecursion, Triangles, as_printed, by_lapack

MOST_SECONDS = 60.0
"""The longest build that is waited for."""


def _refuse_long_builds(question: Question, limits: Limits) -> str:
    """Step k reads k rows twice."""
    problem = question.problem
    seconds = 4 * problem.dim * problem.num_gradients**2 / limits.read
    return f"its build would take some {seconds:.0f} s" if seconds > MOST_SECONDS else ""


def _answers(convert: Callable[[Any], Any]) -> dict[str, Callable[[Any, Question], Call]]:
    def product(state: Any, question: Question) -> Call:
        return partial(state.matmat if question.query == "block" else state.matvec, convert(question.v))

    def of_row(state: Any, question: Question) -> Call:
        return partial(state.matvec, convert(question.problem.stored_row))

    return {
        "build": of_row,
        **dict.fromkeys(("random", "row", "combination", "block"), product),
        "diagonal": lambda state, _: state.diagonal,
        "elements": lambda state, question: partial(state.element, *map(convert, question.problem.pairs)),
    }


def _stream(triangles: Triangles, problem: Problem) -> Callable[[], Call]:
    """A window over the rows of G, and the same rows again and again, the oldest first, as the library has them."""

    def build() -> Call:
        recursion = DynamicRecursion(problem.gradients, problem.damping, triangles)
        rows = itertools.cycle(problem.gradients)
        return lambda: recursion.append_matvec(next(rows))

    return build


def _step(step: Call, _: Question) -> Call:
    return step


CONTENDERS = (
    Contender(
        "recursion, NumPy",
        lambda problem: partial(NumpyRecursion, problem.gradients, problem.damping),
        _answers(lambda array: array),
        refuse=_refuse_long_builds,
        copies=1,
    ),
    Contender(
        "recursion, PyTorch",
        lambda problem: partial(TorchRecursion, torch.from_numpy(problem.gradients), problem.damping),
        _answers(torch.from_numpy),
        refuse=_refuse_long_builds,
        copies=1,
    ),
    Contender("recursion, as printed", partial(_stream, as_printed), {"step": _step}, copies=1),
    Contender("recursion, LAPACK", partial(_stream, by_lapack), {"step": _step}, copies=1),
)
