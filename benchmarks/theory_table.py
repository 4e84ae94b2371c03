"""The tables of docs/theory.md: `python -m benchmarks.theory_table`; seeded, about a minute, Markdown to stdout.

R = ‖v − Fx‖/(‖F‖‖x‖ eps) is evaluated in longdouble, with eps of the dtype of the gradients.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from unittest import mock

import numpy as np

from mfac_linalg import WoodburyRankOneInverse, _forms, _static

Rng = np.random.Generator
SHAPES = ((4, 30), (16, 100), (50, 400))
SEEDS = range(4)
KAPPAS = {"float32": (1e2, 1e3, 1e4, 1e5, 8e5), "float64": (1e3, 1e5, 1e7, 1e9, 1e11, 1e13, 4e14)}
MOST = _forms.sweeps.MAX_SWEEPS
FORCED = (1, 2, 3, 4)


def with_spectrum(rng: Rng, values: np.ndarray, d: int) -> np.ndarray:
    """Return an (m, d) matrix with the m given singular values."""
    m = len(values)
    left, right = (np.linalg.qr(rng.standard_normal((size, m)))[0] for size in (m, d))
    return (left * values) @ right.T


def near_duplicates(rng: Rng, m: int, d: int) -> np.ndarray:
    """Return rows that come in near copies, about half as many different ones as there are rows."""
    rows = rng.standard_normal((m, d))[rng.integers(0, max(1, m // 2), m)]
    return rows + 10 ** -rng.uniform(2, 6) * rng.standard_normal((m, d))


KINDS: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "iid": lambda rng, m, d: rng.standard_normal((m, d)),
    "strong common mean": lambda rng, m, d: (
        rng.standard_normal(d) + 10 ** -rng.uniform(0, 3) * rng.standard_normal((m, d))
    ),
    "decaying spectrum": lambda rng, m, d: with_spectrum(rng, np.logspace(0, -rng.uniform(1, 8), m), d),
    "near rank one": lambda rng, m, d: (
        np.outer(rng.standard_normal(m), rng.standard_normal(d))
        + 10 ** -rng.uniform(2, 6) * rng.standard_normal((m, d))
    ),
    "near duplicates": near_duplicates,
    "badly scaled rows": lambda rng, m, d: 10 ** rng.uniform(-4, 4, (m, 1)) * rng.standard_normal((m, d)),
    "badly scaled columns": lambda rng, m, d: rng.standard_normal((m, d)) * 10 ** rng.uniform(-4, 4, d),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """G of a kind, with the λ that makes ‖F‖/λ the κ asked for."""

    kind: str
    shape: tuple[int, int]
    kappa: float
    dtype: str
    seed: int

    @cached_property
    def gradients(self) -> np.ndarray:
        """G, shape (m, d)."""
        return KINDS[self.kind](np.random.default_rng(self.seed), *self.shape).astype(self.dtype)

    @cached_property
    def _singular(self) -> tuple[np.ndarray, np.ndarray]:
        _, values, vectors = np.linalg.svd(self.gradients.astype(np.float64), full_matrices=False)
        return values, vectors

    @property
    def damping(self) -> float:
        """λ = ‖G‖²/(m (κ − 1))."""
        return float(self._singular[0][0] ** 2 / self.shape[0] / (self.kappa - 1))

    @property
    def eps(self) -> float:
        """Of the dtype of the gradients."""
        return float(np.finfo(self.dtype).eps)

    @cached_property
    def vectors(self) -> np.ndarray:
        """Right-hand sides, shape (d, 9), each of norm one: see the text of the page."""
        rng = np.random.default_rng(self.seed + 1)
        gradients, (_, right), (m, d) = self.gradients.astype(np.float64), self._singular, self.shape
        apart = rng.standard_normal(d)
        for _ in range(2):
            apart -= right.T @ (right @ apart)
        middle, last = right[m // 2], right[-1]
        columns = [rng.standard_normal(d), gradients[0], gradients[0] - gradients[-1], gradients.T @ np.ones(m)]
        columns += [right[0], middle, last, apart, right[0] + 1e-3 * middle + 1e-6 * last]
        v = np.stack(columns, axis=1)
        return (v / np.linalg.norm(v, axis=0)).astype(self.dtype)

    def backward(self, x: np.ndarray) -> np.ndarray:
        """R of x (d, 9) as answers to `vectors`, in longdouble."""
        wide = np.longdouble
        gradients, damping, x = self.gradients.astype(wide), wide(self.damping), x.astype(wide)
        residual = self.vectors - damping * x - gradients.T @ (gradients @ x) / self.shape[0]
        norms = [np.sqrt(np.sum(array**2, axis=0)) for array in (residual, x)]
        return np.asarray(norms[0] / (self.kappa * damping * norms[1] * self.eps), float)

    def inverse(self, *, whiten: bool, float64_gram: bool | None = None) -> WoodburyRankOneInverse:
        """F⁻¹; with `float64_gram` the choice of the Gram matrix's precision is taken from the library."""
        if float64_gram is None:
            return WoodburyRankOneInverse(self.gradients, self.damping, whiten=whiten)
        with (
            mock.patch.object(_static.measure, "float32_gram_shows", return_value=float64_gram),
            mock.patch.object(_static.plan, "float32_gram_shows", return_value=float64_gram),
        ):
            return WoodburyRankOneInverse(self.gradients, self.damping, whiten=whiten)


