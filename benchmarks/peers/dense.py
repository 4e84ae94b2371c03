"""F as a dense d × d matrix, by LAPACK: what is left of all this where d is small."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from benchmarks.machine import Limits
from benchmarks.peers.contender import Call, Contender, Question

LARGEST_DIM = 4096


class Dense:
    """F = λI + GᵀG/m, its Cholesky factor in float32, and the inverse when elements are asked for.

    Parameters
    ----------
    gradients : numpy.ndarray, shape (m, d)
        G.
    damping : float
        λ.
    """

    def __init__(self, gradients: np.ndarray, damping: float) -> None:
        matrix = gradients.T @ gradients / np.float32(len(gradients))
        matrix[np.diag_indices_from(matrix)] += damping
        self.factor = cho_factor(matrix, overwrite_a=True)

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """Return F⁻¹v for v of shape (d,) or (d, k)."""
        return cho_solve(self.factor, v)

    @cached_property
    def inverse(self) -> np.ndarray:
        """F⁻¹, made once."""
        return cho_solve(self.factor, np.eye(len(self.factor[0]), dtype=np.float32))

    def diagonal(self) -> np.ndarray:
        """Return the diagonal of F⁻¹."""
        return np.diag(self.inverse).copy()

    def element(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return (F⁻¹)_ij."""
        return self.inverse[i, j]


def _refuse_large(question: Question, _: Limits) -> str:
    d = question.problem.dim
    return f"needs {4 * d * d / 1e9:,.1f} GB for d × d numbers" if d > LARGEST_DIM else ""


def _product(state: Dense, question: Question) -> Call:
    return partial(state.matvec, question.v)


CONTENDERS = (
    Contender(
        "dense Cholesky",
        lambda problem: partial(Dense, problem.gradients, problem.damping),
        {
            "build": lambda state, question: partial(state.matvec, question.problem.stored_row),
            **dict.fromkeys(("random", "row", "combination", "block"), _product),
            "diagonal": lambda state, _: state.diagonal,
            "elements": lambda state, question: partial(state.element, *question.problem.pairs),
        },
        refuse=_refuse_large,
    ),
)
