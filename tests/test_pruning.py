"""Scores and updates of optimal brain surgeon, against dense minima of the quadratic model."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import group_scores, group_update, joint_update, n_m_mask, obs_scores, obs_update
from mfac_linalg.testing import Oracle, make_problem, tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import NUMPY, eps
from tests.cases import construct


def inverse_of(problem):
    return construct(problem, NUMPY)


def random_mask(dim, seed=0):
    """True where a weight stays; some go, whatever the dimension."""
    return np.random.default_rng(seed).permutation(dim) >= max(1, 2 * dim // 5)


def constrained_minimum(forward, w, mask):
    """The δ that minimises ½ δᵀFδ under δ_S = −w_S, from the dense F."""
    stays, goes = np.flatnonzero(mask), np.flatnonzero(~mask)
    delta = -w.astype(np.float64)
    delta[stays] = np.linalg.solve(forward[np.ix_(stays, stays)], forward[np.ix_(stays, goes)] @ w[goes])
    return delta


def group_cost(inverse, w, group):
    """½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q from the dense F⁻¹."""
    block = inverse[np.ix_(group, group)]
    return 0.5 * w[group] @ np.linalg.solve(block, w[group].astype(np.float64))


def cost(forward, delta):
    return 0.5 * delta @ forward @ delta


# --- every library --------------------------------------------------------------------------------------------------


def test_scores_are_the_dense_ones(built):
    w = built.vectors(built.inverse.dim)
    scores = obs_scores(built.send(w), built.inverse)
    built.assert_own(scores)
    expected = w.astype(np.float64) ** 2 / (2 * np.diag(built.oracle.inverse))
    assert np.allclose(built.fetch(scores), expected, rtol=1e-3, atol=0)


def test_the_joint_update_is_the_dense_minimum(built):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    delta = joint_update(built.send(w), built.inverse, built.send(mask))
    built.assert_own(delta)
    built.assert_close(delta, constrained_minimum(built.oracle.forward, w, mask))


def test_the_sum_of_single_updates_is_the_dense_one(built):
    w, mask = built.vectors(built.inverse.dim), random_mask(built.inverse.dim)
    delta = obs_update(built.send(w), built.inverse, built.send(mask))
    ratios = np.where(mask, 0, w / np.diag(built.oracle.inverse))
    built.assert_close(delta, np.where(mask, -(built.oracle.inverse @ ratios), -w))


def test_groups_are_scored_as_the_dense_ones(built):
    if built.inverse.dim < 6 or built.backend.is_lazy:
        return
    w, groups = built.vectors(built.inverse.dim), np.array([[0, 3, 1], [5, 2, 4]])
    scores = built.fetch(group_scores(built.send(w), built.inverse, built.send(groups)))
    expected = [group_cost(built.oracle.inverse, w, group) for group in groups]
    assert np.allclose(scores, expected, rtol=tolerance(eps(built.dtype), built.oracle.kappa), atol=0)


# --- every class ----------------------------------------------------------------------------------------------------


def windows(problem, **options):
    return ml.SlidingWindowInverse.from_gradients(problem.gradients, problem.damping, **options)


def aged_oracle(problem, decay):
    m = len(problem.gradients)
    return Oracle(problem.gradients, problem.damping, decay ** np.arange(m - 1.0, -1, -1))


def keep_blocks(forward, sizes):
    """F with zeros between blocks."""
    ends = np.cumsum([0, *sizes])
    kept = np.zeros_like(forward)
    for start, stop in itertools.pairwise(ends):
        kept[start:stop, start:stop] = forward[start:stop, start:stop]
    return kept


CLASSES = {
    "window": lambda p: (windows(p), p.oracle.forward),
    "window that has turned": lambda p: (rotated_window(p), p.oracle.forward),
    "window with decay": lambda p: (windows(p, decay=0.7), aged_oracle(p, 0.7).forward),
    "blocks": lambda p: (ml.BlockDiagonalInverse(p.gradients, p.damping, block_sizes=4), blocked_of(p, [4, 4, 4, 2])),
    "ragged blocks": lambda p: (
        ml.BlockDiagonalInverse(p.gradients, p.damping, block_sizes=[2, 11, 1]),
        blocked_of(p, [2, 11, 1]),
    ),
}


def blocked_of(problem, sizes):
    return keep_blocks(problem.oracle.forward, sizes)


def rotated_window(problem):
    """A window whose rows lie in another order than that of their ages."""
    window = ml.SlidingWindowInverse(len(problem.gradients), problem.gradients.shape[1], problem.damping)
    window.extend(problem.gradients[::-1] + 1)
    for g in problem.gradients:
        window.append(g)
    return window


@pytest.fixture(params=CLASSES)
def other(request):
    problem = make_problem(5, shape=(6, 14), dtype="float64", vector=True)
    return *CLASSES[request.param](problem), np.random.default_rng(1).standard_normal(14)


def test_the_joint_update_of_other_classes_is_the_dense_minimum(other):
    inverse, forward, w = other
    mask = random_mask(14)
    assert np.allclose(joint_update(w, inverse, mask), constrained_minimum(forward, w, mask), atol=1e-12)


def test_groups_of_other_classes_are_scored_as_the_dense_ones(other):
    inverse, forward, w = other
    groups = np.random.default_rng(2).permutation(14).reshape(7, 2)
    expected = [group_cost(np.linalg.inv(forward), w, group) for group in groups]
    assert np.allclose(group_scores(w, inverse, groups), expected)


def test_a_window_that_keeps_the_largest_entries_is_pruned_by_what_it_holds():
    rng = np.random.default_rng(0)
    window = ml.SlidingWindowInverse.from_gradients(
        rng.standard_normal((5, 40)), 0.1, compression=ml.TopK(0.25, block_size=20)
    )
    w, mask = rng.standard_normal(40), random_mask(40)
    forward = 0.1 * np.eye(40) + window.gradients.T @ window.gradients / 5
    assert np.allclose(joint_update(w, window, mask), constrained_minimum(forward, w, mask), atol=1e-12)


def test_a_window_without_gradients_changes_nothing_that_stays():
    window = ml.SlidingWindowInverse(3, 4, 0.1, dtype=np.float64, xp=np)
    delta = joint_update(np.ones(4), window, np.array([True, False, True, True]))
    assert np.array_equal(delta, [0, -1, 0, 0])


def test_masks_of_patterns_can_be_compiled_by_jax():
    jax = pytest.importorskip("jax")
    problem = make_problem(3, shape=(4, 8), dtype="float32")
    w, g = (jax.numpy.asarray(x, "float32") for x in (problem.gradients[0], problem.gradients))

    def mask(w, g):
        return n_m_mask(w, ml.WoodburyRankOneInverse(g, 0.1), 2, 4)

    assert np.array_equal(jax.jit(mask)(w, g), mask(w, g))


IN_CHUNKS = {
    "obs_scores": lambda w, inverse: obs_scores(w, inverse),
    "obs_update": lambda w, inverse: obs_update(w, inverse, w > -0.5),
    "joint_update": lambda w, inverse: joint_update(w, inverse, w > -0.5),
    "its damping by the rows": lambda w, inverse: joint_update(w, inverse, w > -0.5, compensation_damping="auto"),
    "group_scores": lambda w, inverse: group_scores(w, inverse, np.arange(20).reshape(5, 4)),
    "group_update": lambda w, inverse: group_update(w, inverse, np.array([[0, 7], [2, 13]])),
    "n_m_mask": lambda w, inverse: n_m_mask(w, inverse, 2, 4),
}


@pytest.mark.parametrize("call", IN_CHUNKS.values(), ids=IN_CHUNKS)
def test_what_is_pruned_by_gradients_in_chunks_is_the_same(call):
    array = pytest.importorskip("dask.array")
    g = np.random.default_rng(0).standard_normal((6, 20))
    whole, parts = (ml.WoodburyRankOneInverse(rows, 0.1) for rows in (g, array.from_array(g, chunks=(6, 5))))
    found = call(array.from_array(g[0], chunks=5), parts)
    assert np.allclose(np.asarray(found), call(g[0], whole), rtol=1e-9, atol=1e-12)


def test_a_window_of_jax_has_the_joint_update():
    jax = pytest.importorskip("jax")
    from mfac_linalg.jax import SlidingWindowState

    problem = make_problem(5, shape=(4, 9), dtype="float32")
    state = SlidingWindowState.from_gradients(jax.numpy.asarray(problem.gradients), problem.damping, window=6)
    w, mask = np.ones(9, dtype=np.float32), random_mask(9)
    delta = joint_update(jax.numpy.asarray(w), state, jax.numpy.asarray(mask))
    expected = constrained_minimum(problem.oracle.forward, w, mask)
    assert np.allclose(delta, expected, atol=tolerance(eps("float32"), problem.oracle.kappa))


# --- properties -----------------------------------------------------------------------------------------------------


@given(problems(), seeds())
def test_no_other_change_that_removes_the_same_weights_costs_less(problem, seed):
    forward, dim = problem.oracle.forward, problem.gradients.shape[1]
    w, mask = np.random.default_rng(seed).standard_normal(dim), random_mask(dim, seed)
    inverse = inverse_of(problem)
    best = cost(forward, joint_update(w, inverse, mask))
    assert best <= cost(forward, obs_update(w, inverse, mask)) * (1 + 1e-9)
    assert best <= cost(forward, np.where(mask, 0, -w)) * (1 + 1e-9)


@given(problems(), seeds())
def test_a_single_weight_costs_its_score(problem, seed):
    rng, dim = np.random.default_rng(seed), problem.gradients.shape[1]
    w, i = rng.standard_normal(dim), rng.integers(dim)
    delta = joint_update(w, inverse_of(problem), np.arange(dim) != i)
    assert np.isclose(cost(problem.oracle.forward, delta), obs_scores(w, inverse_of(problem))[i], rtol=1e-6)


@given(problems(), seeds(), st.integers(1, 4))
def test_a_group_costs_its_score(problem, seed, size):
    rng, dim = np.random.default_rng(seed), problem.gradients.shape[1]
    w, group = rng.standard_normal(dim), rng.permutation(dim)[: min(size, dim)]
    mask = ~np.isin(np.arange(dim), group)
    delta = joint_update(w, inverse_of(problem), mask)
    score = group_scores(w, inverse_of(problem), group[None, :])[0]
    assert np.isclose(cost(problem.oracle.forward, delta), score, rtol=1e-6)


@given(problems(), seeds(), st.integers(1, 4))
def test_the_update_of_one_group_is_the_joint_one(problem, seed, size):
    rng, dim = np.random.default_rng(seed), problem.gradients.shape[1]
    w, group = rng.standard_normal(dim), rng.permutation(dim)[: min(size, dim)]
    together = joint_update(w, inverse_of(problem), ~np.isin(np.arange(dim), group))
    limit = tolerance(eps("float64"), problem.oracle.kappa) * np.linalg.norm(together)
    assert np.linalg.norm(group_update(w, inverse_of(problem), group[None, :]) - together) <= limit


@given(problems(decades=(3.0, 9.0)), seeds())
def test_gradients_see_no_change_where_the_damping_is_small(problem, seed):
    """Σ c_i (g_iᵀδ)² + λ‖δ‖² is least for the joint update, so that it costs no more than leaving the rest alone."""
    forward, dim = problem.oracle.forward, problem.gradients.shape[1]
    w, mask = np.random.default_rng(seed).standard_normal(dim), random_mask(dim, seed)
    best = cost(forward, constrained_minimum(forward, w, mask))
    assert cost(forward, joint_update(w, inverse_of(problem), mask)) <= best * (1 + 1e-5) + 1e-12 * cost(forward, w)


@given(seeds())
def test_one_weight_a_group_is_a_weight(seed):
    problem = make_problem(seed, shape=(5, 11), dtype="float64")
    w = np.random.default_rng(seed).standard_normal(11)
    assert np.allclose(group_scores(w, inverse_of(problem), 1), obs_scores(w, inverse_of(problem)))
    assert np.allclose(
        group_update(w, inverse_of(problem), [[2], [7]]), obs_update(w, inverse_of(problem), mask_of(11, 2, 7))
    )


def mask_of(dim, *gone):
    return ~np.isin(np.arange(dim), gone)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 4)])
def test_a_pattern_removes_the_cheapest_subset_of_each_group(n, m):
    problem = make_problem(4, shape=(6, 12), dtype="float64", kind="common mean")
    w = np.random.default_rng(0).standard_normal(12)
    groups = np.random.default_rng(1).permutation(12).reshape(-1, m)
    mask = n_m_mask(w, inverse_of(problem), n, m, groups=groups)
    for group in groups:
        subsets = [group[list(subset)] for subset in itertools.combinations(range(m), m - n)]
        costs = [group_cost(problem.oracle.inverse, w, subset) for subset in subsets]
        assert set(group[~mask[group]]) == set(subsets[int(np.argmin(costs))])


def test_weights_in_no_group_stay():
    problem = make_problem(4, shape=(6, 9), dtype="float64")
    mask = n_m_mask(np.ones(9), inverse_of(problem), 2, 4, groups=[[0, 2, 4, 6], [1, 3, 5, 7]])
    assert mask.sum() == 5
    assert mask[8]


def test_scores_of_groups_stay_within_their_bounds_where_elements_have_lost_their_digits():
    """A block of F⁻¹ that is singular but for rounding: its own elements do not say by how much."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal((3, 40)).astype(np.float32)
    g[:, :4] = 1e5 * g[:, :1]
    with pytest.warns(ml.IllConditionedWarning):
        inverse = ml.WoodburyRankOneInverse(g, 1.0)
    w = rng.standard_normal(40).astype(np.float32)
    scores, least = group_scores(w, inverse, 4), 0.5 * (w.reshape(-1, 4).astype(np.float64) ** 2).sum(axis=1)
    assert np.all(scores >= least * (1 - 1e-5))
    bound = 2 * (1 + np.sum(g.astype(np.float64) ** 2) / 3)  # of κ, by the trace
    assert np.all(scores <= least * bound * (1 + 1e-5))


