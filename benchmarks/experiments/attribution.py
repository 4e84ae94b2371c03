"""Attributions of the outputs on some images to the training images, by the gradients of one network.

Scores are tᵀ F⁻¹ g_i, positive where sample i helps: t and g_i are gradients of cross-entropies, F = λI + GᵀG. Methods
differ in G, and in how F⁻¹ t is approximated. All but the projection need inner products of rows only, in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from benchmarks.experiments.perceptron import FactoredRows, Perceptron, fisher_rows, softmax
from benchmarks.experiments.retraining import Samples
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence

CG_STEPS, PROJECTED = 10, 512  # as published
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MARGIN_DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)  # for gradients of margins, which are longer


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
    """Rows of one network: T (t, d) of other images, R (n, d) of training images, G (f, d) of F = λI + GᵀG."""

    tests: FactoredRows
    trains: FactoredRows
    fisher: FactoredRows
    wrong: np.ndarray  # (n,), 1 − p of the right classes of training images
    seed: int

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """G Gᵀ, (f, f)."""
        return self.fisher.gram(self.fisher)

    @functools.cached_property
    def by_fisher(self) -> tuple[np.ndarray, np.ndarray]:
        """G Tᵀ (f, t) and G Rᵀ (f, n)."""
        return self.fisher.gram(self.tests), self.fisher.gram(self.trains)

    @functools.cached_property
    def products(self) -> np.ndarray:
        """T Rᵀ, (t, n)."""
        return self.tests.gram(self.trains)

    def dot(self, damping: None, weights: np.ndarray) -> np.ndarray:
        """T Rᵀ."""
        return self.products

    def exact(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """T F⁻¹ Rᵀ = (T Rᵀ − T Gᵀ (λI + GGᵀ)⁻¹ G Rᵀ)/λ."""
        tests, trains = self.by_fisher
        factor = cho_factor(self.gram + damping * np.eye(len(self.gram)), overwrite_a=True, check_finite=False)
        return (self.products - cho_solve(factor, tests, check_finite=False).T @ trains) / damping

    def by_cg(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """X Rᵀ with some steps of conjugate gradients in place of X = T F⁻¹."""
        of_tests, of_fisher = self.krylov.solutions(damping)
        return of_tests[:, None] * self.products + of_fisher.T @ self.by_fisher[1]

    @functools.cached_property
    def krylov(self) -> Krylov:
        return Krylov.of(self.gram, self.by_fisher[0], self.tests.squares(), CG_STEPS)

    def by_margins(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """As TRAK, without a projection: G of margins, rows of training images by `weights` in place of 1 − p."""
        return self.exact(damping, weights) * (weights / self.wrong)

    def by_projection(self, damping: float, weights: np.ndarray) -> np.ndarray:
        """As TRAK: gradients of margins in a random projection, rows of training images by `weights`."""
        tests, margins = self.projected
        return influence(WoodburyRankOneInverse(margins, damping), tests) * weights

    @functools.cached_property
    def projected(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of T and of the margins of training images, times a Gaussian matrix, (t, k) and (n, k) float64."""
        dim = sum(a.shape[1] * b.shape[1] for a, b in zip(self.tests.inputs, self.tests.outputs, strict=True))
        rng, scale = np.random.default_rng(self.seed), np.float32(PROJECTED**-0.5)
        matrix = rng.standard_normal((dim, PROJECTED), dtype=np.float32) * scale
        margins = self.trains.scaled(1 / self.wrong)
        return self.tests.times(matrix).astype(np.float64), margins.times(matrix).astype(np.float64)


