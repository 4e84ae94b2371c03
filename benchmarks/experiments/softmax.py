"""Softmax regression with L2 damping, fitted by Newton's method to the last digits: the convex last layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS, SOLVED = 60, 1e-11


@dataclass(frozen=True)
class Softmax:
    """(1/n) Σ_i w_i ℓ(θ; a_i, y_i) + ½ λ ‖θ‖² over θ = W (classes × features), ℓ the cross-entropy of W a.

    A sample is left out by w_i = 0; n stays.
    """

    features: np.ndarray  # (n, features) float64
    labels: np.ndarray  # (n,)
    num_classes: int
    damping: float

    @property
    def dim(self) -> int:
        """Entries of θ, the rows of W one after the other."""
        return self.num_classes * self.features.shape[1]

    def errors(self, theta: np.ndarray) -> np.ndarray:
        """p − y, (n, classes)."""
        return probabilities(self.features, theta, self.num_classes) - np.eye(self.num_classes)[self.labels]

    def gradients(self, theta: np.ndarray) -> np.ndarray:
        """∇ℓ_i as rows, (n, dim), without the damping's part."""
        return outer_rows(self.errors(theta), self.features)

    def hessian(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(1/n) Σ w_i (diag p − p pᵀ) ⊗ a aᵀ + λI."""
        p, width = probabilities(self.features, theta, self.num_classes), self.features.shape[1]
        curvature = p[:, :, None] * np.eye(self.num_classes) - p[:, :, None] * p[:, None, :]
        curvature *= weights[:, None, None] / len(p)
        squares = (self.features[:, :, None] * self.features[:, None, :]).reshape(len(p), -1)
        blocks = (curvature.reshape(len(p), -1).T @ squares).reshape(self.num_classes, self.num_classes, width, width)
        return blocks.transpose(0, 2, 1, 3).reshape(self.dim, self.dim) + self.damping * np.eye(self.dim)

    def objective(self, theta: np.ndarray, weights: np.ndarray) -> float:
        """What is minimised."""
        per_sample = losses(self.features, self.labels, theta, self.num_classes)
        return float(weights @ per_sample / len(per_sample) + self.damping / 2 * theta @ theta)

    def slope(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Its gradient."""
        return ((weights[:, None] * self.errors(theta)).T @ self.features).ravel() / len(weights) + self.damping * theta

    def without(self, left_out: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the minimiser without some samples."""
        weights = np.ones(len(self.labels))
        weights[left_out] = 0
        return self.fitted(start, weights)

    def fitted(self, start: np.ndarray | None = None, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the minimiser: Newton steps, halved while they do not descend."""
        theta = np.zeros(self.dim) if start is None else start
        weights = np.ones(len(self.labels)) if weights is None else weights
        for _ in range(STEPS):
            slope = self.slope(theta, weights)
            if np.linalg.norm(slope) <= SOLVED:
                return theta
            step = np.linalg.solve(self.hessian(theta, weights), slope)
            theta = theta - self._length(theta, step, slope, weights) * step
        msg = f"Newton's method has a slope of {np.linalg.norm(slope):.1e} after {STEPS} steps."
        raise ArithmeticError(msg)

    def _length(self, theta: np.ndarray, step: np.ndarray, slope: np.ndarray, weights: np.ndarray) -> float:
        descent = slope @ step
        if descent < 1e-9:  # where the objective no longer shows it
            return 1.0
        before, length = self.objective(theta, weights), 1.0
        while self.objective(theta - length * step, weights) > before - 0.25 * length * descent:
            length /= 2
        return length


def outer_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row i is left_i ⊗ right_i."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def _logits(features: np.ndarray, theta: np.ndarray, num_classes: int) -> np.ndarray:
    return features @ theta.reshape(num_classes, -1).T


def probabilities(features: np.ndarray, theta: np.ndarray, num_classes: int) -> np.ndarray:
    """Softmax of W a, (n, classes)."""
    logits = _logits(features, theta, num_classes)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def losses(features: np.ndarray, labels: np.ndarray, theta: np.ndarray, num_classes: int) -> np.ndarray:
    """Cross-entropies, (n,)."""
    logits = _logits(features, theta, num_classes)
    top = logits.max(axis=1)
    return np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]
