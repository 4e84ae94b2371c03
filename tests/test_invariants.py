"""Properties that every inverse has, whatever the gradients: on NumPy, over generated problems."""

from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from mfac_linalg.testing import tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import NUMPY, eps
from tests.cases import construct

DTYPES = st.sampled_from(["float32", "float64"])
MODERATE = DTYPES.flatmap(lambda dtype: problems(dtype, decades=(0.1, 3)))
SCALAR = DTYPES.flatmap(lambda dtype: problems(dtype, decades=(0.1, 3), vector=False))
WHITEN = st.booleans()


def dense(problem, whiten):
    """The inverse as the products say it, in the Λ-scaled basis where its eigenvalues are in (0, 1]."""
    inverse = construct(problem, NUMPY, whiten=whiten)
    columns = inverse.matmat(np.eye(inverse.dim, dtype=problem.dtype)).astype(np.float64)
    roots = problem.oracle.roots.astype(np.float64)
    return columns * roots[:, None] * roots


def limit(problem):
    """Constant x eps x condition number."""
    return tolerance(eps(problem.dtype), problem.oracle.kappa)


@given(MODERATE, WHITEN)
def test_the_inverse_equals_the_dense_one(problem, whiten):
    roots = problem.oracle.roots.astype(np.float64)
    expected = problem.oracle.inverse * roots[:, None] * roots
    assert np.linalg.norm(dense(problem, whiten) - expected, 2) <= limit(problem)


@given(MODERATE, WHITEN)
def test_the_inverse_is_symmetric(problem, whiten):
    matrix = dense(problem, whiten)
    assert np.linalg.norm(matrix - matrix.T, 2) <= limit(problem)


@given(MODERATE, WHITEN)
def test_the_eigenvalues_lie_between_the_bounds(problem, whiten):
    matrix = dense(problem, whiten)
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    slack = limit(problem)
    assert values[0] >= 1 / problem.oracle.kappa - slack
    assert values[-1] <= 1 + slack


@given(MODERATE, WHITEN)
def test_the_diagonal_lies_between_the_bounds(problem, whiten):
    diagonal = construct(problem, NUMPY, whiten=whiten).diagonal() * problem.oracle.roots.astype(np.float64) ** 2
    assert np.all(diagonal >= (1 - 8 * eps(problem.dtype)) / problem.oracle.kappa)
    assert np.all(diagonal <= 1 + 8 * eps(problem.dtype))  # of which the test rounds half


@given(MODERATE, WHITEN, st.integers(-20, 20), seeds())
def test_scaling_by_a_power_of_two_scales_the_answer_bit_for_bit(problem, whiten, power, seed):
    v = np.random.default_rng(seed).standard_normal(problem.gradients.shape[1]).astype(problem.dtype)
    scale = 2.0**power
    here = construct(problem, NUMPY, whiten=whiten).matvec(v)
    there = construct(problem.scaled_by(scale), NUMPY, whiten=whiten).matvec(v)
    tiny = np.finfo(problem.dtype).tiny * 2.0**80
    assume(np.all((np.abs(here) > tiny) | (here == 0)))
    assert np.array_equal(there * scale**2, here.astype(np.float64))


@given(MODERATE, WHITEN, seeds())
def test_the_order_of_the_gradients_does_not_matter(problem, whiten, seed):
    order = np.random.default_rng(seed).permutation(len(problem.gradients))
    weights = None if problem.weights is None else problem.weights[order]
    shuffled = replace(problem, gradients=problem.gradients[order], weights=weights)
    assert np.linalg.norm(dense(shuffled, whiten) - dense(problem, whiten), 2) <= limit(problem)


@given(MODERATE, WHITEN, seeds())
def test_rotating_the_gradients_among_themselves_changes_nothing(problem, whiten, seed):
    m = len(problem.gradients)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, m)))
    weights = np.ones(m) if problem.weights is None else problem.weights
    mixed = rotation @ (np.sqrt(weights)[:, None] * problem.gradients)
    rotated = replace(problem, gradients=mixed.astype(problem.dtype), weights=None)
    assert np.linalg.norm(dense(rotated, whiten) - dense(problem, whiten), 2) <= limit(problem)


