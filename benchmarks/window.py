"""What a step of the window costs, beside two plain reads of the rows and the paper's dynamic algorithm.

``python -m benchmarks.window`` prints steps with their products, and the m × m part alone with the power of m that it
grows by. Every answer is checked before it is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg

from benchmarks.drift import backward_ratio
from mfac_linalg import SlidingWindowInverse

SIZES = ((64, 20_000), (512, 20_000), (512, 270_000), (1024, 100_000))
SMALL_SIZES = (256, 512, 1024, 2048)
KAPPA, STEPS, SEED = 100.0, 12, 2107

Factor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class DynamicRecursion:
    """The paper's dynamic algorithm (arXiv 2107.03356, section 3.2), in float32 as its authors run it.

    With K = G Gᵀ the unpivoted triangular factor of m I + K/λ holds the D of the recursion, and B = L⁻¹/λ the
    coefficients that make its vectors v_k of the rows. Both are made anew at each step, O(m³): by `factored`, through
    Cholesky, where time counts, or by `eliminated` as in the reference, which never fails. Both return the pivots and
    the unit triangle.
    """

    def __init__(self, gradients: np.ndarray, damping: float, factor: Factor | None = None) -> None:
        self.rows, self.damping, self.factor = gradients.copy(), np.float32(damping), factor or factored
        self.products, self.slot = self.rows @ self.rows.T, 0
        self._factor()

    def _factor(self) -> None:
        m = len(self.rows)
        self.pivots, unit = self.factor(m * np.eye(m, dtype=np.float32) + self.products / self.damping)
        self.coefficients = scipy.linalg.lapack.strtri(unit, lower=1, unitdiag=1)[0] / self.damping

    def append(self, g: np.ndarray) -> None:
        """Put g in the place of the oldest row: one pass, and both factors anew."""
        self.rows[self.slot] = g
        row = self.rows @ g
        self.products[self.slot], self.products[:, self.slot] = row, row
        self.slot = (self.slot + 1) % len(self.rows)
        self._factor()

    def matvec(self, v: np.ndarray) -> np.ndarray:
        """F⁻¹v in two passes, subtracted from v/λ once."""
        q = self.coefficients @ (self.rows @ v) / self.pivots
        return v / self.damping - (self.coefficients.T @ q) @ self.rows

    def append_matvec(self, g: np.ndarray) -> np.ndarray:
        """Append g, then F⁻¹g."""
        self.append(g)
        return self.matvec(g)


def factored(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D and the unit lower triangle of matrix = L D Lᵀ, by Cholesky."""
    lower = np.linalg.cholesky(matrix)
    return np.diag(lower) ** 2, lower / np.diag(lower)


def eliminated(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by elimination without pivots, row by row."""
    unit = np.eye(len(matrix), dtype=matrix.dtype)
    rest = matrix.copy()
    for k in range(len(matrix)):
        unit[k + 1 :, k] = rest[k + 1 :, k] / rest[k, k]
        rest[k + 1 :, k + 1 :] -= np.outer(unit[k + 1 :, k], rest[k, k + 1 :])
    return np.diag(rest).copy(), unit


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steps(m: int, d: int) -> str:
    """Time steps on independent rows, interleaved with two plain reads; the medians and their ratios."""
    rng = np.random.default_rng((SEED, m, d))
    gradients = rng.standard_normal((m, d), dtype=np.float32)
    damping = d * (1 + np.sqrt(m / d)) ** 2 / m / KAPPA
    fresh = rng.standard_normal((STEPS + 2, d), dtype=np.float32)
    window, recursion = SlidingWindowInverse.from_gradients(gradients, damping), DynamicRecursion(gradients, damping)
    x, y = window.append_matvec(fresh[0]), recursion.append_matvec(fresh[0])
    ratio = backward_ratio(window.gradients, damping, fresh[0], x)
    error = float(np.linalg.norm(y - x) / np.linalg.norm(x))
    if not (ratio <= 30 and error <= 1e-2):
        msg = f"A step must be right before it is timed; got R = {ratio:.3g}, recursion off by {error:.3g}."
        raise ArithmeticError(msg)
    a, times = np.ones(m, dtype=np.float32), []
    for g in fresh[1:]:
        reads = timed(lambda g=g: gradients @ g) + timed(lambda: a @ gradients)
        ours = timed(lambda g=g: window.append_matvec(g))
        times.append((reads, ours, timed(lambda g=g: recursion.append_matvec(g))))
    reads, ours, theirs = np.median(times[1:], axis=0)
    figures = f"{1e3 * reads:9.2f} {1e3 * ours:9.2f} {ours / reads:7.2f} {1e3 * theirs:10.1f} {theirs / ours:8.1f}"
    return f"{f'({m}, {d})':>15} {figures} {ratio:7.2f} {error:9.1e}"


def small_part(m: int) -> float:
    """Return the median seconds of a step at d = m + 1, nearly all of them for the m × m system."""
    rng = np.random.default_rng((SEED, m))
    window = SlidingWindowInverse.from_gradients(rng.standard_normal((m, m + 1)), 1.0)
    return float(np.median([timed(lambda: window.append(rng.standard_normal(m + 1))) for _ in range(2 * STEPS)][2:]))


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window", description=__doc__)
    parser.add_argument("--gradients", type=int, nargs="*", help="only the sizes with these m")
    chosen = parser.parse_args().gradients
    print(f"float32, κ about {KAPPA:g}, independent rows; medians of {STEPS} steps, milliseconds")
    print("         (m, d)  two reads   a step   ratio  recursion  x faster      R   its error")
    for m, d in SIZES:
        if not chosen or m in chosen:
            print(steps(m, d), flush=True)
    seconds = {m: small_part(m) for m in SMALL_SIZES if not chosen or m in chosen}
    print("\nthe m × m part: " + ", ".join(f"m = {m}: {1e3 * s:.2f} ms" for m, s in seconds.items()))
    tail = [m for m in seconds if m >= 512]
    if len(tail) > 1:
        power = np.polyfit(np.log(tail), np.log([seconds[m] for m in tail]), 1)[0]
        print(f"from m = {tail[0]} to {tail[-1]} it grows as m^{power:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
