"""Pruning in steps: the requested sparsity, the removed weights, the remaining ones."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import joint_update, obs_scores, obs_update, prune, relative_damping
from mfac_linalg.pruning.select import keep_largest

M, D = 7, 20
X = np.random.default_rng(0).standard_normal((M, D))
Y = np.random.default_rng(1).standard_normal(M)
W = np.random.default_rng(2).standard_normal(D)


def gradients_of(w, step=0):
    """Those of ½ (x_iᵀw − y_i)² for each sample."""
    return (X @ w - Y)[:, None] * X


def loss(w):
    return float(np.sum((X @ w - Y) ** 2))


@pytest.mark.parametrize(
    ("update", "formula"),
    [("joint", functools.partial(joint_update, compensation_damping="auto")), ("single", obs_update)],
)
def test_a_step_removes_what_scores_least_and_moves_the_rest(update, formula):
    found = prune(W, gradients_of, 0.4, damping=0.1, update=update)
    inverse = ml.WoodburyRankOneInverse(gradients_of(W), 0.1)
    gone = np.argsort(obs_scores(W, inverse))[:8]
    assert np.array_equal(np.flatnonzero(~found.mask), np.sort(gone))
    assert np.allclose(found.weights, W + formula(W, inverse, found.mask))


@given(st.floats(0, 0.95), st.integers(1, 5))
def test_the_sparsity_is_reached_and_what_is_gone_is_zero(sparsity, steps):
    found = prune(W, gradients_of, sparsity, steps=steps, damping=0.1)
    assert np.sum(~found.mask) == round(sparsity * D)
    assert np.all(found.weights[~found.mask] == 0)
    assert np.all(found.weights[found.mask] != 0)
    assert len(found.steps) == steps


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_the_largest_scores_stay_and_just_as_many_as_asked(scores, data):
    scores = np.array(scores, float)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    stays = data.draw(st.integers(0, int(mask.sum())))
    kept = keep_largest(scores, mask, stays)
    assert kept.sum() == stays
    assert not np.any(kept & ~mask)
    assert scores[kept].sum() == np.sort(scores[mask])[::-1][:stays].sum()


def test_the_density_falls_by_the_same_factor_each_step():
    found = prune(np.ones(1000), lambda w, step: np.ones((1, 1000)), 0.8, steps=4, damping=0.1)
    assert [step.sparsity for step in found.steps] == pytest.approx(
        [1 - 0.2 ** (j / 4) for j in (1, 2, 3, 4)], abs=1e-3
    )


def test_each_step_asks_for_gradients_at_the_weights_that_are_left():
    asked = []

    def gradients_fn(w, step):
        asked.append((step, w.copy()))
        return gradients_of(w)

    found = prune(W, gradients_fn, 0.7, steps=3, damping=0.1)
    assert [step for step, _ in asked] == [0, 1, 2]
    assert np.array_equal(asked[0][1], W)
    first = prune(W, gradients_of, found.steps[0].sparsity, damping=0.1)
    assert np.array_equal(asked[1][1], first.weights)


def test_what_is_gone_stays_gone():
    masks = [prune(W, gradients_of, 0.8, steps=4, damping=0.1).mask]
    seen = []
    prune(W, lambda w, step: (seen.append(w == 0), gradients_of(w))[1], 0.8, steps=4, damping=0.1)
    masks = [*seen, ~masks[0]]
    assert all(np.all(later[earlier]) for earlier, later in itertools.pairwise(masks))


def test_gradients_of_what_is_gone_do_not_count():
    def loud(w, step):
        return np.where(w == 0, 1e6, gradients_of(w))

    quiet = prune(W, gradients_of, 0.6, steps=3, damping=0.1, update="single")
    assert np.array_equal(prune(W, loud, 0.6, steps=3, damping=0.1, update="single").weights, quiet.weights)


def test_a_mask_is_where_pruning_starts():
    mask = np.arange(D) % 4 > 0
    found = prune(W, gradients_of, 0.5, steps=2, damping=0.1, mask=mask)
    assert not np.any(found.mask & ~mask)
    assert found.steps[-1].sparsity == 0.5


def test_no_sparsity_changes_nothing():
    assert np.array_equal(prune(W, gradients_of, 0.0, damping=0.1).weights, W)


def test_arguments_are_left_as_they_are():
    before = W.copy()
    prune(W, gradients_of, 0.5, damping=0.1)
    assert np.array_equal(W, before)


@pytest.mark.parametrize("sparsity", [0.5, [0.5, 0.75, 0.25]], ids=["one", "each"])
def test_every_layer_keeps_its_own_share(sparsity):
    found = prune(np.arange(1.0, 21), gradients_of, sparsity, steps=2, damping=0.1, layer_sizes=[8, 8, 4])
    gone = [int(np.sum(~found.mask[part])) for part in (slice(0, 8), slice(8, 16), slice(16, 20))]
    assert gone == ([4, 4, 2] if sparsity == 0.5 else [4, 6, 1])


def test_blocks_are_those_of_the_block_diagonal_inverse():
    found = prune(W, gradients_of, 0.4, damping=0.1, block_sizes=5)
    inverse = ml.BlockDiagonalInverse(gradients_of(W), 0.1, block_sizes=5)
    assert np.allclose(found.weights, W + joint_update(W, inverse, found.mask, compensation_damping="auto"))


def test_relative_damping_is_in_units_of_the_mean_squared_gradient():
    assert relative_damping(X, 0.5) == pytest.approx(0.5 * np.mean(X**2))
    found = prune(W, gradients_of, 0.4, damping=0.5, relative=True)
    assert found.steps[0].damping == pytest.approx(0.5 * np.mean(gradients_of(W) ** 2))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_relative_damping_is_computed_in_float64(scale):
    jnp = pytest.importorskip("jax.numpy")
    for library in (np, jnp):
        rows = library.asarray(scale * X, dtype="float32")
        assert relative_damping(rows, 1.0) == pytest.approx(np.mean((scale * X) ** 2), rel=1e-6)


@pytest.mark.parametrize("ratio", [-1.0, 0.0, math.nan, "2"])
def test_a_relative_damping_that_is_none_is_refused(ratio):
    with pytest.raises((TypeError, ValueError), match="`ratio`"):
        relative_damping(X, ratio)


def test_gradients_that_are_all_zero_have_no_relative_damping():
    with pytest.raises(ValueError, match="`gradients` must not all be zero"):
        prune(W, lambda w, step: np.zeros((M, D)), 0.5, damping=0.1, relative=True)


def test_small_layers_shrink_evenly_too():
    """Rounding is of the whole way, not of what each step adds."""
    w = np.random.default_rng(0).standard_normal(600)

    def counts(sparsity, steps, size):
        found = prune(w, lambda w, step: np.ones((1, 600)), sparsity, steps=steps, damping=1.0, layer_sizes=size)
        return [round(step.sparsity * size) for step in found.steps]

    assert counts(0.8, 4, 3) == [1, 2, 2, 2]  # of 3 weights 2.0, 1.3, 0.9 and 0.6 stay
    assert counts(0.5, 8, 10) == [1, 2, 2, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("layer_sizes", [None, 5])
def test_no_layer_is_emptied(layer_sizes):
    found = prune(W, gradients_of, 0.999, steps=3, damping=0.1, relative=True, layer_sizes=layer_sizes)
    assert np.sum(found.mask) == (1 if layer_sizes is None else 4)


def test_relative_damping_is_in_units_of_the_weights_that_are_left():
    mask = np.arange(D) < 5
    found = prune(W, lambda w, step: X, 0.8, damping=0.5, relative=True, mask=mask)
    assert found.steps[0].damping == pytest.approx(0.5 * np.mean(X[:, mask] ** 2))


def test_a_sparsity_for_each_layer_may_be_an_array():
    each = prune(W, gradients_of, np.array([0.2, 0.6]), damping=0.1, layer_sizes=10)
    assert np.array_equal(each.mask.reshape(2, 10).sum(axis=1), [8, 4])


def test_relative_damping_knows_no_unit_of_the_loss():
    scaled = prune(W, lambda w, step: 1e3 * gradients_of(w), 0.6, steps=2, damping=0.1, relative=True)
    plain = prune(W, gradients_of, 0.6, steps=2, damping=0.1, relative=True)
    assert np.array_equal(scaled.mask, plain.mask)
    assert np.allclose(scaled.weights, plain.weights)


def test_the_loss_chooses_damping_and_length():
    dampings, lengths = [1e-3, 1e-1, 10.0], [0.5, 1.0]
    found = prune(W, gradients_of, 0.4, damping=dampings, lengths=lengths, loss_fn=loss)
    results = {}
    for damping in dampings:
        one = prune(W, gradients_of, 0.4, damping=damping)
        for length in lengths:
            kept = np.where(one.mask, W, 0)
            results[damping, length] = loss(kept + length * (one.weights - kept))
    best = min(results, key=results.get)
    assert (found.steps[0].damping, found.steps[0].length) == best
    assert found.steps[0].loss == pytest.approx(results[best])


def test_a_loss_that_is_not_a_number_is_never_chosen():
    losses = iter([math.nan, 2.0, math.nan, 1.0])
    found = prune(W, gradients_of, 0.4, damping=[1e-3, 1e-1], lengths=[0.5, 1.0], loss_fn=lambda w: next(losses))
    assert found.steps[0].loss == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [{0}, {3}, {0, 1, 2}, {1, 2, 3}, {0, 3}])
def test_a_loss_that_is_not_finite_never_wins(bad, at):
    losses = [4.0, 3.0, 2.0, 1.0]
    said = iter([bad if index in at else loss for index, loss in enumerate(losses)])
    found = prune(W, gradients_of, 0.4, damping=[1e-3, 1e-1], lengths=[0.5, 1.0], loss_fn=lambda w: next(said))
    assert found.steps[0].loss == min(loss for index, loss in enumerate(losses) if index not in at)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("damping", [0.1, [0.1, 1.0]])
@pytest.mark.parametrize("good_steps", [0, 1])
def test_a_step_without_a_finite_loss_is_refused_by_name(bad, damping, good_steps):
    said = iter([1.0] * good_steps * np.size(damping) + [bad] * 9)
    with pytest.raises(ValueError, match=rf"`loss_fn\(weights\)` must be finite for one candidate .* got {bad}"):
        prune(W, gradients_of, 0.4, steps=3, damping=damping, loss_fn=lambda w: next(said))


def test_every_library_prunes_alike(backend):
    if backend.is_lazy:
        return
    dtype = backend.dtypes[0]
    x, y, w = (backend.asarray(array, dtype) for array in (X, Y, W))
    found = prune(w, lambda w, step: (x @ w - y)[:, None] * x, 0.6, steps=2, damping=0.1, layer_sizes=10)
    expected = prune(W, gradients_of, 0.6, steps=2, damping=0.1, layer_sizes=10)
    assert backend.is_own(found.weights, dtype)
    assert np.array_equal(backend.to_numpy(found.mask), expected.mask)
    assert np.allclose(backend.to_numpy(found.weights), expected.weights, atol=1e-4)


def prune_example(**options):
    arguments = {"weights": W, "gradients_fn": gradients_of, "sparsity": 0.5, "damping": 0.1}
    return prune(**(arguments | options))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sparsity": 1.0}, ValueError, r"`sparsity` must be in \[0, 1\); got 1.0. Pass 0.8 to remove 80 %"),
        ({"sparsity": "half"}, TypeError, "`sparsity` must be a float"),
        ({"sparsity": [0.5, True]}, ValueError, "one for each of 1 layers; got 2"),
        ({"sparsity": [0.5, "x"], "layer_sizes": 10}, TypeError, "`sparsity`"),
        ({"sparsity": 0.1, "mask": np.arange(D) < 10}, ValueError, "at least that of `mask`.*10 are left"),
        ({"mask": np.zeros(D, bool)}, ValueError, f"`mask` must leave a weight.*got none of 0:{D}. Leave"),
        (
            {"mask": np.arange(D) < 10, "layer_sizes": (10, D - 10)},
            ValueError,
            f"`mask` must leave a weight of each layer at least; got none of 10:{D}",
        ),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"damping": 0.0}, ValueError, "`damping` must be finite and > 0"),
        (
            {"damping": [0.1, 0.2]},
            TypeError,
            "`loss_fn` must be given to choose among 2 of `damping` and 1 of `lengths`",
        ),
        ({"damping": "small"}, TypeError, "`damping`"),
        ({"lengths": []}, ValueError, "`lengths`"),
        ({"lengths": [-1.0]}, ValueError, "`lengths`"),
        ({"relative": 1}, TypeError, "`relative`"),
        ({"update": "best"}, ValueError, "`update` must be one of 'joint', 'single'"),
        ({"layer_sizes": [3]}, ValueError, "`layer_sizes`"),
        ({"block_sizes": 0}, ValueError, "`block_sizes`"),
        ({"mask": np.ones(D)}, TypeError, "`mask` must be an array of bool"),
        ({"weights": np.ones(D, int)}, TypeError, "`weights` must be float32 or float64"),
        ({"weights": np.full(D, np.inf)}, ValueError, "`weights` must be finite"),
        ({"weights": np.ones((2, D))}, ValueError, r"`weights` must have shape \(d,\)"),
        (
            {"gradients_fn": lambda w, step: np.ones((2, 3))},
            ValueError,
            r"`gradients_fn\(weights, step\)` must have shape",
        ),
        ({"gradients_fn": lambda w, step: [1.0]}, TypeError, r"`gradients_fn\(weights, step\)` must be an array"),
        (
            {"gradients_fn": lambda w, step: X.astype("f")},
            TypeError,
            r"`gradients_fn\(weights, step\)` must have dtype",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        prune_example(**options)


def test_gradients_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        prune_example(gradients_fn=lambda w, step: np.full((2, D), math.nan))


@pytest.mark.parametrize("block_sizes", [0, 2.5, (D - 1,), "filters"], ids=str)
def test_blocks_are_checked_before_any_gradients_are_asked_for(block_sizes):
    asked = []
    with pytest.raises((TypeError, ValueError), match="`block_sizes` must"):
        prune(W, lambda w, step: asked.append(step) or gradients_of(w), 0.5, damping=0.1, block_sizes=block_sizes)
    assert asked == []


def test_gradients_with_a_graph_leave_weights_without_one():
    torch = pytest.importorskip("torch")
    seen = []

    def gradients(w, step):
        seen.append(w)
        return torch.from_numpy(gradients_of(w.numpy())).requires_grad_()

    pruned = prune(torch.from_numpy(W), gradients, 0.5, steps=2, damping=0.1)
    assert not any(w.requires_grad for w in (*seen, pruned.weights))
