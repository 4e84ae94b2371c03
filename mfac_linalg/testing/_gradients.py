"""Kinds of gradients: by spectrum, by scale, dependent, empty. Each is a function of a generator, m and d."""

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator


def with_singular_values(rng: Rng, values: np.ndarray, m: int, d: int) -> np.ndarray:
    """An (m, d) matrix with the given min(m, d) singular values between random singular vectors."""
    left, _ = np.linalg.qr(rng.standard_normal((m, len(values))))
    right, _ = np.linalg.qr(rng.standard_normal((d, len(values))))
    return (left * values) @ right.T


def _gaussian(rng: Rng, m: int, d: int) -> np.ndarray:
    return rng.standard_normal((m, d))


def _decay(rng: Rng, m: int, d: int) -> np.ndarray:
    return with_singular_values(rng, np.logspace(0, -rng.uniform(0, 8), min(m, d)), m, d)


def _cluster(rng: Rng, m: int, d: int) -> np.ndarray:
    rank = min(m, d)
    return with_singular_values(rng, np.where(np.arange(rank) < 1 + rank // 4, 1.0, 10 ** -rng.uniform(1, 6)), m, d)


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
    gradients[:, :count] += with_singular_values(rng, np.logspace(0, -2, count), m, count)
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
}
