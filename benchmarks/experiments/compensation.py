"""Changes of the weights that stay: ``python -m benchmarks.experiments.compensation --data FOLDER``.

Three networks are pruned with the default arguments, by their full F and by filters: the sum of single changes, the
minimum of the model, and the change with the damping that the rows choose, all with the mask of the same scores.

- one-shot: sparsities from 50 to 95 %.
- steps-4: the same in four steps with gradients of their own.
- exchanges: one shot, with the mask that exchanges reach from that of the scores in 20 steps; the MLP and the CNN.

The ResNet-20 and its rows are those of the experiment on pruning, 256 means of 32 images (128 a step). The MLP has 200
means of 5 digits. The CNN, two convolutions and two linear layers, is trained on Fashion-MNIST for two epochs when it
is first needed, and kept beside the output; nothing was tuned on it. Seed 0 takes the training images in their order,
and any other seed shuffles them. Accuracy is that on the first 2,000 test images (1,000 digits). λ = 1e-5, float32.
Figures in the output file are not computed again.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.experiments import cifar, mnist, record
from benchmarks.experiments.mnist import Images
from mfac_linalg import BlockDiagonalInverse, WoodburyRankOneInverse
from mfac_linalg.pruning import exchange, joint_objective, joint_update, obs_scores, obs_update, prune
from mfac_linalg.torch import Unravel, mean_gradients

WHERE = (
    cifar.WHERE
    + mnist.WHERE
    + """\
fashion_mnist_train_a.npz, fashion_mnist_test.npz
                      x, (n, 28, 28) uint8, and y: the first 40,000 training images of Fashion-MNIST, and its test set
