"""Training a convolutional network on Fashion-MNIST: ``python -m benchmarks.experiments.optimizer --data FOLDER``.

SGD with momentum, Adam, and M-FAC with windows of 32, 128 and 512 gradients and of 1 % of the entries of 128, each
with a damping λI and with λ√v, v the running mean of squared gradients (`beta2`). All see the same batches and start
from the same weights.

- rates: every method at every learning rate of one grid, seed 0, from weights as He et al. draw them.
- seeds: every method at its best rate (the least training loss in the last epoch), the other seeds.
- default-rates, default-seeds: the same for four methods from weights as PyTorch draws them, which are smaller.
- small-rates, small-seeds: from these, in batches of a quarter.
- steps: the time of a step by each method, compared with two plain reads of the window's rows.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.experiments import curves, record
from benchmarks.experiments.runs import best_run, runs_of
from mfac_linalg import TopK
from mfac_linalg.torch import MFAC

WHERE = """\
The folder holds fashion_mnist_train_a.npz and fashion_mnist_test.npz: x, (n, 28, 28) uint8, and y, of the first 40,000
training images and of the test images: from torchvision.datasets.FashionMNIST (.data and .targets), or Debian's package
dataset-fashion-mnist.
"""
EPOCHS, BATCH, SMALL_BATCH, SEEDS = 6, 512, 128, (0, 1, 2)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
MOMENTUM, BETA2, DAMPING, RELATIVE_DAMPING = 0.9, 0.999, 1e-3, 0.1
WARM_UP, TIMED = 0.5, 60  # epochs, steps


@dataclass(frozen=True)
class Method:
    """An optimizer, as a function of parameters and learning rate."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    window: int = 0


def by_window(size: int, name: str = "", **options: Any) -> Method:
    shared = {"window": size, "damping": DAMPING, "momentum": MOMENTUM, "normalization": "window"}
    return Method(f"M-FAC, {size}{name}", functools.partial(MFAC, **(shared | options)), size)


def by_scaled_window(size: int, name: str = "", **options: Any) -> Method:
    return by_window(size, f"{name}, λ√v", damping=RELATIVE_DAMPING, beta2=BETA2, **options)


SPARSE = TopK(0.01)
METHODS = (
    Method("SGD", functools.partial(torch.optim.SGD, momentum=MOMENTUM)),
    Method("Adam", functools.partial(torch.optim.Adam, betas=(MOMENTUM, BETA2))),
    by_scaled_window(128),
    by_window(128),
    by_scaled_window(32),
    by_scaled_window(512),
    by_scaled_window(128, ", 1 %", compression=SPARSE),
    by_window(32),
    by_window(512),
    by_window(128, ", 1 %", compression=SPARSE),
)
UNDER_NOISE = (*METHODS[:2], *(by_window(size, ", √v", damping=1.0, beta2=BETA2) for size in (512, 128)))
BY_NAME = {method.name: method for method in (*METHODS, *UNDER_NOISE)}


@dataclass(frozen=True)
class Setting:
    """What methods are compared in, and the name that its parts begin with."""

    name: str
    start: str
    batch: int
    methods: tuple[Method, ...]


MAIN = Setting("", "he", BATCH, METHODS)
SETTINGS = (
    MAIN,
    Setting("default-", "default", BATCH, METHODS[:4]),
    Setting("small-", "default", SMALL_BATCH, UNDER_NOISE),
)


