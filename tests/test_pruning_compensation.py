"""The damping of the compensation: a dense minimum, and leave-one-out against fits without each row."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import joint_update, obs_update, prune
from mfac_linalg.testing import make_problem, tolerance
from mfac_linalg.testing.strategies import seeds
from tests.backends import eps
from tests.test_pruning import random_mask
from tests.test_pruning_slope import quadratic

SLOPE = 0.3
KINDS = {
    "m < d": (6, 14, None),
    "m > d": (20, 8, None),
    "ragged blocks": (6, 14, (2, 9, 3)),
    "equal blocks": (6, 14, 7),
    "narrow blocks": (16, 14, 7),
}


def drawn(kind, seed=0):
    """An inverse with weights and a vector damping, w, a mask, c and λ."""
    m, dim, sizes = KINDS[kind]
    rng = np.random.default_rng(seed)
    gradients, weights, damping = rng.standard_normal((m, dim)), rng.random(m) + 0.2, rng.random(dim) + 0.1
    if sizes is None:
        inverse = ml.WoodburyRankOneInverse(gradients, damping, weights=weights)
    else:
        inverse = ml.BlockDiagonalInverse(gradients, damping, weights=weights, block_sizes=sizes)
    return inverse, rng.standard_normal(dim), random_mask(dim, seed), weights / m, damping


def blocks_of(kind):
    _, dim, sizes = KINDS[kind]
    sizes = (dim,) if sizes is None else (sizes,) * (dim // sizes) if isinstance(sizes, int) else sizes
    ends = np.cumsum((0, *sizes))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def softened(gradients, w, mask, c, damping, theta, slope=0.0, rows=slice(None)):
    """δ_R that minimises the model where each removed weight may be ε_i at the cost λ_i ε_i²/(2θ), by least squares."""
    gradients, c = gradients[rows], c[rows]
    free = np.full(len(w), 1 / theta if theta else np.inf)
    free[mask] = 1.0
    used = np.isfinite(free)
    forward = (gradients.T * c) @ gradients + np.diag(np.where(used, damping * np.where(used, free, 0), 0))
    removed = np.where(mask, 0, w)
    right = gradients.T @ (c * (gradients @ removed - slope))
    return np.linalg.solve(forward[np.ix_(used, used)], right[used])[mask[used]]


def excess_share(blocks, all_gradients, w, mask, c, damping, slope):
    """Σ c_i (e_i² − r_i²)/Σ c_i y_i²: e_i by fits made again without row i, r_i by one of all rows."""
    errors, squares, everything = 0.0, 0.0, np.arange(len(c))
    for block in blocks:
        gradients, stays = all_gradients[:, block], mask[block]
        y = gradients @ np.where(stays, 0, w[block]) - slope
        squares += np.sum(c * y**2)
        for i in everything:
            others = everything != i
            change = softened(gradients, w[block], stays, c, damping[block], 0.0, slope, others)
            errors += c[i] * (y[i] - gradients[i, stays] @ change) ** 2
        change = softened(gradients, w[block], stays, c, damping[block], 0.0, slope)
        errors -= np.sum(c * (y - gradients[:, stays] @ change) ** 2)
    return errors / squares


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_a_damping_lets_removed_weights_deviate(kind, slope):
    inverse, w, mask, c, damping = drawn(kind)
    found = joint_update(w, inverse, mask, slope=slope, compensation_damping=0.4)
    assert np.array_equal(found[~mask], -w[~mask])
    for b in blocks_of(kind):
        expected = softened(inverse.gradients[:, b], w[b], mask[b], c, damping[b], 0.4, slope)
        assert np.allclose(found[b][mask[b]], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_the_rows_choose_what_is_left_more_in_a_row_that_was_left_out(kind, slope):
    for seed in range(4):
        inverse, w, mask, c, damping = drawn(kind, seed)
        share = excess_share(blocks_of(kind), inverse.gradients, w, mask, c, damping, slope)
        expected = joint_update(w, inverse, mask, slope=slope, compensation_damping=min(1.0, share) ** 2)
        found = joint_update(w, inverse, mask, slope=slope, compensation_damping="auto")
        assert np.allclose(found, expected, rtol=1e-8, atol=1e-10)
        if share < 0.9:
            other = joint_update(w, inverse, mask, slope=slope, compensation_damping=share**2 + 0.01)
            assert not np.allclose(found, other, rtol=1e-5)


@pytest.mark.parametrize("damping", [0.5, "auto"])
def test_every_library_has_the_damping(built, damping):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    delta = joint_update(built.send(w), built.inverse, built.send(mask), compensation_damping=damping)
    built.assert_own(delta)
    problem = built.problem
    gradients, lambdas = problem.gradients.astype(np.float64), np.broadcast_to(problem.damping, w.shape)
    c = np.ones(len(gradients)) if problem.weights is None else problem.weights
    c = c / (len(gradients) if problem.normalization == "mean" else 1)
    if damping == "auto":
        damping = min(1.0, excess_share([slice(None)], gradients, w, mask, c, lambdas, 0.0)) ** 2
    expected = -w.astype(np.float64)
    expected[mask] = softened(gradients, w, mask, c, lambdas, damping)
    built.assert_close(delta, expected)


@given(seeds(), st.sampled_from(list(KINDS)))
def test_it_starts_at_the_minimum(seed, kind):
    inverse, w, mask, *_ = drawn(kind, seed)
    minimum = joint_update(w, inverse, mask)
    assert np.array_equal(minimum, joint_update(w, inverse, mask, compensation_damping=0.0))
    assert np.allclose(minimum, joint_update(w, inverse, mask, compensation_damping=1e-12), atol=1e-8)


def test_a_damping_of_one_is_the_sum_of_single_changes_of_many_weights():
    """Up to the factors 1 − ‖w_i‖², which m/d bounds in the mean."""
    rng = np.random.default_rng(0)
    gradients, w = rng.standard_normal((4, 20_000)), rng.standard_normal(20_000)
    inverse, mask = ml.WoodburyRankOneInverse(gradients, 0.1), rng.random(20_000) > 0.7
    single = obs_update(w, inverse, mask)
    found = joint_update(w, inverse, mask, compensation_damping=1.0)
    scale = np.linalg.norm(single[mask])
    assert np.linalg.norm((found - single)[mask]) <= 1e-2 * scale
    assert np.linalg.norm((joint_update(w, inverse, mask) - single)[mask]) > 0.3 * scale


def test_float32_chooses_as_float64_does():
    problem = make_problem(3, shape=(12, 60), kappa=1e4)
    w, mask = np.random.default_rng(0).standard_normal(60), random_mask(60)
    answers = []
    for dtype in ("float32", "float64"):
        inverse = ml.WoodburyRankOneInverse(problem.gradients.astype(dtype), problem.damping)
        answers.append(joint_update(w.astype(dtype), inverse, mask, compensation_damping="auto"))
    limit = tolerance(eps("float32"), problem.oracle.kappa) * np.linalg.norm(answers[1])
    assert np.linalg.norm(answers[0] - answers[1]) <= limit


@pytest.mark.parametrize("blocks", [None, 6])
@pytest.mark.parametrize("shape", [(12, 12), (30, 12)])
def test_a_row_that_outweighs_all_others_is_left_out_to_all_digits_in_float32(shape, blocks):
    """For m ≥ d: nearly all of that row is fitted, so that what is left of it cancels."""
    for seed in range(6):
        rng, answers = np.random.default_rng(seed), []
        gradients, w, mask = rng.standard_normal(shape), rng.standard_normal(12), rng.permutation(12) < 8
        gradients[0] *= 3e3
        for dtype in ("float32", "float64"):
            rows = gradients.astype("float32").astype(dtype)
            make = ml.WoodburyRankOneInverse if blocks is None else partial(ml.BlockDiagonalInverse, block_sizes=blocks)
            weights = w.astype("float32").astype(dtype)
            answers.append(joint_update(weights, make(rows, 1.0), mask, slope=0.3, compensation_damping="auto"))
        assert np.linalg.norm(answers[0] - answers[1]) <= 1e-5 * np.linalg.norm(answers[1])


def test_nothing_removed_is_nothing_to_choose():
    inverse, w, mask, *_ = drawn("m < d")
    found = joint_update(w, inverse, np.ones_like(mask), compensation_damping="auto")
    assert np.array_equal(found, np.zeros_like(w))
    window = ml.SlidingWindowInverse(3, 6, 0.1, dtype=np.float64)
    found = joint_update(np.ones(6), window, random_mask(6), compensation_damping="auto")
    assert np.array_equal(found, np.where(random_mask(6), 0.0, -1.0))


def test_pruning_chooses_by_the_rows_unless_told_otherwise():
    rows, w = quadratic()
    inverse = ml.WoodburyRankOneInverse(rows(w, 0), 0.1)
    found = prune(w, rows, 0.5, damping=0.1)
    expected = joint_update(w, inverse, found.mask, compensation_damping="auto")
    assert np.allclose(found.weights, w + expected, atol=1e-12)
    for damping in (0.0, 0.3):
        found = prune(w, rows, 0.5, damping=0.1, compensation_damping=damping)
        expected = joint_update(w, inverse, found.mask, compensation_damping=damping)
        assert np.allclose(found.weights, w + expected, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("self", ValueError),
        (-0.1, ValueError),
        (1.1, ValueError),
        (np.nan, ValueError),
        (True, TypeError),
        (None, TypeError),
    ],
    ids=str,
)
def test_what_is_no_damping_of_the_compensation_is_refused(value, error):
    inverse, w, mask, *_ = drawn("m < d")
    with pytest.raises(error, match=r"`compensation_damping` must be .*got "):
        joint_update(w, inverse, mask, compensation_damping=value)
    with pytest.raises(error, match=r"`compensation_damping` must be .*got "):
        prune(w, lambda w, step: inverse.gradients, 0.5, damping=0.1, compensation_damping=value)