@given(MODERATE, WHITEN)
def test_holding_each_gradient_twice_changes_nothing_under_the_mean(problem, whiten):
    problem = replace(problem, normalization="mean")
    weights = None if problem.weights is None else np.tile(problem.weights, 2)
    twice = replace(problem, gradients=np.tile(problem.gradients, (2, 1)), weights=weights)
    assert np.linalg.norm(dense(twice, whiten) - dense(problem, whiten), 2) <= limit(problem)


@given(MODERATE, WHITEN)
def test_the_mean_is_the_sum_with_weights_one_over_m(problem, whiten):
    weights = np.ones(len(problem.gradients)) if problem.weights is None else problem.weights
    mean = replace(problem, weights=weights, normalization="mean")
    total = replace(problem, weights=(weights / len(weights)).astype(problem.dtype), normalization="sum")
    assert np.linalg.norm(dense(mean, whiten) - dense(total, whiten), 2) <= limit(mean)


@given(MODERATE, WHITEN)
def test_weights_of_one_are_no_weights(problem, whiten):
    plain = replace(problem, weights=None)
    ones = replace(problem, weights=np.ones(len(problem.gradients), problem.dtype))
    assert np.linalg.norm(dense(ones, whiten) - dense(plain, whiten), 2) <= limit(plain)


@given(SCALAR, WHITEN)
def test_a_constant_vector_of_dampings_is_a_scalar_damping(problem, whiten):
    damping = np.full(problem.gradients.shape[1], problem.damping, problem.dtype)
    vector, scalar = replace(problem, damping=damping), replace(problem, damping=float(damping[0]))
    assert np.linalg.norm(dense(vector, whiten) - dense(scalar, whiten), 2) <= limit(problem)


@given(problems(decades=(0.1, 3), shape=(7, 19)), WHITEN, seeds())
def test_a_vector_orthogonal_to_the_gradients_is_divided_by_the_damping(problem, whiten, seed):
    roots = problem.oracle.roots.astype(np.float64)
    rows = np.linalg.svd(problem.oracle.scaled.astype(np.float64), full_matrices=False)[2]
    free = np.random.default_rng(seed).standard_normal(len(roots))
    for _ in range(2):
        free -= rows.T @ (rows @ free)
    x = construct(problem, NUMPY, whiten=whiten).matvec(free * roots)
    assert np.linalg.norm(x * roots - free) <= limit(problem) * np.linalg.norm(free)


@given(MODERATE, WHITEN, seeds())
def test_the_product_is_linear(problem, whiten, seed):
    inverse = construct(problem, NUMPY, whiten=whiten)
    first, second = np.random.default_rng(seed).standard_normal((2, inverse.dim)).astype(problem.dtype)
    roots = problem.oracle.roots.astype(np.float64)
    parts = inverse.matvec(first).astype(np.float64) + inverse.matvec(second)
    whole = inverse.matvec(first + second)
    assert np.linalg.norm((whole - parts) * roots) <= limit(problem) * 2 * np.linalg.norm(parts * roots) * 10


@given(MODERATE, WHITEN, seeds())
def test_the_quadratic_form_is_never_negative(problem, whiten, seed):
    inverse = construct(problem, NUMPY, whiten=whiten)
    v = np.random.default_rng(seed).standard_normal(inverse.dim).astype(problem.dtype)
    assert inverse.quadratic_form(v) >= 0


@given(MODERATE, WHITEN)
def test_the_log_determinant_equals_the_dense_one(problem, whiten):
    expected = np.linalg.slogdet(problem.oracle.inverse)[1]
    error = abs(float(construct(problem, NUMPY, whiten=whiten).logdet()) - expected)
    assert error <= limit(problem) * len(problem.oracle.roots)


@given(MODERATE)
def test_storing_whitened_gradients_or_the_gradients_gives_the_same_inverse(problem):
    assert np.linalg.norm(dense(problem, True) - dense(problem, False), 2) <= limit(problem)
