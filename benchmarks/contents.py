"""What the tables of the documentation hold, and the numbers in its sentences, from the files of results."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from benchmarks.experiments.runs import runs_of

RESULTS = Path(__file__).with_name("results")
ONE_SHOT = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
COUNTS = (64, 128, 256, 512)
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3)
FORESEEN = ((1e-3, 10), (1e-2, 1), (1e-2, 10), (1e-2, 100), (1e-1, 10))
IN_FULL = {
    "diagonal Fisher": "diagonal Fisher",
    "full": "full matrix, single",
    "full, joint": "full matrix, joint",
    "layers": "layers, single",
    "layers, joint": "layers, joint",
    "blocks of 128": "blocks of 128, single",
    "blocks of 128, joint": "blocks of 128, joint",
    "filters, joint": "**filters, joint**",
}
FIRST = {
    "magnitude": "magnitude",
    "diagonal Fisher": "diagonal Fisher, w²(F_ii + λ), rest left as it is",
    "full": "full matrix, single (the paper's)",
    **{name: IN_FULL[name] for name in ("full, joint", "blocks of 128", "blocks of 128, joint")},
    **{name: IN_FULL[name] for name in ("layers", "layers, joint", "filters, joint")},
}
FISHERS = {
    "true Fisher": "true Fisher",
    "sampled Fisher": "one sampled label a digit",
    "empirical Fisher": "empirical Fisher",
    "diagonal": "its diagonal",
    "identity": "λI",
}
SHAPES = {
    (64, 100_000): "(64, 10⁵), 26 MB",
    (64, 10_000_000): "(64, 10⁷), 2.6 GB",
    (64, 22_600_000): "(64, 2.26·10⁷), 5.8 GB: the size of MiniLM",
    (16, 100_000_000): "(16, 10⁸), 6.4 GB",
}
OPERATIONS = ("build", "matvec", "push-through", "diagonal", "whiten", "step")
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


@functools.cache
def held(name: str) -> Any:
    """What a file of results holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def one(figures: list[dict[str, Any]], **key: Any) -> dict[str, Any]:
    """The one figure with these facts."""
    (found,) = (figure for figure in figures if key.items() <= figure.items())
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *map(list, rows)]
    head_line, *others = [f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines]
    return "".join([head_line, "|---" * len(lines[0]), "|\n", *others])


