"""Damped Gauss–Newton steps with momentum, for losses that are mean squares of residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mfac_linalg import WoodburyRankOneInverse


class GaussNewton(torch.optim.Optimizer):
    """w ← w − lr v, v ← momentum v + (λI + JᵀJ)⁻¹Jᵀr, r the residuals of a batch over √n and J their Jacobian.

    A row of J is the gradient of one residual. Jᵀr is a combination of them, so that the product is a push-through.
    """

    def __init__(self, parameters: Any, lr: float, damping: float, *, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "damping": damping, "momentum": momentum})

    def step(self, residuals: Callable[[], Tensor]) -> float:
        """Take a step; return the loss before it, the mean square of the residuals."""
        (group,) = self.param_groups
        parameters = group["params"]
        r = residuals()
        r = r / len(r) ** 0.5
        loss = float(r.detach().square().sum())
        if not math.isfinite(loss):
            return loss
        unit = torch.eye(len(r), dtype=r.dtype)
        rows = torch.autograd.grad(r, parameters, unit, is_grads_batched=True)
        jacobian = torch.cat([part.flatten(1) for part in rows], 1)
        inverse = WoodburyRankOneInverse(jacobian, group["damping"], normalization="sum")
        direction = inverse.matvec_gradients(r.detach())
        with torch.no_grad():
            state = self.state[parameters[0]]
            state["momentum_buffer"] = group["momentum"] * state.get("momentum_buffer", 0.0) + direction
            weights = parameters_to_vector(parameters)
            vector_to_parameters(weights - group["lr"] * state["momentum_buffer"], parameters)
        return loss
