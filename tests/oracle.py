"""Answers to compare with, beside the dense `Oracle` of mfac_linalg.testing: the paper's recursion, and fractions.

`RankOneRecursion` is the paper's algorithm as it is printed; `ExactOracle` rounds nothing. Nothing here imports what
is tested.
"""

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np

from mfac_linalg.testing import Oracle


def backward_ratio(gradients, damping, weights, normalization, v, x, eps) -> Any:
    """`Oracle.backward_ratio` for a single question."""
    return Oracle(gradients, damping, weights, normalization).backward_ratio(v, x, eps)


def dense_inverse(gradients, damping, weights=None, normalization="mean") -> np.ndarray:
    """F^-1 by LAPACK in float64: for sizes at which `Oracle` takes too long."""
    gradients = np.asarray(gradients, np.float64)
    m, d = gradients.shape
    coefficients = (np.ones(m) if weights is None else weights) / (m if normalization == "mean" else 1)
    return np.linalg.inv(np.eye(d) * damping + (gradients.T * coefficients) @ gradients)


class RankOneRecursion:
    """M-FAC's static algorithm (Frantar, Kurtic and Alistarh 2021, equations 5 and 6), for scalar damping.

    F_0^-1 = I / damping and F_k^-1 = F_{k-1}^-1 - (F_{k-1}^-1 g_k)(F_{k-1}^-1 g_k)^T / (m + g_k^T F_{k-1}^-1 g_k). Only
    the vectors v_k = F_{k-1}^-1 g_k and the denominators are kept.
    """

    BLOCK = 50

    def __init__(self, gradients: np.ndarray, damping: float) -> None:
        gradients = np.asarray(gradients, np.float64)
        m = len(gradients)
        self.damping = damping
        self.vectors, self.denominators = np.zeros_like(gradients), np.zeros(m)
        for start in range(0, m, self.BLOCK):
            block = range(start, min(start + self.BLOCK, m))
            self.vectors[block] = self._apply(0, start, gradients[block].T, gradients[block].T / damping).T
            for k in block:  # what the earlier vectors of the same block still take away
                vector = self._apply(start, k, gradients[k], self.vectors[k])
                self.vectors[k] = vector
                self.denominators[k] = m + gradients[k] @ vector

    def _apply(self, first: int, last: int, v: np.ndarray, so_far: np.ndarray) -> np.ndarray:
        """Subtract the rank-one terms first..last-1, applied to v, from what the earlier ones left of F^-1 v."""
        vectors = self.vectors[first:last]
        return so_far - vectors.T @ ((vectors @ v).T / self.denominators[first:last]).T

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """F^-1 v, for v (d,) or (d, k)."""
        return self._apply(0, len(self.vectors), v, v / self.damping)


class ExactOracle:
    """The same F as an array of fractions, with its inverse: right over the whole range of a dtype, for small sizes."""

    def __init__(
        self, gradients: np.ndarray, damping: Any, weights: np.ndarray | None = None, normalization: str = "mean"
    ) -> None:
        m, d = gradients.shape
        self.gradients = exact(gradients)
        self.dampings = exact(np.broadcast_to(np.asarray(damping, np.float64), (d,)))
        weights = np.ones(m) if weights is None else weights
        self.coefficients = exact(weights) / Fraction(m if normalization == "mean" else 1)
        self.forward = np.diag(self.dampings) + (self.gradients.T * self.coefficients) @ self.gradients
        self.inverse, self.determinant = _invert_by_elimination(self.forward)

    @functools.cached_property
    def kappa(self) -> Fraction:
        """1 + ||S||_F^2, between kappa and min(m, d) times that."""
        return 1 + sum(self.coefficients[:, None] * self.gradients**2 / self.dampings, start=np.zeros(1)).sum()

    @property
    def logdet(self) -> float:
        """log det F^-1."""
        return math.log(self.determinant.denominator) - math.log(self.determinant.numerator)

    def backward_ratio(self, v: np.ndarray, x: np.ndarray, eps: float, floor: np.ndarray | None = None) -> float:
        """R = ||damping^-1/2 (v - F x)|| / (kappa ||damping^1/2 x|| eps + ||damping^-1/2 floor|| eps), all exact."""
        return self._ratio(v - self.forward @ exact(x), exact(x), eps, floor)

    def forward_product_ratio(self, x: np.ndarray, y: np.ndarray, eps: float) -> float:
        """||damping^-1/2 (y - F x)|| / (kappa ||damping^1/2 x|| eps)."""
        return self._ratio(exact(y) - self.forward @ exact(x), exact(x), eps, None)

    def _ratio(self, residual: np.ndarray, x: np.ndarray, eps: float, floor: np.ndarray | None) -> float:
        above = sum(residual**2 / self.dampings)
        below = self.kappa**2 * sum(x**2 * self.dampings)
        below += 0 if floor is None else sum(floor**2 / self.dampings)
        if above == 0:
            return 0.0
        return math.sqrt(as_float(above / below)) / eps if below else math.inf

    def is_rounded(self, answer: np.ndarray, exact_answer: np.ndarray, dtype: str, eps: float) -> bool:
        """Whether every entry is right to 64 kappa eps of itself, or to the smallest number of the dtype."""
        least, unit = Fraction(float(np.finfo(dtype).smallest_subnormal)) * 4, 64 * self.kappa * Fraction(eps)
        pairs = zip(exact(answer).flat, np.asarray(exact_answer).flat, strict=True)
        return all(abs(a - b) <= least + unit * abs(b) for a, b in pairs)


def exact(values: np.ndarray) -> np.ndarray:
    """Floats as an array of fractions."""
    values = np.asarray(values)
    made = np.empty(values.shape, dtype=object)
    made.flat = [Fraction(float(value)) for value in values.flat]
    return made


def as_float(value: Fraction) -> float:
    """The nearest float, infinity where there is none."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _invert_by_elimination(matrix: np.ndarray) -> tuple[np.ndarray, Fraction]:
    """Inverse and determinant of a positive definite array of fractions."""
    size = len(matrix)
    both, determinant = np.concatenate([matrix, exact(np.eye(size))], axis=1), Fraction(1)
    for k in range(size):
        determinant *= both[k, k]
        both[k] = both[k] / both[k, k]
        for row in range(size):
            if row != k:
                both[row] = both[row] - both[row, k] * both[k]
    return both[:, size:], determinant
