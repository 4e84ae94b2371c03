"""The figures of docs/pruning.md beside CHITA."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from .markdown import held, rounded, scientific, table
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


def runs_of(network: str, **key: Any) -> Runs:
    """The figures of all methods, for each seed."""
    found = held("chita").get(network, {"figures": []})["figures"]
    return [figure["methods"] for figure in found if key.items() <= figure.items()]


def by_method(name: str, cell: Callable[[Runs, str], str], methods: dict[str, str]) -> str:
    """A table of those methods that have a figure, for each network and slope, by sparsity."""
    rows = []
    for network in NETWORKS:
        for slope in SLOPES:
            runs = [runs_of(network, slope=slope, sparsity=sparsity) for sparsity in SPARSITIES]
            for method, label in methods.items():
                has = [bool(each) and name in each[0][method] for each in runs]
                cells = (cell(each, method) if is_there else "–" for each, is_there in zip(runs, has, strict=True))
                rows += [[f"{network}, α = {'1/32' if slope else '0'}", label, *cells]] if any(has) else []
    return table(["", "method", *per_cent(SPARSITIES)], rows)


def mean(name: str, places: int) -> Callable[[Runs, str], str]:
    return lambda runs, method: rounded(statistics.fmean(run[method][name] for run in runs), places)


def ratio(runs: Runs, method: str) -> str:
    """The objective over that of exchanges from magnitude."""
    value = statistics.fmean(run[method]["value"] / run[OURS]["value"] for run in runs)
    return rounded(value, 4) if value < 10 else f"{value:.0f}" if value < 1e4 else scientific(value)


def objectives() -> str:
    """Objectives over ours."""
    return by_method("value", ratio, {method: label for method, label in METHODS.items() if method != OURS})


def seconds() -> str:
    """Processor seconds of one thread."""
    return by_method("cpu", mean("cpu", 2), METHODS)


def accuracies() -> str:
    """Per cent of the test images."""
    return by_method("accuracy", mean("accuracy", 1), METHODS)
