"""The cost of a step of the window, of two plain reads of the rows, and of the paper's dynamic algorithm.

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
KAPPA, STEPS, TURNS, SEED = 100.0, 6, 3, 2107

Triangles = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class DynamicRecursion:
    """The paper's dynamic algorithm (arXiv 2107.03356, section 3.2), in float32 as its authors run it.

    The unpivoted triangular factor of m I + G Gᵀ/λ has the D of the recursion on its diagonal. The inverse of its unit
    triangle has the coefficients B by which its vectors v_k are combinations of the rows. Both are recomputed at each
    step, O(m³): `as_printed`, or `by_lapack`.
    """

    def __init__(self, gradients: np.ndarray, damping: float, triangles: Triangles) -> None:
        self.rows, self.damping, self.triangles = gradients.copy(), np.float32(damping), triangles
        self.products, self.slot = self.rows @ self.rows.T, 0
        self._factor()

    def _factor(self) -> None:
        m = len(self.rows)
        self.pivots, unit_inverse = self.triangles(m * np.eye(m, dtype=np.float32) + self.products / self.damping)
        self.coefficients = unit_inverse / self.damping

    def append(self, g: np.ndarray) -> None:
        """Replace the oldest row by g: one pass, and both factors from scratch."""
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


def as_printed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pivots by elimination without exchanges, a row at a time, and the coefficients, each row from those before."""
    unit, rest = np.eye(len(matrix), dtype=matrix.dtype), matrix.copy()
    for k in range(len(matrix)):
        unit[k + 1 :, k] = rest[k + 1 :, k] / rest[k, k]
        rest[k + 1 :, k + 1 :] -= np.outer(unit[k + 1 :, k], rest[k, k + 1 :])
    coefficients = np.eye(len(matrix), dtype=matrix.dtype)
    for k in range(1, len(matrix)):
        coefficients[k, :k] = -unit[k, :k] @ coefficients[:k, :k]
    return np.diag(rest).copy(), coefficients


def by_lapack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same through a Cholesky factor and LAPACK's inverse of a triangle: what blocks can make of it."""
    lower = np.linalg.cholesky(matrix)
    pivots = np.diag(lower)
    return pivots**2, scipy.linalg.lapack.strtri(lower / pivots, lower=1, unitdiag=1)[0]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steps(m: int, d: int) -> str:
    """Time steps on independent rows, and two plain reads; the medians and their ratios.

    They are timed in turns of some steps each, and the first half of each turn is discarded: in use a step follows one
    of its own kind, while for tens of milliseconds after a call the threads of one BLAS, NumPy's or SciPy's, slow those
    of the other.
    """
    rng = np.random.default_rng((SEED, m, d))
    gradients = rng.standard_normal((m, d), dtype=np.float32)
    damping = d * (1 + np.sqrt(m / d)) ** 2 / m / KAPPA
    fresh = rng.standard_normal((TURNS * 2 * STEPS, d), dtype=np.float32)
    window = SlidingWindowInverse.from_gradients(gradients, damping)
    recursions = [DynamicRecursion(gradients, damping, triangles) for triangles in (as_printed, by_lapack)]
    x = window.append_matvec(fresh[0])
    ratio = backward_ratio(window.gradients, damping, fresh[0], x)
    error = max(float(np.linalg.norm(each.append_matvec(fresh[0]) - x) / np.linalg.norm(x)) for each in recursions)
    if not (ratio <= 30 and error <= 1e-2):
        msg = f"A step must be right before it is timed; got R = {ratio:.3g}, recursion off by {error:.3g}."
        raise ArithmeticError(msg)
    a = np.ones(m, dtype=np.float32)
    calls = [lambda g: (gradients @ g, a @ gradients), *(each.append_matvec for each in (window, *recursions))]
    times: list[list[float]] = [[] for _ in calls]
    for turn in np.split(fresh, TURNS):
        for call, found in zip(calls, times, strict=True):
            found += [timed(lambda g=g, call=call: call(g)) for g in turn][STEPS:]
    reads, ours, *theirs = map(np.median, times)
    figures = f"{1e3 * reads:9.2f} {1e3 * ours:9.2f} {ours / reads:7.2f}"
    others = " ".join(f"{1e3 * seconds:9.1f} {seconds / ours:8.1f}" for seconds in theirs)
    return f"{f'({m}, {d})':>15} {figures}  {others} {ratio:7.2f} {error:9.1e}"


def small_part(m: int) -> float:
    """Return the median seconds of a step at d = m + 1, nearly all of them for the m × m system."""
    rng = np.random.default_rng((SEED, m))
    window = SlidingWindowInverse.from_gradients(rng.standard_normal((m, m + 1)), 1.0)
    return float(np.median([timed(lambda: window.append(rng.standard_normal(m + 1))) for _ in range(4 * STEPS)][2:]))


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window", description=__doc__)
    parser.add_argument("--gradients", type=int, nargs="*", help="only the sizes with these m")
    chosen = parser.parse_args().gradients
    print(f"float32, κ about {KAPPA:g}, independent rows; medians of {TURNS * STEPS} steps, milliseconds")
    print("         (m, d)  two reads   a step   ratio  recursion x faster  by LAPACK x faster       R  their error")
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
