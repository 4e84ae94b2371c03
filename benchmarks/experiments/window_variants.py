"""Another step that a window of gradients allows than those of `MFAC`, for the experiment `tuning`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mfac_linalg import SlidingWindowInverse

DECAY, BETA2 = 0.9, 0.999


class CovarianceDescent(torch.optim.Optimizer):
    """w ← w − lr D^−½ F̂⁻¹ D^−½ μ, μ a mean of gradients that decays by 0.9 a step, D = √v̂ + 1e-8 as in `MFAC`.

    The window has the differences of gradients from μ, so that F̂ is their covariance, instead of their second moment.

    Parameters
    ----------
    parameters : iterable of Parameter
        Of one network.
    lr, damping : float
        The rate is that of the directions that no gradient in the window has.
    window : int
        m.
    """

    def __init__(self, parameters: Any, lr: float, damping: float, *, window: int) -> None:
        super().__init__(parameters, {"lr": lr * damping})
        self.window, self.damping = window, damping
        self.inverse: SlidingWindowInverse | None = None
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take a step."""
        (group,) = self.param_groups
        parameters = group["params"]
        g = parameters_to_vector([p.grad for p in parameters])
        if self.inverse is None:
            self.inverse = SlidingWindowInverse(
                self.window, len(g), self.damping, normalization="window", dtype=g.dtype, xp=torch
            )
            self.mean, self.square = torch.zeros_like(g), torch.zeros_like(g)
        self.steps += 1
        self.mean.mul_(DECAY).add_(g, alpha=1 - DECAY)
        self.square.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        scale = ((self.square / (1 - BETA2**self.steps)).sqrt() + 1e-8).rsqrt()
        mean = self.mean / (1 - DECAY**self.steps)
        self.inverse.append((g - mean) * scale)
        x = self.inverse @ (mean * scale)
        vector_to_parameters(parameters_to_vector(parameters) - group["lr"] * scale * x, parameters)
