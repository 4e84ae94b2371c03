"""Train, invert, report, prune, draw; with ``--window``: train by SGD, Adam, and SGD preconditioned by a window."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import WoodburyRankOneInverse
from . import descent, digits, network, picture, pruning, report
from .network import Array
from .progress import is_visible

T = TypeVar("T")

EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo, printing each section of the report as soon as it is computed."""
    options = parse(arguments)
    require_extra()
    (compare_descent if options.window else invert_and_prune)(options)
    print(f"Picture: {options.output}")


def compare_descent(options: argparse.Namespace) -> None:
    """Train by SGD, Adam, and SGD preconditioned by a sliding window."""
    training, test = digits.load(options.seed)
    comparisons = descent.compare(training, test, damping=options.damping, epochs=options.epochs, seed=options.seed)
    print(report.descent_table(comparisons, epochs=options.epochs, damping=options.damping))
    picture.draw_descent(options.output, comparisons)


def invert_and_prune(options: argparse.Namespace) -> None:
    """Train, invert the Fisher matrix, and prune by it."""
    training, test = digits.load(options.seed)
    parameters, training_time = timed(lambda: network.train(training, seed=options.seed))
    before = network.accuracy(parameters, test)
    print(report.network_facts(training, test, parameters, seconds=training_time))

    sample = training.take(slice(options.gradients))
    inverse = report_inverse(network.per_sample_gradients(parameters, sample), options.damping, seed=options.seed)

    curves = pruning.compare(parameters, inverse, sample, test, steps=options.steps)
    print(report.pruning_table(curves, before=before))
    picture.draw(options.output, curves, inverse, before=before)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m mfac_linalg.demo", description="The inverse Fisher of a small network.")
    parser.add_argument("--window", action="store_true", help="train by SGD, Adam, and a sliding window instead")
    parser.add_argument("--output", help="where the picture goes (default: mfac_demo.png, or mfac_window.png)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training (default: %(default)s)")
    parser.add_argument("--damping", type=float, help="added to the Fisher (default: 1e-4, or 0.01 for --window)")
    parser.add_argument("--gradients", type=int, default=1000, help="how many to collect (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="recomputations per sparsity (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="of training with --window (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.damping = (0.01 if options.window else 1e-4) if options.damping is None else options.damping
    options.output = options.output or ("mfac_window.png" if options.window else "mfac_demo.png")
    if not 0 < options.damping < np.inf:
        parser.error(f"--damping must be positive and finite; got {options.damping}.")
    if not 1 <= options.gradients <= digits.TRAINING_IMAGES:
        parser.error(f"--gradients must lie in 1 ... {digits.TRAINING_IMAGES}; got {options.gradients}.")
    for name in ("steps", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(options, name)}.")
    if not Path(options.output).parent.is_dir():
        parser.error(f"--output must lie in a directory that exists; got {options.output}.")
    return options


def require_extra() -> None:
    """Exit with an install command if a library is missing."""
    missing = [name for module, name in EXTRA.items() if find_spec(module) is None]
    if missing:
        sys.exit(f'The demo needs {" and ".join(missing)}. Install with: pip install "mfac_linalg[demo]"')


def report_inverse(gradients: Array, damping: float, *, seed: int) -> WoodburyRankOneInverse:
    """Build the inverse; print its sizes, the accuracy of its products, and the steps of other dampings."""
    inverse, build = timed(lambda: WoodburyRankOneInverse(gradients, damping, progress=is_visible()))
    dense, dense_time = timed(lambda: dense_inverse(gradients, damping))
    random = np.random.default_rng(seed).standard_normal(inverse.dim, gradients.dtype)
    product, product_time = timed(lambda: inverse @ random, repeats=10)
    print(report.inverse_facts(inverse, build=build, product=product_time, dense=dense_time))

    newest, mean = gradients[-1], gradients.mean(axis=0)
    select_newest = np.eye(len(gradients), dtype=gradients.dtype)[-1]
    products = [
        ("random", random, product),
        ("newest gradient", newest, inverse @ newest),
        ("  by push-through", newest, inverse.matvec_gradients(select_newest)),
        ("mean gradient", mean, inverse @ mean),
    ]
    print(report.accuracy_table(inverse, products, dense))
    print(report.damping_table(inverse, mean))
    return inverse


def dense_inverse(gradients: Array, damping: float) -> Array:
    """F⁻¹ in float64, as a dense matrix."""
    wide = gradients.astype(np.float64)
    return np.linalg.inv(damping * np.eye(wide.shape[1]) + wide.T @ wide / len(wide))


def timed(function: Callable[[], T], *, repeats: int = 1) -> tuple[T, float]:
    """The result of `function`, and the seconds of its fastest run."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


if __name__ == "__main__":
    main()
