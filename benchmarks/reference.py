"""A float64 reference for problems whose d × d inverse does not fit: the Woodbury identity, panel by panel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigvalsh

from benchmarks.problems import Problem


class Reference:
    """Residuals and elements of F = λI + GᵀG/m in float64, for float32 gradients.

    Parameters
    ----------
    problem : Problem
        Its gradients are read by panels of 8192 columns: no float64 copy of G is made.

    Notes
    -----
    Cost: build d m² float64 flops; a residual is two float64 passes over G.
    """

    def __init__(self, problem: Problem) -> None:
        self._gradients = problem.gradients
        self.num_gradients = problem.num_gradients
        self.damping = problem.damping
        gram = np.zeros((problem.num_gradients, problem.num_gradients))
        for _, panel in self._panels():
            gram += panel @ panel.T
        self.norm = self.damping + eigvalsh(gram)[-1] / self.num_gradients
        gram[np.diag_indices_from(gram)] += self.num_gradients * self.damping
        self._factor = cho_factor(gram, overwrite_a=True)

    @property
    def kappa(self) -> float:
        """κ = ‖F‖/λ."""
        return float(self.norm / self.damping)

    def _panels(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, self._gradients.shape[1], 8192):
            columns = slice(start, start + 8192)
            yield columns, self._gradients[:, columns].astype(np.float64)

    def backward_error(self, v: np.ndarray, x: np.ndarray) -> float:
        """Return the largest ‖v − Fx‖/(‖F‖‖x‖) over the columns of v and x, both of shape (d,) or (d, k)."""
        return float(np.max(self.backward_errors(v, x)))

    def backward_errors(self, v: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return ‖v − Fx‖/(‖F‖‖x‖) of each column of x, shape (k,), for one v or as many."""
        v, x = (array.reshape(len(array), -1).astype(np.float64) for array in (v, x))
        projected = sum(panel @ x[columns] for columns, panel in self._panels())
        residual = v - self.damping * x
        for columns, panel in self._panels():
            residual[columns] -= panel.T @ projected / self.num_gradients
        return np.linalg.norm(residual, axis=0) / (self.norm * np.linalg.norm(x, axis=0))

    def element(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return (F⁻¹)_ij = ([i = j] − g_iᵀ (K + mλI)⁻¹ g_j)/λ, g_i column i of G, for index arrays of one shape."""
        left, right = (self._gradients[:, index].astype(np.float64) for index in (i, j))
        solved = cho_solve(self._factor, right)
        return ((i == j) - np.einsum("ki,ki->i", left, solved)) / self.damping

    def element_error(self, i: np.ndarray, j: np.ndarray, values: object) -> float:
        """Return the largest error of about 1024 of the values (F⁻¹)_ij, as a multiple of 1/λ."""
        step = -(-len(i) // 1024)
        i, j, values = i[::step], j[::step], np.asarray(values)[::step]
        return float(np.max(np.abs(values - self.element(i, j)))) * self.damping