def problems(dtype: str, kappa: float) -> Iterator[Problem]:
    """Every kind, shape and seed."""
    for kind, shape, seed in itertools.product(KINDS, SHAPES, SEEDS):
        yield Problem(kind, shape, kappa, dtype, seed)


@dataclass(frozen=True)
class Sweep:
    """Where one dual sweep leaves all columns: u = r + Sᵀa, and q of the stopping rule."""

    r: np.ndarray
    a: np.ndarray
    q: np.ndarray


def dual_sweeps(inverse: WoodburyRankOneInverse, v: np.ndarray, count: int) -> Iterator[Sweep]:
    """The sweeps of the library, without its stopping rule; v must be of order one."""
    form = inverse._state.form
    r, a = v, np.zeros((inverse.num_gradients, v.shape[1]))
    for _ in range(count):
        before = np.linalg.norm(r, axis=0)
        delta = form.capacitance.solve(form.rows.project(r) - a)
        r, a = r - form.rows.combine(delta), a + delta
        yield Sweep(r, a, (before + form.norm * np.linalg.norm(delta, axis=0)) / np.linalg.norm(r, axis=0))


def scaled_rows(problem: Problem, inverse: WoodburyRankOneInverse) -> np.ndarray:
    """S in longdouble."""
    return inverse._state.row_scale.astype(np.longdouble) * problem.gradients


def check_rule(problem: Problem, inverse: WoodburyRankOneInverse, column: int) -> None:
    """Fail unless the sweeps of this module, stopped by the rule, are those of `matvec`."""
    v = problem.vectors[:, column]
    sweep = next(s for s in dual_sweeps(inverse, v[:, None], MOST) if s.q[0] <= _forms.sweeps.CANCELLATION)
    own = inverse._state.metric.leave(sweep.r, 0, inverse.dtype)[:, 0]
    if not np.array_equal(own, inverse @ v):
        msg = f"these sweeps are not those of the library: {problem}"
        raise AssertionError(msg)


def stopped_by_rule(sweeps: list[Sweep]) -> np.ndarray:
    """By column, the index of the sweep after which the rule stops."""
    stops = np.stack([sweep.q <= _forms.sweeps.CANCELLATION for sweep in sweeps])
    if not stops.any(axis=0).all():
        msg = f"the rule did not stop within {len(sweeps)} sweeps"
        raise AssertionError(msg)
    return np.argmax(stops, axis=0)


