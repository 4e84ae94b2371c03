"""The library itself: as it comes, with whitened rows, and on tensors of PyTorch and JAX in the memory of the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.contender import Call, Contender, Question
from benchmarks.problems import Problem
from mfac_linalg import SlidingWindowInverse, WoodburyRankOneInverse


class Arrays(NamedTuple):
    """A library of arrays: how NumPy's become its own, and what waits for its results."""

    convert: Callable[[np.ndarray], Any]
    wait: Callable[[Any], Any] | None = None

    def calling(self, function: Callable[..., Any], *arguments: Any) -> Call:
        """Return the call that has the result, not only a promise of it."""
        call = partial(function, *map(self.convert, arguments))
        return call if self.wait is None else lambda: self.wait(call())


def _numpy() -> Arrays:
    return Arrays(lambda array: array)


def _torch() -> Arrays:
    import torch

    return Arrays(torch.from_numpy)


def _jax() -> Arrays:
    import jax

    return Arrays(jax.numpy.asarray, jax.block_until_ready)


def _answers(arrays: Callable[[], Arrays]) -> dict[str, Callable[[Any, Question], Call]]:
    """The calls of a static inverse."""

    def product(state: Any, question: Question) -> Call:
        return arrays().calling(state.matmat if question.query == "block" else state.matvec, question.v)

    return {
        "build": lambda state, question: arrays().calling(state.matvec, question.problem.stored_row),
        **dict.fromkeys(("random", "row", "block"), product),
        "combination": lambda state, question: arrays().calling(state.matvec_gradients, question.problem.coefficients),
        "diagonal": lambda state, _: arrays().calling(state.diagonal),
        "elements": lambda state, question: arrays().calling(state.element, *question.problem.pairs),
    }


def _build(arrays: Callable[[], Arrays], problem: Problem, **options: Any) -> Call:
    library, damping = arrays(), problem.damping
    gradients = library.convert(problem.gradients)

    def call() -> Any:
        return WoodburyRankOneInverse(gradients, damping, **options)

    return call if library.wait is None else lambda: library.wait(call())


def _fill(arrays: Callable[[], Arrays], problem: Problem) -> Call:
    return partial(_Stream, arrays(), problem)


class _Stream:
    """A window over the rows of G, and the same rows again and again, the oldest first.

    What is appended equals what is dropped, so F stays that of the problem whatever the number of steps.
    """

    def __init__(self, library: Arrays, problem: Problem) -> None:
        self._library = library
        self._window = SlidingWindowInverse.from_gradients(library.convert(problem.gradients), problem.damping)
        self._rows = itertools.cycle([library.convert(row) for row in problem.gradients])

    def step(self) -> Any:
        """Append the next row g and return F⁻¹g."""
        x = self._window.append_matvec(next(self._rows))
        return self._library.wait(x) if self._library.wait else x


def _static(name: str, arrays: Callable[[], Arrays], needs: tuple[str, ...], copies: float) -> Contender:
    return Contender(
        name, partial(_build, arrays), _answers(arrays), needs, copies=copies, copies_for={"elements": copies + 1}
    )


def _whitened(name: str, arrays: Callable[[], Arrays], needs: tuple[str, ...]) -> Contender:
    answers = _answers(arrays)
    kept = {query: answers[query] for query in ("random", "row", "diagonal", "elements")}
    return Contender(
        name, partial(_build, arrays, whiten=True), {"whitened build": answers["build"], **kept}, needs, copies=1
    )


def _window(name: str, arrays: Callable[[], Arrays], needs: tuple[str, ...], copies: float) -> Contender:
    step = {"step": lambda stream, _: stream.step}
    return Contender(name, partial(_fill, arrays), step, needs, copies=copies)


NUMPY, TORCH, JAX = "mfac_linalg", "mfac_linalg, PyTorch", "mfac_linalg, JAX"
WHITENED = "mfac_linalg, W kept"

CONTENDERS = (_static(NUMPY, _numpy, (), 0), _window(NUMPY, _numpy, (), 1))
VARIANTS = (
    _whitened(WHITENED, _numpy, ()),
    _static(TORCH, _torch, ("torch",), 0),
    _window(TORCH, _torch, ("torch",), 1),
    _static(JAX, _jax, ("jax",), 1),
    _window(JAX, _jax, ("jax",), 4),
)
"""They come after the peers, which have the first claim to the memory."""
