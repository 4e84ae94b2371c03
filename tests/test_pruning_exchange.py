"""The joint objective and exchanges that lower it, against dense minima and all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import exchange, joint_objective, joint_update, n_m_mask, obs_scores, prune
from mfac_linalg.testing import make_problem, tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import eps
from tests.test_pruning import aged_oracle, cost, inverse_of, keep_blocks, random_mask, rotated_window, windows
from tests.test_pruning_slope import SLOPE, mean_gradient, minimum, quadratic


def least(forward, w, mask, slope):
    """The minimum of slopeᵀδ + ½ δᵀFδ under δ_S = −w_S, from the dense F."""
    delta = minimum(forward, w, mask, slope)
    return slope @ delta + cost(forward, delta)


def drawn(kind, seed):
    """An inverse of at most 12 weights, its dense F, w and the mean gradient."""
    rng = np.random.default_rng(seed)
    m, dim = int(rng.integers(2, 15)), int(rng.integers(5, 11))
    gradients, w = rng.standard_normal((m, dim)), rng.standard_normal(dim)
    if kind == "columns of many sizes":
        gradients *= 10.0 ** rng.uniform(-1, 1, dim)
    if kind == "nearly of rank two":
        gradients = 3 * rng.standard_normal((m, 2)) @ rng.standard_normal((2, dim)) + 0.1 * gradients
    damping, weights = rng.random(dim) + 0.01, rng.random(m) + 0.1
    forward = np.diag(damping) + (gradients.T * weights / m) @ gradients
    if kind == "blocks":
        sizes = (dim // 2, dim - dim // 2)
        inverse = ml.BlockDiagonalInverse(gradients, damping, weights=weights, block_sizes=sizes)
        return inverse, keep_blocks(forward, sizes), w, gradients.T @ weights / m
    return ml.WoodburyRankOneInverse(gradients, damping, weights=weights), forward, w, gradients.T @ weights / m


KINDS = ("random", "columns of many sizes", "nearly of rank two", "blocks")


def mask_of_scores(w, inverse, stays, slope=0.0):
    mask = np.zeros(len(w), bool)
    mask[np.argsort(-obs_scores(w, inverse, slope=slope))[:stays]] = True
    return mask


# --- the objective --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_the_objective_is_the_dense_minimum(built, slope):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    found = joint_objective(built.send(w), built.inverse, built.send(mask), slope=slope)
    expected = least(built.oracle.forward, w.astype(np.float64), mask, slope * mean_gradient(built.problem))
    scale = abs(least(built.oracle.forward, w.astype(np.float64), mask, 0 * w)) + abs(expected)
    assert isinstance(found, float)
    assert abs(found - expected) <= tolerance(eps(built.dtype), built.oracle.kappa) * scale


@given(problems(), seeds(), st.floats(0, 4))
def test_the_joint_update_reaches_it(problem, seed, slope):
    forward, inverse = problem.oracle.forward, inverse_of(problem)
    dim = inverse.dim
    w, mask, gradient = np.random.default_rng(seed).standard_normal(dim), random_mask(dim, seed), mean_gradient(problem)
    delta = joint_update(w, inverse, mask, slope=slope)
    reached = slope * gradient @ delta + cost(forward, delta)
    scale = abs(reached) + cost(forward, w) + cost(np.linalg.inv(forward), slope * gradient)
    assert abs(joint_objective(w, inverse, mask, slope=slope) - reached) <= 1e-9 * scale


def test_windows_count_rows_by_their_age():
    problem = make_problem(2, shape=(6, 20))
    w, mask = np.random.default_rng(0).standard_normal(20), random_mask(20)
    forward = aged_oracle(problem, 0.8).forward
    gradient = problem.gradients.T @ 0.8 ** np.arange(5.0, -1, -1) / 6
    window = windows(problem, decay=0.8)
    assert np.isclose(joint_objective(w, window, mask, slope=SLOPE), least(forward, w, mask, SLOPE * gradient))
    rotated, forward = rotated_window(problem), problem.oracle.forward
    expected = least(forward, w, mask, SLOPE * problem.gradients.mean(axis=0))
    assert np.isclose(joint_objective(w, rotated, mask, slope=SLOPE), expected)
    found = exchange(w, rotated, mask)
    assert least(forward, w, found, 0 * w) <= least(forward, w, mask, 0 * w)
    empty = ml.SlidingWindowInverse(3, 20, 0.1, dtype=np.float64)
    assert joint_objective(w, empty, mask) == pytest.approx(0.05 * np.sum(w[~mask] ** 2))
    assert np.array_equal(exchange(w, empty, mask), mask_of_magnitude(w, mask))


def mask_of_magnitude(w, mask):
    return np.abs(w) >= np.sort(np.abs(w))[np.sum(~mask)]


def test_no_square_leaves_its_range():
    problem = make_problem(1, shape=(4, 9))
    w, mask = problem.gradients[0], random_mask(9)
    expected = joint_objective(w, inverse_of(problem), mask)
    found = joint_objective(w * 2.0**300, inverse_of(problem), mask)
    assert found == pytest.approx(expected * 2.0**600, rel=1e-12)
    for power in (-70, 70):
        small = ml.WoodburyRankOneInverse(np.float32(problem.gradients * 2.0**power), problem.damping * 4.0**power)
        found = joint_objective(np.float32(w * 2.0**-power), small, mask)
        assert found == pytest.approx(expected, rel=1e-5)


def test_an_objective_that_does_not_fit_is_refused():
    inverse, _, w, _ = drawn("random", 0)
    mask = random_mask(len(w))
    for scale, slope, words in ((1e200, 0.0, "does not fit"), (1e-200, 0.0, "too small"), (1.0, 1e300, "does not fit")):
        with pytest.raises(OverflowError, match=f"The result .*{words}.*Scale `weights`"):
            joint_objective(scale * w, inverse, mask, slope=slope)
    assert joint_objective(0 * w, inverse, mask) == 0.0


@pytest.mark.parametrize("kind", ["random", "blocks"])
def test_a_slope_may_be_of_any_size_beside_the_weights(kind):
    inverse, forward, w, gradient = drawn(kind, 0)
    mask, nothing = random_mask(len(w)), 0 * w
    expected = least(forward, nothing, mask, gradient)
    assert expected < 0
    for scale in (0.0, 1e-300, 1e-160, 1e-40):
        assert joint_objective(scale * w, inverse, mask, slope=1.0) == pytest.approx(expected, rel=1e-12)
        found, of_nothing = (exchange(x, inverse, mask, slope=1.0) for x in (scale * w, nothing))
        assert np.array_equal(found, of_nothing)


# --- exchanges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_exchanges_find_the_best_of_all_masks(kind, slope):
    """From the scores alone in nearly all cases, and from one of a few more starts in all of these."""
    found = []
    for seed in range(12):
        inverse, forward, w, gradient = drawn(kind, seed)
        dim, rng = len(w), np.random.default_rng(seed)
        stays = int(rng.integers(1, dim))
        masks = (np.isin(np.arange(dim), kept) for kept in itertools.combinations(range(dim), stays))
        best = min(least(forward, w, mask, slope * gradient) for mask in masks)
        start = mask_of_scores(w, inverse, stays, slope)
        values = []
        for mask in (start, *(rng.permutation(dim) < stays for _ in range(6))):
            better = exchange(w, inverse, mask, slope=slope)
            assert better.sum() == stays
            values.append(least(forward, w, better, slope * gradient))
            assert values[-1] <= least(forward, w, mask, slope * gradient) + 1e-12
        assert min(values) <= best + 1e-10
        found.append(values[0] <= best + 1e-10)
    assert sum(found) >= 10


def test_every_library_has_exchanges(built):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    found = built.fetch(exchange(built.send(w), built.inverse, built.send(mask), steps=3))
    assert found.dtype == bool
    assert found.sum() == mask.sum()
    values = [least(built.oracle.forward, w.astype(np.float64), x, 0.0 * w) for x in (mask, found)]
    assert values[1] <= values[0] * (1 + tolerance(eps(built.dtype), built.oracle.kappa))


@given(problems(), seeds(), st.floats(0, 4), st.integers(1, 3))
def test_exchanges_never_raise_the_objective(problem, seed, slope, steps):
    inverse = inverse_of(problem)
    w, mask = np.random.default_rng(seed).standard_normal(inverse.dim), random_mask(inverse.dim, seed)
    found = exchange(w, inverse, mask, slope=slope, steps=steps)
    assert found.sum() == mask.sum()
    before, after = (joint_objective(w, inverse, x, slope=slope) for x in (mask, found))
    assert after <= before or np.isclose(after, before, rtol=1e-9, atol=1e-9 * (w @ w))


@pytest.mark.parametrize("kind", ["random", "blocks"])
def test_groups_keep_their_numbers_and_the_best_patterns_are_found(kind):
    patterns = [np.isin(np.arange(4), kept) for kept in itertools.combinations(range(4), 2)]
    best_found = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gradients, w = rng.standard_normal((6, 8)), rng.standard_normal(8)
        inverse = ml.WoodburyRankOneInverse(gradients, 0.1)
        if kind == "blocks":
            inverse = ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=(3, 5))
        start = n_m_mask(w, inverse, 2, 4)
        found = exchange(w, inverse, start, groups=4)
        assert [int(x) for x in found.reshape(2, 4).sum(axis=1)] == [2, 2]
        values = [joint_objective(w, inverse, np.concatenate(pair)) for pair in itertools.product(patterns, patterns)]
        assert joint_objective(w, inverse, found) <= joint_objective(w, inverse, start) + 1e-12
        best_found += joint_objective(w, inverse, found) <= min(values) + 1e-10
    assert best_found >= 8


def test_weights_of_no_group_stay_as_they_are():
    inverse, _, w, _ = drawn("random", 3)
    mask = random_mask(len(w))
    found = exchange(w, inverse, mask, groups=np.array([[0, 2, 4]]))
    others = np.array([i for i in range(len(w)) if i not in (0, 2, 4)])
    assert np.array_equal(found[others], mask[others])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_finds_the_same_masks(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gradients, w = (rng.standard_normal(shape).astype(dtype) for shape in ((12, 200), 200))
    mask = np.abs(w) > np.quantile(np.abs(w), 0.6)
    for make in (
        lambda g: ml.WoodburyRankOneInverse(g, 0.01),
        lambda g: ml.BlockDiagonalInverse(g, 0.01, block_sizes=(50, 120, 30)),
    ):
        own, other = make(gradients), make(torch.from_numpy(gradients))
        found = exchange(torch.from_numpy(w), other, torch.from_numpy(mask))
        assert found.dtype == torch.bool
        assert np.array_equal(found.numpy(), exchange(w, own, mask))
        assert joint_objective(w, own, found.numpy()) < 0.97 * joint_objective(w, own, mask)


def test_many_exchanges_in_few_steps():
    rng = np.random.default_rng(1)
    gradients, w = rng.standard_normal((20, 3000)), rng.standard_normal(3000)
    inverse = ml.WoodburyRankOneInverse(gradients, 0.01)
    start = mask_of_scores(w, inverse, 600)
    found = exchange(w, inverse, start, steps=3)
    assert np.sum(found & ~start) > 10
    assert joint_objective(w, inverse, found) < joint_objective(w, inverse, start)


# --- in steps -------------------------------------------------------------------------------------------------------


def test_pruning_exchanges_within_layers_and_leaves_what_is_gone():
    rows, w = quadratic()
    inverse = ml.WoodburyRankOneInverse(rows(w, 0), 0.1)
    by_scores, exchanged = (prune(w, rows, 0.5, damping=0.1, selection=x) for x in ("scores", "exchanges"))
    assert np.array_equal(exchanged.mask, exchange(w, inverse, by_scores.mask))
    assert joint_objective(w, inverse, exchanged.mask) <= joint_objective(w, inverse, by_scores.mask)
    before = np.arange(16) % 5 > 0
    options = {"layer_sizes": (6, 10), "block_sizes": 4, "mask": before, "steps": 2, "selection": "exchanges"}
    found = prune(w, rows, (0.5, 0.7), damping=0.1, **options)
    assert [int(found.mask[:6].sum()), int(found.mask[6:].sum())] == [3, 3]
    assert not np.any(found.mask & ~before)


def test_a_model_is_pruned_by_exchanges():
    torch = pytest.importorskip("torch")
    from mfac_linalg.torch import prune_model

    masks = []
    for selection in ("scores", "exchanges"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        batches = [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(8)]
        loss = torch.nn.functional.cross_entropy
        masks.append(prune_model(model, loss, batches, 0.5, damping=1e-4, selection=selection).mask)
    assert masks[0].sum() == masks[1].sum()
    assert not torch.equal(*masks)
