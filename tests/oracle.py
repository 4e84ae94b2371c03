"""Answers to compare with: dense or sequential, in extended precision, obvious and slow.

Nothing here imports the library. `Oracle` works in NumPy's longdouble (64 bits of mantissa on x86) and refines every
solve with its own residual, so that it is right to float64's last digits at the condition numbers that the accuracy
contract reaches. `rank_one_recursion` is the paper's algorithm as it is printed.
"""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

LIMIT = 30.0
"""The accuracy contract's constant: R and the forward ratio stay below it."""


def tolerance(eps: float, kappa: float = 1.0) -> float:
    """The one rule for tolerances: constant x eps x condition number."""
    return LIMIT * eps * kappa


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor in the matrix's own precision, which LAPACK has not for longdouble."""
    factor = np.tril(matrix)
    for k in range(factor.shape[0]):
        factor[k, k] = np.sqrt(factor[k, k])
        factor[k + 1 :, k] /= factor[k, k]
        factor[k + 1 :, k + 1 :] -= np.tril(np.outer(factor[k + 1 :, k], factor[k + 1 :, k]))
    return factor


def triangular_inverse(factor: np.ndarray) -> np.ndarray:
    """Inverse of a lower triangular matrix, row by row."""
    inverse = np.eye(len(factor), dtype=factor.dtype)
    for k in range(len(factor)):
        inverse[k, : k + 1] = (inverse[k, : k + 1] - factor[k, :k] @ inverse[:k, : k + 1]) / factor[k, k]
    return inverse


@dataclass(frozen=True, eq=False)
class Oracle:
    """F = diag(damping) + sum_i c_i g_i g_i^T with c_i = w_i / n, and what follows from it.

    `damping` is a number or (d,), `weights` None or (m,), `normalization` "mean" (n = m) or "sum" (n = 1). `wide` is
    the dtype of the arithmetic: float64 for sizes at which longdouble, which no BLAS knows, takes too long.
    """

    gradients: np.ndarray
    damping: Any
    weights: np.ndarray | None = None
    normalization: str = "mean"
    wide: type = np.longdouble

    @functools.cached_property
    def coefficients(self) -> np.ndarray:
        """The c_i, (m,)."""
        m = len(self.gradients)
        weights = np.ones(m) if self.weights is None else self.weights
        return np.asarray(weights, self.wide) / (m if self.normalization == "mean" else 1)

    @functools.cached_property
    def roots(self) -> np.ndarray:
        """Square roots of the damping, (d,)."""
        return np.sqrt(np.broadcast_to(np.asarray(self.damping, self.wide), self.gradients.shape[1:]))

    @functools.cached_property
    def scaled(self) -> np.ndarray:
        """S = C^1/2 G damping^-1/2, (m, d)."""
        return np.sqrt(self.coefficients)[:, None] * np.asarray(self.gradients, self.wide) / self.roots

    @functools.cached_property
    def size(self) -> float:
        """||S||^2."""
        rows = (self.scaled if self.is_wide else self.scaled.T).astype(np.float64)
        return float(np.linalg.eigvalsh(rows @ rows.T)[-1])

    @property
    def kappa(self) -> float:
        """1 + ||S||^2: the condition number of F in the norm that the damping sets."""
        return 1.0 + self.size

    @functools.cached_property
    def _inverse_factor(self) -> np.ndarray:
        """L^-1 with I + S S^T = L L^T, or I + S^T S where that is no larger."""
        rows = self.scaled if self.is_wide else self.scaled.T
        return triangular_inverse(cholesky(np.eye(len(rows), dtype=self.wide) + rows @ rows.T))

    @property
    def is_wide(self) -> bool:
        """Whether m < d."""
        return self.scaled.shape[0] < self.scaled.shape[1]

    def _solve_scaled(self, u: np.ndarray) -> np.ndarray:
        """(I + S^T S)^-1 u. Each round corrects the last one by the residual that is really there."""
        rows, factor = self.scaled, self._inverse_factor
        solution, dual = (u, 0.0) if self.is_wide else (np.zeros_like(u), 0.0)
        for _ in range(2 if self.kappa < 1e8 else 6):
            if self.is_wide:  # u = solution + S^T dual throughout; the rounds bring dual to S solution
                step = factor.T @ (factor @ (rows @ solution - dual))
                solution, dual = solution - rows.T @ step, dual + step
            else:
                solution = solution + factor.T @ (factor @ (u - solution - rows.T @ (rows @ solution)))
        return solution

    def solve(self, v: np.ndarray) -> np.ndarray:
        """F^-1 v in longdouble; v is (d,) or (d, k)."""
        roots = self._column(v, self.roots)
        return self._solve_scaled(np.asarray(v, self.wide) / roots) / roots

    @staticmethod
    def _column(v: np.ndarray, roots: np.ndarray) -> np.ndarray:
        return roots if np.ndim(v) == 1 else roots[:, None]

    @functools.cached_property
    def forward(self) -> np.ndarray:
        """F itself, (d, d), float64."""
        gradients = np.asarray(self.gradients, self.wide)
        return np.asarray(np.diag(self.roots**2) + (gradients.T * self.coefficients) @ gradients, np.float64)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """F^-1, (d, d), float64."""
        return np.asarray(self.solve(np.eye(len(self.roots))), np.float64)

    def backward_ratio(self, v: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """R = ||damping^-1/2 (v - F x)|| / (kappa ||damping^1/2 x|| eps + floor), one figure per column of v."""
        roots = self._column(v, self.roots)
        scaled_x = roots * np.asarray(x, self.wide)
        residual = np.asarray(v, self.wide) / roots - scaled_x - self.scaled.T @ (self.scaled @ scaled_x)
        return _ratio(residual, scaled_x, self.kappa * eps, floor)

    def forward_ratio(self, v: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """||damping^1/2 (x - F^-1 v)|| / (kappa ||damping^1/2 F^-1 v|| eps + floor), one figure per column of v."""
        return self.distance_ratio(self.solve(v), x, eps, floor)

    def distance_ratio(self, exact: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """`forward_ratio` where F^-1 v is known already."""
        roots = self._column(x, self.roots)
        return _ratio(roots * (np.asarray(x, self.wide) - exact), roots * exact, self.kappa * eps, floor)

    def rounding_of_combinations(self, coefficients: np.ndarray, eps: float) -> Any:
        """eps ||damping^-1/2 |G|^T |c|||: how far rounding its terms moves the combination G^T c, by column of c."""
        terms = np.abs(np.asarray(self.gradients, self.wide)).T @ np.abs(coefficients)
        return eps * np.sqrt(np.sum((terms / self._column(terms, self.roots)) ** 2, axis=0))


def _ratio(error: np.ndarray, size: np.ndarray, unit: float, floor: Any) -> Any:
    error, size = (np.sqrt(np.sum(array**2, axis=0)) for array in (error, size))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(error == 0, 0, error / (size * unit + floor)), np.float64)


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
