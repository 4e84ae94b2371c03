"""Parameters, gradients and optimizers that the tests of PyTorch's optimizer share."""

import functools

import numpy as np
import pytest

import mfac_linalg as ml

torch = pytest.importorskip("torch")
nn = torch.nn
Optimizer = pytest.importorskip("mfac_linalg.torch").MFAC
MFAC = functools.partial(Optimizer, beta2=None, momentum=0.0, normalization="mean")
"""The plain method; the defaults have a test of their own."""
SHAPES = ((2, 3), (3,), (), (2, 1, 2))
DIM = 14
OPTIONS = {"lr": 0.1, "window": 3, "damping": 0.3}


def parameters(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def set_gradients(params, step, *, missing=()):
    """Gradients of step `step`, the same whatever the parameters are; None for some."""
    generator = torch.Generator().manual_seed(1000 + step)
    for k, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = None if k in missing else g


def run_steps(optimizer, params, steps, *, start=0):
    for step in range(start, start + steps):
        set_gradients(params, step)
        optimizer.step()


def values(tensors):
    return np.concatenate([x.detach().double().numpy().reshape(-1) for x in tensors])


def copies(params):
    return [p.detach().clone() for p in params]


def same(some, others):
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


CONFIGURATIONS = {
    "one group": lambda p: MFAC(p, momentum=0.5, weight_decay=0.1, **OPTIONS),
    "two groups": lambda p: MFAC([{"params": p[:2], "window": 7}, {"params": p[2:]}], momentum=0.5, **OPTIONS),
    "shared window": lambda p: MFAC(
        [{"params": p[:2]}, {"params": p[2:]}], momentum=0.5, shared_window=True, **OPTIONS
    ),
    "compressed": lambda p: MFAC(p, compression=ml.TopK(0.3), **OPTIONS),
    "masked": lambda p: MFAC(p, momentum=0.5, masks={p[0]: torch.eye(2, 3)}, **OPTIONS),
    "momentum of gradients": lambda p: MFAC(p, momentum=0.5, momentum_of="gradients", weight_decay=0.1, **OPTIONS),
    "beta2": lambda p: MFAC(p, momentum=0.5, beta2=0.9, masks={p[0]: torch.eye(2, 3)}, **OPTIONS),
}


class Dense:
    """The optimizer of one group with F⁻¹ by np.linalg.inv, in float64."""

    def __init__(
        self,
        start,
        *,
        lr,
        window,
        damping,
        beta2=None,
        momentum=0.0,
        momentum_of="steps",
        weight_decay=0.0,
        decoupled=True,
        sign=1.0,
    ):
        self.momentum_of = momentum_of
        self.p, self.rows, self.v = start.copy(), [], np.zeros_like(start)
        self.squares, self.beta2 = [], beta2
        self.options = lr, window, damping, momentum, weight_decay, decoupled, sign

    def step(self, g):
        lr, window, damping, momentum, weight_decay, decoupled, sign = self.options
        g = sign * g + (0 if decoupled else weight_decay) * self.p
        root = np.ones_like(g) if self.beta2 is None else np.sqrt(self.deviation(g))
        self.rows = [*self.rows, g / root][-window:]
        rows = root * np.array(self.rows)
        fisher = damping * np.diag(root**2) + rows.T @ rows / len(rows)
        if self.momentum_of == "steps":
            self.v = momentum * self.v + np.linalg.inv(fisher) @ g
        else:
            self.v = np.linalg.inv(fisher) @ (momentum ** np.arange(len(rows))[::-1] @ rows)
        self.p = self.p - lr * (self.v + (weight_decay if decoupled else 0) * self.p)

    def deviation(self, g):
        """The root of Adam's mean of squared gradients."""
        self.squares.append(g**2)
        weights = self.beta2 ** np.arange(len(self.squares))[::-1]
        return np.sqrt(np.average(self.squares, axis=0, weights=weights)) + 1e-8


def make_optimizer(params=None, **options):
    return MFAC(parameters() if params is None else params, **{**OPTIONS, **options})


def start_optimizer(**options):
    params = parameters()
    optimizer = make_optimizer(params[:2], **options)
    run_steps(optimizer, params, 1)
    return optimizer, params
