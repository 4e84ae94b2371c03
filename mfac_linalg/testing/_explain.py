"""What a wrong answer looks like: the well-known mistakes, and rounding that is amplified."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ._oracle import LIMIT
from ._problems import Problem

if TYPE_CHECKING:
    from ._exam import Exam

ALIKE = 0.02  # relative distance of an answer from a known mistake
NO_DIGIT = 0.3  # relative error


def explain_error(exam: "Exam", v: np.ndarray, x: np.ndarray, expected: np.ndarray) -> str:
    """How far off x is, and which known mistake gives the same answer."""
    off = _distance(exam, x, expected)
    words = f"‖x − F⁻¹v‖/‖F⁻¹v‖ = {off:.2g}"
    if off > ALIKE and (mistake := _known_mistake(exam, v, x, ALIKE)):
        return f"{words}; x is {mistake}"
    return words + "; x is nearly 0" * (_distance(exam, x + expected, expected) <= ALIKE)


def explain_rounding(exam: "Exam", v: np.ndarray, x: np.ndarray) -> str:
    """Whether the formula is wrong or its rounding is amplified."""
    expected = exam.problem.oracle.solve(v)
    if exam.error(v, x, expected) > LIMIT:
        return "The formula is wrong, or it loses more than the textbook's."
    off = _distance(exam, x, expected)
    if off > NO_DIGIT:  # at a κ at which "right formula" allows for that
        mistake = _known_mistake(exam, v, x, off / 3)
        return (
            f"The formula is wrong: x is {mistake}." if mistake else "No digit is right, by rounding or by the formula."
        )
    return (
        "The formula is right, but rounding is amplified: near the span of the gradients F⁻¹v is much smaller than "
        "v/λ, and a difference such as (v − Gᵀa)/λ cancels."
    )


def _known_mistake(exam: "Exam", v: np.ndarray, x: np.ndarray, distance: float) -> str:
    """In words, the first mistake that gives x up to a relative distance; nothing if none does."""
    near = (words for words, answer in _mistakes(exam.problem, v) if _distance(exam, x, answer) <= distance)
    return next(near, "")


def _distance(exam: "Exam", x: np.ndarray, answer: np.ndarray) -> float:
    size = np.linalg.norm((exam.roots * answer).astype(np.float64))
    gap = np.linalg.norm((exam.roots * (x - answer)).astype(np.float64))
    return float(gap / size) if size else float("inf" if gap else 0.0)


def _mistakes(problem: Problem, v: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Known mistakes in words, and the answers that they give."""
    m = problem.shape[0]
    oracle = problem.oracle
    if m > 1:
        for words, by in (("m times", m), ("1/m of", 1 / m)):
            weights = np.ones(m) if problem.weights is None else problem.weights
            changed = replace(problem, weights=weights * by)
            yield f"the answer for {words} Σ c_i g_i g_iᵀ: a factor of m", changed.oracle.solve(v)
    for words, by in (("squared", problem.damping), ("twice", 2.0), ("half", 0.5)):
        yield f"the answer for λ {words}", problem.with_damping(problem.damping * by).oracle.solve(v)
    yield "v/λ: the gradients do not count", v / oracle.roots**2
    yield "v: an identity", v
    in_span = oracle.roots * (np.linalg.pinv(oracle.scaled.astype(np.float64)) @ (oracle.scaled @ (v / oracle.roots)))
    yield "F⁻¹ of the part of v in the span of the gradients; the rest of v is lost", oracle.solve(in_span)
    yield "Fv", oracle.forward @ v
