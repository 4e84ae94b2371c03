"""Networks trained on all of a data set and on random halves of it, and what they say about other images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, CLASSES, DROPOUT = (128, 64), 10, 0.1
EPOCHS, BATCH, RATE, MOMENTUM = 50, 64, 0.01, 0.9
FIRST_SEED = {"all": 0, "reported": 1000, "again": 2000, "tuning": 3000}
"""Seeds of the networks by what they are trained on: all images, the halves that figures are of and these once more, \
and the halves that choose a damping."""


@dataclass(frozen=True)
class Samples:
    """Images as rows (n, pixels) float32, and their classes (n,)."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, labels: np.ndarray, mean: float, deviation: float) -> Samples:
        rows = pixels.reshape(len(pixels), -1).astype(np.float32)
        return cls(torch.from_numpy((rows / 255 - mean) / deviation), torch.from_numpy(labels.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: object) -> Samples:
        return Samples(self.inputs[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    """Training images, and others: the first `reported` are those that figures are of, the rest choose the damping."""

    name: str
    train: Samples
    others: Samples
    reported: int
    networks: int  # trained on all training images


def fashion(folder: Path, *, train: int = 5000, reported: int = 500, tuning: int = 500) -> Data:
    """The first training and test images of Fashion-MNIST, as many as the published protocol takes of MNIST."""
    parts = (np.load(folder / f"fashion_mnist_{part}.npz") for part in ("train_a", "test"))
    counts = train, reported + tuning
    images = [Samples.of_pixels(f["x"][:n], f["y"][:n], 0.286, 0.353) for f, n in zip(parts, counts, strict=True)]
    return Data("Fashion-MNIST", *images, reported, 5)


def digits(folder: Path, *, train: int = 1000, reported: int = 500, tuning: int = 500) -> Data:
    """Some digits of MNIST."""
    stored = np.load(folder / "mnist_mini.npz")
    parts = (("x", "y", train), ("x_test", "y_test", reported + tuning))
    images = [Samples.of_pixels(stored[x][:n], stored[y][:n], 0.1307, 0.3081) for x, y, n in parts]
    return Data("MNIST", *images, reported, 10)


@dataclass(frozen=True)
class Scratch:
    """A folder of arrays that are computed once."""

    folder: Path

    def array(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of that name; it is complete or not there, whenever a run is killed."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.npy")
            np.save(aside, compute())
            aside.replace(path)
        return np.load(path)


def network(seed: int, pixels: int) -> nn.Sequential:
    """The published perceptron; 109,386 parameters for 784 pixels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, width in zip((pixels, *HIDDEN), HIDDEN, strict=False):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(DROPOUT)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], CLASSES))


def trained(seed: int, samples: Samples) -> nn.Sequential:
    """The network after `EPOCHS` epochs of SGD on these samples."""
    model = network(seed, samples.inputs.shape[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(samples)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(samples.inputs[chosen]), samples.labels[chosen]).backward()
            optimizer.step()
    return model.eval()


@torch.inference_mode()
def margins(model: nn.Module, samples: Samples) -> np.ndarray:
    """log(p/(1 − p)) of the probabilities p of the right classes, (n,)."""
    log_p = torch.log_softmax(model(samples.inputs).double(), dim=1)
    right = functional.one_hot(samples.labels, log_p.shape[1]).bool()
    return (log_p[right] - torch.logsumexp(log_p.masked_fill(right, -torch.inf), dim=1)).numpy()


def halves(group: str, count: int, num_samples: int) -> np.ndarray:
    """Random halves of the training samples, (count, n) bool."""
    chosen = np.zeros((count, num_samples), dtype=bool)
    for index, row in enumerate(chosen):
        order = np.random.default_rng([FIRST_SEED[group], index]).permutation(num_samples)
        row[order[: num_samples // 2]] = True
    return chosen


@dataclass(frozen=True)
class Retraining:
    """The networks of one data set; what they are asked for is kept in a folder."""

    data: Data
    scratch: Scratch
    num_halves: int = 50

    def checkpoint(self, index: int) -> nn.Sequential:
        """A network trained on all images."""
        train, seed = self.data.train, FIRST_SEED["all"] + index

        def weights() -> np.ndarray:
            return nn.utils.parameters_to_vector(trained(seed, train).parameters()).detach().numpy()

        model = network(seed, train.inputs.shape[1]).eval()
        stored = self.scratch.array(f"{self.data.name}/network-{seed}", weights)
        nn.utils.vector_to_parameters(torch.from_numpy(stored), model.parameters())
        return model

    def subsets(self, group: str) -> np.ndarray:
        """The halves "reported" or "tuning", (halves, n) bool; "again" are those reported."""
        drawn = "reported" if group == "again" else group
        return halves(drawn, self.num_halves, len(self.data.train))

    def outputs(self, group: str) -> np.ndarray:
        """The margins of all other images under the networks trained on the halves, (images, halves)."""
        found = []
        for index, chosen in enumerate(self.subsets(group)):
            seed, part = FIRST_SEED[group] + index, self.data.train.at(torch.from_numpy(chosen))
            name = f"{self.data.name}/margins-{seed}"
            found.append(self.scratch.array(name, lambda s=seed, p=part: margins(trained(s, p), self.data.others)))
        return np.stack(found, axis=1)