"""
)
DAMPING, TEST_IMAGES, EPOCHS, CNN_SEED = 1e-5, 2000, 2, 0
SPARSITIES, SEEDS, BLOCKS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95), (0, 1), ("full", "filters")
ROWS = {"MLP": (200, 5), "CNN": (256, 32), "ResNet-20": (256, 32)}  # and the samples of each
EXCHANGED, EXCHANGES = ("MLP", "CNN"), 20
STEP_ROWS, STEPS, STEP_SPARSITIES = 128, 4, (0.8, 0.9, 0.95)
CHANGES: dict[str, dict[str, Any]] = {
    "single": {"update": "single"},
    "minimum": {"update": "joint", "compensation_damping": 0.0},
    "auto": {"update": "joint"},
}


def load_cnn(folder: Path, cache: Path) -> tuple[nn.Module, Images, Images]:
    """A CNN trained on Fashion-MNIST, from the cache or now, and the images."""
    stored = (np.load(folder / f"fashion_mnist_{part}.npz") for part in ("train_a", "test"))
    train, test = (mnist.scaled(part["x"][:, None], part["y"], 0.286, 0.353) for part in stored)
    torch.manual_seed(CNN_SEED)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    if not cache.exists():
        _train(network, train)
        torch.save(network.state_dict(), cache)
    network.load_state_dict(torch.load(cache))
    return network, train, test


def _train(network: nn.Module, train: Images) -> None:
    batches = EPOCHS * (len(train[1]) // 64 + 1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train[1])).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(train[0][chosen]), train[1][chosen]).backward()
            optimizer.step()
            schedule.step()


def _has_axes(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1


class Pruned:
    """A trained network and its data."""

    def __init__(self, name: str, folder: Path, cache: Path) -> None:
        self.params, self.count, self.batch = _has_axes, *ROWS[name]
        if name == "ResNet-20":
            self.network: nn.Module = cifar.load_network(folder)
            self.train, self.test = (cifar.load_images(folder, part, 10_000) for part in ("train", "test"))
            self.params = cifar.prunable
        else:
            self.network, self.train, self.test = mnist.load(folder) if name == "MLP" else load_cnn(folder, cache)
            self.network.eval()
        self.test = self.test[0][:TEST_IMAGES], self.test[1][:TEST_IMAGES]
        named = {n: p.detach().clone() for n, p in self.network.named_parameters() if self.params(n, p)}
        self.unravel = Unravel({n: tuple(p.shape) for n, p in named.items()})
        self.weights = self.unravel.ravel(named)
        filters = [p[0].numel() for p in named.values() for _ in range(p.shape[0])]
        self.sizes = {"full": None, "filters": filters}
        self.scored = functools.lru_cache(maxsize=1)(self.scored)
        self.rows = functools.lru_cache(maxsize=1)(self.rows)

    def gradients(self, weights: Tensor, order: Tensor, count: int) -> Tensor:
        """Rows of images in some order, at some weights."""
        self.unravel.write(self.network, weights)
        images, classes = (x[order[: count * self.batch]] for x in self.train)
        options = {"batch_size": self.batch, "params": self.params}
        return mean_gradients(self.network, functional.cross_entropy, images, classes, **options)[0]

    def order(self, seed: int) -> Tensor:
        """The training images in the order of a seed."""
        count = len(self.train[1])
        return (
            torch.arange(count) if seed == 0 else torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        )

    def accuracy(self, weights: Tensor) -> float:
        """Per cent on the test images."""
        self.unravel.write(self.network, weights)
        return cifar.accuracy(self.network, *self.test)

    def rows(self, seed: int) -> Tensor:
        """Rows at the trained weights."""
        return self.gradients(self.weights, self.order(seed), self.count)

    def scored(self, blocks: str, seed: int) -> tuple[Any, Tensor]:
        """F⁻¹ at the trained weights, and the weights in the order of their scores."""
        rows, sizes = self.rows(seed), self.sizes[blocks]
        if sizes is None:
            inverse: Any = WoodburyRankOneInverse(rows, DAMPING, whiten=False)
        else:
            inverse = BlockDiagonalInverse(rows, DAMPING, block_sizes=sizes)
        return inverse, torch.argsort(obs_scores(self.weights, inverse))

    def cut(self, blocks: str, seed: int, sparsity: float) -> tuple[Any, Tensor]:
        """F⁻¹ at the trained weights, and the mask of the largest scores."""
        inverse, order = self.scored(blocks, seed)
        stays = torch.ones(len(order), dtype=torch.bool)
        stays[order[: round(sparsity * len(order))]] = False
        return inverse, stays

    def one_shot(self, blocks: str, seed: int, sparsity: float) -> dict[str, float]:
        """Accuracy after each change."""
        w, (inverse, stays) = self.weights, self.cut(blocks, seed, sparsity)
        changes = {
            "none": torch.where(stays, 0.0, -w),
            "single": obs_update(w, inverse, stays),
            "minimum": joint_update(w, inverse, stays),
            "auto": joint_update(w, inverse, stays, compensation_damping="auto"),
        }
        return {name: self.accuracy(w + change) for name, change in changes.items()}

    def exchanges(self, blocks: str, seed: int, sparsity: float) -> dict[str, float]:
        """Accuracy and joint objective with the mask of the scores, and after exchanges."""
        w, (inverse, stays) = self.weights, self.cut(blocks, seed, sparsity)
        start = time.perf_counter()
        masks = {"scores": stays, "exchanges": exchange(w, inverse, stays, steps=EXCHANGES)}
        found: dict[str, float] = {"seconds": time.perf_counter() - start}
        for name, mask in masks.items():
            change = joint_update(w, inverse, mask, compensation_damping="auto")
            found |= {name: self.accuracy(w + change), f"objective by {name}": joint_objective(w, inverse, mask)}
        return found

    def in_steps(self, blocks: str, seed: int, sparsity: float, change: str) -> dict[str, float]:
        """Accuracy after four steps with one of the changes."""
        order, count = self.order(seed), min(STEP_ROWS, self.count)

        def gradients(weights: Tensor, step: int) -> Tensor:
            return self.gradients(weights, order.roll(-step * count * self.batch), count)

        options = {"steps": STEPS, "damping": DAMPING, "block_sizes": self.sizes[blocks], **CHANGES[change]}
        return {"accuracy": self.accuracy(prune(self.weights, gradients, sparsity, **options).weights)}


class Study:
    """The networks, each loaded when it is first needed."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.network = functools.lru_cache(maxsize=1)(self.load)

    def load(self, name: str) -> Pruned:
        """One network."""
        return Pruned(name, self.folder, self.cache)

    def measure(self, method: str, network: str, **key: Any) -> dict[str, float]:
        """The figures of a key by a method of the network."""
        return getattr(self.network(network), method)(**key)


def one_shot(study: Study) -> Iterator[record.Task]:
    for seed, network, blocks, sparsity in itertools.product(SEEDS, ROWS, BLOCKS, SPARSITIES):
        key = {"network": network, "blocks": blocks, "seed": seed, "sparsity": sparsity}
        yield key, functools.partial(study.measure, "one_shot", **key)


def in_steps(study: Study) -> Iterator[record.Task]:
    choices = itertools.product(SEEDS, ROWS, BLOCKS, STEP_SPARSITIES, CHANGES)
    for seed, network, blocks, sparsity, change in choices:
        key = {"network": network, "blocks": blocks, "seed": seed, "sparsity": sparsity, "change": change}
        yield key, functools.partial(study.measure, "in_steps", **key)


def exchanges(study: Study) -> Iterator[record.Task]:
    for seed, network, blocks, sparsity in itertools.product(SEEDS, EXCHANGED, BLOCKS, STEP_SPARSITIES):
        key = {"network": network, "blocks": blocks, "seed": seed, "sparsity": sparsity}
        yield key, functools.partial(study.measure, "exchanges", **key)


PARTS: dict[str, record.Part] = {
    "one-shot": lambda study, held: one_shot(study),
    "steps-4": lambda study, held: in_steps(study),
    "exchanges": lambda study, held: exchanges(study),
}


def main() -> None:
    options = record.arguments("compensation", __doc__ or "", "The folder holds\n" + WHERE, PARTS)
    study = Study(options.data, options.output.with_suffix(".cnn.pt"))
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)


if __name__ == "__main__":
    main()
