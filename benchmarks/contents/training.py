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
FIRST = {
    "MFAC": "**`MFAC(params)`**",
    "Adam": "`Adam(params)`",
    "SGD": "SGD, lr 0.1, momentum 0.9",
    "MFAC as at first": "M-FAC, λI, λ = 10⁻⁵, m = 64, no momentum",
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


def first_steps() -> str:
    """Accuracies after 90 steps, by optimizer and size of batch."""
    figures, rows = held("defaults")["first"]["figures"], []
    for name, label in FIRST.items():
        cells = []
        for batch in (512, 128):
            own = {"optimizer": name, "batch": batch}
            found = [figure["accuracy"] for figure in figures if own.items() <= figure.items()]
            cells.append(f"{statistics.fmean(found):.1f} % ({min(found):.1f} to {max(found):.1f})")
        rows.append([label, *cells])
    return table(["", "batches of 512", "batches of 128"], rows)


def lead_over_adam() -> tuple[str, ...]:
    """How far M-FAC with whole gradients is below and above Adam at worst and at best, and what its steps cost.

    The costs: its least and its largest time of a step over SGD's, and that of its best window for small batches over
    Adam's.
    """
    settings = (("", TRAINED), ("default-", BY_DEFAULT), ("small-", SMALL))
    means = [
        {m: statistics.fmean(run["accuracy"] for run in trained(m, setting)) for m in labels if "%" not in m}
        for setting, labels in settings
    ]
    leads = [x - each["Adam"] for each in means for m, x in each.items() if m.startswith("M-FAC")]
    steps = {m: one(held("optimizer")["steps"]["figures"], method=m)["seconds"] for m in means[0]}
    ratios = [seconds / steps["SGD"] for m, seconds in steps.items() if m.startswith("M-FAC")]
    small = {m: statistics.fmean(run["seconds"][-1] for run in trained(m, "small-")) for m in SMALL}
    price = small["M-FAC, 512, √v"] / small["Adam"]
    return tuple(f"{number:.1f}" for number in (-min(leads), max(leads), min(ratios), max(ratios), price))


def window_demo() -> tuple[str, ...]:
    """The loss of the window over the others' at most, its lead in accuracy over each, and its time of a step."""
    figures = held("window-demo")["comparisons"]["figures"]
    window, others = "M-FAC window", ("SGD", "Adam")
    losses = max(each[window]["loss"] / each[other]["loss"] for each in figures for other in others)
    leads = [[100 * (each[window]["accuracy"] - each[other]["accuracy"]) for each in figures] for other in others]
    times = [each[window]["seconds"] / each["SGD"]["seconds"] for each in figures]
    ranges = (bound for values in (*leads, times) for bound in (min(values), max(values)))
    return (f"{losses:.2f}", *(f"{bound:.1f}".replace("-", "−") for bound in ranges))
