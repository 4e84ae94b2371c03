"""Inverses of other packages, as `make` for mfac_linalg.testing; PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mfac_linalg.testing import Problem

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Peer:
    """An inverse of a package, and the error that its author promises: None for rounding."""

    name: str
    package: str
    make: Callable[[Problem], Any]
    eps: float | None = None
    examples: int = 60  # problems of each check


def low_rank_plus_diagonal(problem: Problem) -> Callable[[Any], Any]:
    """linear_operator: mF = mλI + GᵀG, solved by Woodbury's identity."""
    import torch
    from linear_operator import operators

    gradients, (m, d) = torch.from_numpy(problem.gradients), problem.shape
    shift = torch.tensor([m * problem.damping], dtype=gradients.dtype)
    operator = operators.LowRankRootAddedDiagLinearOperator(
        operators.LowRankRootLinearOperator(gradients.T), operators.ConstantDiagLinearOperator(shift, diag_shape=d)
    )
    return lambda v: operator.solve(v) * m


def conjugate_gradients(problem: Problem) -> Any:
    """curvlinops: conjugate gradients on the empirical Fisher matrix of a linear model, to a residual of 1e-5."""
    import torch
    from curvlinops import CGInverseLinearOperator, EFLinearOperator
    from curvlinops.examples import IdentityLinearOperator

    gradients, (m, d) = torch.from_numpy(problem.gradients), problem.shape
    model = torch.nn.Linear(d, 1, bias=False).to(gradients.dtype)
    torch.nn.init.zeros_(model.weight)
    batch = (gradients, torch.full((m, 1), -0.5, dtype=gradients.dtype))  # the gradient of (gᵀθ + 1/2)² is g at θ = 0
    parameters = list(model.parameters())
    fisher = EFLinearOperator(model, torch.nn.MSELoss(), parameters, [batch], check_deterministic=False)
    shapes = [tuple(parameter.shape) for parameter in parameters]
    damped = fisher + problem.damping * IdentityLinearOperator(shapes, gradients.device, gradients.dtype)
    return CGInverseLinearOperator(damped, tolerance=TOLERANCE, max_iter=1000, eps=1e-20)


PEERS = (
    Peer("LowRankRootAddedDiagLinearOperator.solve", "linear_operator", low_rank_plus_diagonal),
    Peer("CGInverseLinearOperator, tolerance 1e-5", "curvlinops-for-pytorch", conjugate_gradients, TOLERANCE, 20),
)
