"""Networks that are pruned along paths: their rows, how good they are, and runs that can be interrupted."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac_linalg.pruning import prune
from mfac_linalg.torch import Unravel, mean_gradients

BATCH = 32
Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """A path of sparsities, one a step, and how each is made: a step whose sparsity is repeated only moves."""

    path: tuple[float, ...] = ()
    slope: float = 0.0
    slope_damping: float = 1e-3
    damping: float = 1e-5
    num_gradients: int = 64
    mirrored: bool = False  # each image with probability one half
    shifted: int = 0  # each image by up to so many pixels up or down, and left or right
    only_moves: bool = False  # whether only moves have the slope
    rows_of_moves: int | None = None  # instead of `num_gradients`
    decay: float = 1.0  # of the slope, from each move to the next at its sparsity
    selection: str = "scores"
    compensation_damping: float | str = 0.0

    def is_move(self, step: int) -> bool:
        return self.path[step] in self.path[:step]

    def slope_of(self, step: int) -> float:
        """The weight of the mean gradient in a step."""
        if not self.is_move(step):
            return 0.0 if self.only_moves else self.slope
        moves_before = self.path[:step].count(self.path[step]) - 1
        return self.slope * self.decay**moves_before

    def rows_of(self, step: int) -> int:
        return self.rows_of_moves or self.num_gradients if self.is_move(step) else self.num_gradients


@dataclass(frozen=True)
class Trained:
    """A trained network with its images, and the sparsities at which it is judged."""

    name: str
    network: nn.Module
    chosen: Any  # the parameters that are pruned, as `params`
    train: Images
    test: Images
    sparsities: tuple[float, ...]
    unravel: Unravel = field(init=False)
    weights: Tensor = field(init=False)
    filters: list[int] = field(init=False)

    def __post_init__(self) -> None:
        named = {n: p.detach().clone() for n, p in self.network.named_parameters() if self.chosen(n, p)}
        unravel = Unravel({name: tuple(p.shape) for name, p in named.items()})
        object.__setattr__(self, "unravel", unravel)
        object.__setattr__(self, "weights", unravel.ravel(named))
        object.__setattr__(self, "filters", [p[0].numel() for p in named.values() for _ in range(p.shape[0])])

    def rows(
        self,
        weights: Tensor,
        number: int,
        pool: Tensor,
        generator: torch.Generator,
        *,
        mirrored: bool = False,
        shifted: int = 0,
    ) -> Tensor:
        """Rows of means of images that are drawn from a pool without repetition, as long as it lasts."""
        self.unravel.write(self.network, weights)
        count, drawn = number * BATCH, []
        while len(drawn) * (len(pool) // BATCH * BATCH) < count:
            drawn.append(pool[torch.randperm(len(pool), generator=generator)][: len(pool) // BATCH * BATCH])
        indices = torch.cat(drawn)[:count]
        images, classes = self.train[0][indices], self.train[1][indices]
        if mirrored:
            turned = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
            images = torch.where(turned, images.flip(3), images).contiguous(memory_format=torch.channels_last)
        if shifted:
            images = shift_at_random(images, shifted, generator)
        loss = functional.cross_entropy
        return mean_gradients(self.network, loss, images, classes, batch_size=BATCH, params=self.chosen)[0]

    def judged(self, weights: Tensor, images: Images) -> dict[str, float]:
        """The accuracy in per cent, and the mean loss."""
        self.unravel.write(self.network, weights)
        with torch.inference_mode():  # in small batches, which stay in the cache
            outputs = torch.cat([self.network(x) for x in images[0].split(50)])
        right = int((outputs.argmax(dim=1) == images[1]).sum())
        return {
            "accuracy": 100 * right / len(outputs),
            "loss": float(functional.cross_entropy(outputs, images[1])),
        }


@dataclass(frozen=True)
class Fold:
    """Training images that are in no row, from `start` to before `stop`."""

    start: int
    stop: int

    @property
    def facts(self) -> tuple[int, int]:
        return self.start, self.stop

    def of(self, trained: Trained) -> tuple[Tensor, Images]:
        """The indices of the other training images, and these images."""
        indices = torch.arange(len(trained.train[0]))
        held_out = slice(self.start, self.stop)
        return indices[(indices < self.start) | (indices >= self.stop)], tuple(x[held_out] for x in trained.train)


@dataclass
class Run:
    """A network on its path, which can be interrupted after each step."""

    trained: Trained
    recipe: Recipe
    seed: int
    pool: Tensor  # of the training images that rows are of
    judges: Images
    before_moves: bool  # whether it is judged there too
    state: Path

    def finish(self) -> dict[str, Any]:
        """Go on to the end, and return how good the network is at each sparsity."""
        trained, path = self.trained, self.recipe.path
        generator = torch.Generator().manual_seed(self.seed)
        at = {"weights": trained.weights, "mask": trained.weights == trained.weights, "step": 0, "seconds": 0.0}
        at["judged"] = []
        if self.state.exists():
            at = torch.load(self.state)
            generator.set_state(at["generator"])
        for step in range(at["step"], len(path)):
            start = time.process_time()
            at["weights"], at["mask"] = self._step(at["weights"], at["mask"], step, generator)
            at["seconds"] += time.process_time() - start
            self._judge(at, step)
            at["step"], at["generator"] = step + 1, generator.get_state()
            torch.save(at, aside := self.state.with_suffix(".new"))
            aside.replace(self.state)
        return {"judged": at["judged"]}

    def _step(self, weights: Tensor, mask: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One step of `prune` along the path: from its masks it goes on as it would by itself."""
        recipe = self.recipe
        variation = {"mirrored": recipe.mirrored, "shifted": recipe.shifted}
        pruned = prune(
            weights,
            lambda w, _: self.trained.rows(w, recipe.rows_of(step), self.pool, generator, **variation),
            recipe.path[step],
            damping=recipe.damping,
            block_sizes=self.trained.filters,
            selection=recipe.selection,
            compensation_damping=recipe.compensation_damping,
            slope=recipe.slope_of(step),
            slope_damping=recipe.slope_damping,
            mask=mask,
        )
        return pruned.weights, pruned.mask

    def _judge(self, at: dict[str, Any], step: int) -> None:
        """Note how good the network is at a sparsity, after its removals and after its moves."""
        path = self.recipe.path
        is_last, is_first = path[step] not in path[step + 1 :], path[step] not in path[:step]
        if path[step] in self.trained.sparsities and (is_last or (is_first and self.before_moves)):
            facts = {"sparsity": path[step], "steps": step + 1, "seconds": at["seconds"], "moved": is_last}
            at["judged"].append(facts | self.trained.judged(at["weights"], self.judges))


