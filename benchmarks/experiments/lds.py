"""The linear datamodelling score of influence functions: ``python -m benchmarks.experiments.lds --data FOLDER``.

The protocol is that of the public benchmark dattri for MNIST and a perceptron 784-128-64-10 (arXiv:2410.04555, and its
source): 5,000 training and 500 test images, 50 networks trained on random halves, 50 epochs of SGD. The images are of
Fashion-MNIST; MNIST's are 1,000 and 500. An attribution's score is the mean over test images of Spearman's correlation,
over the 50 halves, between the sum of the image's scores over the half and the output of the network trained on it.
Every method's damping is the best one for 500 other images and 50 other halves.

- networks: accuracy, and how far two networks trained on the same half agree.
- one: every method at every damping, by the gradients of one network.
- chosen: at the chosen damping, by those of one network and of several.
- comparisons: differences of scores between methods.
- explicit: the same influences by the library, with 5,000 gradients of all parameters as rows in memory.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.experiments import record
from benchmarks.experiments.attribution import (
    BY_NAME,
    METHODS,
    Gradients,
    Method,
    gradients_of,
    perceptron_rows,
)
from benchmarks.experiments.datamodeling import lds, over_images, predictions, quantiles, resampled
from benchmarks.experiments.perceptron import Perceptron, fisher_rows
from benchmarks.experiments.retraining import Data, Retraining, Scratch, digits, fashion, margins
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence
from mfac_linalg.torch import per_sample_gradients

WHERE = """\
The folder holds fashion_mnist_train_a.npz and fashion_mnist_test.npz: x, (n, 28, 28) uint8, and y, of the first 5,000
training images (or more) and of the test images; and mnist_mini.npz: x, y, x_test, y_test, 1,000 and 1,000 digits.
torchvision.datasets.FashionMNIST and MNIST have them (.data and .targets).
"""
GROUPS, FISHER_ROWS, EXPLICIT_TESTS = ("reported", "tuning"), 5000, 100


class Study:
    """Predictions and outputs of both data sets."""

    def __init__(self, data: list[Data], scratch: Scratch, *, halves: int = 50) -> None:
        self.scratch = scratch
        self.sets = {each.name: Retraining(each, scratch, halves) for each in data}
        self.network = functools.lru_cache(maxsize=4)(self.network)
        self.gradients = functools.lru_cache(maxsize=1)(self.gradients)
        self.resampled = functools.lru_cache(maxsize=None)(self.resampled)

    def network(self, data: str, index: int) -> Perceptron:
        return Perceptron.of(self.sets[data].checkpoint(index))

    def gradients(self, data: str, fisher: str, index: int) -> Gradients:
        """Those of network 0 are for all other images; those of the rest for the reported ones."""
        images = self.sets[data].data
        others = images.others.at(slice(None if index == 0 else images.reported))
        return gradients_of(self.network(data, index), images.train, others, fisher, index, self.fisher_count(data))

    def fisher_count(self, data: str) -> int:
        """Rows of the true Fisher matrix."""
        return min(3 * len(self.sets[data].data.train), FISHER_ROWS)

    def wrong(self, data: str, index: int, part: str) -> np.ndarray:
        """1 − p of the right classes of the "train" or "others" images."""
        images = getattr(self.sets[data].data, part)
        return self.scratch.array(
            f"{data}/wrong-{part}-{index}", lambda: perceptron_rows(self.network(data, index), images)[1]
        )

    def predicted(self, data: str, method: Method, damping: float | None, index: int, count: int) -> np.ndarray:
        """The sums of the scores of one network over all halves, the reported first, (images, halves)."""
        weights = np.mean([self.wrong(data, i, "train") for i in range(count)], axis=0)
        subsets = np.concatenate([self.sets[data].subsets(group) for group in GROUPS])

        def compute() -> np.ndarray:
            scores = method.scores(self.gradients(data, method.fisher, index), damping, weights)
            return predictions(scores, subsets)

        average = f"-of-{count}" if count > 1 and method.shares_weights else ""
        return self.scratch.array(f"{data}/{method.name} {damping} {index}{average}", compute)

    def averaged(self, data: str, method: Method, damping: float | None, count: int, measure: str) -> np.ndarray:
        """The mean over networks of predictions for a loss, or for a margin; of several for the reported images."""
        images = slice(None if count == 1 else self.sets[data].data.reported)
        found = []
        for index in range(count):
            scale = self.wrong(data, index, "others")[images, None] if measure == "margin" else 1.0
            found.append(self.predicted(data, method, damping, index, count)[images] / scale)
        return np.mean(found, axis=0)

    def part(self, data: str, predicted: np.ndarray, group: str) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and outputs of the images and halves of a group."""
        retraining = self.sets[data]
        first, count = retraining.data.reported, retraining.num_halves
        images = slice(first) if group == "reported" else slice(first, None)
        halves = slice(count) if group == "reported" else slice(count, None)
        return predicted[images, halves], retraining.outputs(group)[images]

    def resampled(self, data: str, method: str, damping: float | None, count: int, measure: str) -> np.ndarray:
        predicted = self.averaged(data, BY_NAME[method], damping, count, measure)
        return resampled(*self.part(data, predicted, "reported"))

    # --- figures -----------------------------------------------------------------------------------------------------

    def of_networks(self, data: str) -> dict[str, Any]:
        """Sizes, accuracy, the agreement of two networks of each half, and the part of F that its rows hold."""
        retraining = self.sets[data]
        images = retraining.data
        reported, model = images.others.at(slice(images.reported)), retraining.checkpoint(0)
        first, again = (retraining.outputs(group)[: images.reported] for group in ("reported", "again"))
        inputs = images.train.inputs.numpy().astype(np.float64)
        with torch.inference_mode():
            right = [float((model(s.inputs).argmax(1) == s.labels).double().mean()) for s in (images.train, reported)]
        return {
            "train": len(images.train),
            "reported": images.reported,
            "tuning": len(images.others) - images.reported,
            "halves": retraining.num_halves,
            "dim": sum(p.numel() for p in model.parameters()),
            "accuracy": [round(100 * share, 2) for share in right],
            "agreement": round(float(lds(first, again).mean()), 4),
            "fisher_rows": self.fisher_count(data),
            "share_of_trace": round(fisher_rows(self.network(data, 0), inputs, self.fisher_count(data))[1], 5),
            "mean_margin": round(float(margins(model, reported).mean()), 3),
        }

    def of_one(self, data: str, method: str, damping: float | None) -> dict[str, Any]:
        """The scores of one network, for choosing the damping and reported."""
        predicted = self.averaged(data, BY_NAME[method], damping, 1, "loss")
        tuning = float(lds(*self.part(data, predicted, "tuning")).mean())
        return {"tuning": round(tuning, 4), **self.score(data, predicted)}

    def prepare(self, data: str, dampings: dict[str, float | None], count: int) -> None:
        """Predict by all methods, one network after the other: each method's gradients of a network are made once."""
        for index in range(count):
            for method in sorted(METHODS, key=lambda m: m.fisher):
                self.predicted(data, method, dampings[method.name], index, count)

    def of_chosen(
        self, data: str, method: str, networks: int, measure: str, dampings: dict[str, float | None]
    ) -> dict[str, Any]:
        """The score, with intervals over images, and over images and halves."""
        self.prepare(data, dampings, networks)
        damping = dampings[method]
        predicted = self.averaged(data, BY_NAME[method], damping, networks, measure)
        wide = quantiles(self.resampled(data, method, damping, networks, measure))
        return {"damping": damping, **self.score(data, predicted), "wide": [round(x, 4) for x in wide]}

    def score(self, data: str, predicted: np.ndarray) -> dict[str, Any]:
        each = lds(*self.part(data, predicted, "reported"))
        return {"lds": round(float(each.mean()), 4), "interval": [round(x, 4) for x in over_images(each)]}

    def of_comparison(self, left: tuple[Any, ...], right: tuple[Any, ...]) -> dict[str, Any]:
        """The difference of two scores, with its interval over images and halves."""
        difference = self.resampled(*left) - self.resampled(*right)
        return {"difference": round(float(difference.mean()), 4), "wide": [round(x, 4) for x in quantiles(difference)]}

    def of_rows(self, data: str, damping: float) -> dict[str, Any]:
        """CPU seconds of the explicit computation, and its distance from that by inner products."""
        images, model = self.sets[data].data, self.sets[data].checkpoint(0)
        tests, clock = images.others.at(slice(EXPLICIT_TESTS)), [time.process_time()]
        loss = functional.cross_entropy
        rows = per_sample_gradients(model, loss, images.train.inputs, images.train.labels, chunk_size=250)[0].numpy()
        clock.append(time.process_time())
        inverse = WoodburyRankOneInverse(rows, damping)
        clock.append(time.process_time())
        gradients = per_sample_gradients(model, loss, tests.inputs, tests.labels)[0].numpy()
        scores = influence(inverse, gradients)
        clock.append(time.process_time())
        short = self.gradients(data, "empirical", 0).exact(damping, np.ones(len(rows)))[: len(tests)]
        return {
            "tests": len(tests),
            "seconds": dict(zip(("rows", "build", "influence"), np.diff(clock).round(1).tolist(), strict=True)),
            "bytes": rows.nbytes,
            "kappa": float(f"{inverse.kappa:.3g}"),
            "sweeps": inverse.sweeps,
            "error": float(f"{np.abs(short - scores).max() / np.abs(scores).max():.2g}"),
        }


