"""The static recursion of the M-FAC paper, for a fair comparison: every step is two well-shaped BLAS-2 passes.

With F_0 = λI and F_k = F_{k-1} + g_k g_kᵀ/m, the Sherman–Morrison identity gives, for v_k = F_{k-1}⁻¹ g_k,

    F_k⁻¹ = F_{k-1}⁻¹ − v_k v_kᵀ/(m + g_kᵀ v_k),

and, unrolled down to F_0 = λI, with the denominators δ_j = m + g_jᵀ v_j,

    v_k = g_k/λ − Σ_{j<k} (v_jᵀ g_k/δ_j) v_j       build: O(d m²), one rank-one step after the other
    F⁻¹ x = x/λ − Vᵀ ((V x)/δ)                     product: O(d m)
    (F⁻¹)_ij = [i = j]/λ − Σ_k V_ki V_kj/δ_k       element: O(m)

Both classes store G, V of shape (m, d) and δ of shape (m,) in the gradients' dtype, as the paper's code does. Step k
reads V[:k] twice, so the build moves 4 d m² bytes in float32 and is bound by memory, not by arithmetic.

References
----------
.. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
   NeurIPS 2021, arXiv:2107.03356, section 3, the static algorithm.
"""

from __future__ import annotations

import numpy as np
import torch


class NumpyRecursion:
    """F⁻¹ = (λI + GᵀG/m)⁻¹ by m sequential rank-one updates in NumPy.

    Parameters
    ----------
    gradients : numpy.ndarray, shape (m, d)
        G; read, not kept.
    damping : float
        λ > 0, in units of squared gradients.
    """

    def __init__(self, gradients: np.ndarray, damping: float) -> None:
        m, _ = gradients.shape
        self.damping = damping
        self.directions = np.empty_like(gradients)
        self.denominators = np.empty(m, dtype=gradients.dtype)
        for k, (gradient, direction) in enumerate(zip(gradients, self.directions, strict=True)):
            coefficients = (self.directions[:k] @ gradient) / self.denominators[:k]
            np.divide(gradient, damping, out=direction)
            direction -= coefficients @ self.directions[:k]
            self.denominators[k] = m + gradient @ direction

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """Return F⁻¹v for v of shape (d,), in two passes over V."""
        result = v / self.damping
        result -= ((self.directions @ v) / self.denominators) @ self.directions
        return result

    def matmat(self, block: np.ndarray) -> np.ndarray:
        """Return F⁻¹X for X of shape (d, k), by two matrix products."""
        result = block / self.damping
        result -= self.directions.T @ ((self.directions @ block) / self.denominators[:, None])
        return result

    def diagonal(self) -> np.ndarray:
        """Return the diagonal of F⁻¹, shape (d,); row by row, so that the sum stays in cache."""
        result = np.full(self.directions.shape[1], 1 / self.damping, dtype=self.directions.dtype)
        term = np.empty_like(result)
        for direction, denominator in zip(self.directions, self.denominators, strict=True):
            np.multiply(direction, direction, out=term)
            term /= denominator
            result -= term
        return result

    def element(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return (F⁻¹)_ij for index arrays of one shape; row by row, so that each gather reads a cached row."""
        result = np.where(i == j, 1 / self.damping, 0.0).astype(self.directions.dtype)
        for direction, denominator in zip(self.directions, self.denominators, strict=True):
            term = np.take(direction, i)
            term *= np.take(direction, j)
            term /= denominator
            result -= term
        return result


class TorchRecursion:
    """F⁻¹ = (λI + GᵀG/m)⁻¹ by m sequential rank-one updates in PyTorch.

    Parameters
    ----------
    gradients : torch.Tensor, shape (m, d)
        G; read, not kept.
    damping : float
        λ > 0, in units of squared gradients.
    """

    def __init__(self, gradients: torch.Tensor, damping: float) -> None:
        m, _ = gradients.shape
        self.damping = damping
        self.directions = torch.empty_like(gradients)
        self.denominators = gradients.new_empty(m)
        for k, (gradient, direction) in enumerate(zip(gradients, self.directions, strict=True)):
            coefficients = (self.directions[:k] @ gradient) / self.denominators[:k]
            torch.div(gradient, damping, out=direction)
            direction.addmv_(self.directions[:k].T, coefficients, alpha=-1)
            self.denominators[k] = m + gradient @ direction

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        """Return F⁻¹v for v of shape (d,), in two passes over V."""
        coefficients = (self.directions @ v) / self.denominators
        return (v / self.damping).addmv_(self.directions.T, coefficients, alpha=-1)

    def matmat(self, block: torch.Tensor) -> torch.Tensor:
        """Return F⁻¹X for X of shape (d, k), by two matrix products."""
        coefficients = (self.directions @ block) / self.denominators[:, None]
        return (block / self.damping).addmm_(self.directions.T, coefficients, alpha=-1)

    def diagonal(self) -> torch.Tensor:
        """Return the diagonal of F⁻¹, shape (d,); row by row, so that the sum stays in cache."""
        result = torch.full_like(self.directions[0], 1 / self.damping)
        for direction, denominator in zip(self.directions, self.denominators.tolist(), strict=True):
            result.addcmul_(direction, direction, value=-1 / denominator)
        return result

    def element(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """Return (F⁻¹)_ij for index tensors of one shape; row by row, so that each gather reads a cached row."""
        result = (i == j).to(self.directions.dtype) / self.damping
        for direction, denominator in zip(self.directions, self.denominators.tolist(), strict=True):
            result.addcmul_(direction[i], direction[j], value=-1 / denominator)
        return result
