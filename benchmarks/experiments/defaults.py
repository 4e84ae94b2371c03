"""The first 90 steps with nothing but defaults: ``python -m benchmarks.experiments.defaults --data FOLDER``.

The network and the images of `benchmarks.experiments.optimizer`, from PyTorch's initial weights, in batches of 512 and
of 128 at a constant rate: `MFAC(params)` and `Adam(params)` unmodified, SGD at the rate that was best in that
experiment, and M-FAC with the defaults it had at first. The defaults were chosen with seeds 0 to 2, which are not used.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.experiments import record
from benchmarks.experiments.optimizer import BATCH, SMALL_BATCH, WHERE, Study, network
from mfac_linalg.torch import MFAC

STEPS, SEEDS = 90, (3, 4, 5)
AT_FIRST = {"lr": 1e-3, "window": 64, "damping": 1e-5, "beta2": None, "momentum": 0.0, "normalization": "mean"}
OPTIMIZERS = {
    "MFAC": MFAC,
    "Adam": torch.optim.Adam,
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "MFAC as at first": functools.partial(MFAC, **AT_FIRST),
}


def accuracy(study: Study, name: str, batch: int, seed: int) -> dict[str, Any]:
    """The percentage of test images that are named right after 90 steps."""
    model, order = network(seed, "default"), torch.Generator().manual_seed(seed)
    optimizer = OPTIMIZERS[name](model.parameters())
    batches = [chosen for _ in range(2) for chosen in study._batches(order, batch)][:STEPS]
    for chosen in batches:
        study._step(model, optimizer, chosen)
    return {"accuracy": study._accuracy(model), "steps": len(batches)}


def first(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for batch, name, seed in itertools.product((BATCH, SMALL_BATCH), OPTIMIZERS, SEEDS):
        key = {"optimizer": name, "batch": batch, "seed": seed}
        yield key, functools.partial(accuracy, study, name, batch, seed)


PARTS: dict[str, record.Part] = {"first": first}


def summary(held: dict[str, Any]) -> str:
    """A line for each optimizer and size of batch."""
    lines = []
    for batch, name in itertools.product((BATCH, SMALL_BATCH), OPTIMIZERS):
        of = {"optimizer": name, "batch": batch}
        found = [figure["accuracy"] for figure in held["first"]["figures"] if of.items() <= figure.items()]
        lines.append(f"{batch:4} {name:16} {statistics.fmean(found):.1f} % ({min(found):.1f} to {max(found):.1f})")
    return "\n".join(lines)


def main() -> None:
    options = record.arguments("defaults", __doc__ or "", WHERE, PARTS)
    study = Study(options.data)
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)
    print(summary(record.read(options.output)))


if __name__ == "__main__":
    main()
