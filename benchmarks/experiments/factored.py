"""Rows as factors and explicit rows of one linear layer: ``python -m benchmarks.experiments.factored``.

A layer of n inputs and n outputs, without a bias, and m = 256 samples: G has m n² numbers, its factors 2 m n. In a
process of its own each kind of rows makes an inverse in float32 with κ = 10⁴, and answers: the product with a
difference of rows, the push-through of their mean, and the influence of all samples on 8 test samples, in blocks of 4.
Times are seconds of the processor in one thread; the peak is what resident memory rises by after a warm-up. Where
explicit rows fit, both kinds answer the same questions, and the relative differences of their answers are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import record
from benchmarks.machine import describe
from benchmarks.peak_memory import resident
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence
from mfac_linalg.torch import factored_gradients, per_sample_gradients

SIZES, LARGEST_EXPLICIT = (512, 1024, 4096), 1024
SAMPLES, TESTS, KAPPA, BLOCK, CHUNK, SEED = 256, 8, 1e4, 4, 64, 0
KINDS: dict[str, Callable[..., Any]] = {"factored": factored_gradients, "explicit": per_sample_gradients}
LOSS = torch.nn.functional.mse_loss


class Layer:
    """A layer, and training and test samples, from the seed."""

    def __init__(self, size: int, count: int = SAMPLES) -> None:
        self.count = count
        torch.manual_seed(SEED)
        self.model = torch.nn.Linear(size, size, bias=False)
        self.train, self.test = ([torch.randn(n, size) for _ in range(2)] for n in (count, TESTS))

    def rows(self, kind: str) -> tuple[Any, Any]:
        """The rows of the training and of the test samples."""
        options = {"chunk_size": CHUNK} if kind == "explicit" else {}
        return tuple(KINDS[kind](self.model, LOSS, *data, **options)[0] for data in (self.train, self.test))


def damping_of(rows: Any) -> float:
    """λ for κ = KAPPA: the largest eigenvalue of F − λ over κ."""
    return float(torch.linalg.eigvalsh(rows.gram())[-1]) / SAMPLES / KAPPA


def answers(kind: str, layer: Layer, damping: float, v: torch.Tensor) -> tuple[dict[str, Any], dict[str, float], int]:
    """What an inverse by these rows answers, the seconds of each step, and the bytes of the rows."""
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        seconds[name] = time.process_time() - start
        return result

    train, test = timed("rows", lambda: layer.rows(kind))
    inverse = timed("build", lambda: WoodburyRankOneInverse(train, damping))
    found = {
        "product": timed("product", lambda: inverse @ v),
        "push-through": timed(
            "push-through", lambda: inverse.matvec_gradients(torch.full((layer.count,), 1 / layer.count))
        ),
        "influence": timed("influence", lambda: influence(inverse, test, block_size=BLOCK)),
    }
    backward = inverse.backward_error(v, found["product"]) / torch.finfo(torch.float32).eps
    return {**found, "backward": float(backward), "sweeps": inverse.sweeps}, seconds, train.nbytes


def warm_up() -> None:
    """Import and compile what the first calls do."""
    for kind in KINDS:
        answers(kind, Layer(16, 4), 1e-3, torch.randn(256))


def measure(kind: str, size: int) -> dict[str, Any]:
    """The figures of a kind of rows, in a fresh process; beside explicit rows, the differences of the answers."""
    warm_up()
    layer = Layer(size)
    few = factored_gradients(layer.model, LOSS, *layer.train)[0]
    damping, weights = damping_of(few), torch.zeros(SAMPLES, 1)
    weights[:2, 0] = torch.tensor([1.0, -1.0])
    v = few.combine(weights)[:, 0]
    before = resident("VmRSS")
    found, seconds, nbytes = answers(kind, layer, damping, v)
    figures = {
        "damping": damping,
        "bytes": nbytes,
        "peak_bytes": resident("VmHWM") - before,
        "seconds": seconds,
        "R": found.pop("backward"),
        "sweeps": found.pop("sweeps"),
    }
    if kind == "explicit":
        others = answers("factored", layer, damping, v)[0]
        figures["differences"] = {name: float(torch.dist(others[name], x) / torch.norm(x)) for name, x in found.items()}
    return figures


def cases() -> list[tuple[str, int]]:
    """The kinds of rows and the sizes, explicit rows where they fit."""
    return [(kind, size) for size in SIZES for kind in KINDS if kind == "factored" or size <= LARGEST_EXPLICIT]


def main() -> None:
    """Measure what the file does not have yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.factored",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("factored.json"), help="added to (default: %(default)s)")
    parser.add_argument("--case", nargs=2, metavar=("KIND", "SIZE"), help="what a fresh process is asked for")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]))))
        return
    for kind, size in cases():
        held = record.read(options.output)
        held.setdefault("machine", describe())
        figures = held.setdefault("figures", [])
        key = {"rows": kind, "size": size, "num_gradients": SAMPLES, "kappa": KAPPA, "seed": SEED}
        if record.find(figures, **key) is None:
            command = [sys.executable, "-m", "benchmarks.experiments.factored", "--case", kind, str(size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures.append({**key, **json.loads(output)})
            options.output.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        print(kind, size, json.dumps(record.find(figures, **key)), flush=True)


if __name__ == "__main__":
    main()
