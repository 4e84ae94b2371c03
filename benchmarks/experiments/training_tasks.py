"""Three tasks to train on: the next character of a text, the price of a diamond, and Poisson's equation."""

from __future__ import annotations

import csv
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WHERE = """\
The folder holds diamonds.csv, 53,940 diamonds with nine properties and a price: from the package plotnine, where it is
plotnine/data/diamonds.csv. The text is the reference of the language that Python installs as pydoc_data.topics.
"""


class Batch(NamedTuple):
    """Inputs, and what a network is to make of them."""

    inputs: Tensor
    targets: Tensor


class Task(Protocol):
    """What a network is trained for.

    `batch` draws a batch of training data, and `error` is that of a trained network on data that it was not trained on:
    its validation error, by which options are chosen, and its test error.
    """

    steps: int

    def __init__(self, folder: Path) -> None: ...
    def network(self, seed: int) -> nn.Module: ...
    def batch(self, generator: torch.Generator) -> Batch: ...
    def loss(self, network: nn.Module, batch: Batch) -> Tensor: ...
    def error(self, network: nn.Module, part: str) -> float: ...


class LeastSquares(Task):
    """A task whose loss is the mean square of residuals."""

    def residuals(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch.inputs) - batch.targets

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return self.residuals(network, batch).square().mean()


class Transformer(nn.Module):
    """Two layers of causal attention with heads of 16 numbers, over the characters before."""

    def __init__(self, characters: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, width), nn.Embedding(length, width)
        layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(width, 2, 4 * width, **layer) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.characters(text) + self.positions(torch.arange(length))
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


class Text(Task):
    """The next character of Python's reference after up to 32 others: cross-entropy of a transformer, in nats."""

    steps = 500
    LENGTH, SIZE = 32, 32

    def __init__(self, folder: Path) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))
        alphabet, numbers = np.unique(np.array(list(text)), return_inverse=True)
        self.characters, self.text = len(alphabet), torch.from_numpy(numbers)
        first, second = int(0.9 * len(text)), int(0.95 * len(text))
        self.parts = {"validation": self.text[first:second], "test": self.text[second:]}
        self.train = self.text[:first]

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Transformer(self.characters, self.LENGTH)

    def batch(self, generator: torch.Generator) -> Batch:
        starts = torch.randint(len(self.train) - self.LENGTH, (self.SIZE, 1), generator=generator)
        windows = self.train[starts + torch.arange(self.LENGTH + 1)]
        return Batch(windows[:, :-1], windows[:, 1:])

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(network(batch.inputs).flatten(0, 1), batch.targets.flatten())

    @torch.no_grad()
    def error(self, network: nn.Module, part: str) -> float:
        """The mean over all windows of a part, which do not overlap."""
        windows = self.parts[part][:-1].unfold(0, self.LENGTH, self.LENGTH)
        targets = self.parts[part][1:].unfold(0, self.LENGTH, self.LENGTH)
        return float(self.loss(network, Batch(windows, targets)))


class Table(LeastSquares):
    """The logarithm of the price of a diamond from its nine properties: root mean square error of two layers."""

    steps = 1500
    SIZE = 128

    def __init__(self, folder: Path) -> None:
        with (folder / "diamonds.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        numbers = [np.array([float(row[name]) for row in rows]) for name in ("carat", "depth", "table", "x", "y", "z")]
        classes = [np.array([row[name] for row in rows]) for name in ("cut", "color", "clarity")]
        columns = [*numbers, *(np.equal(x, value) for x in classes for value in np.unique(x))]
        inputs, prices = np.stack(columns, 1).astype(np.float32), np.log([float(row["price"]) for row in rows])
        order = np.random.default_rng(0).permutation(len(rows))
        self.train, *others = np.split(order, [int(0.8 * len(rows)), int(0.9 * len(rows))])
        self.parts = dict(zip(("validation", "test"), others, strict=True))
        mean, deviation = inputs[self.train].mean(0), inputs[self.train].std(0)
        self.inputs = torch.from_numpy((inputs - mean) / deviation)
        self.targets = torch.from_numpy((prices - prices[self.train].mean()).astype(np.float32))

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first = nn.Linear(self.inputs.shape[1], 64)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))

    def batch(self, generator: torch.Generator) -> Batch:
        chosen = self.train[torch.randint(len(self.train), (self.SIZE,), generator=generator)]
        return Batch(self.inputs[chosen], self.targets[chosen])

    @torch.no_grad()
    def error(self, network: nn.Module, part: str) -> float:
        chosen = self.parts[part]
        return float(self.loss(network, Batch(self.inputs[chosen], self.targets[chosen])).sqrt())


class Equation(LeastSquares):
    """−Δu = f on the unit square, u = 0 at its border: relative error of u, in float64.

    u is 16 x(1 − x) y(1 − y) times a network that is trained to have residuals of mean square zero, and f is that of
    the exact solution sin πx sin πy + ½ sin 3πx sin 2πy.
    """

    steps = 750
    SIZE, MODES = 128, ((1.0, 1, 1), (0.5, 3, 2))

    def __init__(self, folder: Path) -> None:
        grid = torch.linspace(0, 1, 65, dtype=torch.float64)[1:-1]
        points = torch.cartesian_prod(grid, grid)
        self.parts = {"validation": points[::2], "test": points[1::2]}
        self.unit = float(self.force(points).square().mean().sqrt())

    def exact(self, points: Tensor) -> Tensor:
        x, y = torch.pi * points.T
        return sum(size * torch.sin(p * x) * torch.sin(q * y) for size, p, q in self.MODES)

    def force(self, points: Tensor) -> Tensor:
        x, y = torch.pi * points.T
        waves = ((size * (p * p + q * q), p, q) for size, p, q in self.MODES)
        return torch.pi**2 * sum(size * torch.sin(p * x) * torch.sin(q * y) for size, p, q in waves)

    def network(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0)
        return nn.Sequential(*layers).double()

    def batch(self, generator: torch.Generator) -> Batch:
        points = torch.rand(self.SIZE, 2, generator=generator, dtype=torch.float64)
        return Batch(points, self.force(points) / self.unit)

    def residuals(self, network: nn.Module, batch: Batch) -> Tensor:
        """−Δu − f, in units of the root mean square of f."""
        points = batch.inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self._solution(network, points).sum(), points, create_graph=True)
        curvatures = (
            torch.autograd.grad(slope[:, axis].sum(), points, create_graph=True)[0][:, axis] for axis in (0, 1)
        )
        return -sum(curvatures) / self.unit - batch.targets

    @torch.no_grad()
    def error(self, network: nn.Module, part: str) -> float:
        points = self.parts[part]
        exact = self.exact(points)
        return float((self._solution(network, points) - exact).norm() / exact.norm())

    @staticmethod
    def _solution(network: nn.Module, points: Tensor) -> Tensor:
        return 16 * (points * (1 - points)).prod(1) * network(points)


TASKS: dict[str, type[Task]] = {"text": Text, "table": Table, "equation": Equation}
