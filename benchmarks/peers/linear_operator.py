"""`LowRankRootAddedDiagLinearOperator` of linear_operator, the package under GPyTorch: Woodbury in PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.peers.contender import Call, Contender, Question
from benchmarks.problems import Problem

NO_ELEMENTS = "has no elements or diagonal of an inverse"
NO_WINDOW = "has no window"


def _build(problem: Problem) -> Call:
    """Take mF = mλI + GᵀG: a root of GᵀG is a view of G, where one of GᵀG/m would be a copy."""
    from linear_operator import operators

    gradients = torch.from_numpy(problem.gradients)
    shift = torch.tensor([problem.num_gradients * problem.damping], dtype=gradients.dtype)

    def call() -> Any:
        operator = operators.LowRankRootAddedDiagLinearOperator(
            operators.LowRankRootLinearOperator(gradients.T),
            operators.ConstantDiagLinearOperator(shift, diag_shape=problem.dim),
        )
        _ = operator.chol_cap_mat
        return operator

    return call


def _solve(operator: Any, m: int, v: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return operator.solve(v) * m


def _product(operator: Any, question: Question) -> Call:
    return partial(_solve, operator, question.problem.num_gradients, torch.from_numpy(question.v))


def _of_row(operator: Any, question: Question) -> Call:
    return _product(operator, Question(question.problem, "row"))


CONTENDERS = (
    Contender(
        "linear_operator",
        _build,
        {"build": _of_row, **dict.fromkeys(("random", "row", "combination", "block"), _product)},
        needs=("linear_operator",),
        cannot={"diagonal": NO_ELEMENTS, "elements": NO_ELEMENTS, "step": NO_WINDOW},
        copies=0.2,
        copies_for={"build": 1.2},
    ),
)
