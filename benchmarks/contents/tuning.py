"""The figures of three tasks with equal tuning, of docs/optimizer.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.experiments.runs import trials_of

from .markdown import held, one, table

LABELS = {
    "SGD": "SGD",
    "Adam": "Adam",
    "M-FAC, λ√v": "M-FAC, λ√v̂",
    "M-FAC, λI": "M-FAC, λI",
    "Gauss–Newton": "Gauss–Newton",
}
OPTIONS = {"SGD": "momentum", "Adam": "β₂"}
VARIANTS, TASKS = ("momentum of gradients", "covariance", "a window for each parameter"), ("text", "table", "equation")
WINDOWS, WINDOW = ("M-FAC, λ√v", "M-FAC, λI"), 128


def digits(x: float) -> str:
    """Three digits, without an exponent where it is short."""
    return f"{x:#.3g}" if 1e-2 <= x < 1e3 else f"{x:.1e}".replace("e-0", "e-")


def chosen(method: str, run: dict[str, Any]) -> list[str]:
    """The rate and the other option."""
    return [f"{run['rate']:g}", f"{OPTIONS.get(method, 'λ')} = {run['value']:g}"]


def spread(values: list[float]) -> str:
    return f"{digits(statistics.fmean(values))} ({digits(min(values))} to {digits(max(values))})"


def by_method(task: str) -> str:
    """What was chosen for each method, and what it reached."""
    file, rows = held("tuning"), []
    steps = one(file["steps"]["figures"], task=task)["seconds"]
    for method in (m for m in LABELS if m in steps):
        runs = trials_of(file, task, method)
        errors, losses = [run["test"] for run in runs], [run["losses"][-1] for run in runs]
        row = [LABELS[method], *chosen(method, runs[0]), spread(errors), digits(statistics.fmean(losses))]
        rows.append([*row, str(runs[0]["steps"]), f"{1e3 * steps[method]:.1f}"])
    best = min(rows, key=lambda row: float(row[3].split()[0]))
    best[3] = "**{}** {}".format(*best[3].split(" ", 1))
    head = ["", "rate", "option", "test error (least to most of 3 seeds)", "training loss", "steps", "ms a step"]
    return table(head, rows)


def variants() -> str:
    """Test errors of other steps by a window, the best trial of each and its other seeds, beside Adam and M-FAC."""
    file, rows = held("tuning"), []
    for method in ("Adam", "M-FAC, λ√v", *VARIANTS):
        kind = "variants" if method in VARIANTS else "trials"
        runs = {task: trials_of(file, task, method, kind) for task in TASKS}
        rows.append([LABELS.get(method, method), *(spread([run["test"] for run in runs[task]]) for task in TASKS)])
    return table(["", *TASKS], rows)


def best_rates() -> tuple[str, ...]:
    """The least and the largest of the best lr/λ over the tasks, with λ√v̂ and with λI."""
    rates = [[trials_of(held("tuning"), task, method)[0]["rate"] for task in TASKS] for method in WINDOWS]
    return tuple(f"{bound:g}" for each in rates for bound in (min(each), max(each)))


def bound_of_steps() -> tuple[str, ...]:
    """The best lr on the text with λ√v̂, and lr² m, which lr² gᵀF⁻¹g is below."""
    best = trials_of(held("tuning"), "text", WINDOWS[0])[0]
    lr = best["rate"] * best["value"]
    return f"{lr:g}", digits(lr**2 * WINDOW)
