"""Other steps that a window of gradients allows than that of `MFAC`, for the experiment `tuning`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mfac_linalg import SlidingWindowInverse

DECAY, BETA2 = 0.9, 0.999


class WindowDescent(torch.optim.Optimizer):
    """w ← w − lr D^−½ F̂⁻¹ D^−½ μ, μ a mean of gradients that decays by 0.9 a step, D = √v̂ + 1e-8 as in `MFAC`.

    The momentum comes before F⁻¹, as in Adam. μ is a combination of the gradients in the window but for the share of
    those that have left it, 0.9¹²⁸ with 128 gradients: without those F̂⁻¹D^−½μ is a push-through.

    Parameters
    ----------
    parameters : iterable of Parameter
        Of one network.
    lr, damping : float
        The rate is that of the directions that no gradient in the window has.
    window : int
        m.
    centred : bool
        Whether the window has the differences of gradients from μ, so that F̂ is their covariance, instead of their
        second moment.
    """

    def __init__(self, parameters: Any, lr: float, damping: float, *, window: int, centred: bool = False) -> None:
        super().__init__(parameters, {"lr": lr * damping})
        self.window, self.damping, self.centred = window, damping, centred
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
        if self.centred:
            self.inverse.append((g - mean) * scale)
            x = self.inverse @ (mean * scale)
        else:
            self.inverse.append(g * scale)
            x = self.inverse.matvec_gradients(self._weights_of_mean(g))
        vector_to_parameters(parameters_to_vector(parameters) - group["lr"] * scale * x, parameters)

    def _weights_of_mean(self, like: Tensor) -> Tensor:
        """c with D^−½μ = Gᵀc, from the oldest gradient to the newest."""
        ages = torch.arange(len(self.inverse) - 1, -1, -1, dtype=like.dtype)
        return (1 - DECAY) * DECAY**ages / (1 - DECAY**self.steps)
