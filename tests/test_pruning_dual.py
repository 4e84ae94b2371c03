"""The dual of the joint problem: a bound below all masks, and the masks that its Newton steps meet."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.pruning import exchange, joint_objective, n_m_mask
from mfac_linalg.pruning.dual import Point, by_dual
from mfac_linalg.pruning.joint import Masked, systems_of
from mfac_linalg.pruning.quotas import Quotas
from mfac_linalg.testing.strategies import problems, seeds
from tests.test_pruning import inverse_of, random_mask
from tests.test_pruning_exchange import KINDS, drawn, mask_of_scores
from tests.test_pruning_slope import SLOPE


def solved(w, inverse, mask, slope=0.0):
    return Masked.of(systems_of(inverse._unchanged, w, slope)[0], mask)


def wide(seed=1, m=20, dim=3000):
    rng = np.random.default_rng(seed)
    gradients, w = rng.standard_normal((m, dim)), rng.standard_normal(dim)
    return w, ml.WoodburyRankOneInverse(gradients, 0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_the_bound_is_below_every_mask(kind, slope):
    for seed in range(8):
        inverse, _, w, _ = drawn(kind, seed)
        dim, rng = len(w), np.random.default_rng(seed)
        labels = rng.integers(-1, 2, dim) if seed % 2 else np.zeros(dim, np.int64)
        mask = random_mask(dim, seed)
        found = by_dual(solved(w, inverse, mask, slope), Quotas(mask, labels), 20)
        objectives = []
        for kept in itertools.product((False, True), repeat=dim):
            other = np.array(kept)
            counts = [other[labels == g].sum() == mask[labels == g].sum() for g in (0, 1)]
            if all(counts) and np.array_equal(other[labels < 0], mask[labels < 0]):
                objectives.append(solved(w, inverse, other, slope).objective)
        assert 0 <= found.bound <= min(objectives) * (1 + 1e-10)
        assert min(objectives) * (1 - 1e-10) <= found.best.objective <= solved(w, inverse, mask, slope).objective


@given(problems(), seeds(), st.floats(0, 4))
def test_the_value_of_the_dual_is_its_definition(problem, seed, slope):
    inverse, rng = inverse_of(problem), np.random.default_rng(seed)
    w, mask = rng.standard_normal(inverse.dim), random_mask(inverse.dim, seed)
    systems, _ = systems_of(inverse._unchanged, w, slope)
    (system,) = systems
    s, quotas = system.columns_at(np.arange(inverse.dim)), Quotas(mask, np.zeros(inverse.dim, np.int64))
    a = rng.standard_normal((len(s), 1))
    moment = system.z + s.T @ a[:, 0]
    at, largest = Point((a,), moment), quotas.largest(np.abs(moment))
    linear = s @ system.z - system.shift[:, 0]
    terms = system.z @ system.z, moment[largest] @ moment[largest], 2 * a[:, 0] @ linear, np.sum(a**2)
    expected = (terms[0] - terms[1] + terms[2] - terms[3]) / 2
    found = at.value(Masked.of(systems, largest))
    assert abs(found - expected) <= 1e-10 * (np.sum(np.abs(terms)) + np.sum((s.T @ a) ** 2))


def test_the_duality_gap_of_many_weights_is_small():
    for seed, slope in itertools.product(range(3), (0.0, 0.1)):
        w, inverse = wide(seed)
        start = mask_of_scores(w, inverse, 600, slope)
        before = solved(w, inverse, start, slope)
        found = by_dual(before, Quotas(start, np.zeros(len(w), np.int64)), 50)
        assert found.steps < 15
        assert found.best.objective < 0.999 * before.objective
        assert found.bound <= found.best.objective <= 1.001 * found.bound


def test_every_start_leads_near_the_best_mask():
    w, inverse = wide()
    rng = np.random.default_rng(0)
    starts = [mask_of_scores(w, inverse, 600), *(rng.permutation(len(w)) < 600 for _ in range(3))]
    values = [joint_objective(w, inverse, exchange(w, inverse, start)) for start in starts]
    assert max(values) <= 1.001 * min(values)


def test_patterns_of_many_groups_are_bounded_too():
    w, inverse = wide(dim=400)
    start = n_m_mask(w, inverse, 2, 4)
    found = by_dual(solved(w, inverse, start), Quotas(start, np.repeat(np.arange(100), 4)), 50)
    assert [int(x) for x in found.best.mask.reshape(100, 4).sum(axis=1)] == [2] * 100
    assert found.bound <= found.best.objective <= 1.1 * found.bound


@given(seeds(), st.integers(1, 30), st.integers(-1, 3))
def test_the_largest_of_each_group(seed, dim, last):
    rng = np.random.default_rng(seed)
    labels, mask, sizes = rng.integers(-1, last + 1, dim), rng.random(dim) < 0.5, rng.random(dim)
    quotas = Quotas(mask, labels)
    found = quotas.largest(sizes)
    thresholds = quotas.thresholds(found, sizes)
    assert np.array_equal(found[labels < 0], mask[labels < 0])
    for group in range(last + 1):
        inside = labels == group
        stays, goes = sizes[inside & found], sizes[inside & ~found]
        assert len(stays) == mask[inside].sum()
        if len(stays) and len(goes):
            assert stays.min() >= goes.max()
            assert np.allclose(thresholds[inside], (stays.min() + goes.max()) / 2)
        else:
            assert np.all(np.isinf(thresholds[inside]))