@dataclass(frozen=True)
class Krylov:
    """Lanczos bases of GᵀG from each row t of T, v_j = α_j t + Gᵀβ_j, from which CG's iterates follow for every λ.

    After k steps CG is V (λI + H)⁻¹ Vᵀt with the tridiagonal H = Vᵀ GᵀG V (k, k). In terms of K = GGᵀ and of G t a step
    is one product with K.
    """

    of_tests: np.ndarray  # α, (k, t)
    of_fisher: np.ndarray  # β, (k, f, t)
    diagonal: np.ndarray  # (k, t)
    beside: np.ndarray  # (k, t): b_j couples steps j and j + 1
    norms: np.ndarray  # ‖t‖, (t,)

    @classmethod
    def of(cls, gram: np.ndarray, products: np.ndarray, squares: np.ndarray, steps: int) -> Krylov:
        norms = np.sqrt(squares)
        inverse = reciprocal(norms)
        alpha, beta, image = inverse, np.zeros_like(products), products * inverse  # v, and G v
        before, coupling = (np.zeros_like(alpha), beta), np.zeros_like(alpha)
        found: list[list[np.ndarray]] = [[], [], [], []]
        for _ in range(steps):
            entry = np.einsum("ij,ij->j", image, image)
            new_alpha = -entry * alpha - coupling * before[0]
            new_beta = image - entry * beta - coupling * before[1]
            raised = gram @ new_beta
            square = new_alpha**2 * squares + np.einsum("ij,ij->j", new_beta, 2 * new_alpha * products + raised)
            coupling = np.sqrt(np.maximum(square, 0))
            for column, value in zip(found, (alpha, beta, entry, coupling), strict=True):
                column.append(value)
            before, inverse = (alpha, beta), reciprocal(coupling)
            alpha, beta, image = new_alpha * inverse, new_beta * inverse, (new_alpha * products + raised) * inverse
        return cls(*map(np.stack, found), norms)

    def solutions(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """x = α t + Gᵀβ after the steps, as α (t,) and β (f, t)."""
        steps = len(self.diagonal)
        matrix = np.zeros((len(self.norms), steps, steps))
        index = np.arange(steps)
        matrix[:, index, index] = self.diagonal.T + damping
        matrix[:, index[1:], index[:-1]] = matrix[:, index[:-1], index[1:]] = self.beside[:-1].T
        right = np.zeros((len(self.norms), steps, 1))
        right[:, 0, 0] = self.norms
        weights = np.linalg.solve(matrix, right)[:, :, 0].T  # (k, t)
        return (weights * self.of_tests).sum(axis=0), np.einsum("kt,kft->ft", weights, self.of_fisher)


def reciprocal(values: np.ndarray) -> np.ndarray:
    """1/x, and 0 for 0: a Krylov space that has ended stays as it is."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


@dataclass(frozen=True)
class Method:
    """A way to scores, the G that it needs, and whether it averages 1 − p over networks as TRAK does."""

    name: str
    scores: Callable[[Gradients, float, np.ndarray], np.ndarray]
    fisher: str = "empirical"
    dampings: tuple[float | None, ...] = DAMPINGS
    shares_weights: bool = False


METHODS = (
    Method("true Fisher, exact", Gradients.exact, "true"),
    Method("empirical Fisher, exact", Gradients.exact),
    Method(f"true Fisher, {CG_STEPS} steps of CG", Gradients.by_cg, "true"),
    Method(f"empirical Fisher, {CG_STEPS} steps of CG", Gradients.by_cg),
    Method("gradient dot product", Gradients.dot, dampings=(None,)),
    Method(
        f"gradients of margins, projected to {PROJECTED}",
        Gradients.by_projection,
        dampings=MARGIN_DAMPINGS,
        shares_weights=True,
    ),
    Method(
        "gradients of margins, exact",
        Gradients.by_margins,
        "margins",
        dampings=MARGIN_DAMPINGS,
        shares_weights=True,
    ),
)
BY_NAME = {method.name: method for method in METHODS}


def gradients_of(
    model: Perceptron, train: Samples, others: Samples, fisher: str, seed: int, fisher_count: int
) -> Gradients:
    """Rows for the "empirical" Fisher matrix, the longest of the "true" one, or those of "margins"."""
    (rows, wrong), (tests, _) = perceptron_rows(model, train), perceptron_rows(model, others)
    if fisher == "true":
        matrix, _ = fisher_rows(model, train.inputs.numpy().astype(np.float64), fisher_count)
    else:
        matrix = rows.scaled((1 if fisher == "empirical" else 1 / wrong) / np.sqrt(np.full(len(rows), len(rows))))
    return Gradients(tests, rows, matrix, wrong, seed)