@pytest.mark.parametrize("blocks", [False, True])
def test_a_group_along_the_steepest_direction_costs_all_that_f_says(blocks):
    """κ is known from below: a score with that upper bound would be too small."""
    g = np.random.default_rng(98).standard_normal((60, 8))
    inverse = ml.BlockDiagonalInverse(g, 1e-2, block_sizes=8) if blocks else ml.WoodburyRankOneInverse(g, 1e-2)
    values, vectors = np.linalg.eigh(inverse.forward.to_dense())
    assert np.allclose(group_scores(vectors[:, -1], inverse, 8), values[-1] / 2, rtol=1e-10)


def test_the_joint_update_keeps_float32s_digits_at_high_condition():
    """F_RS w_S lies in the span of the gradients: solved like any vector, κ ε of it would be lost."""
    problem = make_problem(0, shape=(8, 400), dtype="float32", kappa=1e5)
    w, mask = np.random.default_rng(0).standard_normal(400).astype(np.float32), random_mask(400)
    exact = constrained_minimum(problem.oracle.forward, w.astype(np.float64), mask)
    assert np.linalg.norm(joint_update(w, inverse_of(problem), mask) - exact) <= 1e-5 * np.linalg.norm(exact)


# --- refusals -------------------------------------------------------------------------------------------------------

