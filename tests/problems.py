"""Gradients with a prescribed shape of spectrum, dampings for a prescribed condition number, right-hand sides.

Everything is drawn from one seed, so that a problem is named by a handful of numbers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.oracle import Oracle

Rng = np.random.Generator


def spectrum(rng: Rng, values: np.ndarray, m: int, d: int) -> np.ndarray:
    """An (m, d) matrix with the given min(m, d) singular values between random singular vectors."""
    left, _ = np.linalg.qr(rng.standard_normal((m, len(values))))
    right, _ = np.linalg.qr(rng.standard_normal((d, len(values))))
    return (left * values) @ right.T


def _gaussian(rng: Rng, m: int, d: int) -> np.ndarray:
    return rng.standard_normal((m, d))


def _decay(rng: Rng, m: int, d: int) -> np.ndarray:
    return spectrum(rng, np.logspace(0, -rng.uniform(0, 8), min(m, d)), m, d)


def _cluster(rng: Rng, m: int, d: int) -> np.ndarray:
    rank = min(m, d)
    return spectrum(rng, np.where(np.arange(rank) < 1 + rank // 4, 1.0, 10 ** -rng.uniform(1, 6)), m, d)


def _duplicates(rng: Rng, m: int, d: int) -> np.ndarray:
    return rng.standard_normal((m, d))[rng.integers(0, max(1, m // 2), m)]


def _nearly_dependent(rng: Rng, m: int, d: int) -> np.ndarray:
    return _duplicates(rng, m, d) + 10 ** -rng.uniform(2, 6) * rng.standard_normal((m, d))


def _zero_rows(rng: Rng, m: int, d: int) -> np.ndarray:
    gradients = rng.standard_normal((m, d))
    gradients[rng.permutation(m)[: m // 2]] = 0
    return gradients


def _zero_columns(rng: Rng, m: int, d: int) -> np.ndarray:
    gradients = rng.standard_normal((m, d))
    gradients[:, rng.permutation(d)[: d // 2]] = 0
    return gradients


def _common_mean(rng: Rng, m: int, d: int) -> np.ndarray:
    return rng.standard_normal(d) + 10 ** -rng.uniform(0, 5) * rng.standard_normal((m, d))


def _scaled_rows(rng: Rng, m: int, d: int) -> np.ndarray:
    return 10 ** rng.uniform(-6, 6, (m, 1)) * rng.standard_normal((m, d))


def _scaled_columns(rng: Rng, m: int, d: int) -> np.ndarray:
    return rng.standard_normal((m, d)) * 10 ** rng.uniform(-4, 4, d)


def _leading_columns(rng: Rng, m: int, d: int) -> np.ndarray:
    """A few columns far above the rest: the diagonal of the inverse is small there, and mixed."""
    gradients = 1e-7 * rng.standard_normal((m, d))
    count = max(1, min(m, d) - 1)
    gradients[:, :count] += spectrum(rng, np.logspace(0, -2, count), m, count)
    return gradients


def _powers(rng: Rng, m: int, d: int) -> np.ndarray:
    return np.linspace(-1, 1, d) ** np.arange(m)[:, None]


def _bumps(rng: Rng, m: int, d: int) -> np.ndarray:
    """Smooth bumps, each nearly a combination of its neighbours: the inverse of the Cholesky factor grows."""
    return np.exp(-200 * (np.linspace(0, 0.25, m)[:, None] - np.linspace(0, 0.25, d)) ** 2)


def _opposites(rng: Rng, m: int, d: int) -> np.ndarray:
    """Pairs of rows that nearly cancel each other."""
    pairs = np.repeat(rng.standard_normal((m // 2 + 1, d)), 2, axis=0)[:m]
    pairs[1::2] *= -1
    return pairs + 1e-3 * rng.standard_normal((m, d))


def _sparse(rng: Rng, m: int, d: int) -> np.ndarray:
    """A fifth of the entries, at random, and a row and columns without any."""
    gradients = rng.standard_normal((m, d)) * (rng.uniform(size=(m, d)) < 0.2)
    gradients[rng.integers(m), :] = 0
    gradients[0, 0] = 1.0
    return gradients


def _signs(rng: Rng, m: int, d: int) -> np.ndarray:
    """Rows of one sign pattern, with a few other signs and two scales: sums round the same way in every row."""
    scales = np.where(np.arange(m) < m // 2, *rng.uniform(1, 2, 2))
    flips = np.where(rng.uniform(size=(m, d)) < 0.002, -1.0, 1.0)
    return scales[:, None] * rng.choice([-1.0, 1.0], d) * flips


KINDS: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "gaussian": _gaussian,
    "decay": _decay,
    "cluster": _cluster,
    "duplicates": _duplicates,
    "nearly dependent": _nearly_dependent,
    "zero rows": _zero_rows,
    "zero columns": _zero_columns,
    "common mean": _common_mean,
    "scaled rows": _scaled_rows,
    "scaled columns": _scaled_columns,
    "leading columns": _leading_columns,
    "powers": _powers,
    "bumps": _bumps,
    "opposites": _opposites,
    "sparse": _sparse,
    "signs": _signs,
}


@dataclass(frozen=True, eq=False)
class Problem:
    """Gradients, damping, weights and normalization, as NumPy data of one dtype."""

    name: str
    gradients: np.ndarray
    damping: Any
    weights: np.ndarray | None
    normalization: str
    wide: type = np.longdouble

    @property
    def dtype(self) -> str:
        return self.gradients.dtype.name

    @functools.cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.gradients, self.damping, self.weights, self.normalization, self.wide)

    def scaled_by(self, scale: float) -> "Problem":
        """The same problem in other units: gradients times `scale`, damping times its square."""
        gradients = (self.gradients * np.float64(scale)).astype(self.dtype)
        return replace(self, gradients=gradients, damping=self.damping * scale**2, name=f"{self.name} x {scale:.0e}")

    def __repr__(self) -> str:
        return self.name


def make_problem(
    seed: int,
    *,
    kind: str = "gaussian",
    shape: tuple[int, int] = (6, 14),
    kappa: float = 100.0,
    dtype: str = "float64",
    vector: bool = False,
    weighted: bool = False,
    normalization: str = "mean",
    wide: type = np.longdouble,
) -> Problem:
    """A problem of a given kind, with the damping chosen so that its condition number is `kappa`.

    `wide` is the arithmetic of its oracle.
    """
    rng = np.random.default_rng(seed)
    m, d = shape
    gradients = KINDS[kind](rng, m, d).astype(dtype)
    weights = (10 ** rng.uniform(-1, 1, m)).astype(dtype) if weighted else None
    profile = (10 ** rng.uniform(-1, 1, d)).astype(dtype) if vector else 1.0
    size = Oracle(gradients, profile, weights, normalization, wide).size
    damping = profile * (size / (kappa - 1))
    if vector:
        damping = damping.astype(dtype)
    label = f"{kind}, {m} x {d}, kappa {kappa:.1e}, {dtype}, seed {seed}{', vector' * vector}{', weights' * weighted}"
    return Problem(f"{label}, {normalization}", gradients, damping, weights, normalization, wide)


def right_hand_sides(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    """The vectors of the accuracy contract, by name, each (d,) in the problem's dtype and units."""
    rng = np.random.default_rng(seed)
    gradients = problem.gradients.astype(np.float64)
    m, d = gradients.shape
    oracle = problem.oracle
    roots = oracle.roots.astype(np.float64)
    rank = min(m, d)
    singular = np.linalg.svd(oracle.scaled.astype(np.float64), full_matrices=False)[2]
    basis = singular * roots  # in these units F maps basis[k] / damping to itself times 1 + s_k
    unit = np.linalg.norm(gradients) / np.sqrt(d)
    first, second = rng.integers(0, m, 2)
    order = np.argsort(-np.linalg.norm(gradients, axis=1))
    vectors = {
        "random": rng.standard_normal(d),
        "row": gradients[first],
        "largest row": gradients[order[0]],
        "difference of rows": gradients[order[0]] - gradients[second],
        "combination": gradients.T @ rng.standard_normal(m),
        "first singular vector": basis[0],
        "middle singular vector": basis[rank // 2],
        "last singular vector": basis[rank - 1],
        "mix": basis[0] + 1e-3 * basis[rank // 2] + 1e-6 * basis[-1],
    }
    if d > rank:
        free = rng.standard_normal(d)
        for _ in range(2):
            free = free - singular.T @ (singular @ free)
        vectors["orthogonal to rows"] = free * roots
    sizes = {name: np.linalg.norm(vector) or 1.0 for name, vector in vectors.items()}
    return {name: (vector * (unit / sizes[name])).astype(problem.dtype) for name, vector in vectors.items()}
