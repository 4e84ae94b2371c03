"""The cost model of docs/scaling.md beside measurements: ``python -m benchmarks.cost_model --cases 64,22600000``.

The model is a sum of kernels, each at the rate that it reaches alone on this machine in the same run:

    build     d m² (SYRK on a panel in cache) + 4 d m bytes read
    whiten    d m² (TRMM on a panel in cache) + 8 d m bytes read and written, 4 d m bytes of new memory
    matvec    s sweeps of G v and Gᵀ a, each over 4 d m bytes, and 10 vectors of d numbers read or written a sweep
    diagonal  d m numbers squared and added, from W
    step      two sweeps' worth of passes over the ring and m² numbers of float64 eight times

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
CASES = ("64,100000", "64,1000000", "64,10000000", "256,1000000", "16,100000000", "64,22600000")
MOST_BYTES = 13 * 10**9  # of G and W together: larger ones are asked without W


def best(call: Callable[[], object], rounds: int) -> float:
    """Return the least time of some calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def gaussian(m: int, d: int) -> np.ndarray:
    """Rows of random numbers, made by panels."""
    rows, rng = np.empty((m, d), np.float32), np.random.default_rng(SEED)
    block = rng.standard_normal((m, min(d, 2**18)), dtype=np.float32)
    for start in range(0, d, block.shape[1]):
        part = rows[:, start : start + block.shape[1]]
        part[...] = block[:, : part.shape[1]]
        part[:, 0] += 1 + start % 7
    return rows


class Rates:
    """Seconds for a unit of each kernel, for rows of this shape, on these rows."""

    def __init__(self, gradients: np.ndarray) -> None:
        import scipy.linalg.blas as blas

        m, d = gradients.shape
        panel = np.ascontiguousarray(gradients[:, :PANEL])
        width = panel.shape[1]
        lower = np.tril(np.ones((m, m), np.float32))
        over = panel.copy()
        piece = gradients[:, : min(d, 2**27 // m)]  # of 0.5 GB at most
        v, a = np.ones(piece.shape[1], np.float32), np.ones(m, np.float32)
        self.syrk = best(lambda: panel @ panel.T, 20) / (m * m * width)
        trmm = best(lambda: blas.strmm(1.0, lower, over.T, side=1, lower=1, trans_a=1, overwrite_b=1), 20)
        self.trmm = trmm / (m * m * width)
        self.project = best(lambda: piece @ v, 5) / piece.size
        self.combine = best(lambda: a @ piece, 5) / piece.size
        self.square = best(lambda: np.einsum("ij,ij->j", panel, panel), 20) / panel.size / 2  # two threads share it
        self.read = min(self.project, self.combine)
        fresh = min(2**27, m * d)
        self.fresh = best(lambda: np.empty(fresh, np.float32).fill(1), 2) / fresh


def predicted(m: int, d: int, sweeps: int, rates: Rates) -> dict[str, float]:
    """Seconds of each operation by the model."""
    size, vectors = d * m, 10 * d * rates.read
    build = m * size * rates.syrk + size * rates.read
    return {
        "build": build,
        "build with W": build + m * size * rates.trmm + 2 * size * rates.read + size * rates.fresh,
        "matvec": sweeps * (size * (rates.project + rates.combine) + vectors),
        "diagonal": size * max(rates.square, rates.read),
        "step": size * (rates.project + rates.combine) + vectors + 16 * m * m * rates.read,
    }


def measured(gradients: np.ndarray, damping: float, rounds: int) -> dict[str, float]:
    """Seconds of each operation, checked."""
    limit = 30 * float(np.finfo(np.float32).eps)
    referenced = WoodburyRankOneInverse(gradients, damping, whiten=False)
    v = np.random.default_rng(1).standard_normal(gradients.shape[1], dtype=np.float32)
    require(referenced.backward_error(v, referenced.matvec(v)) <= limit, "The product is wrong.")
    times = {
        "build": best(lambda: WoodburyRankOneInverse(gradients, damping, whiten=False), rounds),
        "matvec": best(lambda: referenced.matvec(v), rounds),
    }
    if 2 * gradients.nbytes <= MOST_BYTES:
        del referenced
        times["build with W"] = best(lambda: WoodburyRankOneInverse(gradients, damping), 1)
        whitened = WoodburyRankOneInverse(gradients, damping)
        times["diagonal"] = best(whitened.diagonal, rounds)
        del whitened
        window = SlidingWindowInverse.from_gradients(gradients, damping)
        times["step"] = best(lambda: window.append_matvec(v), 3 * rounds)
    return times


def damping_for(gradients: np.ndarray) -> float:
    """λ with κ about KAPPA."""
    norm = np.linalg.norm(gradients[:, :PANEL].astype(np.float64), 2) ** 2 * gradients.shape[1] / PANEL
    return float(norm / len(gradients) / KAPPA)


def case(m: int, d: int, rounds: int) -> dict[str, object]:
    """Print one shape and return its figures."""
    gradients = gaussian(m, d)
    rates = Rates(gradients)
    times = measured(gradients, damping_for(gradients), rounds)
    model = predicted(m, d, 1, rates)  # a random vector settles in one sweep
    print(f"m = {m}, d = {d:,} ({gradients.nbytes / 1e9:.2f} GB): SYRK {1e-9 / rates.syrk:.0f} GFLOP/s, ", end="")
    print(f"read {4e-9 / rates.read:.1f} GB/s, new memory {4e-9 / rates.fresh:.2f} GB/s")
    for name, seconds in times.items():
        print(
            f"  {name:13} {seconds:9.4f} s, model {model[name]:9.4f} s, ratio {seconds / model[name]:.2f}", flush=True
        )
    shown = {name: {"measured": seconds, "model": model[name]} for name, seconds in times.items()}
    return {"m": m, "d": d, "rates": vars(rates), "seconds": shown}


def extrapolated(m: int, d: int, cores: float = 1.0) -> None:
    """Print what the model says of a shape that nobody measures, at plain rates of one node."""
    print(f"m = {m}, d = {d:.1e}: G {4e-12 * m * d:.1f} TB, SYRK {1e-15 * m * m * d * cores:.1f} PFLOP, ", end="")
    print(f"m × m system {8e-6 * m * m:.0f} MB, Cholesky {m**3 / 3e9:.2f} GFLOP, a vector {4e-9 * d:.0f} GB")


def main(arguments: list[str] | None = None) -> None:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="M,D")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = [case(*map(int, text.split(",")), options.rounds) for text in options.cases]
    ratios = [row["measured"] / row["model"] for c in found for row in c["seconds"].values()]
    print(f"measured over model: from {min(ratios):.2f} to {max(ratios):.2f}, ", end="")
    print(f"geometric mean {math.exp(np.mean(np.log(ratios))):.2f}")
    extrapolated(1024, 7 * 10**9)
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "seed": SEED, "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