def shift_at_random(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images that are each moved at random by up to so many pixels along both axes; what comes in is black.

    They are square: (n, channels, side, side), or (n, side²).
    """
    count, side = len(images), images.shape[-1] if images.ndim == 4 else math.isqrt(images.shape[1])
    padded = functional.pad(images.reshape(count, -1, side, side), (most,) * 4, value=float(images.min()))
    starts = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    down, across = starts + torch.arange(side)
    moved = padded[torch.arange(count)[:, None, None], :, down[:, :, None], across[:, None, :]]
    return moved.permute(0, 3, 1, 2).reshape_as(images)


def by_magnitude(trained: Trained) -> dict[str, Any]:
    """How good the network is without its smallest weights."""
    sizes, judged = (
        torch.sort(trained.weights.abs())[0],
        [{"sparsity": 0.0, **trained.judged(trained.weights, trained.test)}],
    )
    for sparsity in trained.sparsities:
        kept = trained.weights.abs() >= sizes[round(sparsity * len(sizes))]
        found = trained.judged(torch.where(kept, trained.weights, 0.0), trained.test)
        judged.append({"sparsity": sparsity, **found})
    return {"judged": judged}


def through(*legs: tuple[int, float, int], schedule: str = "cubic") -> tuple[float, ...]:
    """A path of legs, each of so many removing steps to a sparsity, and so many moves there."""
    path, start = [], 0.0
    for steps, sparsity, moves in legs:
        times = [step / steps for step in range(1, steps)]
        path += [_between(start, sparsity, t, schedule) for t in times] + [sparsity] * (1 + moves)
        start = sparsity
    return tuple(path)


def _between(start: float, end: float, t: float, schedule: str) -> float:
    """The sparsity at a time t in (0, 1), by the formulas of `prune`."""
    if schedule == "geometric":
        return 1 - (1 - start) ** (1 - t) * (1 - end) ** t
    return end - (end - start) * ((1 - t) ** 3 if schedule == "cubic" else 1 - t)
