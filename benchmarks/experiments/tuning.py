"""Optimizers with equal tuning on three tasks: ``python -m benchmarks.experiments.tuning --data FOLDER``.

Every method is tried with six learning rates times three values of one other option, seed 0; the trial with the least
validation error is repeated with two more seeds. All see the same batches and start from the same weights; the rate
rises over the first twentieth of the steps and falls to zero along a cosine. With a window the rate of the grid is
lr/λ, that of directions without gradients; a momentum of 0.9 makes a step ten times as long, Adam's mean does not.

- text-trials, table-trials, equation-trials: the eighteen trials of every method.
- text-seeds, table-seeds, equation-seeds: the best of them with the other seeds.
- text-variants, text-variant-seeds and so on: the same for other steps by a window.
- steps: the time of a step by each method.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.experiments import record
from benchmarks.experiments.gauss_newton import GaussNewton
from benchmarks.experiments.runs import Runs, best_trial, trials_of
from benchmarks.experiments.training_tasks import TASKS, WHERE, Batch, LeastSquares, Task
from benchmarks.experiments.window_variants import CovarianceDescent
from mfac_linalg.torch import MFAC

SEEDS, WINDOW, MOMENTUM, TIMED = (0, 1, 2), 128, 0.9, 40
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ADAM_RATES, WINDOW_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RELATIVE_DAMPINGS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Method:
    """An optimizer as a function of parameters, learning rate and one other option, and what is tried of both."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    rates: tuple[float, ...]
    option: str
    values: tuple[float, ...]
    share: float = 1.0  # of the steps of a task


def by_window(parameters: Any, rate: float, damping: float, **options: Any) -> MFAC:
    """M-FAC; the rate is that of the directions that no gradient in the window has."""
    shared = {"window": WINDOW, "momentum": MOMENTUM, "normalization": "window"}
    return MFAC(parameters, lr=rate * damping, damping=damping, **(shared | options))


METHODS = {
    method.name: method
    for method in (
        Method("SGD", lambda p, rate, x: torch.optim.SGD(p, rate, momentum=x), RATES, "momentum", (0.0, 0.9, 0.99)),
        Method(
            "Adam",
            lambda p, rate, x: torch.optim.Adam(p, rate, betas=(MOMENTUM, x)),
            ADAM_RATES,
            "β₂",
            (0.95, 0.99, 0.999),
        ),
        Method("M-FAC, λ√v", functools.partial(by_window, beta2=0.999), WINDOW_RATES, "λ", RELATIVE_DAMPINGS),
        Method("M-FAC, λI", functools.partial(by_window, beta2=None), RATES, "λ", (1e-4, 1e-3, 1e-2)),
        Method("Gauss–Newton", GaussNewton, RATES, "λ", (1e-3, 1e-2, 1e-1), share=0.1),
    )
}


def by_windows(parameters: Any, rate: float, damping: float) -> MFAC:
    """M-FAC with a window for each parameter."""
    return by_window([{"params": [p]} for p in parameters], rate, damping, beta2=0.999)


VARIANTS = {
    method.name: method
    for method in (
        Method("a window for each parameter", by_windows, WINDOW_RATES, "λ", RELATIVE_DAMPINGS),
        Method(
            "momentum of gradients",
            functools.partial(by_window, beta2=0.999, momentum_of="gradients"),
            WINDOW_RATES,
            "λ",
            RELATIVE_DAMPINGS,
        ),
        Method(
            "covariance",
            functools.partial(CovarianceDescent, window=WINDOW),
            tuple(10 * rate for rate in WINDOW_RATES),
            "λ",
            RELATIVE_DAMPINGS,
        ),
    )
}
ALL = {**METHODS, **VARIANTS}


def methods_for(task: Task) -> Iterator[Method]:
    """All methods; Gauss–Newton where there are residuals."""
    return (m for m in METHODS.values() if m.make is not GaussNewton or isinstance(task, LeastSquares))


