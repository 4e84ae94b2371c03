"""The questions of a race: their work, their limits, and how an answer is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Limit
from benchmarks.peers.contender import Question
from benchmarks.problems import Problem
from benchmarks.reference import Reference
from benchmarks.static import FULL_BUILD, GRAM_ONLY, ONE_PASS, PAIR_READS, TWO_PASSES, TWO_PRODUCTS
from benchmarks.workbench import EPS

Errors = Callable[[Reference, Question, Sequence[np.ndarray]], list[float]]
Size = Callable[[Problem], float]


@dataclass(frozen=True)
class Query:
    """A question that contenders are asked.

    Parameters
    ----------
    limit : Limit
        Its time at the machine's speed.
    flops, bytes : callable
        Of the problem: the arithmetic that the limit counts, and the memory traffic without which it cannot be done.
    errors : callable
        Of the reference, the question and answers: their errors as multiples of eps, or of eps/λ for elements.
    sample : callable
        Of an answer, or v: the part that is checked, as an array of NumPy.
    """

    limit: Limit
    flops: Size
    bytes: Size
    errors: Errors
    sample: Callable[[Any], np.ndarray] = np.asarray


def errors_of_products(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """R = ‖v − Fx‖/(‖F‖‖x‖ eps) of each x."""
    return list(reference.backward_errors(question.v, np.stack(answers, axis=1)) / EPS)


def some_columns(block: Any) -> np.ndarray:
    """Four columns of a (d, 64) array, the first and the last among them."""
    return np.asarray(block)[:, ::21].copy()


def errors_of_blocks(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """The largest R over some columns of each X."""
    v = some_columns(question.v)
    return [float(np.max(reference.backward_errors(v, x))) / EPS for x in answers]


def errors_of_builds(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """R of products with a stored row, the hard kind of vector: a build is as good as what it answers."""
    return errors_of_products(reference, Question(question.problem, "row"), answers)


def errors_of_steps(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """R of F⁻¹g for the newest g, the first row: the window has let go of the same row, so F is the reference's."""
    return list(reference.backward_errors(question.problem.gradients[0], np.stack(answers, axis=1)) / EPS)


def errors_of_diagonals(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """The largest error of a sample of each diagonal, in eps/λ."""
    every = np.arange(question.problem.dim)
    return [reference.element_error(every, every, values) / EPS for values in answers]


def errors_of_elements(reference: Reference, question: Question, answers: Sequence[np.ndarray]) -> list[float]:
    """The largest error of a sample of the million elements, in eps/λ."""
    return [reference.element_error(*question.problem.pairs, values) / EPS for values in answers]


def _size(problem: Problem) -> float:
    return problem.num_gradients * problem.dim


def _gram(problem: Problem) -> float:
    return problem.dim * problem.num_gradients**2


def _pairs(problem: Problem) -> float:
    return len(problem.pairs[0]) * problem.num_gradients


def _product(errors: Errors, passes: int) -> Query:
    limit = TWO_PASSES if passes == 2 else ONE_PASS
    return Query(limit, lambda p: 2 * passes * _size(p), lambda p: 4 * passes * _size(p), errors)


QUERIES: dict[str, Query] = {
    "build": Query(GRAM_ONLY, _gram, lambda p: 4 * _size(p), errors_of_builds),
    "whitened build": Query(FULL_BUILD, lambda p: 2 * _gram(p), lambda p: 12 * _size(p), errors_of_builds),
    "random": _product(errors_of_products, 2),
    "row": _product(errors_of_products, 2),
    "combination": _product(errors_of_products, 1),
    "block": Query(
        TWO_PRODUCTS,
        lambda p: 4 * 64 * _size(p),
        lambda p: 8 * (_size(p) + 64 * p.dim),
        errors_of_blocks,
        some_columns,
    ),
    "diagonal": Query(ONE_PASS, lambda p: 2 * _size(p), lambda p: 4 * _size(p), errors_of_diagonals),
    "elements": Query(PAIR_READS, lambda p: 2 * _pairs(p), lambda p: 8 * _pairs(p), errors_of_elements),
    "step": _product(errors_of_steps, 2),
}
PRODUCTS = ("random", "row", "combination", "block")
BUILDS = ("build", "whitened build")
