"""Which of the training runs in a file of results speak for a method."""

from __future__ import annotations

from typing import Any

Runs = list[dict[str, Any]]


def best_run(rates: Runs, method: str) -> dict[str, Any]:
    """The run of the first seed with the least training loss in the last epoch."""
    runs = [run for run in rates if run["method"] == method and run["accuracy"] is not None]
    return min(runs, key=lambda run: run["losses"][-1])


def runs_of(rates: Runs, seeds: Runs, method: str) -> Runs:
    """The runs of all seeds at the best rate."""
    return [best_run(rates, method), *(run for run in seeds if run["method"] == method)]
