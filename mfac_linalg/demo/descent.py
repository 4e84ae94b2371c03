"""Three methods of training: SGD, Adam, and SGD preconditioned by the inverse of a sliding window."""

import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import IllConditionedWarning, SlidingWindowInverse
from . import network
from .digits import Images
from .network import Array
from .progress import with_progress

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MOMENTUM = 0.9
WINDOW = 64

Direction = Callable[[Array], Array]


class Run(NamedTuple):
    """One method at one learning rate."""

    rate: float
    losses: Array  # of the whole training set, after each epoch; infinite from where it diverged
    accuracy: float  # on the test set, at the end
    seconds: float  # per step


class Comparison(NamedTuple):
    """A method at every rate of the grid, in its order."""

    name: str
    runs: tuple[Run, ...]

    @property
    def best(self) -> Run:
        """The run that ends with the lowest training loss."""
        return min(self.runs, key=lambda run: run.losses[-1])


def sgd() -> Direction:
    """SGD with momentum: v ← 0.9 v + g."""
    velocity: Array = np.zeros(network.DIM, dtype=np.float32)

    def direction(gradient: Array) -> Array:
        nonlocal velocity
        velocity = MOMENTUM * velocity + gradient
        return velocity

    return direction


def adam() -> Direction:
    """Adam with its usual constants."""
    moments = np.zeros((2, network.DIM), dtype=np.float32)
    decays = np.array([[0.9], [0.999]], dtype=np.float32)
    steps = 0

    def direction(gradient: Array) -> Array:
        nonlocal steps
        steps += 1
        moments[:] = decays * moments + (1 - decays) * np.stack([gradient, gradient**2])
        mean, square = moments / (1 - decays**steps)
        return mean / (np.sqrt(square) + 1e-8)

    return direction


def window(damping: float) -> Direction:
    """SGD with momentum on F⁻¹g, F over the gradients of the last 64 steps, g among them."""
    inverse = SlidingWindowInverse(WINDOW, network.DIM, damping)
    momentum = sgd()
    return lambda gradient: momentum(inverse.append_matvec(gradient))


def descend(rule: Direction, training: Images, test: Images, *, rate: float, epochs: int, seed: int) -> Run:
    """Train by a rule, with initial weights and batches drawn by `seed`, and a rate that falls linearly to zero."""
    rng = np.random.default_rng(seed)
    parameters, losses = network.initial(rng), np.full(epochs, np.inf)
    schedule = [network.batches(len(training.labels), rng) for _ in range(epochs)]
    rates = iter(np.linspace(rate, 0, sum(map(len, schedule)), endpoint=False, dtype=np.float32))
    started = time.perf_counter()
    for epoch, batches in enumerate(schedule):
        for rows in batches:
            gradient = network.per_sample_gradients(parameters, training.take(rows)).mean(axis=0)
            if not np.all(np.isfinite(gradient)):
                return Run(rate, losses, network.accuracy(parameters, test), np.nan)
            parameters = parameters - next(rates) * rule(gradient)
        losses[epoch] = network.cross_entropy(parameters, training).mean()
    seconds = (time.perf_counter() - started) / sum(map(len, schedule))
    return Run(rate, np.where(np.isfinite(losses), losses, np.inf), network.accuracy(parameters, test), seconds)


def compare(training: Images, test: Images, *, damping: float, epochs: int, seed: int) -> list[Comparison]:
    """Each method at every learning rate of the grid, all with the same initial weights and batches."""
    methods: dict[str, Callable[[], Direction]] = {"SGD": sgd, "Adam": adam, "M-FAC window": lambda: window(damping)}
    jobs = [(name, rate) for name in methods for rate in RATES]
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    with np.errstate(all="ignore"), warnings.catch_warnings():  # rates that are too large diverge
        warnings.simplefilter("ignore", IllConditionedWarning)
        for name, rate in with_progress(jobs, "training"):
            runs[name].append(descend(methods[name](), training, test, rate=rate, epochs=epochs, seed=seed))
    return [Comparison(name, tuple(of_name)) for name, of_name in runs.items()]