def network(seed: int, start: str = "he") -> nn.Sequential:
    """Two convolutions and two linear layers; 54,015 parameters."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 31),
        nn.ReLU(),
        nn.Linear(31, 10),
    )
    for name, parameter in layers.named_parameters() if start == "he" else ():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    return layers


class Study:
    """The images, and training runs on them."""

    def __init__(self, folder: Path) -> None:
        self.train, self.test = self._load(folder, "train_a"), self._load(folder, "test")

    @staticmethod
    def _load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
        held = np.load(folder / f"fashion_mnist_{part}.npz")
        pixels = held["x"].reshape(-1, 1, 28, 28).astype(np.float32)
        return torch.from_numpy((pixels / 255 - 0.286) / 0.353), torch.from_numpy(held["y"].astype(np.int64))

    def run(self, method: str, rate: float, seed: int, start: str, batch: int) -> dict[str, Any]:
        """Loss, accuracy and seconds of training after each epoch."""
        model, order = network(seed, start), torch.Generator().manual_seed(seed)
        optimizer = BY_NAME[method].make(model.parameters(), lr=rate)
        schedule = self._schedule(optimizer, len(self.train[1]) // batch)
        found: dict[str, Any] = {"losses": [], "accuracies": [], "seconds": [], "dim": dim_of(model)}
        spent = 0.0
        for _ in range(EPOCHS):
            start = time.perf_counter()
            losses = [self._step(model, optimizer, chosen, schedule) for chosen in self._batches(order, batch)]
            spent += time.perf_counter() - start
            if not np.all(np.isfinite(losses)):
                break
            found["losses"].append(statistics.fmean(losses))
            found["accuracies"].append(self._accuracy(model))
            found["seconds"].append(spent)
        return {**found, "accuracy": found["accuracies"][-1] if len(found["losses"]) == EPOCHS else None}

    def _batches(self, order: torch.Generator, size: int) -> list[Tensor]:
        """The indices of an epoch's batches, all of one size."""
        parts = torch.randperm(len(self.train[1]), generator=order).split(size)
        return [part for part in parts if len(part) == size]

    @staticmethod
    def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Learning rates that rise for a while, then fall to zero along a cosine; `steps` in an epoch."""

        def factor(step: int) -> float:
            epoch = step / steps
            return min(1.0, (epoch + 1 / steps) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        chosen: Tensor,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> float:
        """The loss of a batch, before the step on it."""
        model.zero_grad()
        loss = functional.cross_entropy(model(self.train[0][chosen]), self.train[1][chosen])
        loss.backward()
        if optimizer is not None and torch.isfinite(loss):
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return loss.item()

    @torch.inference_mode()
    def _accuracy(self, model: nn.Module) -> float:
        images, classes = (x.split(1000) for x in self.test)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images, classes, strict=True))
        return 100 * right / len(self.test[1])

    def seconds_of_a_step(self, method: str) -> dict[str, Any]:
        """The median time of a step with a full window, and of two plain reads of its rows."""
        window, seconds = BY_NAME[method].window if method in BY_NAME else 0, self._seconds[method]
        if not window:
            return {"seconds": seconds, "reads": None}
        read = reader(window, dim_of(network(0)))
        return {"seconds": seconds, "reads": statistics.median(self._timed(read) for _ in range(TIMED))}

    @functools.cached_property
    def _seconds(self) -> dict[str, float]:
        """Median times of a step by all methods, which take turns: what slows the machine slows them all."""
        batches = itertools.cycle(self._batches(torch.Generator().manual_seed(0), BATCH))
        steps = {"gradient": functools.partial(self._step, network(0), None)}
        for method in METHODS:
            model = network(0)
            step = functools.partial(self._step, model, method.make(model.parameters(), lr=RATES[0]))
            steps[method.name] = step
            for _ in range(method.window):
                step(next(batches))
        turns = [
            {name: self._timed(functools.partial(step, next(batches))) for name, step in steps.items()}
            for _ in range(TIMED)
        ]
        return {name: statistics.median(turn[name] for turn in turns) for name in steps}

    @staticmethod
    def _timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def dim_of(model: nn.Module) -> int:
    """The number of its parameters."""
    return sum(p.numel() for p in model.parameters())


def reader(size: int, dim: int) -> Callable[[], object]:
    """G v and Gᵀ a for as many gradients."""
    rows, v, a = torch.randn(size, dim), torch.randn(dim), torch.randn(size)
    return lambda: (rows @ v, a @ rows)


def rates(setting: Setting, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for method, rate in itertools.product(setting.methods, RATES):
        yield _run(study, setting, method, rate, SEEDS[0])


def seeds(setting: Setting, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for seed, method in itertools.product(SEEDS[1:], setting.methods):
        yield _run(study, setting, method, best_run(figures(held, setting, "rates"), method.name)["rate"], seed)


def _run(study: Study, setting: Setting, method: Method, rate: float, seed: int) -> record.Task:
    key = {"method": method.name, "rate": rate, "seed": seed, "start": setting.start, "batch": setting.batch}
    return key, functools.partial(study.run, **key)


def steps(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for method in ("gradient", *(method.name for method in METHODS)):
        yield {"method": method}, functools.partial(study.seconds_of_a_step, method)


def figures(held: dict[str, Any], setting: Setting, part: str) -> list[dict[str, Any]]:
    """The stored figures of a part."""
    return held.get(f"{setting.name}{part}", {"figures": []})["figures"]


def runs(held: dict[str, Any], method: str, setting: Setting) -> list[dict[str, Any]]:
    """The runs of all seeds at the best rate."""
    return runs_of(figures(held, setting, "rates"), figures(held, setting, "seeds"), method)


PARTS: dict[str, record.Part] = {
    f"{setting.name}{name}": functools.partial(part, setting)
    for setting in SETTINGS
    for name, part in (("rates", rates), ("seeds", seeds))
} | {"steps": steps}


def summary(held: dict[str, Any]) -> str:
    """A line a method: accuracy and loss in the last epoch over all seeds."""
    lines = []
    for setting in SETTINGS:
        for method in dict.fromkeys(run["method"] for run in figures(held, setting, "rates")):
            found = runs(held, method, setting)
            accuracies = [run["accuracy"] for run in found if run["accuracy"] is not None]
            losses, seconds = ([run[name][-1] for run in found] for name in ("losses", "seconds"))
            lines.append(
                f"{setting.start:8}{setting.batch:4} {method:22} rate {found[0]['rate']:g}: "
                f"accuracy {statistics.fmean(accuracies):.2f} ({min(accuracies):.2f} to {max(accuracies):.2f}), "
                f"loss {statistics.fmean(losses):.4f}, {statistics.fmean(seconds):.0f} s"
            )
    return "\n".join(lines)


def main() -> None:
    options = record.arguments("optimizer", __doc__ or "", WHERE, PARTS)
    study = Study(options.data)
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)
    held = record.read(options.output)
    print(summary(held))
    if options.picture:
        shown = [run for method in METHODS for run in runs(held, method.name, MAIN)]
        curves.draw_training(shown, options.picture)


if __name__ == "__main__":
    main()
