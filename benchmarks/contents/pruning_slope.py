"""The figures of docs/pruning.md with a slope, and those without from the same runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .markdown import held, one, rounded, table
from .pruning import per_cent

SPARSITIES = {"ResNet-20": (0.7, 0.8, 0.9), "MLP": (0.9, 0.95, 0.98)}


def figures(part: str, **key: Any) -> list[dict[str, Any]]:
    """The figures of a part with these facts; none where it has not been run."""
    found = held("pruning-slope").get(part, {"figures": []})["figures"]
    return [figure for figure in found if key.items() <= figure.items()]


def judged(figure: dict[str, Any], sparsity: float, *, moved: bool = True) -> dict[str, Any]:
    """How good a network is at a sparsity; without moves, after the removals."""
    moments = [facts for facts in figure["judged"] if facts["sparsity"] == sparsity]
    return next((facts for facts in moments if facts.get("moved", True) is moved), moments[0])


def of_seeds(part: str, sparsity: float) -> list[dict[str, Any]]:
    """How good the runs of all seeds are at a sparsity."""
    return [judged(figure, sparsity) for figure in figures(part) if "seed" in figure]


def with_spread(values: Iterable[float]) -> str:
    """The mean, and the standard deviation of several."""
    values = list(values)
    mean = rounded(statistics.fmean(values))
    return f"{mean} ± {rounded(statistics.stdev(values))}" if len(values) > 1 else mean


def over_seeds(network: str, methods: dict[str, str]) -> str:
    """Accuracies of those methods that have been run, by seeds; steps and seconds to the last sparsity."""
    rows = []
    for method, label in methods.items():
        reached = [of_seeds(f"{network}, {method}", sparsity) for sparsity in SPARSITIES[network]]
        if last := reached[-1]:
            accuracies = (with_spread(facts["accuracy"] for facts in each) for each in reached)
            seconds = rounded(statistics.fmean(facts["seconds"] for facts in last), 0)
            rows.append([label, str(len(last)), *accuracies, str(last[0]["steps"]), seconds])
    for figure in figures(f"{network}, no slope", method="magnitude") if "no slope" in methods else ():
        accuracies = (rounded(judged(figure, sparsity)["accuracy"]) for sparsity in SPARSITIES[network])
        rows.insert(0, ["magnitude", "–", *accuracies, "1", "–"])
    return table(["", "seeds", *per_cent(SPARSITIES[network]), "steps", "seconds"], rows)


RESNET = {
    "slope, three moves": "256 rows a step, mirrored, three moves at each sparsity, α = 1/32, λ = 3e-3",
    "slope": "128 rows a step, a move at each sparsity, α = 1/16, λ = 1e-3",
    "slope, 64 rows": "64 rows a step, three moves at each sparsity, α = 1/16, λ = 1e-3",
}
WITHOUT = {
    "no slope": "filters, joint, 128 rows a step",
    "no slope, 256 rows": "filters, joint, 256 rows a step, mirrored",
}
WITHOUT_DIGITS = {"no slope": "filters, joint", "no slope, exchanges": "filters, joint, exchanges"}
DIGITS = {
    "slope, shifted": "α = 1/32 in moves only, 512 rows of digits shifted by up to 1",
    "slope": "α = 1/32 in moves only",
    "slope, exchanges": "α = 1/32 in moves only, exchanges",
    "slope in all steps": "α = 1/32 in all steps",
}


def variants_of_resnet() -> str:
    """On held-out training images, at 80 %."""
    rows = []
    for figure in figures("choice ResNet-20"):
        before, after = (judged(figure, 0.8, moved=moved) for moved in (False, True))
        rows.append([figure["method"], *(rounded(x["accuracy"]) for x in (before, after)), rounded(after["loss"], 3)])
    return table(["", "after the removals", "at the end", "loss at the end"], rows)


def variants_of_removals() -> str:
    """On held-out training images, at 70 %."""
    reached = [(figure["method"], judged(figure, 0.7)) for figure in figures("choice ResNet-20, removals")]
    rows = [[method, rounded(facts["accuracy"]), rounded(facts["loss"], 3)] for method, facts in reached]
    return table(["", "accuracy", "loss"], rows)


def variants_of_moves() -> str:
    """On held-out training images, at 70 and 80 %."""
    rows = []
    for figure in figures("choice ResNet-20, moves"):
        reached = [judged(figure, sparsity, moved=moved) for sparsity in (0.7, 0.8) for moved in (False, True)]
        rows.append([figure["method"], *(rounded(x["accuracy"]) for x in reached), rounded(reached[-1]["loss"], 3)])
    return table(["", "70 %: after the removals", "at the end", "80 %: after the removals", "at the end", "loss"], rows)


def variants_of_mlp() -> str:
    """On held-out digits, the means of the folds."""
    rows, last = [], SPARSITIES["MLP"][-1]
    for method in dict.fromkeys(figure["method"] for figure in figures("choice MLP")):
        runs = figures("choice MLP", method=method)
        reached = [rounded(statistics.fmean(judged(run, s)["accuracy"] for run in runs), 1) for s in SPARSITIES["MLP"]]
        loss = statistics.fmean(judged(run, last)["loss"] for run in runs)
        rows.append([method, *reached, rounded(loss, 3)])
    return table(["", *per_cent(SPARSITIES["MLP"]), "loss"], rows)


def by_steps() -> str:
    """Accuracies of the MLP at its last sparsity by the number of steps and the path, without and with a slope."""
    rows, last = [], SPARSITIES["MLP"][-1]
    for schedule, steps in dict.fromkeys((figure["schedule"], figure["steps"]) for figure in figures("steps")):
        runs = (figures("steps", schedule=schedule, steps=steps, method=method) for method in ("no slope", "slope"))
        reached = (with_spread(judged(run, last)["accuracy"] for run in each) for each in runs)
        rows.append([schedule, str(steps), *reached])
    return table(["path", "steps", "without a slope", "with a slope"], rows)


def dense() -> tuple[str, ...]:
    """The accuracy of the MLP before."""
    return (rounded(judged(one(figures("MLP, no slope"), method="magnitude"), 0.0)["accuracy"], 1),)
