"""The Woodbury identity as it is written down in five lines of NumPy, all of it in float32."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from benchmarks.peers.contender import Contender
from benchmarks.problems import Problem

CHUNK = 10_000
"""Pairs that are gathered at once."""


class FiveLines:
    """F⁻¹ = (I − Gᵀ (G Gᵀ + mλI)⁻¹ G)/λ; each of the longer queries is a line more.

    Parameters
    ----------
    gradients : numpy.ndarray, shape (m, d)
        G, kept by reference.
    damping : float
        λ.
    """

    def __init__(self, gradients: np.ndarray, damping: float) -> None:
        self.gradients, self.damping = gradients, damping
        capacitance = gradients @ gradients.T
        capacitance[np.diag_indices_from(capacitance)] += len(gradients) * damping
        self.factor = cho_factor(capacitance, lower=True)

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """Return F⁻¹v for v of shape (d,) or (d, k)."""
        return (v - self.gradients.T @ cho_solve(self.factor, self.gradients @ v)) / self.damping

    @cached_property
    def whitened(self) -> np.ndarray:
        """W = L⁻¹G, made when elements are first asked for, and kept."""
        return solve_triangular(self.factor[0], self.gradients, lower=True)

    def diagonal(self) -> np.ndarray:
        """Return the diagonal of F⁻¹."""
        return (1 - np.einsum("ki,ki->i", self.whitened, self.whitened)) / self.damping

    def element(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return (F⁻¹)_ij, some pairs at a time: gathered columns of a million would need more memory than G."""
        chunks = [slice(start, start + CHUNK) for start in range(0, len(i), CHUNK)]
        sums = [np.einsum("ki,ki->i", self.whitened[:, i[c]], self.whitened[:, j[c]]) for c in chunks]
        return ((i == j) - np.concatenate(sums)) / np.float32(self.damping)


def _whiten(problem: Problem) -> FiveLines:
    inverse = FiveLines(problem.gradients, problem.damping)
    _ = inverse.whitened
    return inverse


def _product(state: FiveLines, question: Any) -> Any:
    return partial(state.matvec, question.v)


CONTENDERS = (
    Contender(
        name="five lines of NumPy",
        build=lambda problem: partial(FiveLines, problem.gradients, problem.damping),
        answers={
            "build": lambda state, question: partial(state.matvec, question.problem.stored_row),
            **dict.fromkeys(("random", "row", "combination", "block"), _product),
            "diagonal": lambda state, _: state.diagonal,
            "elements": lambda state, question: partial(state.element, *question.problem.pairs),
        },
        copies_for={"diagonal": 1, "elements": 1},
        cannot={"step": "builds all of it again"},
    ),
    Contender(
        name="five lines of NumPy, W kept",
        build=lambda problem: partial(_whiten, problem),
        answers={"whitened build": lambda state, question: partial(state.matvec, question.problem.stored_row)},
        copies=1,
    ),
)
