"""curvlinops: conjugate gradients on the empirical Fisher matrix of a model whose per-sample gradients are the rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.machine import Limits
from benchmarks.peers.contender import Call, Contender, Question
from benchmarks.problems import Problem

MOST_ITERATIONS = 100
MOST_SECONDS = 60.0
SMALLEST_CURVATURE = 1e-20
"""What it takes pᵀFp for zero at; at its default, 1e-10, it comes to a halt before the residual is small."""
PASSES = {"block": 32}
"""Plain passes over G in the time of an iteration, about; 4 for a vector."""
NOTHING_BUILT = "builds nothing"
NO_ELEMENTS = "only estimates a diagonal at random"
NO_WINDOW = "has no window"


def _build(problem: Problem) -> Call:
    """A linear model f_i = g_iᵀθ at θ = 0 with the target −1/2: the gradient of (f_i − y_i)² is g_i."""
    from curvlinops import EFLinearOperator
    from curvlinops.examples import IdentityLinearOperator

    gradients = torch.from_numpy(problem.gradients)
    model = torch.nn.Linear(problem.dim, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    batch = (gradients, torch.full((problem.num_gradients, 1), -0.5))
    parameters = list(model.parameters())

    def call() -> Any:
        fisher = EFLinearOperator(model, torch.nn.MSELoss(), parameters, [batch], check_deterministic=False)
        shapes = [tuple(p.shape) for p in parameters]
        return fisher + problem.damping * IdentityLinearOperator(shapes, gradients.device, gradients.dtype)

    return call


def _product(operator: Any, question: Question) -> Call:
    from curvlinops import CGInverseLinearOperator

    options = {"tolerance": question.residual, "max_iter": MOST_ITERATIONS, "eps": SMALLEST_CURVATURE}
    inverse = CGInverseLinearOperator(operator, **options)
    return partial(inverse.__matmul__, torch.from_numpy(question.v))


def _refuse_long_solves(question: Question, limits: Limits) -> str:
    seconds = MOST_ITERATIONS * PASSES.get(question.query, 4) * limits.two_passes
    return f"{MOST_ITERATIONS} iterations would take some {seconds:.0f} s" if seconds > MOST_SECONDS else ""


CONTENDERS = (
    Contender(
        "curvlinops",
        _build,
        dict.fromkeys(("random", "row", "combination", "block"), _product),
        needs=("curvlinops",),
        cannot={"build": NOTHING_BUILT, "diagonal": NO_ELEMENTS, "elements": NO_ELEMENTS, "step": NO_WINDOW},
        refuse=_refuse_long_solves,
    ),
)
