"""The figures of docs/optimizer.md."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.experiments.runs import runs_of

from .markdown import held, one, table

TRAINED = {
    "SGD": "SGD",
    "Adam": "Adam",
    "M-FAC, 128": "**M-FAC, m = 128**",
    "M-FAC, 128, λ√v": "**M-FAC, m = 128, λ√v̂**",
    "M-FAC, 32": "M-FAC, m = 32",
    "M-FAC, 32, λ√v": "M-FAC, m = 32, λ√v̂",
    "M-FAC, 512": "M-FAC, m = 512",
    "M-FAC, 512, λ√v": "M-FAC, m = 512, λ√v̂",
    "M-FAC, 128, 1 %": "M-FAC, m = 128, 1 % of the entries",
    "M-FAC, 128, 1 %, λ√v": "M-FAC, m = 128, 1 %, λ√v̂",
}
BY_DEFAULT = {**dict(list(TRAINED.items())[:3]), "M-FAC, 128, λ√v": "M-FAC, m = 128, λ√v̂"}
SMALL = {
    "SGD": "SGD",
    "Adam": "Adam",
    "M-FAC, 128, √v": "M-FAC, m = 128, √v̂",
    "M-FAC, 512, √v": "**M-FAC, m = 512, √v̂**",
}


def trained(method: str, setting: str = "") -> list[dict[str, Any]]:
    """The runs of a method in a setting."""
    rates, seeds = (held("optimizer")[f"{setting}{part}"]["figures"] for part in ("rates", "seeds"))
    return runs_of(rates, seeds, method)


def outcome(method: str, label: str, setting: str) -> list[str]:
    """Rate, accuracies and loss of a method; the accuracy in bold where the label is."""
    runs = trained(method, setting)
    accuracies = [run["accuracy"] for run in runs]
    mean = f"{statistics.fmean(accuracies):.2f}"
    mean = f"**{mean}**" if label.startswith("**") else mean
    loss = statistics.fmean(run["losses"][-1] for run in runs)
    return [
        label,
        f"{runs[0]['rate']:g}",
        f"{mean} ({min(accuracies):.2f} to {max(accuracies):.2f})",
        f"{loss:.3f}",
    ]


def milliseconds(method: str, what: str = "seconds") -> str:
    seconds = one(held("optimizer")["steps"]["figures"], method=method)[what]
    return "" if seconds is None else f"{1e3 * seconds:.1f}"


def training(labels: dict[str, str], setting: str, *, timed: bool = False) -> str:
    head = ["", "lr", "test accuracy, % (least to most of 3 seeds)", "training loss"]
    rows = [outcome(method, label, setting) for method, label in labels.items()]
    if timed:
        head += ["ms a step", "two reads of G"]
        for row, method in zip(rows, labels, strict=True):
            row += [milliseconds(method), milliseconds(method, "reads")]
    return table(head, rows)


def lead_over_adam() -> tuple[str, ...]:
    """The least and the most of the leads of the best M-FAC over Adam, and the least ratio of their steps to SGD's."""
    means = [
        {m: statistics.fmean(run["accuracy"] for run in trained(m, setting)) for m in labels}
        for setting, labels in (("", BY_DEFAULT), ("default-", BY_DEFAULT), ("small-", SMALL))
    ]
    found = [max(x for m, x in each.items() if m.startswith("M-FAC")) - each["Adam"] for each in means]
    seconds = {m: one(held("optimizer")["steps"]["figures"], method=m)["seconds"] for m in ("SGD", "M-FAC, 128, λ√v")}
    return f"{min(found):.1f}", f"{max(found):.1f}", f"{seconds['M-FAC, 128, λ√v'] / seconds['SGD']:.1f}"
