"""The pictures: accuracy against sparsity and the spectrum of F; training losses."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import WoodburyRankOneInverse
from ..plot import BLUE, GREY, ORANGE, spectrum
from .descent import Comparison
from .pruning import Curves


def draw(path: str, curves: Curves, inverse: WoodburyRankOneInverse, *, before: float) -> None:
    """Write both panels to `path`, in the format that its suffix names."""
    figure, (left, right) = _two_panels()
    _draw_accuracy(left, curves, before=before)
    spectrum(inverse, ax=right)
    _save(path, figure, (left, right))


def draw_descent(path: str, comparisons: Sequence[Comparison]) -> None:
    """Write the losses of every method to `path`: over epochs at its best rate, and at the end at every rate."""
    figure, (left, right) = _two_panels()
    for each, color in zip(comparisons, (ORANGE, GREY, BLUE), strict=True):
        best = each.best
        epochs = np.arange(1, len(best.losses) + 1)
        left.semilogy(epochs, best.losses, color=color, linewidth=2, label=f"{each.name}, rate {best.rate:g}")
        rates, ends = zip(*((run.rate, run.losses[-1]) for run in each.runs), strict=True)
        right.loglog(rates, ends, color=color, marker="o", markersize=4, label=each.name)
        right.plot(best.rate, best.losses[-1], color=color, marker="o", markersize=9)
    left.set(
        xlabel="epoch", ylabel="training loss", xticks=range(0, len(best.losses) + 1, max(1, len(best.losses) // 5))
    )
    left.set_title("Training loss, each method at its best rate", fontsize=11)
    right.set(xlabel="learning rate", ylabel="training loss at the end", ylim=(None, 10))
    right.set_title("The rates they were chosen from", fontsize=11)
    left.legend(frameon=False)
    _save(path, figure, (left, right))


def _two_panels() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), dpi=150, layout="constrained")
    return figure, figure.subplots(1, 2)


def _save(path: str, figure: Any, panels: Iterable[Any]) -> None:
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    figure.savefig(path)


def _draw_accuracy(panel: Any, curves: Curves, *, before: float) -> None:
    """One line a method, over an axis on which each halving of the weights takes the same room."""
    panel.axhline(100 * before, color=GREY, linewidth=1, linestyle=":", label="before pruning")
    for values, label, style in (
        (curves.recomputed, f"OBS, {len(curves.sparsity)} inverses", {"color": BLUE, "marker": "o"}),
        (curves.one_shot, "OBS, one inverse", {"color": BLUE, "linestyle": "--", "linewidth": 1.2}),
        (curves.magnitude, "magnitude", {"color": ORANGE, "marker": "s"}),
    ):
        panel.plot(100 * curves.sparsity, 100 * values, label=label, markersize=3.5, **style)
    panel.set_xscale("function", functions=(lambda s: -np.log1p(-s / 100), lambda u: -100 * np.expm1(-u)))
    panel.set_xticks([0, 30, 50, 70, 80, 90, 95])
    panel.set(xlim=(0, 95.5), ylim=(0, 102), xlabel="weights removed, %", ylabel="test accuracy, %")
    panel.set_title("Optimal brain surgeon (OBS) and magnitude, no retraining", fontsize=11)
    panel.legend(loc="lower left", frameon=False)
