"""Pruning with and without a slope, over seeds: ``python -m benchmarks.experiments.pruning_slope --data FOLDER``.

- ResNet-20, MLP: the reported paths, without and with a slope, on five seeds of the gradient sample as far as they have
  been run, and magnitude; one path serves all sparsities. Accuracy is that on all 10,000 test images of CIFAR-10, and
  on the 1,000 test digits of the file.
- choice ResNet-20, choice MLP: variants of the paths, judged by images that were in no row and are no test images: the
  last 2,000 of the 10,000 training images, and three fifths of the 1,000 digits, in turn. "choice ResNet-20, removals"
  is the way to 70 % by rows, α and λ, "choice ResNet-20, moves" are paths to 80 % by moves, images and selection. Not
  chosen in this way: that a step has 128 rows, not 64, and the reported paths with exchanges.
- steps: the MLP by the number of steps and by their schedule, without and with a slope, on the test digits.

A row of G is the gradient of the mean cross-entropy over 32 training images, in eval mode. They are shuffled anew in
each step, and again where a step needs more than there are; a recipe may mirror and shift each at random. With a slope
the weights that stay are also trained on these images. The state after each step lies beside the output until its run
is finished: an interrupted one goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import cifar, mnist, record
from benchmarks.experiments.pruning_paths import Fold, Recipe, Run, Trained, by_magnitude, through
from mfac_linalg import IllConditionedWarning

WHERE = f"""\
The folder holds
{cifar.WHERE}
{mnist.WHERE}"""
SEEDS = range(5)


@functools.cache
def resnet(folder: Path) -> Trained:
    train, test = (cifar.load_images(folder, part, 10_000) for part in ("train", "test"))
    return Trained("ResNet-20", cifar.load_network(folder), cifar.prunable, train, test, (0.7, 0.8, 0.9))


@functools.cache
def mlp(folder: Path) -> Trained:
    network, train, test = mnist.load(folder)
    return Trained("MLP", network, lambda name, parameter: True, train, test, (0.9, 0.95, 0.98))


class Study:
    """What is computed, by the names of the figures."""

    def __init__(self, folder: Path, states: Path) -> None:
        self.folder, self.states = folder, states

    def run(self, trained: Trained, recipe: Recipe, seed: int, fold: Fold | None = None) -> dict[str, Any]:
        """One path of one network: on the test images, or on training images that are in no row."""
        facts = {"network": trained.name, "recipe": asdict(recipe), "seed": seed, "fold": fold and fold.facts}
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.states.mkdir(exist_ok=True)
        everything = torch.arange(len(trained.train[0]))
        pool, judges = (everything, trained.test) if fold is None else fold.of(trained)
        state = self.states / f"{name}.pt"
        found = Run(trained, recipe, seed, pool, judges, fold is not None or trained.name == "MLP", state).finish()
        state.unlink(missing_ok=True)
        return {"recipe": asdict(recipe), **found}

    def reported(self, trained: Trained, recipe: Recipe) -> Iterator[record.Task]:
        """All test images, by seed; and by magnitude, beside the plainest recipe."""
        for seed in SEEDS:
            yield {"seed": seed}, functools.partial(self.run, trained, recipe, seed)
        if recipe in (PLAIN_RESNET, PLAIN_MLP):
            yield {"method": "magnitude"}, functools.partial(by_magnitude, trained)

    def choice(self, trained: Trained, recipes: dict[str, Recipe], folds: list[Fold]) -> Iterator[record.Task]:
        """Variants, judged by training images."""
        for fold in folds:
            for method, recipe in recipes.items():
                yield (
                    {"method": method, "fold": list(fold.facts)},
                    functools.partial(self.run, trained, recipe, 0, fold),
                )


TRIED = Recipe(through((4, 0.8, 3)), slope=1 / 16)
TRIED_RESNET = {
    "α = 1/16, λ = 1e-3": TRIED,
    "α = 1/8": replace(TRIED, slope=1 / 8),
    "mirrored images": replace(TRIED, mirrored=True),
    "λ = 1e-2": replace(TRIED, slope_damping=1e-2),
    "α = 1/32": replace(TRIED, slope=1 / 32),
    "moves twice as many, with 32 rows": replace(TRIED, path=through((4, 0.8, 6)), rows_of_moves=32),
    "λ = 1e-4": replace(TRIED, slope_damping=1e-4),
    "7 steps, no moves": replace(TRIED, path=through((7, 0.8, 0))),
}
HELD_OUT_IMAGES = [Fold(8000, 10_000)]

PLAIN_MLP = Recipe(through((8, 0.9, 0), (3, 0.95, 0), (4, 0.98, 0), schedule="geometric"), num_gradients=256)
MOVES_MLP = through((8, 0.9, 4), (3, 0.95, 4), (4, 0.98, 4), schedule="geometric")
SLOPE_MLP = replace(PLAIN_MLP, slope=1 / 32, slope_damping=0.1)
ONLY_MOVES_MLP = replace(SLOPE_MLP, path=MOVES_MLP, only_moves=True)
FEWER_ROWS_MLP = replace(ONLY_MOVES_MLP, num_gradients=128)
SHIFTED_MLP = replace(ONLY_MOVES_MLP, num_gradients=512, shifted=1)
TRIED_MLP = {
    "no slope, 256 rows": PLAIN_MLP,
    "no slope, 128 rows": replace(PLAIN_MLP, num_gradients=128),
    "α = 1/32, λ = 0.1, 256 rows": SLOPE_MLP,
    "α = 1/32, λ = 1, 256 rows": replace(SLOPE_MLP, slope_damping=1.0),
    "α = 1/32, λ = 0.1, 128 rows": replace(SLOPE_MLP, num_gradients=128),
    "α = 1/32, λ = 1e-3, 128 rows": replace(SLOPE_MLP, slope_damping=1e-3, num_gradients=128),
    "M: α = 1/32 in moves only, λ = 0.1, 128 rows": FEWER_ROWS_MLP,
    "M, exchanges": replace(FEWER_ROWS_MLP, selection="exchanges"),
    "M, θ by the rows": replace(FEWER_ROWS_MLP, compensation_damping="auto"),
    "M, shifted by up to 1": replace(FEWER_ROWS_MLP, shifted=1),
    "M, 512 rows, shifted by up to 1": SHIFTED_MLP,
    "M, 256 rows, shifted by up to 2": replace(SHIFTED_MLP, num_gradients=256, shifted=2),
    "M, 256 rows, shifted by up to 1": replace(SHIFTED_MLP, num_gradients=256),
    "M in all 27 steps, 256 rows, shifted by up to 1": replace(SHIFTED_MLP, num_gradients=256, only_moves=False),
}
REPORTED_MLP = {
    "slope, shifted": SHIFTED_MLP,
    "slope": ONLY_MOVES_MLP,
    "slope, exchanges": replace(ONLY_MOVES_MLP, selection="exchanges"),
    "slope in all steps": SLOPE_MLP,
    "no slope": PLAIN_MLP,
    "no slope, exchanges": replace(PLAIN_MLP, selection="exchanges"),
}
FIFTHS = [Fold(start, start + 200) for start in (0, 200, 400)]

REMOVALS = Recipe(through((6, 0.7, 0), schedule="geometric"), slope=1 / 16, num_gradients=128, mirrored=True)
TRIED_REMOVALS = {
    "128 rows, α = 1/16, λ = 1e-3": REMOVALS,
    "128 rows, α = 1/32, λ = 1e-3": replace(REMOVALS, slope=1 / 32),
    "256 rows, α = 1/16, λ = 1e-3": replace(REMOVALS, num_gradients=256),
    "256 rows, α = 1/16, λ = 3e-3": replace(REMOVALS, num_gradients=256, slope_damping=3e-3),
    "256 rows, α = 1/32, λ = 3e-3": replace(REMOVALS, num_gradients=256, slope=1 / 32, slope_damping=3e-3),
}

ONE_MOVE = Recipe(through((6, 0.7, 1), (2, 0.8, 1), schedule="geometric"), slope=1 / 16, num_gradients=128)
THREE_MOVES = replace(
    ONE_MOVE, path=through((6, 0.7, 3), (2, 0.8, 3), schedule="geometric"), mirrored=True, rows_of_moves=256
)
FALLING = replace(THREE_MOVES, num_gradients=256, rows_of_moves=None, slope=1 / 32, slope_damping=3e-3, decay=0.7)
TRIED_MOVES = {
    "128 rows, α = 1/16, λ = 1e-3, one move": ONE_MOVE,
    "128 rows, 256 in moves, mirrored, α = 1/16, λ = 1e-3, three moves": THREE_MOVES,
    "A: 256 rows, mirrored, α = 1/32, falling, λ = 3e-3, three moves": FALLING,
    "A, shifted by up to 1": replace(FALLING, shifted=1),
    "A, θ by the rows": replace(FALLING, compensation_damping="auto"),
    "A, exchanges": replace(FALLING, selection="exchanges"),
    "A, six moves": replace(FALLING, path=through((6, 0.7, 6), (2, 0.8, 6), schedule="geometric")),
}

PLAIN_RESNET = Recipe(through((6, 0.7, 0), (2, 0.8, 0), (3, 0.9, 0), schedule="geometric"), num_gradients=128)
MOVES_RESNET = through((6, 0.7, 1), (2, 0.8, 1), (3, 0.9, 1), schedule="geometric")
THREE_MOVES_RESNET = through((6, 0.7, 3), (2, 0.8, 3), (3, 0.9, 3), schedule="geometric")
REPORTED_RESNET = {
    "slope, three moves": replace(FALLING, path=THREE_MOVES_RESNET),
    "slope": replace(PLAIN_RESNET, path=MOVES_RESNET, slope=1 / 16),
    "slope, 64 rows": Recipe(THREE_MOVES_RESNET, slope=1 / 16),
    "no slope": PLAIN_RESNET,
    "no slope, 256 rows": replace(PLAIN_RESNET, num_gradients=256, mirrored=True),
}

STEPS = [("geometric", 1), ("geometric", 4), ("geometric", 16), ("geometric", 64), ("cubic", 16), ("linear", 16)]
STEPS_SEEDS = range(3)


def by_steps(study: Study) -> Iterator[record.Task]:
    """The MLP to 98 %, by the number of steps and their schedule."""
    for seed in STEPS_SEEDS:
        for schedule, steps in STEPS:
            path = through((steps, 0.98, 0), schedule=schedule)
            for method, slope in (("no slope", 0.0), ("slope", 1 / 32)):
                key = {"method": method, "schedule": schedule, "steps": steps, "seed": seed}
                recipe = Recipe(path, slope=slope, slope_damping=0.1)
                yield key, functools.partial(study.run, mlp(study.folder), recipe, seed)


PARTS: dict[str, record.Part] = {
    **{
        f"ResNet-20, {method}": lambda study, held, recipe=recipe: study.reported(resnet(study.folder), recipe)
        for method, recipe in REPORTED_RESNET.items()
    },
    **{
        f"MLP, {method}": lambda study, held, recipe=recipe: study.reported(mlp(study.folder), recipe)
        for method, recipe in REPORTED_MLP.items()
    },
    "steps": lambda study, held: by_steps(study),
    "choice ResNet-20": lambda study, held: study.choice(resnet(study.folder), TRIED_RESNET, HELD_OUT_IMAGES),
    "choice ResNet-20, removals": lambda study, held: study.choice(
        resnet(study.folder), TRIED_REMOVALS, HELD_OUT_IMAGES
    ),
    "choice ResNet-20, moves": lambda study, held: study.choice(resnet(study.folder), TRIED_MOVES, HELD_OUT_IMAGES),
    "choice MLP": lambda study, held: study.choice(mlp(study.folder), TRIED_MLP, FIFTHS),
}


def main() -> None:
    options = record.arguments("pruning_slope", __doc__ or "", WHERE, PARTS)
    warnings.simplefilter("ignore", IllConditionedWarning)  # of blocks of filters at λ = 1e-5
    study = Study(options.data, options.output.with_suffix(".states"))
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)


if __name__ == "__main__":
    main()
