"""Problems whose entries may have any exponent, their exact answers, and how answers are checked against them."""

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.testing import LIMIT
from mfac_linalg.testing.strategies import seeds
from tests.backends import eps
from tests.oracle import ExactOracle, as_float, exact

NAMED = (OverflowError, ml.FactorizationError)
DTYPES = st.sampled_from(["float32", "float64"])


@dataclass(frozen=True, eq=False)
class Wild:
    """A problem whose entries may have any exponent, a vector, and its exact answers."""

    gradients: np.ndarray
    damping: Any
    weights: np.ndarray | None
    rng: np.random.Generator

    @property
    def dtype(self) -> str:
        return self.gradients.dtype.name

    @property
    def oracle(self) -> ExactOracle:
        return ExactOracle(self.gradients, self.damping, self.weights)

    def vectors(self) -> dict[str, np.ndarray]:
        """Right-hand sides of all sizes."""
        d = self.gradients.shape[1]
        normal = self.rng.standard_normal(d)
        roots = np.sqrt(np.broadcast_to(np.asarray(self.damping, float), (d,)))
        made = {"ordinary": normal, "roots": normal * roots, "row": self.gradients[0], "zero": np.zeros(d)}
        made["any"] = normal * np.exp2(exponents(self.rng, self.dtype, (d,), 1.0))
        return {name: x for name, v in made.items() if np.all(np.isfinite(x := v.astype(self.dtype)))}


def exponents(rng, dtype, shape, share):
    """Powers of two over a share of the dtype's range, subnormal numbers included."""
    limits = np.finfo(dtype)
    low, high = np.log2(float(limits.smallest_subnormal)), np.log2(float(limits.max))
    return rng.uniform(low * share, (high - 3) * share, shape)


@st.composite
def wild_problems(draw, shapes=((2, 4), (4, 4), (5, 3), (1, 4), (3, 4)), weighted=True):
    """Rows that matter in spite of their size (their exponents make up for those of dampings and weights), or any."""
    dtype, share = draw(DTYPES), draw(st.sampled_from([0.05, 0.3, 0.7, 1.0]))
    (m, d), vector = draw(st.sampled_from(shapes)), draw(st.booleans())
    rng = np.random.default_rng(draw(seeds()))
    powers = exponents(rng, dtype, (d,) if vector else (), share)
    damping = np.exp2(powers).astype(dtype) if vector else float(np.exp2(powers))
    if vector and draw(st.booleans()):
        damping[0] = np.finfo(dtype).max  # a frozen parameter
    rows = exponents(rng, dtype, (m,), share) if weighted and draw(st.booleans()) else np.zeros(m)
    excess = draw(st.sampled_from([0.0, 0.0, 5.0, -20.0, 40.0]))
    sizes = powers / 2 - rows[:, None] / 2 + excess if draw(st.booleans()) else exponents(rng, dtype, (m, d), share)
    limits = np.finfo(dtype)
    sizes = np.clip(sizes, np.log2(float(limits.smallest_subnormal)), np.log2(float(limits.max)) - 3)
    gradients = (rng.standard_normal((m, d)) * np.exp2(sizes)).astype(dtype)
    weights = np.exp2(rows).astype(dtype) if np.any(rows) else None
    assume(weights is None or np.all(weights > 0))
    assume(np.all(np.asarray(damping) > 0))
    return Wild(gradients, damping, weights, rng)


class Asked:
    """What an inverse says: every answer finite, or None for a named error."""

    def __init__(self, inverse: Any) -> None:
        self.inverse = inverse

    def __call__(self, query: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ml.IllConditionedWarning)
            try:
                answer = np.asarray(query(self.inverse))
            except NAMED:
                return None
        assert np.all(np.isfinite(answer))
        return answer