def rounded(x: float, places: int = 2) -> str:
    """A number to so many decimals, halves upwards, as they are counted by hand."""
    return str(Decimal(repr(x)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def with_best(rows: list[tuple[str, list[float]]]) -> list[list[str]]:
    """Rows of accuracies to two decimals, the best of each column in bold."""
    best = [max(column) for column in zip(*(values for _, values in rows), strict=True)]
    return [
        [label, *(f"**{rounded(x)}**" if x == top else rounded(x) for x, top in zip(values, best, strict=True))]
        for label, values in rows
    ]


def per_cent(sparsities: Iterable[float]) -> list[str]:
    return [f"{100 * sparsity:.0f} %" for sparsity in sparsities]


# --- pruning.md --------------------------------------------------------------------------------------------------


def pruned(part: str, **key: Any) -> float:
    """The accuracy after pruning so."""
    return one(held("pruning")[part]["figures"], **key)["accuracy"]


def one_shot() -> str:
    options = {"num_gradients": 256, "damping": 1e-5}
    rows = [
        (label, [pruned("one-shot", method=name, sparsity=s, **options) for s in ONE_SHOT])
        for name, label in FIRST.items()
    ]
    return table(["weights removed", *per_cent(ONE_SHOT)], with_best(rows))


def by_count() -> str:
    options = {"damping": 1e-5, "sparsity": 0.8}
    names = ("full", "full, joint", "blocks of 128, joint", "layers", "filters, joint")
    rows = [
        (IN_FULL[name], [pruned("one-shot", method=name, num_gradients=count, **options) for count in COUNTS])
        for name in names
    ]
    return table(["", *map(str, COUNTS)], with_best(rows))


def in_steps() -> str:
    cells = [(steps, s) for steps in (4, 16) for s in (0.7, 0.8, 0.9)]
    rows = [
        (label, [pruned(f"steps-{steps}", method=name, sparsity=s) for steps, s in cells])
        for name, label in IN_FULL.items()
    ]
    shares = per_cent(s for _, s in cells)
    head = [f"{steps} steps, {share}" if s == 0.7 else share for (steps, s), share in zip(cells, shares, strict=True)]
    reference = held("pruning-reference")
    others = {
        "*the authors' code, full matrix, single*": reference["authors"],
        "*the joint change by that code's gradients*": reference["joint change by their gradients"],
    }
    lines = with_best(rows)
    for label, figures in others.items():
        lines.append([label, *(f"*{figures[str(steps)][f'{100 * s:.0f}']:.2f}*" for steps, s in cells)])
    return table(["", *head], lines)


def by_damping() -> str:
    rows = []
    for name, label in IN_FULL.items():
        shots = [pruned("damping", method=name, num_gradients=256, sparsity=0.8, damping=x) for x in DAMPINGS]
        steps = [pruned("damping-4", method=name, sparsity=0.8, damping=x) for x in DAMPINGS]
        rows.append((label, shots + steps))
    head = [f"{x:.0e}".replace("e-0", "e-") for x in DAMPINGS] * 2
    head[0], head[4] = f"one shot: {head[0]}", f"4 steps: {head[4]}"
    return table(["λ", *head], with_best(rows))


def tuned() -> str:
    names = {
        "magnitude": "magnitude, in one step",
        "full": "full matrix, single",
        "filters, joint": "**filters, joint**",
    }
    rows = []
    for name, label in names.items():
        found = [one(held("pruning")["tuning"]["figures"], method=name, sparsity=s) for s in (0.8, 0.9)]
        rows.append((label, [figure[part] for figure in found for part in ("accuracy", "tuned")]))
    return table(["", "80 %: before", "after", "90 %: before", "after"], with_best(rows))


def reached(part: str, method: str, sparsities: Iterable[float]) -> list[float]:
    return [pruned(part, method=method, sparsity=s) for s in sparsities]


def leads() -> tuple[str, ...]:
    """How far filters are ahead of the authors' code at 80 and 90 %, in 4 and in 16 steps."""
    theirs = held("pruning-reference")["authors"]
    return tuple(
        f"{pruned(f'steps-{steps}', method='filters, joint', sparsity=s) - theirs[str(steps)][f'{100 * s:.0f}']:.0f}"
        for steps in (4, 16)
        for s in (0.8, 0.9)
    )


def by_steps() -> tuple[str, ...]:
    few, many = (reached(f"steps-{steps}", "filters, joint", (0.7, 0.8, 0.9)) for steps in (4, 16))
    return tuple(rounded(x, 1) for pair in zip(few, many, strict=True) for x in pair)


def searched() -> tuple[str, ...]:
    found = [reached("search", name, (0.7, 0.8, 0.9)) for name in ("filters, joint", "full, joint")]
    return tuple(rounded(x) for row in found for x in row)


def headline() -> tuple[str, ...]:
    ours, theirs = pruned("steps-16", method="filters, joint", sparsity=0.8), held("pruning-reference")["authors"]
    return rounded(ours, 1), rounded(theirs["16"]["80"], 1)


# --- optimizer.md ------------------------------------------------------------------------------------------------


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


# --- influence.md ------------------------------------------------------------------------------------------------


def decimals(x: float) -> str:
    text = rounded(x).replace("-", "−")
    return "0.00" if text == "−0.00" else text


def two_digits(x: float) -> str:
    power = math.floor(math.log10(x))
    return f"{round(x, 1 - power):.{max(0, 1 - power)}f}"


def foretold(gradients: str) -> str:
    rows = []
    for kind, label in FISHERS.items():
        facts = {"gradients": gradients, "fisher": kind}
        outcomes = held("influence")["outcomes"]
        found = [one(outcomes, loss="mean", damping=x, group=size, **facts) for x, size in FORESEEN]
        digits = one(outcomes, loss="digits", damping=1e-2, group=10, **facts)
        cells = [f"{decimals(o['spearman'])} [{decimals(o['low'])}, {decimals(o['high'])}]" for o in (*found, digits)]
        if (kind, gradients) == ("true Fisher", "last layer"):
            label = "true Fisher (the Hessian)"
        rows.append([label, *cells, two_digits(found[2]["error"])])
    head = ["λ = 1e-3, 10 out", "1e-2, 1 out", "1e-2, 10 out", "1e-2, 100 out", "1e-1, 10 out"]
    return table(["F", *head, "single digits, 1e-2, 10 out", "error, 1e-2, 10 out"], rows)


# --- scaling.md and theory.md ------------------------------------------------------------------------------------


def cost_model() -> str:
    rows = []
    for (m, d), label in SHAPES.items():
        seconds = one(held("cost-model")["cases"], m=m, d=d)["seconds"]
        cells = []
        for name in OPERATIONS:
            if name not in seconds:
                cells.append("–")
                continue
            ratio = seconds[name]["measured"] / seconds[name]["model"]
            shown = f" ({two_digits(seconds[name]['measured'])} s)" if d == 22_600_000 else ""
            cells.append((f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}") + shown)
        rows.append([label, *cells])
    head = ["build", "`matvec`", "push-through", "`diagonal` of W", "W in place", "step"]
    return table(["(m, d), G", *head], rows)


def drift() -> tuple[str, ...]:
    """The largest R in both dtypes, its largest ratio to a fresh one's, and the largest of these."""
    curves = held("drift-1e6")
    most = [max(max(c["window"]) for c in curves if c["dtype"] == dtype) for dtype in ("float32", "float64")]
    ratio = max(max(w / max(1, f) for w, f in zip(c["window"], c["fresh"], strict=True)) for c in curves)
    fresh = max(max(c["fresh"]) for c in curves)
    return tuple(f"{x:.1f}" for x in (*most, ratio, fresh))


TABLES: dict[str, Callable[[], str]] = {
    "pruning, one shot": one_shot,
    "pruning, by number of gradients": by_count,
    "pruning, in steps": in_steps,
    "pruning, by damping": by_damping,
    "pruning, trained afterwards": tuned,
    "optimizer": functools.partial(training, TRAINED, "", timed=True),
    "optimizer, default weights": functools.partial(training, BY_DEFAULT, "default-"),
    "optimizer, small batches": functools.partial(training, SMALL, "small-"),
    "influence, last layer": functools.partial(foretold, "last layer"),
    "influence, network": functools.partial(foretold, "network"),
    "cost model": cost_model,
}
SENTENCES: dict[str, dict[str, Callable[[], tuple[str, ...]]]] = {
    "README.md": {
        "has {} % without 80 % of its weights, in 16 steps and with no training, where the authors' code for the full "
        "matrix has {} %": headline,
        "{} to {} points ahead of Adam and more of SGD at equal epochs, for a step {} times as long": lead_over_adam,
    },
    "docs/pruning.md": {
        "With filters that is {} and {} points more than the authors' figures at 80 and 90 % in 4 steps, {} and {} in "
        "16.": leads,
        "{} to {} % at 70 %, {} to {} % at 80 %, {} to {} % at 90 %.": by_steps,
        "filters {}, {} and {} % at 70, 80 and 90 %, the full matrix, joint, {}, {} and {} %.": searched,
    },
    "docs/optimizer.md": {"the gradient alone takes {} ms": lambda: (milliseconds("gradient"),)},
    "docs/theory.md": {
        "it is at most {} in float32 and {} in float64, and at no step more than {} times that of a fresh inverse of "
        "the same rows (an R below one counting as one); fresh ones reach {} in both.": drift,
    },
}
