"""SciPy's conjugate gradients and MINRES on F as an operator, to the residual of the library's answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg, minres

from benchmarks.machine import Limits
from benchmarks.peers.contender import Call, Contender, Question
from benchmarks.problems import Problem

MOST_ITERATIONS = 100
MOST_SECONDS = 60.0
NOTHING_BUILT = "builds nothing"
NO_ELEMENTS = "has no elements or diagonal of an inverse"
NO_WINDOW = "has no window"


def _build(problem: Problem) -> Call:
    gradients, m = problem.gradients, problem.num_gradients
    damping = np.float32(problem.damping)

    def multiply(x: np.ndarray) -> np.ndarray:
        return damping * x + (gradients @ x) @ gradients / np.float32(m)

    return lambda: LinearOperator((problem.dim,) * 2, matvec=multiply, dtype=np.float32)


def _solve(solver: Callable[..., tuple[np.ndarray, int]], rtol: float, operator: Any, v: np.ndarray) -> np.ndarray:
    columns = [solver(operator, column, rtol=rtol, maxiter=MOST_ITERATIONS)[0] for column in np.atleast_2d(v.T)]
    return columns[0] if v.ndim == 1 else np.stack(columns, axis=1)


def _product(solver: Callable[..., Any], operator: Any, question: Question) -> Call:
    return partial(_solve, solver, question.residual, operator, question.v)


def _refuse_long_solves(question: Question, limits: Limits) -> str:
    columns = 64 if question.query == "block" else 1
    seconds = MOST_ITERATIONS * columns * limits.two_passes
    return f"{MOST_ITERATIONS} iterations would take some {seconds:.0f} s" if seconds > MOST_SECONDS else ""


CONTENDERS = tuple(
    Contender(
        f"SciPy {solver.__name__}",
        _build,
        dict.fromkeys(("random", "row", "combination", "block"), partial(_product, solver)),
        cannot={"build": NOTHING_BUILT, "diagonal": NO_ELEMENTS, "elements": NO_ELEMENTS, "step": NO_WINDOW},
        refuse=_refuse_long_solves,
    )
    for solver in (cg, minres)
)
