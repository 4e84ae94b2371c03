"""Scores, masks and updates of weights of any size: their unit changes no order, and nothing bad is taken in."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import (
    group_scores,
    group_update,
    joint_update,
    n_m_mask,
    obs_scores,
    obs_update,
    prune,
    relative_damping,
)
from mfac_linalg.testing.strategies import seeds
from tests.backends import AVAILABLE
from tests.oracle import ExactOracle, as_float, exact

SOME = [b for b in AVAILABLE if b.name in ("numpy", "strict:no_x64", "torch:cpu", "jax", "dask")]
POWERS = {"float32": 80, "float64": 700}
MASK = np.array([True, False, True, True, False, True])
GROUPS = np.arange(6).reshape(3, 2)


def problem(seed, dtype):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, 6)).astype(dtype), rng.standard_normal(6).astype(dtype)


def inverses(gradients, damping=0.1):
    return {
        "static": ml.WoodburyRankOneInverse(gradients, damping),
        "window": ml.SlidingWindowInverse.from_gradients(gradients, damping),
        "blocks": ml.BlockDiagonalInverse(gradients, damping, block_sizes=3),
    }


@pytest.mark.parametrize("name", ["static", "window", "blocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_masks_and_updates_do_not_depend_on_the_unit_of_weights(sign, dtype, name):
    gradients, w = problem(0, dtype)
    inverse, scale = inverses(gradients)[name], np.asarray(2.0 ** (sign * POWERS[dtype]), dtype)
    scaled = w * scale
    assert np.array_equal(n_m_mask(scaled, inverse, 1, 2), n_m_mask(w, inverse, 1, 2))
    for update, argument in ((obs_update, MASK), (joint_update, MASK), (group_update, GROUPS[:1])):
        assert np.array_equal(update(scaled, inverse, argument), update(w, inverse, argument) * scale)


@pytest.mark.parametrize("backend", SOME, ids=repr)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("update", ["joint", "single"])
def test_pruning_does_not_depend_on_the_unit_of_weights(update, sign, backend):
    if backend.library == "dask.array":
        pytest.skip("prune is for arrays in memory")
    gradients, w = problem(0, "float32")

    def found(scale):
        weights = backend.asarray((w * np.float32(scale)).astype("float32"))
        return prune(weights, lambda a, step: backend.asarray(gradients), 0.5, steps=2, damping=0.1, update=update)

    plain, scale = found(1.0), 2.0 ** (80 * sign)
    assert np.array_equal(backend.to_numpy(found(scale).mask), backend.to_numpy(plain.mask))
    assert np.array_equal(backend.to_numpy(found(scale).weights), backend.to_numpy(plain.weights) * np.float32(scale))


@settings(max_examples=30)
@given(seeds(), st.sampled_from(["float32", "float64"]), st.booleans())
def test_weights_of_all_sizes_are_removed_in_the_order_of_their_exact_scores(seed, dtype, vector):
    gradients, w = problem(seed, dtype)
    rng = np.random.default_rng(seed)
    reach = {"float32": 60, "float64": 500}[dtype]
    w = (w * np.exp2(rng.uniform(-reach, reach, 6))).astype(dtype)
    damping = np.exp2(rng.uniform(-20, 20, 6)).astype(dtype) if vector else 0.1
    oracle = ExactOracle(gradients, damping)
    scores = exact(w) ** 2 / (2 * np.diag(oracle.inverse))
    order = sorted(range(6), key=lambda i: scores[i])
    removed = 3
    if scores[order[removed]] < scores[order[removed - 1]] * Fraction(11, 10):
        return
    mask = prune(w, lambda a, step: gradients, 0.5, damping=0.1).mask if not vector else None
    inverse = ml.WoodburyRankOneInverse(gradients, damping)
    if mask is not None:
        assert sorted(np.flatnonzero(~mask)) == sorted(order[:removed])
    try:
        got = obs_scores(w, inverse)
    except OverflowError:
        assert max(as_float(s) for s in scores) > np.finfo(dtype).max
        return
    for a, b in zip(got, scores, strict=True):
        assert abs(Fraction(float(a)) - b) <= b / 1000 + Fraction(float(np.finfo(dtype).smallest_subnormal))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_that_do_not_fit_are_refused(dtype):
    gradients, w = problem(0, dtype)
    inverse = ml.WoodburyRankOneInverse(gradients, 0.1)
    for power in (-POWERS[dtype], POWERS[dtype]):
        scaled = (w * np.asarray(2.0**power, dtype)).astype(dtype)
        with pytest.raises(OverflowError, match=dtype):
            obs_scores(scaled, inverse)
        with pytest.raises(OverflowError, match=dtype):
            group_scores(scaled, inverse, 2)
    assert np.array_equal(obs_scores(0 * w, inverse), np.zeros(6))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_groups_of_all_sizes_have_their_own_scores(dtype):
    gradients, w = problem(1, dtype)
    reach = {"float32": 50, "float64": 400}[dtype]
    w = (w * np.exp2(np.repeat([-reach, 0, reach], 2))).astype(dtype)
    oracle = ExactOracle(gradients, 0.1)
    scores = group_scores(w, ml.WoodburyRankOneInverse(gradients, 0.1), 2)
    for score, group in zip(scores, GROUPS, strict=True):
        block = oracle.inverse[np.ix_(group, group)]
        (a, b), (_, c) = block
        determinant, x = a * c - b * b, exact(w[group])
        wanted = (c * x[0] ** 2 - 2 * b * x[0] * x[1] + a * x[1] ** 2) / determinant / 2
        assert abs(as_float(Fraction(float(score)) / wanted - 1)) <= 1e-3


CALLS = {
    "obs_scores": lambda w, inverse: obs_scores(w, inverse),
    "group_scores": lambda w, inverse: group_scores(w, inverse, 2),
    "n_m_mask": lambda w, inverse: n_m_mask(w, inverse, 1, 2),
    "obs_update": lambda w, inverse: obs_update(w, inverse, MASK),
    "group_update": lambda w, inverse: group_update(w, inverse, GROUPS[:1]),
    "joint_update": lambda w, inverse: joint_update(w, inverse, MASK),
    "prune": lambda w, inverse: prune(w, lambda a, step: inverse.gradients, 0.5, damping=0.1),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("place", [1, slice(None)], ids=["one", "all"])
def test_weights_that_are_not_finite_are_refused_by_name(place, call, value):
    gradients, w = problem(0, "float64")
    w[place] = value
    for inverse in inverses(gradients).values():
        with pytest.raises(ValueError, match="`weights` must be finite"):
            call(w, inverse)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_not_finite_are_refused_by_the_name_of_their_function(value):
    gradients, w = problem(0, "float64")
    gradients[2, 3] = value
    for relative in (False, True):
        with pytest.raises(ValueError, match=r"`gradients_fn\(weights, step\)` must be finite"):
            prune(w, lambda a, step: gradients, 0.5, damping=0.1, relative=relative)
    with pytest.raises(ValueError, match="`gradients` must be finite"):
        relative_damping(gradients, 0.1)


@pytest.mark.parametrize("power", [-545, 545])
def test_a_relative_damping_has_no_overflow_between(power):
    gradients, _ = problem(0, "float64")
    with pytest.raises(OverflowError, match="`gradients`"):
        relative_damping(gradients * 2.0**power, 1.0)
    if power > 0:
        damping = relative_damping(gradients * 2.0**power, 2.0 ** (40 - 2 * power))
        assert damping == relative_damping(gradients, 1.0) * 2.0**40
