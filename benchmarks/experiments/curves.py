"""Pictures of what the experiments found, from their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLORS = {
    "magnitude": "#777777",
    "diagonal Fisher": "#bbbbbb",
    "blocks of 128": "#56b4e9",
    "blocks of 128, joint": "#0072b2",
    "layers": "#f0c040",
    "layers, joint": "#e69f00",
    "filters, joint": "#d55e00",
    "full": "#66c2a5",
    "full, joint": "#009e73",
    "SGD": "#777777",
    "Adam": "#e69f00",
    "M-FAC, 32": "#56b4e9",
    "M-FAC, 128": "#0072b2",
    "M-FAC, 512": "#003a5c",
    "M-FAC, 128, 1 %": "#66c2a5",
    "M-FAC, 32, λ√v": "#f5a27a",
    "M-FAC, 128, λ√v": "#d55e00",
    "M-FAC, 512, λ√v": "#8c2d04",
    "M-FAC, 128, 1 %, λ√v": "#cc79a7",
}

Figures = list[dict[str, Any]]


def draw_pruning(held: dict[str, Any], path: Path, *, num_gradients: int, dense: float) -> None:
    """One shot over sparsities, and 4 and 16 steps."""
    figure, panels = _panels(3)
    shots = held["one-shot"]["figures"]
    _lines(panels[0], [f for f in shots if f["num_gradients"] == num_gradients])
    panels[0].set_title(f"one shot, {num_gradients} gradients", fontsize=11)
    for panel, steps in zip(panels[1:], (4, 16), strict=True):
        _lines(panel, held[f"steps-{steps}"]["figures"], marker="o")
        panel.set_title(f"{steps} steps of 128 gradients", fontsize=11)
        panel.set(xticks=(70, 80, 90), xlim=(69, 91))
    for panel in panels:
        panel.axhline(dense, color="0.6", linewidth=1, linestyle=":")
        panel.set(xlabel="weights removed, %", ylim=(0, 95))
    panels[0].set_ylabel("test accuracy, %")
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(path)


def draw_training(runs: Figures, path: Path) -> None:
    """Training loss and test accuracy, after each epoch and over seconds: the mean of the seeds of each method."""
    figure, panels = _panels(4)
    for method in dict.fromkeys(run["method"] for run in runs):
        same = [run for run in runs if run["method"] == method and run["accuracy"] is not None]
        losses, accuracies, seconds = (
            [sum(values) / len(same) for values in zip(*(run[name] for run in same), strict=True)]
            for name in ("losses", "accuracies", "seconds")
        )
        epochs = range(1, len(losses) + 1)
        style = {"color": COLORS[method], "label": method, "linewidth": 1.8}
        for panel, over, values in zip(panels, (epochs, seconds) * 2, [losses] * 2 + [accuracies] * 2, strict=True):
            panel.plot(over, values, **style)
    for panel, over in zip(panels, ("epoch", "seconds of training") * 2, strict=True):
        panel.set(xlabel=over)
    for panel in panels[:2]:
        panel.set(ylabel="training loss", yscale="log")
        panel.set_yticks(ticks := (0.15, 0.2, 0.3, 0.5, 1.0), [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    for panel in panels[2:]:
        panel.set(ylabel="test accuracy, %", ylim=(78, 91))
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _lines(panel: Any, figures: Figures, **style: Any) -> None:
    for method in dict.fromkeys(figure["method"] for figure in figures):
        points = sorted((100 * f["sparsity"], f["accuracy"]) for f in figures if f["method"] == method)
        panel.plot(*zip(*points, strict=True), color=COLORS[method], label=method, linewidth=1.8, **style)


def _panels(count: int) -> tuple[Any, Iterable[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15 if count < 4 else 18, 4.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, count)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    return figure, panels
