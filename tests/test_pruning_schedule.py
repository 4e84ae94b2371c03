"""The path of the sparsity: how many weights remain after each step, and steps that only move the others."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import prune
from tests.test_prune import W, gradients_of, loss

NAMES = ("geometric", "cubic", "linear")
WIDE = 1000


def counts_of(schedule, sparsity, steps=1, mask=None, **options):
    """How many weights remain after each step."""
    if mask is None:
        mask = np.ones(WIDE, bool)
    weights = 1.0 + np.arange(WIDE)
    pruned = prune(
        weights,
        lambda w, step: np.ones((1, WIDE)),
        sparsity,
        steps=steps,
        schedule=schedule,
        mask=mask,
        damping=0.1,
        **options,
    )
    return [round((1 - step.sparsity) * WIDE) for step in pruned.steps]


@example("cubic", 0.9, 64, 0)
@given(st.sampled_from(NAMES), st.floats(0, 0.99), st.integers(1, 8), st.integers(0, 400))
def test_every_path_never_grows_and_ends_at_the_sparsity(schedule, sparsity, steps, gone):
    mask = np.arange(WIDE) >= min(gone, round(sparsity * WIDE))
    counts = counts_of(schedule, sparsity, steps, mask)
    assert len(counts) == steps
    assert all(after <= before for before, after in itertools.pairwise([int(mask.sum()), *counts]))
    assert counts[-1] == max(1, WIDE - round(sparsity * WIDE))


@example(0.93, 64, 117)
@given(st.sampled_from([0.3, 0.7, 0.93, 0.98]), st.integers(1, 8), st.sampled_from([0, 117, 300]))
def test_the_paths_are_those_of_their_formulas(sparsity, steps, gone):
    present, exact = WIDE - gone, (1 - sparsity) * WIDE
    times = [step / steps for step in range(1, steps)]
    last = WIDE - round(sparsity * WIDE)
    expected = {
        "geometric": [present * (exact / present) ** t for t in times],
        "cubic": [exact + (present - exact) * (1 - t) ** 3 for t in times],
        "linear": [present + (exact - present) * t for t in times],
    }
    for name in NAMES:
        between = [min(present, max(last, round(number))) for number in expected[name]]
        assert counts_of(name, sparsity, steps, np.arange(WIDE) >= gone) == [*between, last]


def test_the_path_is_geometric_unless_told_otherwise():
    plain, named = (prune(W, gradients_of, 0.7, steps=5, damping=0.1, **o) for o in ({}, {"schedule": "geometric"}))
    assert np.array_equal(plain.weights, named.weights)
    assert plain.steps == named.steps


@pytest.mark.parametrize("as_given", [list, tuple, np.array])
def test_the_path_may_be_the_sparsity_after_each_step(as_given):
    path = as_given([0.1, 0.45, 0.45, 0.9])
    assert counts_of(path, 0.9) == counts_of(path, 0.9, 4) == [900, 550, 550, 100]
    assert counts_of(path, 0.9, mask=np.arange(WIDE) >= 300) == [700, 550, 550, 100]


def test_a_path_of_ones_own_is_that_of_every_layer():
    found = prune(W, gradients_of, 0.5, schedule=[0.25, 0.5], layer_sizes=[8, 4, 8], damping=0.1)
    first = prune(W, gradients_of, 0.25, layer_sizes=[8, 4, 8], damping=0.1)
    assert found.steps[0].sparsity == first.steps[0].sparsity == 0.25
    assert [int(part.sum()) for part in np.split(found.mask, [8, 12])] == [4, 2, 4]


@pytest.mark.parametrize("schedule", NAMES)
def test_layers_with_sparsities_of_their_own_have_paths_of_their_own(schedule):
    sparsities = [0.5, 0.9]
    found = prune(
        np.ones(WIDE),
        lambda w, step: np.ones((1, WIDE)),
        sparsities,
        steps=3,
        schedule=schedule,
        damping=0.1,
        layer_sizes=WIDE // 2,
    )
    each = [counts_of(schedule, sparsity, 3) for sparsity in sparsities]
    assert found.steps[0].sparsity == pytest.approx(1 - (each[0][0] + each[1][0]) / (2 * WIDE), abs=2e-3)
    assert [int(part.sum()) for part in np.split(found.mask, 2)] == [250, 50]


@pytest.mark.parametrize("blocks", [None, 5])
def test_a_step_that_removes_nothing_moves_to_the_minimum_of_the_model_by_the_full_matrix(blocks):
    alpha, path = 0.3, [0.5, 0.5, 0.75]
    found = prune(W, gradients_of, 0.75, schedule=path, damping=0.1, slope=alpha, slope_damping=2.0, block_sizes=blocks)
    options = {"damping": 0.1, "slope": alpha, "slope_damping": 2.0, "block_sizes": blocks}
    first = prune(W, gradients_of, 0.5, **options)
    rows = gradients_of(first.weights) * first.mask
    full = ml.WoodburyRankOneInverse(rows, 2.0)
    moved = np.where(first.mask, first.weights - alpha * (full @ rows.mean(axis=0)), 0)
    last = prune(moved, gradients_of, 0.75, mask=first.mask, **options)
    assert np.array_equal(found.mask, last.mask)
    assert np.allclose(found.weights, last.weights, rtol=1e-10, atol=1e-12)
    assert not np.allclose(moved, first.weights, rtol=1e-3)


def test_moves_are_steps_at_the_end_that_remove_nothing():
    options = {"damping": 0.1, "slope": 0.3, "slope_damping": 2.0, "block_sizes": 5}
    moved = prune(W, gradients_of, 0.75, steps=2, moves=2, **options)
    listed = prune(W, gradients_of, 0.75, schedule=[0.5, 0.75, 0.75, 0.75], **options)
    assert [step.sparsity for step in moved.steps] == [0.5, 0.75, 0.75, 0.75]
    assert np.array_equal(moved.weights, listed.weights)
    after_a_list = prune(W, gradients_of, 0.75, schedule=[0.5, 0.75], moves=2, **options)
    assert np.array_equal(after_a_list.weights, listed.weights)


def test_moves_lower_the_loss_of_a_least_squares_problem():
    options = {"damping": 1e-3, "slope": 1.0, "slope_damping": 10.0}
    losses = [loss(prune(W, gradients_of, 0.4, moves=moves, **options).weights) for moves in (0, 1, 4, 16)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_the_slope_is_asked_for_in_moves_too():
    asked = []
    prune(W, gradients_of, 0.5, steps=2, moves=2, damping=0.1, slope=lambda step: asked.append(step) or 0.1)
    assert asked == [0, 1, 2, 3]


def test_a_step_that_removes_nothing_changes_nothing_without_a_slope():
    seen = []
    prune(W, lambda w, step: (seen.append(w), gradients_of(w))[1], 0.5, schedule=[0.5, 0.5, 0.5], damping=0.1)
    assert np.array_equal(seen[1], seen[2])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"schedule": "cosine"}, ValueError, "`schedule` must be one of 'geometric', 'cubic', 'linear'; got 'cosine'"),
        ({"schedule": 0.5}, TypeError, "`schedule` must be one of 'geometric'.* or the sparsity after each step"),
        ({"schedule": None}, TypeError, "`schedule` must be"),
        ({"schedule": []}, ValueError, "`schedule` must end at `sparsity`, 0.5; got an empty one"),
        ({"schedule": [0.2, 0.4]}, ValueError, "`schedule` must end at `sparsity`, 0.5; got 0.4. Append it"),
        ({"schedule": [0.4, 0.3, 0.5]}, ValueError, "`schedule` must not fall.*got 0.3 after 0.4. Sort it"),
        ({"schedule": [0.2, 1.0]}, ValueError, r"`schedule` must be in \[0, 1\); got 1.0"),
        ({"schedule": [0.2, "0.5"]}, TypeError, r"`schedule` must be a float in \[0, 1\)"),
        ({"schedule": [0.2, 0.5], "steps": 3}, ValueError, "`steps` must be the number of .*; got 3 for 2. Leave"),
        (
            {"schedule": [0.2, 0.5], "sparsity": [0.5, 0.5], "layer_sizes": 10},
            TypeError,
            "`schedule` must be a name where `sparsity` is not one float",
        ),
        ({"moves": 3}, ValueError, "`moves` must be 0 without a slope; got 3. Pass `slope`"),
        ({"moves": -1, "slope": 0.1}, ValueError, "`moves` must be ≥ 0"),
        ({"moves": 1.5, "slope": 0.1}, TypeError, "`moves` must be a whole number"),
    ],
)
def test_what_is_no_path_is_refused_by_name(options, error, words):
    arguments = {"weights": W, "gradients_fn": gradients_of, "sparsity": 0.5, "damping": 0.1} | options
    with pytest.raises(error, match=words):
        prune(**arguments)


def test_a_model_is_pruned_along_the_path_and_its_iterators_are_checked_for_as_many_steps():
    torch = pytest.importorskip("torch")
    from mfac_linalg.torch import prune_model

    def pruned(batches, **options):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        return prune_model(model, torch.nn.functional.cross_entropy, batches, 0.5, damping=1e-2, **options)

    torch.manual_seed(1)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(4)]
    found = pruned(batches, schedule=[0.25, 0.5, 0.5], slope="batch")
    assert [step.sparsity for step in found.steps] == pytest.approx([0.25, 0.5, 0.5])
    assert [step.sparsity for step in pruned(batches, schedule="linear", steps=2).steps] == pytest.approx([0.25, 0.5])
    with pytest.raises(ValueError, match="`batches` must have batches in each of 3 passes"):
        pruned(iter(batches), schedule=[0.25, 0.5, 0.5])
    with pytest.raises(ValueError, match="`batches` must have batches in each of 4 passes"):
        pruned(iter(batches), steps=3, moves=1, slope="batch")
    assert len(pruned(batches, steps=3, moves=2, slope="batch").steps) == 5