INVERSE = ml.WoodburyRankOneInverse(np.random.default_rng(0).standard_normal((3, 8)), 0.1)
W = np.ones(8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: obs_scores(W[:3], INVERSE), ValueError, r"`weights` must have shape \(8,\)"),
        (lambda: obs_scores(W.astype(np.float32), INVERSE), TypeError, "`weights` must have dtype float64"),
        (lambda: obs_scores([1.0] * 8, INVERSE), TypeError, "`weights` must be an array"),
        (lambda: obs_update(W, INVERSE, W), TypeError, "`mask` must be an array of bool.*Compare it with 0"),
        (lambda: joint_update(W, INVERSE, [True] * 8), TypeError, "`mask` must be an array of bool"),
        (lambda: joint_update(W, INVERSE, np.ones(3, bool)), ValueError, r"`mask` must have shape \(8,\)"),
        (lambda: group_scores(W, INVERSE, 3), ValueError, "`groups` must divide d = 8; got 3"),
        (lambda: group_scores(W, INVERSE, 0), ValueError, "`groups` must be at least 1"),
        (lambda: group_scores(W, INVERSE, [0, 1]), ValueError, r"`groups` must be B or have shape \(k, B\)"),
        (lambda: group_scores(W, INVERSE, [[0, 8]]), IndexError, r"`groups` must be in \[-8, 8\); got 8"),
        (lambda: group_scores(W, INVERSE, [[0, 1], [1, 2]]), ValueError, "each index once; got 1 twice"),
        (lambda: group_update(W, INVERSE, [[7, -1]]), ValueError, "each index once; got 7 twice"),
        (lambda: group_scores(W, INVERSE, [[0.5, 1.0]]), TypeError, "`groups` must be an integer"),
        (lambda: n_m_mask(W, INVERSE, 4, 4), ValueError, "got 4 of 4. Pass 2 and 4 for 2:4"),
        (lambda: n_m_mask(W, INVERSE, 2, 32), ValueError, "m ≤ 16"),
        (lambda: n_m_mask(W, INVERSE, 2, 3), ValueError, "`m` must divide d = 8; got 3"),
        (lambda: n_m_mask(W, INVERSE, 2, 4, groups=[[0, 1]]), ValueError, r"`groups` must have shape \(k, 4\)"),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_an_inverse_that_has_only_whitened_rows_in_a_file_says_so(tmp_path):
    g = np.random.default_rng(0).standard_normal((3, 8))
    built = ml.WoodburyRankOneInverse(g, 0.1, out=tmp_path / "inverse")
    assert np.allclose(joint_update(W, built, mask_of(8, 1)), joint_update(W, INVERSE, mask_of(8, 1)))
    with pytest.raises(ValueError, match="`gradients` must be available"):
        joint_update(W, ml.load(tmp_path / "inverse"), mask_of(8, 1))
