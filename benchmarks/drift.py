"""Whether a window drifts: its backward error over many steps, beside that of a fresh inverse of the same rows.

``python -m benchmarks.drift --updates 1000000`` takes hours; the default some minutes. Prints a table, draws a picture.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfac_linalg import IllConditionedWarning, SlidingWindowInverse, WoodburyRankOneInverse

KINDS = ("iid", "correlated", "repeated")
DAMPINGS = (1e-1, 1e-3, 1e-5, 1e-7)
SAMPLES = 40
SEED = 32256


@dataclass(frozen=True)
class Curve:
    """R of a window and of a fresh inverse at some steps of one stream, and the factorisations that it took."""

    dtype: str
    damping: float
    kind: str
    steps: np.ndarray
    window: np.ndarray
    fresh: np.ndarray
    kappa: float
    factorizations: int


def stream(kind: str, dim: int, rng: np.random.Generator):
    """Yield gradients without end: independent, each close to the one before, or most of them the one before."""
    g = rng.standard_normal(dim)
    for step in itertools.count():
        fresh = rng.standard_normal(dim)
        if kind == "correlated":
            g = 0.95 * g + 0.31 * fresh
        elif kind == "iid" or step % 3 == 0:
            g = fresh
        yield g


def backward_ratio(gradients: np.ndarray, damping: float, v: np.ndarray, x: np.ndarray) -> float:
    """R = ‖v − Fx‖/(‖F‖‖x‖ eps), in longdouble."""
    eps = np.finfo(v.dtype).eps
    gradients, v, x = (np.asarray(array, np.longdouble) for array in (gradients, v, x))
    residual = v - damping * x - gradients.T @ (gradients @ x) / len(gradients)
    norm = np.linalg.norm(gradients.astype(float), 2) ** 2 / len(gradients) + damping
    return float(np.sqrt(residual @ residual) / (norm * np.sqrt(x @ x) * eps))


def follow(dtype: str, damping: float, kind: str, *, updates: int, window: int, dim: int) -> Curve:
    """Slide a window over a stream, and measure both inverses at steps spread evenly on a logarithmic scale."""
    rng = np.random.default_rng(SEED)
    wanted = set(np.unique(np.geomspace(window, updates, SAMPLES).astype(int)).tolist())
    inverse, found = SlidingWindowInverse(window, dim, damping), []
    for step, g in enumerate(itertools.islice(stream(kind, dim, rng), updates), start=1):
        v = g.astype(dtype)
        x = inverse.append_matvec(v)
        if step in wanted:
            rows, vectors = inverse.gradients, (v, rng.standard_normal(dim).astype(dtype))
            answers = ((v, x), *((u, inverse.matvec(u)) for u in vectors))
            static = WoodburyRankOneInverse(rows, damping, whiten=False)
            worst = max(backward_ratio(rows, damping, u, y) for u, y in answers)
            found.append((step, worst, max(backward_ratio(rows, damping, u, static.matvec(u)) for u in vectors)))
    steps, ours, fresh = map(np.array, zip(*found, strict=True))
    return Curve(dtype, damping, kind, steps, ours, fresh, inverse.kappa, inverse.factorizations)


def draw(curves: list[Curve], path: Path) -> None:
    """One panel per dtype: R(t) of every stream, the promise, and the worst fresh inverse."""
    import matplotlib.pyplot as plt

    dtypes = sorted({curve.dtype for curve in curves})
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 3.6), sharey=True, squeeze=False)
    colours = dict(zip(KINDS, ("#0b6e99", "#c8553d", "#588157"), strict=True))
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for curve in (c for c in curves if c.dtype == dtype):
            axis.loglog(curve.steps, np.maximum(curve.window, 1e-2), color=colours[curve.kind], lw=0.9, alpha=0.8)
        for kind, colour in colours.items():
            axis.plot([], [], color=colour, label=kind)
        axis.axhline(30, color="0.3", ls="--", lw=0.9)
        axis.text(axis.get_xlim()[0] * 1.2, 33, "promised: R ≤ 30", fontsize=8, color="0.3")
        axis.set(title=dtype, xlabel="updates", ylim=(1e-2, 100))
    axes[0][0].set_ylabel("R, backward error / eps")
    axes[0][-1].legend(frameon=False, fontsize=8, ncols=3, loc="upper right", bbox_to_anchor=(1, 0.86))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    """Run every stream; the exit status says whether each kept R ≤ 30."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--picture", type=Path, help="write R over updates here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", IllConditionedWarning)
    curves = []
    print("dtype    damping  kind        kappa    worst R  fresh R  factorizations")
    for dtype, damping, kind in itertools.product(("float32", "float64"), DAMPINGS, KINDS):
        sizes = {"updates": options.updates, "window": options.window, "dim": options.dim}
        curve = follow(dtype, damping, kind, **sizes)
        curves.append(curve)
        figures = f"{curve.kappa:8.1e} {curve.window.max():8.2f} {curve.fresh.max():8.2f}  {curve.factorizations}"
        print(f"{dtype}  {damping:<7g}  {kind:<10} {figures}", flush=True)
    if options.picture:
        draw(curves, options.picture)
    return int(max(curve.window.max() for curve in curves) > 30)


if __name__ == "__main__":
    raise SystemExit(main())
