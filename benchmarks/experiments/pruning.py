"""Pruning a trained ResNet-20: ``python -m benchmarks.experiments.pruning --data FOLDER``.

- one-shot: nine methods at sparsities from 30 to 95 %, with 64 to 512 gradients.
- damping: the same with 256 gradients, at dampings over four decades.
- steps-4, steps-16: 128 gradients at the weights that are left, 4 and 16 times; joint changes with θ = 0, and by
  filters also with the default θ.
- damping-4: 4 steps to 80 % at dampings over four decades.
- search: 4 steps with the damping and the length of the update chosen on training images.
- tuning: a few epochs of training after the pruning to 80 and 90 %.
- model: `mfac_linalg.torch.prune_model` as README.md calls it, to 80 % in 16 steps, with its own choice of parameters
  (the convolutions of shortcuts too) and with that of all other parts.

Row i of G is the gradient of the mean cross-entropy over training images 32i … 32i + 31, in eval mode (16i … 16i + 15
for 512 rows: there are 10,000 images); accuracy is that on the first 4,000 test images. The rows of step j are those of
the images from ((j − 1) mod 2) · 4,096 on. Figures in the output file are not computed again.
"""

from __future__ import annotations

import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.experiments import cifar, curves, record
from mfac_linalg import BlockDiagonalInverse, WoodburyRankOneInverse
from mfac_linalg.pruning import joint_update, obs_scores, obs_update, prune
from mfac_linalg.torch import Unravel, mean_gradients, prune_model

BATCH, TEST_IMAGES, TRAINING_IMAGES = 32, 4000, 10_000
SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
STEP_SPARSITIES = (0.8, 0.9, 0.7)
NUM_GRADIENTS, DAMPING = {64: BATCH, 128: BATCH, 256: BATCH, 512: BATCH // 2}, 1e-5
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3)
STEP_GRADIENTS = 128
LENGTHS, JUDGED = (0.5, 0.75, 1.0), 2000
EPOCHS, RATE, SEED, TUNED_DAMPING = 5, 0.01, 0, 1e-5
CHOICES = {"as in the tables": cifar.prunable, "those of two or more axes": None}


@dataclass(frozen=True)
class Method:
    """What the weights are scored by, and what is done about those that stay."""

    name: str
    blocks: str | None = None  # "full" or one of the sizes below; None without curvature
    update: str = "single"  # "joint", with θ = 0, or "auto", with the θ that the rows choose


METHODS = (
    Method("magnitude"),
    Method("diagonal Fisher", "diagonal"),
    Method("blocks of 128", "128"),
    Method("blocks of 128, joint", "128", "joint"),
    Method("layers", "layers"),
    Method("layers, joint", "layers", "joint"),
    Method("filters, joint", "filters", "joint"),
    Method("full", "full"),
    Method("full, joint", "full", "joint"),
)
BY_DEFAULT = Method("filters, by default", "filters", "auto")
BY_NAME = {method.name: method for method in (*METHODS, BY_DEFAULT)}
IN_STEPS = tuple(METHODS[i] for i in (6, 7, 8, 5, 3, 4, 2, 1))
SEARCHED = tuple(METHODS[i] for i in (6, 8))
TUNED = tuple(METHODS[i] for i in (0, 7, 6))