def measure(problem: Problem, inverse: WoodburyRankOneInverse) -> tuple[np.ndarray, np.ndarray]:
    """R after each of MOST sweeps, (MOST, 9), and where the rule stops, (9,)."""
    sweeps = list(dual_sweeps(inverse, problem.vectors, MOST))
    leave = inverse._state.metric.leave
    backward = np.stack([problem.backward(leave(sweep.r, 0, inverse.dtype)) for sweep in sweeps])
    return backward, stopped_by_rule(sweeps)


def sweeps_table(dtype: str) -> None:
    """Worst R by κ and number of sweeps."""
    print(f"\n**{dtype}**\n\n| κ | 1 sweep | 2 | 3 | 4 | q ≤ 4 on G | q ≤ 4 on L, W | most | fixed number |")
    print("|---|---|---|---|---|---|---|---|---|")
    count = 0
    for kappa in KAPPAS[dtype]:
        worst: dict[object, float] = defaultdict(float)
        for problem, whiten in itertools.product(problems(dtype, kappa), (False, True)):
            inverse = problem.inverse(whiten=whiten)
            backward, stopped = measure(problem, inverse)
            check_rule(problem, inverse, int(np.argmax(stopped)))
            found = {sweeps: backward[sweeps - 1] for sweeps in FORCED}
            found |= {"W" if whiten else "G": backward[stopped, range(len(stopped))], "most": stopped + 1}
            found |= {"fixed": backward[inverse.sweeps - 1], "number": [inverse.sweeps]}
            for name, values in found.items():
                worst[name] = max(worst[name], float(np.max(values)))
            count += len(stopped)
        cells = " | ".join(figure(worst[name]) for name in (*FORCED, "G", "W"))
        fixed = f"{figure(worst['fixed'])} by {worst['number']:.0f}"
        print(f"| {power(kappa)} | {cells} | {worst['most']:.0f} | {fixed} |", flush=True)
    print(f"\n{count} products.")


def contraction_table() -> None:
    """‖ρ_after‖/‖ρ_before‖ over κ eps, ρ = S r − a in longdouble, where ρ is far above the floor of rounding."""
    print("\n| products | Gram matrix | median | 9 in 10 below | worst | sweeps seen |\n|---|---|---|---|---|---|")
    for dtype, gram in (("float32", False), ("float32", True), ("float64", None)):
        ratios: list[float] = []
        for problem in itertools.chain(*(problems(dtype, kappa) for kappa in KAPPAS[dtype][2:])):
            inverse = problem.inverse(whiten=False, float64_gram=gram)
            rows = scaled_rows(problem, inverse)
            sweeps = list(dual_sweeps(inverse, problem.vectors, 6))
            rho = np.stack([np.sqrt(np.sum((rows @ sweep.r - sweep.a) ** 2, axis=0)) for sweep in sweeps])
            floor = problem.eps * inverse._state.form.norm * np.stack([np.linalg.norm(s.r, axis=0) for s in sweeps])
            ratio = rho[1:] / rho[:-1] / (problem.kappa * problem.eps)
            ratios += list(ratio[rho[1:] > 10 * floor[1:]])
        figures = " | ".join(f"{float(np.quantile(ratios, share)):.2f}" for share in (0.5, 0.9, 1))
        print(f"| {dtype} | {'float32' if gram is False else 'float64'} | {figures} | {len(ratios)} |", flush=True)


def exact_inverse(problem: Problem, inverse: WoodburyRankOneInverse) -> np.ndarray:
    """λF⁻¹ by dual sweeps with longdouble products: they converge to what those products resolve."""
    rows = scaled_rows(problem, inverse)
    capacitance = np.eye(len(rows)) + (rows @ rows.T).astype(float)
    r, a = np.eye(rows.shape[1], dtype=np.longdouble), 0.0
    for _ in range(6):
        delta = np.linalg.solve(capacitance, (rows @ r - a).astype(float))
        r, a = r - rows.T @ delta, a + delta.astype(np.longdouble)
    return r


