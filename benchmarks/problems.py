"""Seeded problems of the sizes that every figure is quoted for: d ≫ m, float32, moderate κ."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MEAN_SHARE = 0.5
"""Size of the mean that all rows share, relative to noise of size one: per-sample gradients are never centred."""


@dataclass(frozen=True)
class Problem:
    """Gradients g_i = μ + z_i with a shared mean, and a damping that sets κ = ‖F‖/λ.

    Parameters
    ----------
    num_gradients, dim : int
        m and d.
    kappa : float
        About the condition number of F. At 1e2 the Gram matrix stays float32, one dual sweep serves a random vector,
        and a stored row needs a second one.
    seed : int
        Of everything drawn here.
    """

    num_gradients: int
    dim: int
    kappa: float = 1e2
    seed: int = 2107

    def __str__(self) -> str:
        """Return (m, d), the problem's name in every table."""
        return f"({self.num_gradients}, {self.dim})"

    @property
    def description(self) -> dict[str, float]:
        """What draws the problem again, ready for JSON."""
        return {**dataclasses.asdict(self), "damping": self.damping}

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.num_gradients, self.dim, stream))

    @property
    def damping(self) -> float:
        """λ = ‖G‖₂²/(mκ), with the ‖G‖₂² ≈ d (1 + m/4) that the mean and the noise have for d ≫ m."""
        spectral_norm_squared = self.dim * (1 + MEAN_SHARE**2 * self.num_gradients)
        return spectral_norm_squared / (self.num_gradients * self.kappa)

    @cached_property
    def gradients(self) -> np.ndarray:
        """G, shape (m, d); filled in place, so that a memory measurement sees no temporary of this module."""
        rng = self._generator(0)
        gradients = np.empty((self.num_gradients, self.dim), dtype=np.float32)
        rng.standard_normal(out=gradients, dtype=np.float32)
        gradients += np.float32(MEAN_SHARE) * rng.standard_normal(self.dim, dtype=np.float32)
        return gradients

    @cached_property
    def random_vector(self) -> np.ndarray:
        """A v of shape (d,) with next to nothing in the span of the rows: one dual sweep serves it."""
        return self._generator(1).standard_normal(self.dim, dtype=np.float32)

    @cached_property
    def stored_row(self) -> np.ndarray:
        """A row of G, shape (d,): F⁻¹v is small relative to v/λ, and a single sweep cancels."""
        return self.gradients[self.num_gradients // 2].copy()

    @cached_property
    def block(self) -> np.ndarray:
        """64 random right-hand sides, shape (d, 64)."""
        return self._generator(2).standard_normal((self.dim, 64), dtype=np.float32)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """A million index pairs (i, j), two arrays of shape (1_000_000,), uniform over F⁻¹."""
        rows, columns = self._generator(3).integers(self.dim, size=(2, 1_000_000))
        return rows, columns

    @cached_property
    def coefficients(self) -> np.ndarray:
        """Random coefficients c of a combination of the rows, shape (m,)."""
        return self._generator(4).standard_normal(self.num_gradients, dtype=np.float32)

    @cached_property
    def combination(self) -> np.ndarray:
        """Gᵀc, shape (d,)."""
        return self.coefficients @ self.gradients

    def forget(self) -> None:
        """Free the arrays; they are drawn again, the same, when next asked for."""
        for name in ("gradients", "random_vector", "stored_row", "block", "pairs", "coefficients", "combination"):
            self.__dict__.pop(name, None)


PROBLEMS = (Problem(64, 270_000), Problem(512, 270_000), Problem(1024, 100_000))