def build_or_none(make, problem):
    """The inverse, or None for a named error, and whether it warned: beyond kappa = 0.1/eps it need not be right."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return Asked(make(problem)), bool(said)
        except NAMED:
            return None, bool(said)


def check_positive(answer, expected, warned, error=1e-3):
    """Positive, and right to `error` of itself unless κ was beyond the contract."""
    if answer is None:
        return
    for a, b in zip(exact(answer).flat, np.asarray(expected).flat, strict=True):
        assert a > 0
        assert warned or abs(as_float(a / b - 1)) <= error


def check_products(ask, problem, oracle, warned):
    unit = eps(problem.dtype)
    for v in problem.vectors().values():
        x, y = ask(lambda inverse, v=v: inverse @ v), ask(lambda inverse, v=v: inverse.forward @ v)
        wanted = exact(v)
        if x is not None and not warned:
            small = oracle.is_rounded(x, oracle.inverse @ wanted, problem.dtype, unit)
            assert small or oracle.backward_ratio(wanted, x, unit) <= LIMIT
        if y is not None and not warned:
            small = oracle.is_rounded(y, oracle.forward @ wanted, problem.dtype, unit)
            assert small or oracle.forward_product_ratio(v, y, unit) <= LIMIT
        square = ask(lambda inverse, v=v: inverse.quadratic_form(v))
        if np.any(v):
            check_positive(square, wanted @ oracle.inverse @ wanted, warned, error=max(1e-3, 1e3 * unit))
        else:
            assert square == 0
            assert not np.any(x)


def check_entries(ask, problem, oracle, warned):
    d = problem.gradients.shape[1]
    check_positive(ask(lambda inverse: inverse.diagonal()), np.diag(oracle.inverse), warned)
    check_positive(ask(lambda inverse: inverse.trace()), np.trace(oracle.inverse), warned)
    check_positive(ask(lambda inverse: inverse.forward.diagonal()), np.diag(oracle.forward), warned)
    check_positive(ask(lambda inverse: inverse.forward.trace()), np.trace(oracle.forward), warned)
    block = ask(lambda inverse: inverse.submatrix(np.arange(d)))
    if block is not None:
        assert np.all(np.diag(block) > 0)
        errors = (exact(block) - oracle.inverse) ** 2 * oracle.dampings * oracle.dampings[:, None]
        least = (
            Fraction(float(np.finfo(problem.dtype).smallest_subnormal)) ** 2
            * oracle.dampings[:, None]
            * oracle.dampings
        )
        limit = LIMIT * eps(problem.dtype) * float(min(oracle.kappa, 10**9))
        assert warned or all(e <= m or as_float(e) <= limit**2 for e, m in zip(errors.flat, least.flat, strict=True))
    single = ask(lambda inverse: inverse.element(0, 0))
    assert single is None or single > 0
    determinant = ask(lambda inverse: inverse.logdet())
    if determinant is not None and not warned:
        size = sum(abs(math.log(x.numerator) - math.log(x.denominator)) for x in oracle.dampings)
        assert abs(determinant - oracle.logdet) <= 1e-4 + LIMIT * eps(problem.dtype) * (size + abs(oracle.logdet))


def check_others(ask, problem):
    """Finite, or a named error."""
    m, d = problem.gradients.shape
    v, c = np.ones(d, problem.dtype), np.ones(m, problem.dtype)
    ask(lambda inverse: inverse.sqrt_matvec(v))
    ask(lambda inverse: inverse.sample(2, seed=0))
    ask(lambda inverse: inverse.columns([0]))
    ask(lambda inverse: inverse.dual_coefficients(v))
    ask(lambda inverse: inverse.matvec_gradients(c))
    ask(lambda inverse: inverse.forward.effective_rank())
    x = ask(lambda inverse: inverse @ v)
    if x is not None and np.any(x):
        with np.errstate(all="raise", under="ignore"):
            assert not np.isnan(ask.inverse.backward_error(v, x.astype(problem.dtype)))
    if np.ndim(problem.damping) == 0:
        ask(lambda inverse: inverse.condition_number())
        ask(lambda inverse: inverse.forward.eigenvalues())
        ask(lambda inverse: inverse.damping_path(v, [problem.damping, 1.0, 1e-3]))


def check_all(make, problem):
    ask, warned = build_or_none(make, problem)
    if ask is None:
        return
    oracle = problem.oracle
    check_products(ask, problem, oracle, warned)
    check_entries(ask, problem, oracle, warned)
    check_others(ask, problem)
