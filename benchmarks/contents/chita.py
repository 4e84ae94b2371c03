"""The figures of docs/pruning.md beside CHITA."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .markdown import held, rounded, table
from .pruning import per_cent

NETWORKS, SLOPES, SPARSITIES = ("ResNet-20", "MLP"), (0.0, 1 / 32), (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
OURS = "magnitude, exchanges"
METHODS = {
    "CHITA active set": "CHITA, active set",
    "its active set, joint": "its mask, our joint change",
    "CHITA least squares": "CHITA, least squares",
    "CHITA least squares, float64": "the same in float64",
    "CHITA blocks": "CHITA, blocks of 500",
    "magnitude": "magnitude, joint",
    "scores": "scores, joint",
    "scores, exchanges": "scores, exchanges, joint",
    OURS: "**magnitude, exchanges, joint**",
}
Runs = list[dict[str, dict[str, Any]]]
Cell = Callable[[Runs, str], str]


def runs_of(network: str, **key: Any) -> Runs:
    """The figures of all methods, for each seed."""
    found = held("chita").get(network, {"figures": []})["figures"]
    return [figure["methods"] for figure in found if key.items() <= figure.items()]


def mean(runs: Runs, method: str, name: str) -> float:
    return statistics.fmean(run[method][name] for run in runs)


def rows_of(cell: Cell, label: str, runs: list[Runs], names: dict[str, str]) -> list[list[str]]:
    return [[label, names[method], *(cell(each, method) for each in runs)] for method in names]


def by_method(cell: Cell, names: dict[str, str], slopes: tuple[float, ...] = SLOPES) -> str:
    """A table of the methods for each network and slope, by sparsity."""
    rows = []
    for network in NETWORKS:
        for slope in slopes:
            runs = [runs_of(network, slope=slope, sparsity=sparsity) for sparsity in SPARSITIES]
            if all(runs):
                rows += rows_of(cell, f"{network}, α = {'1/32' if slope else '0'}", runs, names)
    return table(["", "", *per_cent(SPARSITIES)], rows)


def ratio(runs: Runs, method: str) -> str:
    """The objective over that of exchanges from magnitude."""
    value = statistics.fmean(run[method]["value"] / run[OURS]["value"] for run in runs)
    return rounded(value, 4) if value < 10 else f"{value:.2g}" if value < 1e3 else f"{value:.0e}".replace("e+0", "e")


def objectives() -> str:
    """Objectives over ours."""
    return by_method(ratio, {method: label for method, label in METHODS.items() if method != OURS})


def seconds() -> str:
    """Seconds of one thread."""
    names = {method: label for method, label in METHODS.items() if method != "its active set, joint"}
    return by_method(lambda runs, method: rounded(mean(runs, method, "seconds")), names)


def accuracies() -> str:
    """Per cent of the test images."""
    return by_method(lambda runs, method: rounded(mean(runs, method, "accuracy")), METHODS)
