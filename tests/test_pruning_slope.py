"""Pruning by the model with a slope, α ḡᵀδ + ½ δᵀFδ, against dense minima."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import group_scores, group_update, joint_update, n_m_mask, obs_scores, obs_update, prune
from mfac_linalg.testing import make_problem, tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import eps
from tests.test_pruning import (
    aged_oracle,
    blocked_of,
    constrained_minimum,
    cost,
    group_cost,
    inverse_of,
    random_mask,
    windows,
)

SLOPE = 0.3


def mean_gradient(problem):
    """Σ c_i g_i with the c_i of F."""
    gradients = problem.gradients.astype(np.float64)
    weights = np.ones(len(gradients)) if problem.weights is None else problem.weights
    return gradients.T @ weights / (len(gradients) if problem.normalization == "mean" else 1)


def minimum(forward, w, mask, slope):
    """The δ that minimises slopeᵀδ + ½ δᵀFδ under δ_S = −w_S, from the dense F."""
    delta = constrained_minimum(forward, w, mask)
    delta[mask] -= np.linalg.solve(forward[np.ix_(mask, mask)], slope[mask])
    return delta


# --- every library --------------------------------------------------------------------------------------------------


def test_the_joint_update_is_the_dense_minimum(built):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    delta = joint_update(built.send(w), built.inverse, built.send(mask), slope=SLOPE)
    built.assert_own(delta)
    built.assert_close(delta, minimum(built.oracle.forward, w, mask, SLOPE * mean_gradient(built.problem)))


def test_scores_are_those_of_the_weights_where_the_model_is_least(built):
    w = built.vectors(built.inverse.dim)
    scores = built.fetch(obs_scores(built.send(w), built.inverse, slope=SLOPE))
    least = w - built.oracle.inverse @ (SLOPE * mean_gradient(built.problem))
    expected = least**2 / (2 * np.diag(built.oracle.inverse))
    allowed = 1e-3 * expected + tolerance(eps(built.dtype), built.oracle.kappa) * np.max(expected)
    assert np.all(np.abs(scores - expected) <= allowed)


# --- other classes --------------------------------------------------------------------------------------------------


def test_a_window_uses_the_terms_that_it_holds():
    problem = make_problem(2, shape=(6, 20))
    window, forward = windows(problem, decay=0.8), aged_oracle(problem, 0.8).forward
    slope = SLOPE * problem.gradients.T @ 0.8 ** np.arange(5.0, -1, -1) / 6
    w, mask = np.ones(20), random_mask(20)
    assert np.allclose(joint_update(w, window, mask, slope=SLOPE), minimum(forward, w, mask, slope), atol=1e-10)


def test_blocks_each_have_their_part_of_the_gradient():
    problem = make_problem(3, shape=(5, 21))
    blocked = ml.BlockDiagonalInverse(problem.gradients, problem.damping, block_sizes=(4, 9, 8))
    w, mask = np.ones(21), random_mask(21)
    expected = minimum(blocked_of(problem, (4, 9, 8)), w, mask, SLOPE * mean_gradient(problem))
    assert np.allclose(joint_update(w, blocked, mask, slope=SLOPE), expected, atol=1e-10)


def test_a_window_without_gradients_has_no_slope():
    window, mask = ml.SlidingWindowInverse(3, 6, 0.1, dtype=np.float64), random_mask(6)
    for update in (joint_update, obs_update):
        assert np.array_equal(update(np.ones(6), window, mask, slope=1.0), np.where(mask, 0.0, -1.0))


# --- properties -----------------------------------------------------------------------------------------------------


@given(problems(), seeds(), st.floats(0, 4))
def test_no_other_change_that_removes_the_same_weights_is_lower(problem, seed, slope):
    forward, dim, inverse = problem.oracle.forward, problem.gradients.shape[1], inverse_of(problem)
    w, mask = np.random.default_rng(seed).standard_normal(dim), random_mask(dim, seed)
    gradient = slope * mean_gradient(problem)

    def value(delta):
        return gradient @ delta + cost(forward, delta)

    best = value(joint_update(w, inverse, mask, slope=slope))
    others = (joint_update(w, inverse, mask), obs_update(w, inverse, mask, slope=slope), np.where(mask, 0, -w))
    scale = abs(best) + gradient @ np.linalg.solve(forward, gradient) + cost(forward, w)
    assert all(best <= value(other) + 1e-9 * scale for other in others)


@given(problems(), seeds(), st.integers(1, 4), st.floats(0, 4))
def test_a_group_costs_its_score(problem, seed, size, slope):
    """The score is the minimum with the group removed minus the minimum without."""
    rng, dim, forward = np.random.default_rng(seed), problem.gradients.shape[1], problem.oracle.forward
    w, group, inverse = rng.standard_normal(dim), rng.permutation(dim)[: min(size, dim)], inverse_of(problem)
    gradient, mask = slope * mean_gradient(problem), ~np.isin(np.arange(dim), group)
    delta = joint_update(w, inverse, mask, slope=slope)
    least = w - np.linalg.solve(forward, gradient)
    cheapest = -0.5 * gradient @ np.linalg.solve(forward, gradient)
    score = group_scores(w, inverse, group[None, :], slope=slope)[0]
    assert np.isclose(score, group_cost(problem.oracle.inverse, least, group), rtol=1e-5)
    scale = abs(cheapest) + score
    assert abs(gradient @ delta + cost(forward, delta) - cheapest - score) <= 1e-6 * scale
    together = group_update(w, inverse, group[None, :], slope=slope)
    limit = tolerance(eps("float64"), problem.oracle.kappa) * (np.linalg.norm(delta) + np.linalg.norm(w - least))
    assert np.linalg.norm(together - delta) <= limit
    if len(group) == 1:
        assert np.linalg.norm(obs_update(w, inverse, mask, slope=slope) - delta) <= limit
        assert np.isclose(obs_scores(w, inverse, slope=slope)[group[0]], score, rtol=1e-3)


def test_patterns_are_those_of_the_weights_where_the_model_is_least():
    problem = make_problem(4, shape=(5, 24))
    inverse, w = inverse_of(problem), np.random.default_rng(0).standard_normal(24)
    least = w - inverse @ (3 * mean_gradient(problem))
    found = n_m_mask(w, inverse, 2, 4, slope=3.0)
    assert np.array_equal(found, n_m_mask(least, inverse, 2, 4))
    assert not np.array_equal(found, n_m_mask(w, inverse, 2, 4))


# --- in steps -------------------------------------------------------------------------------------------------------


def quadratic(seed=0, m=40, dim=16):
    rng = np.random.default_rng(seed)
    x, true = rng.standard_normal((m, dim)), rng.standard_normal(dim)
    y = x @ true + 0.1 * rng.standard_normal(m)
    return lambda w, step: (x @ w - y)[:, None] * x, rng.standard_normal(dim)


def test_a_step_goes_to_the_minimum_of_the_model_and_prunes_there():
    rows, w = quadratic()
    gradients = rows(w, 0)
    found = prune(w, rows, 0.5, damping=0.1, slope=SLOPE, compensation_damping=0.0)
    inverse = ml.WoodburyRankOneInverse(gradients, 0.1)
    scores = obs_scores(w, inverse, slope=SLOPE)
    assert np.array_equal(found.mask, scores >= np.sort(scores)[8])
    assert np.allclose(found.weights, w + joint_update(w, inverse, found.mask, slope=SLOPE), atol=1e-12)


def test_blocks_prune_what_the_full_matrix_has_moved_by_a_damping_of_its_own():
    rows, w = quadratic()
    gradients = rows(w, 0)
    for options, damping in (({}, 0.1), ({"slope_damping": 2.0}, 2.0)):
        found = prune(w, rows, 0.5, damping=0.1, block_sizes=4, slope=SLOPE, **options)
        full = ml.WoodburyRankOneInverse(gradients, damping)
        least = w - SLOPE * (full @ gradients.mean(axis=0))
        blocked = ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=4)
        assert np.array_equal(found.mask, obs_scores(least, blocked) >= np.sort(obs_scores(least, blocked))[8])
        change = joint_update(least, blocked, found.mask, compensation_damping="auto")
        assert np.allclose(found.weights, least + change, atol=1e-12)


def test_the_damping_of_the_slope_has_the_units_of_the_other():
    rows, w = quadratic()
    unit = np.mean(rows(w, 0) ** 2)
    relative = prune(w, rows, 0.5, damping=0.1, relative=True, slope=SLOPE, slope_damping=0.3)
    absolute = prune(w, rows, 0.5, damping=0.1 * unit, slope=SLOPE, slope_damping=0.3 * unit)
    assert np.allclose(relative.weights, absolute.weights, rtol=1e-10)


def test_the_slope_may_depend_on_the_step_and_is_asked_for_after_its_gradients():
    rows, w = quadratic()
    calls = []

    def gradients(w, step):
        calls.append(("gradients", step))
        return rows(w, step)

    def slope(step):
        calls.append(("slope", step))
        return SLOPE if step else 0.0

    found = prune(w, gradients, 0.75, steps=2, damping=0.1, slope=slope)
    assert calls == [("gradients", 0), ("slope", 0), ("gradients", 1), ("slope", 1)]
    first = prune(w, rows, 0.5, damping=0.1)
    second = prune(first.weights, rows, 0.75, damping=0.1, mask=first.mask, slope=SLOPE)
    assert np.array_equal(found.mask, second.mask)
    assert np.allclose(found.weights, second.weights)


@pytest.mark.parametrize("damping", [1e-9, 0.3])
def test_a_move_lowers_each_loss_by_the_slope_or_less(damping):
    rng = np.random.default_rng(0)
    gradients, w = rng.standard_normal((5, 20)), rng.standard_normal(20)
    change = gradients @ (prune(w, lambda w, step: gradients, 0.0, damping=damping, slope=SLOPE).weights - w)
    gram = gradients @ gradients.T
    damped = gram @ np.linalg.solve(gram + 5 * damping * np.eye(5), np.ones(5))
    assert np.allclose(change, -SLOPE * damped, rtol=1e-7)
    assert np.allclose(change, -SLOPE) == (damping < 1e-3)
    assert -np.mean(change) <= SLOPE * (1 + 1e-9)


def test_one_over_the_batch_is_the_consistent_slope():
    """Logistic regression near its optimum, with labels drawn from the model: E[g gᵀ] = H/B for means of B samples."""
    rng = np.random.default_rng(0)
    batch, m, dim = 16, 2000, 6
    x, true = rng.standard_normal((batch * m, dim)), rng.standard_normal(dim)
    y = rng.uniform(size=batch * m) < 1 / (1 + np.exp(-x @ true))

    def loss(w):
        return np.mean(np.logaddexp(0, x @ w) - y * (x @ w))

    w = true + 0.1 * rng.standard_normal(dim)
    samples = (1 / (1 + np.exp(-x @ w)) - y)[:, None] * x
    inverse = ml.WoodburyRankOneInverse(samples.reshape(m, batch, dim).mean(axis=1), 1e-9)
    mask = np.ones(dim, bool)
    losses = {
        a: loss(w + joint_update(w, inverse, mask, slope=a)) for a in (0.0, 0.5 / batch, 1 / batch, 2 / batch, 1.0)
    }
    assert min(losses, key=losses.get) == 1 / batch
    assert losses[1.0] > losses[0.0]


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_knows_the_sizes_of_its_batches():
    torch = pytest.importorskip("torch")
    from mfac_linalg.torch import prune_model

    def pruned(slope, sizes):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        batches = [(torch.randn(size, 6), torch.randint(3, (size,))) for size in sizes]
        loss = torch.nn.functional.cross_entropy
        return prune_model(
            model, loss, batches, 0.5, steps=2, damping=1e-3, block_sizes="filters", slope=slope, slope_damping=1e-2
        ).weights.numpy()

    assert np.array_equal(pruned("batch", [8] * 12), pruned(1 / 8, [8] * 12))
    assert np.array_equal(pruned("batch", [8, 4] * 6), pruned(3 / 16, [8, 4] * 6))
    assert np.array_equal(pruned(lambda step: 1 / 8, [8] * 12), pruned(1 / 8, [8] * 12))
    assert not np.allclose(pruned(lambda step: 1 / (8 + 8 * step), [8] * 12), pruned(1 / 8, [8] * 12))
    assert not np.allclose(pruned("batch", [8] * 12), pruned(0.0, [8] * 12))
    with pytest.raises(ValueError, match="`slope` must be one of 'batch'; got 'batches'"):
        pruned("batches", [8] * 12)


# --- refusals -------------------------------------------------------------------------------------------------------

INVERSE = ml.WoodburyRankOneInverse(np.random.default_rng(0).standard_normal((3, 8)), 0.1)
W, MASK = np.ones(8), np.arange(8) > 3
CALLS = {
    "obs_scores": lambda slope: obs_scores(W, INVERSE, slope=slope),
    "group_scores": lambda slope: group_scores(W, INVERSE, 2, slope=slope),
    "n_m_mask": lambda slope: n_m_mask(W, INVERSE, 2, 4, slope=slope),
    "obs_update": lambda slope: obs_update(W, INVERSE, MASK, slope=slope),
    "group_update": lambda slope: group_update(W, INVERSE, [[0, 1]], slope=slope),
    "joint_update": lambda slope: joint_update(W, INVERSE, MASK, slope=slope),
    "prune": lambda slope: prune(W, lambda w, step: np.eye(8), 0.5, damping=0.1, slope=slope),
    "prune, by step": lambda slope: prune(W, lambda w, step: np.eye(8), 0.5, damping=0.1, slope=lambda step: slope),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("slope", "error"),
    [
        (-0.1, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (10**400, ValueError),
        (True, TypeError),
        (None, TypeError),
        ("1", TypeError),
    ],
    ids=str,
)
def test_what_is_no_slope_is_refused(call, slope, error):
    with pytest.raises(error, match=r"`slope` must be .*got .*Pass 1/B"):
        call(slope)


WITH_A_SLOPE = {
    "obs_scores": lambda w, inverse, **o: obs_scores(w, inverse, **o),
    "group_scores": lambda w, inverse, **o: group_scores(w, inverse, 2, **o),
    "n_m_mask": lambda w, inverse, **o: n_m_mask(w, inverse, 2, 4, **o),
    "obs_update": lambda w, inverse, **o: obs_update(w, inverse, MASK, **o),
    "group_update": lambda w, inverse, **o: group_update(w, inverse, [[0, 1]], **o),
    "joint_update": lambda w, inverse, **o: joint_update(w, inverse, MASK, **o),
    "joint_update, 0.5": lambda w, inverse, **o: joint_update(w, inverse, MASK, compensation_damping=0.5, **o),
    "joint_update, auto": lambda w, inverse, **o: joint_update(w, inverse, MASK, compensation_damping="auto", **o),
}


@pytest.mark.parametrize("block_sizes", [None, 3])
@pytest.mark.parametrize("call", WITH_A_SLOPE.values(), ids=WITH_A_SLOPE)
def test_a_slope_whose_step_does_not_fit_is_refused_by_its_name(call, block_sizes):
    gradients = np.float32(INVERSE.gradients)
    inverse = ml.WoodburyRankOneInverse(gradients, 0.1)
    if block_sizes:
        inverse = ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=block_sizes)
    with pytest.raises(OverflowError, match=r"does not fit into float32\. Scale `slope`"):
        call(np.float32(W), inverse, slope=1e39)


def test_what_is_no_damping_of_the_slope_is_refused():
    refused = {ValueError: (0.0, -1, np.inf, np.nan, 10**400), TypeError: ([0.1], "x", True, np.full(8, 0.1))}
    for error, value in ((error, value) for error, values in refused.items() for value in values):
        with pytest.raises(error, match=r"`slope_damping` must be .*got .*Pass one λ for all steps"):
            prune(W, lambda w, step: np.eye(8), 0.5, damping=0.1, slope=0.1, slope_damping=value)


def test_a_slope_of_zero_changes_nothing():
    for call in (lambda **o: joint_update(W, INVERSE, MASK, **o), lambda **o: obs_scores(W, INVERSE, **o)):
        assert np.array_equal(call(), call(slope=0.0))