class Study:
    """The tasks, and training runs on them."""

    def __init__(self, folder: Path) -> None:
        self.tasks = {name: task(folder) for name, task in TASKS.items()}

    def run(self, task: str, method: str, rate: float, value: float, seed: int) -> dict[str, Any]:
        """The training loss in each tenth of the steps, the errors in the end, and seconds of training."""
        chosen = self.tasks[task]
        network, generator = chosen.network(seed), torch.Generator().manual_seed(seed)
        optimizer, steps = ALL[method].make(network.parameters(), rate, value), int(ALL[method].share * chosen.steps)
        schedule, losses = self._schedule(optimizer, steps), []
        began = time.perf_counter()
        for _ in range(steps):
            losses.append(take_step(chosen, network, optimizer, chosen.batch(generator)))
            if not math.isfinite(losses[-1]):
                break
            schedule.step()
        seconds, dim = time.perf_counter() - began, sum(p.numel() for p in network.parameters())
        result = {"seconds": seconds, "steps": len(losses), "dim": dim}
        if not math.isfinite(losses[-1]):
            return {**result, "losses": None, "validation": None, "test": None}
        tenth = steps // 10
        means = [statistics.fmean(losses[start : start + tenth]) for start in range(0, steps, tenth)]
        errors = {part: chosen.error(network, part) for part in ("validation", "test")}
        return {**result, "losses": means, **errors}

    @staticmethod
    def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        def factor(step: int) -> float:
            return min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))

        return LambdaLR(optimizer, factor)

    def seconds_of_steps(self, task: str) -> dict[str, Any]:
        """Median times of a step by all methods, with full windows; they take turns."""
        chosen, generator = self.tasks[task], torch.Generator().manual_seed(0)
        steps, turns = {}, {}
        for method in methods_for(chosen):
            network = chosen.network(0)
            optimizer = method.make(network.parameters(), method.rates[0], method.values[-1])
            steps[method.name] = functools.partial(take_step, chosen, network, optimizer)
            turns[method.name] = []
        for count, name in itertools.product(range(WINDOW + TIMED), steps):
            batch = chosen.batch(generator)
            began = time.perf_counter()
            steps[name](batch)
            if count >= WINDOW:
                turns[name].append(time.perf_counter() - began)
        return {"seconds": {name: statistics.median(times) for name, times in turns.items()}}


def take_step(task: Task, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """The loss of a batch, before the step on it; no step where it is not finite."""
    if isinstance(optimizer, GaussNewton):
        return optimizer.step(lambda: task.residuals(network, batch))
    optimizer.zero_grad()
    loss = task.loss(network, batch)
    loss.backward()
    if torch.isfinite(loss):
        optimizer.step()
    return float(loss.detach())


def trials(name: str, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for method in methods_for(study.tasks[name]):
        yield from _trials(name, study, method)


def variants(name: str, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for method in VARIANTS.values():
        yield from _trials(name, study, method)


def _trials(name: str, study: Study, method: Method) -> Iterator[record.Task]:
    for rate, value in itertools.product(method.rates, method.values):
        yield _run(study, name, method.name, rate, value, SEEDS[0])


def seeds(name: str, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    yield from _seeds(name, study, held[f"{name}-trials"]["figures"], methods_for(study.tasks[name]))


def variant_seeds(name: str, study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    yield from _seeds(name, study, held[f"{name}-variants"]["figures"], VARIANTS.values())


def _seeds(name: str, study: Study, figures: Runs, methods: Iterable[Method]) -> Iterator[record.Task]:
    for seed, method in itertools.product(SEEDS[1:], methods):
        best = best_trial(figures, method.name)
        yield _run(study, name, method.name, best["rate"], best["value"], seed)


def steps(study: Study, held: dict[str, Any]) -> Iterator[record.Task]:
    for name in study.tasks:
        yield {"task": name}, functools.partial(study.seconds_of_steps, name)


def _run(study: Study, task: str, method: str, rate: float, value: float, seed: int) -> record.Task:
    key = {"task": task, "method": method, "rate": rate, "value": value, "seed": seed}
    return key, functools.partial(study.run, **key)


PARTS: dict[str, record.Part] = {
    f"{task}-{name}": functools.partial(part, task)
    for task in TASKS
    for name, part in {"trials": trials, "seeds": seeds, "variants": variants, "variant-seeds": variant_seeds}.items()
} | {"steps": steps}


def summary(held: dict[str, Any]) -> str:
    """A line a method: what was chosen, the test error over all seeds, and the training loss in the end."""
    lines = []
    for task in TASKS:
        figures = held.get(f"{task}-trials", {"figures": []})["figures"]
        for method in dict.fromkeys(figure["method"] for figure in figures):
            found = [run for run in trials_of(held, task, method) if run["test"] is not None]
            errors, losses = [run["test"] for run in found], [run["losses"][-1] for run in found]
            lines.append(
                f"{task:9} {method:13} rate {found[0]['rate']:g}, {ALL[method].option} {found[0]['value']:g}: "
                f"test {statistics.fmean(errors):.4g} ({min(errors):.4g} to {max(errors):.4g}), "
                f"loss {statistics.fmean(losses):.4g}, {statistics.fmean(run['seconds'] for run in found):.0f} s"
            )
    return "\n".join(lines)


def main() -> None:
    options = record.arguments("tuning", __doc__ or "", WHERE, PARTS)
    study = Study(options.data)
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)
    print(summary(record.read(options.output)))


if __name__ == "__main__":
    main()
