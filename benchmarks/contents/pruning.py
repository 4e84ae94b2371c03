"""The figures of docs/pruning.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .markdown import held, one, rounded, table, with_best

ONE_SHOT = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
COUNTS = (64, 128, 256, 512)
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3)
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


def per_cent(sparsities: Iterable[float]) -> list[str]:
    return [f"{100 * sparsity:.0f} %" for sparsity in sparsities]


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


def by_the_call() -> tuple[str, ...]:
    choices = ("as in the tables", "those of two or more axes")
    return tuple(rounded(pruned("model", params=params), 2) for params in choices)


BY_BLOCKS = {"full": "full matrix", "filters": "filters"}
CHANGES = {"none": "none", "single": "single", "minimum": "joint, θ = 0", "auto": "joint, θ by the rows"}
LARGE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def compensated() -> str:
    """Accuracy in one shot by network, blocks and change, the mean of the seeds that have been measured."""
    figures, rows = held("compensation")["one-shot"]["figures"], []
    for network, blocks in dict.fromkeys((figure["network"], figure["blocks"]) for figure in figures):
        lines = [
            (text, [_mean(figures, name, network=network, blocks=blocks, sparsity=s) for s in LARGE])
            for name, text in CHANGES.items()
        ]
        rows += [[f"{network}, {BY_BLOCKS[blocks]}", *line] for line in with_best(lines)]
    return table(["", "change", *per_cent(LARGE)], rows)


def compensated_in_steps() -> str:
    """Accuracies of three changes in four steps, by network and blocks."""
    figures, rows = held("compensation")["steps-4"]["figures"], []
    sparsities = sorted({figure["sparsity"] for figure in figures})
    for network, blocks in dict.fromkeys((figure["network"], figure["blocks"]) for figure in figures):
        key = {"network": network, "blocks": blocks}
        lines = [
            (text, [_mean(figures, "accuracy", change=name, sparsity=s, **key) for s in sparsities])
            for name, text in CHANGES.items()
            if name != "none"
        ]
        rows += [[f"{network}, {BY_BLOCKS[blocks]}", *line] for line in with_best(lines)]
    return table(["", "change", *per_cent(sparsities)], rows)


def _mean(figures: list[dict[str, Any]], name: str, **key: Any) -> float:
    values = [figure[name] for figure in figures if key.items() <= figure.items()]
    return sum(values) / len(values)


def losses_to_single() -> tuple[str, ...]:
    """By how many points the change by the rows, and that at θ = 0, are below single changes at most."""
    figures = held("compensation")["one-shot"]["figures"]
    return tuple(rounded(max(x["single"] - x[name] for x in figures), 1) for name in ("auto", "minimum"))


def losses_to_single_in_steps() -> tuple[str, ...]:
    """The same in four steps."""
    runs = _runs_in_steps()
    return tuple(rounded(max(run["single"] - run[name] for run in runs), 1) for name in ("auto", "minimum"))


def beside_the_minimum_in_steps() -> tuple[str, ...]:
    """By how many points the change by the rows is behind that at θ = 0 at most, and ahead of it, in four steps."""
    gains = [run["auto"] - run["minimum"] for run in _runs_in_steps()]
    return rounded(-min(gains), 1), rounded(max(gains), 1)


def _runs_in_steps() -> list[dict[str, float]]:
    """Accuracies by the change, of each network, blocks, seed and sparsity."""
    runs: dict[tuple[Any, ...], dict[str, float]] = {}
    for figure in held("compensation")["steps-4"]["figures"]:
        key = tuple(figure[name] for name in ("network", "blocks", "seed", "sparsity"))
        runs.setdefault(key, {})[figure["change"]] = figure["accuracy"]
    return list(runs.values())