def chosen_damping(held: dict[str, Any], data: str, method: Method) -> float | None:
    """The damping with the best score on the images and halves that are not reported."""
    figures = [f for f in held["one"]["figures"] if (f["data"], f["method"]) == (data, method.name)]
    return max(figures, key=lambda figure: figure["tuning"])["damping"]


def networks(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for data in study.sets:
        yield {"data": data}, functools.partial(study.of_networks, data)


def one(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for data in study.sets:
        for method in sorted(METHODS, key=lambda m: m.fisher):
            for damping in method.dampings:
                key = {"data": data, "method": method.name, "damping": damping}
                yield key, functools.partial(study.of_one, **key)


def chosen(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for data in study.sets:
        dampings = {method.name: chosen_damping(held, data, method) for method in METHODS}
        several = study.sets[data].data.networks
        averages = [(several, measure) for measure in ("loss", "margin") if several > 1]
        for count, measure in [(1, "loss"), *averages]:  # of one network both rank alike
            for method in METHODS:
                key = {"data": data, "method": method.name, "networks": count, "measure": measure}
                yield key, functools.partial(study.of_chosen, **key, dampings=dampings)


def comparisons(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for data in study.sets:
        dampings = {method.name: chosen_damping(held, data, method) for method in METHODS}
        for count in sorted({1, study.sets[data].data.networks}):
            for method in (method.name for method in METHODS[:2]):
                for baseline in (name for name in dampings if name != method):
                    key = {"data": data, "networks": count, "method": method, "baseline": baseline}
                    sides = [(data, name, dampings[name], count, "loss") for name in (method, baseline)]
                    yield key, functools.partial(study.of_comparison, *sides)


def explicit(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    data = next(iter(study.sets))
    damping = chosen_damping(held, data, BY_NAME["empirical Fisher, exact"])
    yield {"data": data, "damping": damping}, functools.partial(study.of_rows, data, damping)


PARTS: dict[str, record.Part] = {
    "networks": networks,
    "one": one,
    "chosen": chosen,
    "comparisons": comparisons,
    "explicit": explicit,
}


def summary(held: dict[str, Any]) -> str:
    """A line a method."""
    lines = []
    for figure in held.get("chosen", {"figures": []})["figures"]:
        low, high = figure["interval"]
        words = f"{figure['data']:14} {figure['networks']:2} {figure['measure']:6} {figure['method']:34}"
        lines.append(f"{words} λ {figure['damping']}: {figure['lds']:.3f} [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)


def main() -> None:
    options = record.arguments("lds", __doc__ or "", WHERE, PARTS, keeps_arrays=True)
    study = Study([fashion(options.data), digits(options.data)], Scratch(options.scratch))
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)
    print(summary(record.read(options.output)))


if __name__ == "__main__":
    main()
