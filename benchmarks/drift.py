"""Whether a window drifts: its backward error over many steps, and that of a fresh inverse of the same rows.

``python -m benchmarks.drift --updates 1000000`` takes hours; the default some minutes. Prints a table, writes the
curves, draws them (``--from`` draws what was written). Fails where R > 30, or more than three times that of a fresh
inverse; an R below one, which is less than one rounding, counts as one there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mfac_linalg import IllConditionedWarning, SlidingWindowInverse, WoodburyRankOneInverse

KINDS = ("iid", "correlated", "repeated")
DAMPINGS = (1e-1, 1e-3, 1e-5, 1e-7)
DTYPES = ("float32", "float64")
SAMPLES = 40
SEED = 32256
PROMISED, TIMES_FRESH = 30, 3


@dataclass(frozen=True)
class Curve:
    """R of a window and of a fresh inverse at some steps of one stream, and the factorisations that it took."""

    dtype: str
    damping: float
    kind: str
    steps: list[int]
    window: list[float]
    fresh: list[float]
    kappa: float
    factorizations: int

    @property
    def times_fresh(self) -> float:
        """The largest ratio of both R at one step."""
        return max(ours / max(1.0, fresh) for ours, fresh in zip(self.window, self.fresh, strict=True))

    @property
    def row(self) -> str:
        """A line of the table."""
        figures = f"{self.kappa:8.1e} {max(self.window):8.2f} {max(self.fresh):8.2f} {self.times_fresh:8.2f}"
        return f"{self.dtype}  {self.damping:<7g}  {self.kind:<10} {figures}  {self.factorizations}"


def stream(kind: str, dim: int, rng: np.random.Generator):
    """Yield gradients forever: independent, close to the previous one, or mostly equal to it."""
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


def follow(stream_of: tuple[str, float, str], *, updates: int, window: int, dim: int, block: int) -> Curve:
    """Slide a window over a stream, and measure both inverses at steps spread evenly on a logarithmic scale."""
    dtype, damping, kind = stream_of
    warnings.simplefilter("ignore", IllConditionedWarning)
    rng = np.random.default_rng(SEED)
    left = sorted(set(np.geomspace(window, updates, SAMPLES).astype(int).tolist()))
    inverse, results, step = SlidingWindowInverse(window, dim, damping), [], 0
    gradients = (g.astype(dtype) for g in stream(kind, dim, rng))
    while left:
        if block > 1:
            inverse.extend(np.stack(list(itertools.islice(gradients, block - 1))))
        g = next(gradients)
        step += block
        if step < left[0]:
            inverse.append(g)
            continue
        x = inverse.append_matvec(g)
        results.append((step, *compare(inverse, x, [g, rng.standard_normal(dim).astype(dtype)])))
        left = [at for at in left if at > step]
    steps, ours, fresh = map(list, zip(*results, strict=True))
    return Curve(dtype, damping, kind, steps, ours, fresh, inverse.kappa, inverse.factorizations)


def compare(inverse: SlidingWindowInverse, step: np.ndarray, vectors: list[np.ndarray]) -> tuple[float, float]:
    """The worst R of a window, `step` its answer for the newest gradient, and of a fresh inverse asked the same."""
    rows, damping = inverse.gradients, inverse.damping
    fresh = WoodburyRankOneInverse(rows, damping, whiten=False)
    newest = np.eye(len(rows), dtype=rows.dtype)[-1]
    answers = ((inverse, step), (fresh, fresh.matvec_gradients(newest)))
    return tuple(
        max(backward_ratio(rows, damping, v, x) for v, x in [(rows[-1], first), *((u, each @ u) for u in vectors)])
        for each, first in answers
    )


def draw(curves: list[Curve], path: Path) -> None:
    """One panel per dtype: R(t) of every stream, the bound, and the worst fresh inverse."""
    import matplotlib.pyplot as plt

    dtypes = sorted({curve.dtype for curve in curves})
    figure, axes = plt.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 3.6), sharey=True, squeeze=False)
    colours = dict(zip(KINDS, ("#0b6e99", "#c8553d", "#588157"), strict=True))
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for curve in (c for c in curves if c.dtype == dtype):
            axis.loglog(curve.steps, curve.window, color=colours[curve.kind], lw=0.9, alpha=0.8)
        for kind, colour in colours.items():
            axis.plot([], [], color=colour, label=kind)
        axis.axhline(30, color="0.3", ls="--", lw=0.9)
        axis.text(axis.get_xlim()[0] * 1.2, 33, "promised: R ≤ 30", fontsize=8, color="0.3")
        axis.set(title=dtype, xlabel="updates", ylim=(1e-2, 100))
    axes[0][0].set_ylabel("R, backward error / eps")
    axes[0][-1].legend(frameon=False, fontsize=8, ncols=3, loc="upper right", bbox_to_anchor=(1, 0.86))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def curves_of(options: argparse.Namespace) -> Iterator[Curve]:
    """The curves of a file, or those of all streams, each as soon as it is there."""
    if options.source:
        yield from (Curve(**curve) for curve in json.loads(options.source.read_text()))
        return
    sizes = {name: getattr(options, name) for name in ("updates", "window", "dim", "block")}
    streams = itertools.product(options.dtypes, options.dampings, KINDS)
    with ProcessPoolExecutor(options.jobs) as pool:
        yield from pool.map(partial(follow, **sizes), streams)


def main() -> int:
    """Run every stream; the exit status says whether all of them are within the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--block", type=int, default=1, help="rows come by so many: all but one at once, then one")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--dampings", nargs="+", type=float, default=DAMPINGS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, help="write the curves here")
    parser.add_argument("--from", dest="source", type=Path, help="read them from here instead")
    parser.add_argument("--picture", type=Path, help="draw R over updates here")
    options = parser.parse_args()
    curves = []
    print("dtype    damping  kind        kappa    worst R  fresh R  x fresh  factorizations")
    for curve in curves_of(options):
        curves.append(curve)
        print(curve.row, flush=True)
        if options.output:
            options.output.write_text(json.dumps([asdict(curve) for curve in curves]) + "\n")
    if options.picture:
        draw(curves, options.picture)
    is_within_bounds = all(max(curve.window) <= PROMISED and curve.times_fresh <= TIMES_FRESH for curve in curves)
    return int(not is_within_bounds)


if __name__ == "__main__":
    raise SystemExit(main())