def elements_table() -> None:
    """Elements, columns and products of a decaying spectrum, by the precision of the Gram matrix."""
    print("\n| G | κ | Gram matrix | element | column | diagonal, relative | worst R | most sweeps |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [("float32", kappa, gram) for kappa in (1e3, 1e4, 1e5, 8e5) for gram in (False, True)]
    cases += [("float64", kappa, None) for kappa in (1e3, 1e5, 1e7, 1e9)]
    for dtype, kappa, gram in cases:
        worst = np.zeros(5)
        for seed in SEEDS:
            problem = Problem("decaying spectrum", (16, 100), kappa, dtype, seed)
            inverse = problem.inverse(whiten=True, float64_gram=gram)
            exact, every = exact_inverse(problem, inverse), np.arange(inverse.dim)
            backward, stopped = measure(problem, inverse)
            blocks = (inverse.submatrix(every), inverse.columns(every))
            entries = [np.abs(block * problem.damping - exact) / problem.eps for block in blocks]
            diagonal = np.abs(inverse.diagonal() * problem.damping / np.diag(exact) - 1)
            figures = (*entries, diagonal, backward[stopped, range(len(stopped))], stopped + 1)
            worst = np.maximum(worst, [float(np.max(values)) for values in figures])
        name = "float32" if gram is False else "float64"
        element, column, diagonal, largest, most = worst
        cells = f"{figure(element)} | {figure(column)} | {power(diagonal)} | {figure(largest)} | {most:.0f}"
        print(f"| {dtype} | {power(kappa)} | {name} | {cells} |", flush=True)


def check_formulas() -> None:
    """Sections 2, 3 and 9 against dense float64 matrices: recursion and factor, sums of squares, root."""
    rng = np.random.default_rng(0)
    m, d, damping = 7, 19, 0.3
    gradients, u, error = rng.standard_normal((m, d)), rng.standard_normal(d), rng.standard_normal(m)
    directions, denominators = np.zeros((m, d)), np.ones(m)
    for k, gradient in enumerate(gradients):  # rows not reached yet are zero
        directions[k] = gradient / damping - (directions @ gradient / denominators) @ directions
        denominators[k] = m + gradient @ directions[k]
    rows = gradients / np.sqrt(m * damping)
    capacitance, middle = np.eye(m) + rows @ rows.T, np.linalg.inv(np.eye(d) + rows.T @ rows)
    lower = np.linalg.cholesky(capacitance)
    whitened = np.sqrt(damping / denominators)[:, None] * directions
    a = np.linalg.solve(capacitance, rows @ u)
    squares = [np.sum((u - rows.T @ b) ** 2) + np.sum(b**2) for b in (a, a + error)]
    s, q = np.linalg.eigh(rows @ rows.T)
    root = np.eye(d) - (rows.T @ q) @ np.diag(1 / (np.sqrt(1 + s) * (1 + np.sqrt(1 + s)))) @ (q.T @ rows)
    pairs = {
        "w_k = √λ v_k/√(m + g_kᵀv_k)": (whitened, np.linalg.solve(lower, rows)),
        "L_kk² = 1 + g_kᵀv_k/m": (denominators / m, np.diag(lower) ** 2),
        "uᵀMu = ‖r‖² + ‖a‖²": (squares[0], u @ middle @ u),
        "its error is quadratic": (squares[1] - squares[0], error @ capacitance @ error),
        "M^½": (root @ root, middle),
        "‖W‖_F² = d − tr M": (np.sum(whitened**2), d - np.trace(middle)),
    }
    for name, (found, wanted) in pairs.items():
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13, err_msg=name)
    print(f"{len(pairs)} formulas hold to 1e-12: {'; '.join(pairs)}.")


def figure(x: float) -> str:
    """Two digits, or a power of ten."""
    return f"{x:.1f}" if x < 9.95 else (f"{x:.0f}" if x < 999 else power(x))


def power(x: float) -> str:
    """As in 8e5."""
    mantissa, exponent = f"{x:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def main() -> int:
    """Print the tables."""
    check_formulas()
    warnings.simplefilter("ignore")  # κ goes to the end of each arithmetic, and of a forced one beyond it
    for dtype in KAPPAS:
        sweeps_table(dtype)
    contraction_table()
    elements_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
