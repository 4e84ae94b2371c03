"""What README.md says of the demo of a window, for three seeds: ``python -m benchmarks.experiments.window_demo``."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.experiments import record
from mfac_linalg.demo import descent, digits
from mfac_linalg.demo.__main__ import parse

SEEDS = (0, 1, 2)


def compare(seed: int) -> dict[str, Any]:
    """Each method at its best rate: training loss and test accuracy at the end, and seconds of a step."""
    options = parse(["--window", "--seed", str(seed)])
    comparisons = descent.compare(*digits.load(seed), damping=options.damping, epochs=options.epochs, seed=options.seed)
    best = {each.name: each.best for each in comparisons}
    return {
        name: {"rate": run.rate, "loss": float(run.losses[-1]), "accuracy": float(run.accuracy), "seconds": run.seconds}
        for name, run in best.items()
    }


def comparisons(study: None, held: dict[str, Any]) -> Iterator[record.Task]:
    for seed in SEEDS:
        yield {"seed": seed}, functools.partial(compare, seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.window_demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("window-demo.json"), help="added to (default: %(default)s)")
    record.add(None, "comparisons", comparisons, parser.parse_args().output)


if __name__ == "__main__":
    main()
