"""The cost model of docs/scaling.md, and measurements: ``python -m benchmarks.cost_model``.

Unit costs come from three shapes of some 700 MB, measured in the same run; the model then predicts the costs of others:

    build          d (c₂ m² + c₁ m)   a Gram matrix, rows kept by reference
    whiten         d (c₂ m² + c₁ m)   the same and W in place of G
    matvec         d (c₁ m + c₀)      one sweep: two passes over G, some vectors
    push-through   d (c₁ m + c₀)      one pass
    diagonal       d (c₁ m + c₀)      of W
    step           d (c₁ m + c₀)      of a window: two passes over its ring

Every answer is checked before it is timed. `--json` keeps the figures with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.scale import require
from mfac_linalg import SlidingWindowInverse, WoodburyRankOneInverse

SEED, KAPPA, PANEL = 1804, 100.0, 8192
CALIBRATION = ((16, 10_000_000), (64, 3_000_000), (256, 800_000))
CASES = ("64,100000", "256,1000000", "64,10000000", "64,22600000", "16,100000000")
POWERS = {"build": (2, 1), "whiten": (2, 1)}  # of m, that the cost of a parameter goes with
PASSES = (1, 0)
WINDOW_BYTES = 3 * 10**9  # of G: a larger window, whose ring is another G, is left out
TWICE_BYTES = 8 * 10**9  # of G: a larger copy to whiten is left out


def best(call: Callable[[], object], rounds: int) -> float:
    """Return the least time of some calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def gaussian(m: int, d: int) -> np.ndarray:
    """Random rows: one block of them, repeated with shifts."""
    rows = np.empty((m, d), np.float32)
    block = np.random.default_rng(SEED).standard_normal((m, min(d, 2**18)), dtype=np.float32)
    for turn, start in enumerate(range(0, d, block.shape[1])):
        part = rows[:, start : start + block.shape[1]]
        part[...] = np.roll(block, turn, axis=0)[:, : part.shape[1]]
    return rows


def damping_for(gradients: np.ndarray) -> float:
    """λ with κ about KAPPA."""
    norm = np.linalg.norm(gradients[:, :PANEL].astype(np.float64), 2) ** 2 * gradients.shape[1] / PANEL
    return float(norm / len(gradients) / KAPPA)


def measure_costs(gradients: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of each operation, checked."""
    damping, m = damping_for(gradients), len(gradients)
    inverse = WoodburyRankOneInverse(gradients, damping, whiten=False)
    v = np.random.default_rng(1).standard_normal(gradients.shape[1], dtype=np.float32)
    newest = np.eye(m, dtype=np.float32)[-1]
    limit = 30 * float(np.finfo(np.float32).eps)
    require(inverse.backward_error(v, inverse.matvec(v)) <= limit, "The product is wrong.")
    pushed = inverse.matvec_gradients(newest)
    require(inverse.backward_error(gradients[-1], pushed) <= limit, "The product of a row is wrong.")
    times = {
        "build": best(lambda: WoodburyRankOneInverse(gradients, damping, whiten=False), rounds),
        "matvec": best(lambda: inverse.matvec(v), 2 * rounds),
        "push-through": best(lambda: inverse.matvec_gradients(newest), 2 * rounds),
    }
    if gradients.nbytes <= WINDOW_BYTES:
        window = SlidingWindowInverse.from_gradients(gradients, damping)
        times["step"] = best(lambda: window.append_matvec(v), 3 * rounds)
        del window
    if gradients.nbytes <= TWICE_BYTES:
        copy, times["whiten"] = np.empty_like(gradients), math.inf
        for _ in range(rounds):
            copy[...] = gradients
            start = time.perf_counter()
            whitened = WoodburyRankOneInverse(copy, damping, overwrite_gradients=True)
            times["whiten"] = min(times["whiten"], time.perf_counter() - start)
        times["diagonal"] = best(whitened.diagonal, 2 * rounds)
    return times


def unit_costs(shapes: tuple[tuple[int, int], ...], rounds: int) -> dict[str, np.ndarray]:
    """The coefficients of each operation, from its costs a parameter at some numbers of rows, relative errors alike."""
    costs: dict[str, list[tuple[int, float]]] = {}
    for m, d in shapes:
        gradients = gaussian(m, d)
        for name, seconds in measure_costs(gradients, rounds).items():
            costs.setdefault(name, []).append((m, seconds / d))
    coefficients = {}
    for name, points in costs.items():
        m, seconds = (np.array(x, float) for x in zip(*points, strict=True))
        terms = np.stack([m**power for power in POWERS.get(name, PASSES)], axis=1) / seconds[:, None]
        coefficients[name] = np.linalg.lstsq(terms, np.ones(len(m)), rcond=None)[0]
    return coefficients


def predict_seconds(name: str, m: int, d: int, costs: dict[str, np.ndarray]) -> float:
    """Seconds of an operation by the model."""
    return d * sum(c * m**power for c, power in zip(costs[name], POWERS.get(name, PASSES), strict=True))


def case(m: int, d: int, costs: dict[str, np.ndarray], rounds: int) -> dict[str, object]:
    """Print one shape and return its figures."""
    gradients = gaussian(m, d)
    print(f"m = {m}, d = {d:,}, {gradients.nbytes / 1e9:.2f} GB", flush=True)
    shown = {}
    for name, seconds in measure_costs(gradients, rounds).items():
        model = predict_seconds(name, m, d, costs)
        shown[name] = {"measured": seconds, "model": model}
        print(f"  {name:13} {seconds:9.4f} s, model {model:9.4f} s, ratio {seconds / model:.2f}", flush=True)
    return {"m": m, "d": d, "seconds": shown}


def main(arguments: list[str] | None = None) -> None:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="M,D")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    costs = unit_costs(CALIBRATION, options.rounds)
    for name, values in costs.items():
        powers = POWERS.get(name, PASSES)
        text = " + ".join(f"{1e9 * c:.3g} m^{p}" for c, p in zip(values, powers, strict=True))
        print(f"{name:13} {text} ns a parameter")
    cases = [case(*map(int, text.split(",")), costs, options.rounds) for text in options.cases]
    ratios = [row["measured"] / row["model"] for c in cases for row in c["seconds"].values()]
    print(f"measured over model: from {min(ratios):.2f} to {max(ratios):.2f}, ", end="")
    print(f"geometric mean {math.exp(np.mean(np.log(ratios))):.2f}")
    if options.json:
        coefficients = {name: list(values) for name, values in costs.items()}
        result = {"machine": describe(), "seed": SEED, "unit costs": coefficients, "cases": cases}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
