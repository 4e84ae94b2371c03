"""Attributions of the outputs on some images to the training images, by the gradients of one network.

Scores are tᵀ F⁻¹ g_i, positive where sample i helps: t and g_i are gradients of cross-entropies. All but the gradient
dot product differ in F only, or in how F⁻¹ t is approximated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.experiments.factored import FactoredRows, Perceptron, coordinates, fisher_rows, softmax
from benchmarks.experiments.retraining import Samples
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence

CG_STEPS, PROJECTED = 10, 512  # as published


def perceptron_rows(model: Perceptron, samples: Samples) -> tuple[FactoredRows, np.ndarray]:
    """The gradients of the cross-entropies, and 1 − p of the right classes."""
    inputs, labels = samples.inputs.numpy().astype(np.float64), samples.labels.numpy()
    errors = softmax(model.forward(inputs)[1])
    each = np.arange(len(labels))
    errors[each, labels] = 0
    wrong = errors.sum(axis=1)  # without cancellation
    errors[each, labels] = -wrong
    return model.rows(inputs, errors), wrong


@dataclass(frozen=True)
class Gradients:
    """Rows of one network, as coordinates: of training and other images, and of F."""

    trains: np.ndarray  # (n, r)
    tests: np.ndarray  # (t, r)
    fisher: np.ndarray  # (f, r), F = λI + GᵀG
    wrong: np.ndarray  # (n,), 1 − p of the right classes of training images
    seed: int

    @functools.cached_property
    def inverse(self) -> WoodburyRankOneInverse:
        """F⁻¹ at some damping."""
        return WoodburyRankOneInverse(self.fisher, 1.0, normalization="sum")

    def dot(self, damping: None, weights: np.ndarray) -> np.ndarray:
        """T Gᵀ."""
        return self.tests @ self.trains.T

    def exact(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """T F⁻¹ Gᵀ."""
        return influence(self.inverse.with_damping(damping), self.tests, self.trains)

    def by_cg(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """T x for some steps of conjugate gradients towards F⁻¹."""
        return conjugate_gradients(self.fisher, damping, self.tests, CG_STEPS) @ self.trains.T

    def by_projection(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """As TRAK: gradients of margins, in a random projection; rows of training images by `weights`, 1 − p."""
        rng, dim = np.random.default_rng(self.seed), self.trains.shape[1]
        projection = rng.standard_normal((dim, PROJECTED), dtype=self.trains.dtype) / np.float32(PROJECTED**0.5)
        margins = (self.trains / self.wrong[:, None]).astype(self.trains.dtype)
        inverse = WoodburyRankOneInverse(margins @ projection, damping)
        return influence(inverse, self.tests @ projection) * weights.astype(self.trains.dtype)

    def by_margins(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """The same without a projection."""
        return influence(self.inverse_of_margins.with_damping(damping), self.tests) * weights.astype(self.trains.dtype)

    @functools.cached_property
    def inverse_of_margins(self) -> WoodburyRankOneInverse:
        """(λI + the mean of ∇margin ∇marginᵀ)⁻¹ at some damping."""
        return WoodburyRankOneInverse((self.trains / self.wrong[:, None]).astype(self.trains.dtype), 1.0)


def conjugate_gradients(rows: np.ndarray, damping: float, tests: np.ndarray, steps: int) -> np.ndarray:
    """The rows of X after some steps from 0 towards (λI + GᵀG) Xᵀ = Tᵀ, each row on its own, (t, r)."""
    found, residual = np.zeros_like(tests), tests.copy()
    direction, square = residual.copy(), _dots(residual, residual)
    for _ in range(steps):
        image = damping * direction + (direction @ rows.T) @ rows
        length = square / np.maximum(_dots(direction, image), np.finfo(rows.dtype).tiny)
        found += length * direction
        residual -= length * image
        before, square = square, _dots(residual, residual)
        direction = residual + square / np.maximum(before, np.finfo(rows.dtype).tiny) * direction
    return found


def _dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", left, right)[:, None]


@dataclass(frozen=True)
class Method:
    """A way to scores, the F that it needs, and whether it averages over networks as TRAK does."""

    name: str
    scores: Callable[[Gradients, float, np.ndarray], np.ndarray]
    fisher: str = "empirical"
    is_damped: bool = True
    shares_weights: bool = False


METHODS = (
    Method("true Fisher, exact", Gradients.exact, "true"),
    Method("empirical Fisher, exact", Gradients.exact),
    Method(f"true Fisher, {CG_STEPS} steps of CG", Gradients.by_cg, "true"),
    Method(f"empirical Fisher, {CG_STEPS} steps of CG", Gradients.by_cg),
    Method("gradient dot product", Gradients.dot, is_damped=False),
    Method(f"random projection to {PROJECTED}", Gradients.by_projection, shares_weights=True),
    Method("the same without projection", Gradients.by_margins, shares_weights=True),
)
BY_NAME = {method.name: method for method in METHODS}


def gradients_of(
    model: Perceptron, train: Samples, others: Samples, fisher: str, seed: int, fisher_count: int
) -> Gradients:
    """The coordinates for the "empirical" Fisher matrix, or for the longest rows of the "true" one."""
    (rows, wrong), (tests, _) = perceptron_rows(model, train), perceptron_rows(model, others)
    if fisher == "empirical":
        r, t = coordinates(rows, tests)
        return Gradients(r, t, r / np.float32(len(r) ** 0.5), wrong, seed)
    inputs = train.inputs.numpy().astype(np.float64)
    f, r, t = coordinates(fisher_rows(model, inputs, fisher_count)[0], rows, tests)
    return Gradients(r, t, f, wrong, seed)