class Pruning:
    """The trained network, its data, and a way to ask it for gradients and accuracy at any weights."""

    def __init__(self, folder: Path) -> None:
        self.network = cifar.load_network(folder)
        self.train = cifar.load_images(folder, "train", TRAINING_IMAGES)
        self.test = cifar.load_images(folder, "test", TEST_IMAGES)
        named = {n: p.detach().clone() for n, p in self.network.named_parameters() if cifar.prunable(n, p)}
        self.unravel = Unravel({name: tuple(p.shape) for name, p in named.items()})
        self.weights = self.unravel.ravel(named)
        filters = [p[0].numel() for p in named.values() for _ in range(p.shape[0])]
        self.rows = functools.lru_cache(maxsize=1)(self.rows)
        self.curvature = functools.lru_cache(maxsize=1)(self.curvature)
        self.sizes: dict[str, Any] = {"diagonal": 1, "128": 128, "layers": self.unravel.sizes, "filters": filters}

    def gradients(self, weights: Tensor, start: int, count: int, batch: int = BATCH) -> Tensor:
        """Rows of the images from `start` on."""
        self.unravel.write(self.network, weights)
        images, classes = (x[start : start + count * batch] for x in self.train)
        loss = functional.cross_entropy
        return mean_gradients(self.network, loss, images, classes, batch_size=batch, params=cifar.prunable)[0]

    def accuracy(self, weights: Tensor) -> float:
        """Per cent on the test images."""
        self.unravel.write(self.network, weights)
        return cifar.accuracy(self.network, *self.test)

    def inverse(self, gradients: Tensor, damping: float, blocks: str) -> Any:
        """F⁻¹ of a method."""
        if blocks == "full":
            return WoodburyRankOneInverse(gradients, damping, whiten=False)
        return BlockDiagonalInverse(gradients, damping, block_sizes=self.sizes[blocks])

    def rows(self, count: int, batch: int) -> Tensor:
        """Rows at the trained weights."""
        return self.gradients(self.weights, 0, count, batch)

    def curvature(self, method: Method, count: int, damping: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The scores by a method, and the change of the weights for a mask."""
        w = self.weights
        if method.blocks is None:
            return w.square(), lambda stays: torch.where(stays, 0.0, -w)
        rows = self.rows(count, NUM_GRADIENTS[count])
        inverse = self.inverse(rows, damping, method.blocks)
        change = joint_update if method.update == "joint" else obs_update
        return obs_scores(w, inverse), lambda stays: change(w, inverse, stays)

    def one_shot(self, method: str, num_gradients: int, damping: float, sparsity: float) -> dict[str, Any]:
        """Accuracy after one step."""
        scores, change = self.curvature(BY_NAME[method], num_gradients, damping)
        stays = torch.ones_like(scores, dtype=torch.bool)
        stays[torch.argsort(scores)[: round(sparsity * len(scores))]] = False
        return {"accuracy": self.accuracy(self.weights + change(stays))}

    def in_steps(self, method: str, steps: int, sparsity: float, **options: Any) -> tuple[Tensor, dict[str, Any]]:
        """The weights after steps with gradients of their own, and what was done."""
        chosen, start = BY_NAME[method], time.perf_counter()
        if chosen.blocks is None:
            kept = self.weights.abs() >= torch.sort(self.weights.abs())[0][round(sparsity * len(self.weights))]
            return torch.where(kept, self.weights, 0.0), {}
        found = prune(
            self.weights,
            lambda w, step: self.gradients(w, self._first(step), STEP_GRADIENTS),
            sparsity,
            steps=steps,
            update="single" if chosen.update == "single" else "joint",
            block_sizes=self.sizes.get(chosen.blocks),
            compensation_damping="auto" if chosen.update == "auto" else 0.0,
            **options,
        )
        return found.weights, {
            "seconds": time.perf_counter() - start,
            "taken": [asdict(step) for step in found.steps],
        }

    @staticmethod
    def _first(step: int) -> int:
        return (step % 2) * STEP_GRADIENTS * BATCH

    def other_loss(self, weights: Tensor) -> float:
        """The mean loss on the last training images, of which most have been in no gradient."""
        self.unravel.write(self.network, weights)
        return cifar.mean_loss(self.network, *(x[-JUDGED:] for x in self.train))

    def tuned(self, weights: Tensor) -> float:
        """Per cent after a few epochs of training with the mask."""
        torch.manual_seed(SEED)
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.unravel.write(self.network, weights)
        masks = {name: part != 0 for name, part in self.unravel(weights).items()}
        optimizer = torch.optim.SGD(self.network.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            self._epoch(optimizer, masks)
            schedule.step()
        reached = cifar.accuracy(self.network.eval(), *self.test)
        self.network.load_state_dict(before)
        return reached

    def _epoch(self, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> None:
        images, classes = self.train
        self.network.train()
        for chosen in torch.randperm(len(classes)).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(self.network(augmented(images[chosen])), classes[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in self.network.named_parameters():
                    if name in masks:
                        parameter.mul_(masks[name])


def augmented(images: Tensor) -> Tensor:
    """Half of the images mirrored, all moved by up to four pixels."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    row, column = (int(x) for x in torch.randint(9, (2,)))
    return nn.functional.pad(mirrored, (4, 4, 4, 4))[:, :, row : row + 32, column : column + 32]


def one_shot(
    study: Pruning, counts: Iterable[int] = NUM_GRADIENTS, dampings: Iterable[float] = (DAMPING,)
) -> Iterator[record.Task]:
    for count, damping, method in itertools.product(counts, dampings, METHODS):
        for sparsity in SPARSITIES:
            key = {"method": method.name, "num_gradients": count, "damping": damping, "sparsity": sparsity}
            if method.blocks or (count, damping) == (256, DAMPING):
                yield key, functools.partial(study.one_shot, **key)


def in_steps(
    study: Pruning,
    steps: int,
    methods: Iterable[Method],
    dampings: Iterable[float] = (DAMPING,),
    sparsities: Iterable[float] = STEP_SPARSITIES,
) -> Iterator[record.Task]:
    for sparsity, damping, method in itertools.product(sparsities, dampings, methods):
        key = {"method": method.name, "steps": steps, "sparsity": sparsity, "damping": damping}
        yield key, functools.partial(_reached, study, **key)


def _reached(study: Pruning, **options: Any) -> dict[str, Any]:
    weights, facts = study.in_steps(**options)
    return {"accuracy": study.accuracy(weights), **facts}


def searched(study: Pruning) -> Iterator[record.Task]:
    choice = {"damping": DAMPINGS, "lengths": LENGTHS, "loss_fn": study.other_loss}
    for sparsity, method in itertools.product(STEP_SPARSITIES, SEARCHED):
        key = {"method": method.name, "steps": 4, "sparsity": sparsity}
        yield key, functools.partial(_reached, study, **key, **choice)


def tuned(study: Pruning) -> Iterator[record.Task]:
    for sparsity, method in itertools.product((0.8, 0.9), TUNED):
        key = {"method": method.name, "steps": 4, "sparsity": sparsity, "damping": TUNED_DAMPING}
        yield key, functools.partial(_tuned, study, **key)


def _tuned(study: Pruning, **options: Any) -> dict[str, Any]:
    weights, _ = study.in_steps(**options)
    return {"accuracy": study.accuracy(weights), "tuned": study.tuned(weights), "epochs": EPOCHS}


PARTS: dict[str, record.Part] = {
    "one-shot": lambda study, held: one_shot(study),
    "damping": lambda study, held: one_shot(study, (256,), DAMPINGS),
    "steps-4": lambda study, held: in_steps(study, 4, (*IN_STEPS, BY_DEFAULT)),
    "steps-16": lambda study, held: in_steps(study, 16, (*IN_STEPS, BY_DEFAULT)),
    "damping-4": lambda study, held: in_steps(study, 4, IN_STEPS, DAMPINGS, (0.8,)),
    "search": lambda study, held: searched(study),
    "tuning": lambda study, held: tuned(study),
    "model": lambda study, held: by_the_call(study),
}


def by_the_call(study: Pruning) -> Iterator[record.Task]:
    for params in CHOICES:
        yield {"params": params, "steps": 16, "sparsity": 0.8}, functools.partial(_called, study, params)


def _called(study: Pruning, params: str) -> dict[str, Any]:
    study.unravel.write(study.network, study.weights)
    network = copy.deepcopy(study.network)
    images, classes = (x[: 2 * STEP_GRADIENTS * BATCH].split(BATCH) for x in study.train)
    options = {"damping": DAMPING, "num_gradients": STEP_GRADIENTS, "block_sizes": "filters", "params": CHOICES[params]}
    options["compensation_damping"] = 0.0
    batches = list(zip(images, classes, strict=True))
    start = time.perf_counter()
    found = prune_model(network, functional.cross_entropy, batches, sparsity=0.8, steps=16, **options)
    seconds = time.perf_counter() - start
    return {"accuracy": cifar.accuracy(network, *study.test), "weights": len(found.mask), "seconds": seconds}


def main() -> None:
    options = record.arguments("pruning", __doc__ or "", "The folder holds\n" + cifar.WHERE, PARTS)
    study = Pruning(options.data)
    dense = study.accuracy(study.weights)
    print(f"dense {dense}")
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)
    if options.picture:
        curves.draw_pruning(record.read(options.output), options.picture, num_gradients=256, dense=dense)


if __name__ == "__main__":
    main()
