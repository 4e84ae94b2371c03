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


def best_trial(trials: Runs, method: str) -> dict[str, Any]:
    """The trial with the least validation error."""
    ended = [trial for trial in trials if trial["method"] == method and trial["validation"] is not None]
    return min(ended, key=lambda trial: trial["validation"])


def trials_of(held: dict[str, Any], task: str, method: str) -> Runs:
    """The best trial of a method on a task, and its repetitions with other seeds."""
    seeds = held.get(f"{task}-seeds", {"figures": []})["figures"]
    best = best_trial(held[f"{task}-trials"]["figures"], method)
    return [best, *(run for run in seeds if run["method"] == method)]
