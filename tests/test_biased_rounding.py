"""Rows of equal entries, or of signs: every sum over them rounds the same way, so that errors add up.

The bound on a product's backward error holds with a constant of twenty here, where it is below one for other rows.
"""

import numpy as np
import pytest

from mfac_linalg import SlidingWindowInverse, WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT
from tests.backends import eps

EPS = eps("float32")


def two_groups(rng, m, d, share=0.5, flips=0.0):
    """float32 rows of one sign pattern with one of two scales, and float64 ones in each group by its scale."""
    in_first = np.arange(m) < int(m * share)
    scales = np.where(in_first, *rng.uniform(1, 2, 2))
    signs = rng.choice([-1.0, 1.0], d) * np.where(rng.uniform(size=(m, d)) < flips, -1.0, 1.0)
    return (scales[:, None] * signs).astype("float32"), in_first / scales, ~in_first / scales


def norm(rows):
    """The spectral norm."""
    rows = rows.astype("float64")
    return float(np.sqrt(np.linalg.eigvalsh(rows @ rows.T)[-1]))


def damping_for(gradients, kappa):
    return norm(gradients) ** 2 / len(gradients) / (kappa - 1)


def aimed(gradients, damping, groups, q, size):
    """c = A y with the y = first − t second for which the sum Sᵀy cancels just so that size(S, y) = q ‖Sᵀy‖."""
    scaled = gradients.astype("float64") / np.sqrt(len(gradients) * damping)
    sums = [scaled.T @ group for group in groups]
    measure = size(scaled)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        y = groups[0] - middle * groups[1]
        low, high = (middle, high) if measure(y) < q * np.linalg.norm(sums[0] - middle * sums[1]) else (low, middle)
    c = y + scaled @ (scaled.T @ y)
    return (c / np.abs(c).max()).astype("float32")


def backward_errors(gradients, damping, v, x):
    """R of each column."""
    wide, x = gradients.astype("float64"), x.astype("float64")
    m = len(wide)
    residual = v - damping * x - wide.T @ (wide @ x) / m
    return np.linalg.norm(residual, axis=0) / ((damping + norm(wide) ** 2 / m) * np.linalg.norm(x, axis=0) * EPS)


def inverses(gradients, damping):
    return [
        WoodburyRankOneInverse(gradients, damping),
        WoodburyRankOneInverse(gradients, damping, whiten=True),
        SlidingWindowInverse.from_gradients(gradients, damping),
    ]


def check_push_through(gradients, damping, c):
    """Of one column, and of two, which BLAS adds in another order."""
    pair = np.stack([c, c], axis=1)
    v = gradients.astype("float64").T @ pair
    for inverse in inverses(gradients, damping):
        answers = np.column_stack([inverse.matvec_gradients(c), inverse.matvec_gradients(pair)])
        worst = np.max(backward_errors(gradients, damping, v[:, [0, 0, 1]], answers))
        assert worst <= LIMIT, f"R = {worst:.3g}: {inverse}"


def by_norms(scaled):
    size = norm(scaled)
    return lambda y: size * np.linalg.norm(y)


def by_rows(scaled):
    sizes = np.linalg.norm(scaled, axis=1)
    return lambda y: sizes @ np.abs(y)


@pytest.mark.parametrize("q", [3.9, 11.0, 29.0])
@pytest.mark.parametrize("shape", [(40, 4000), (200, 2000)], ids=str)
def test_push_through_of_rows_of_signs_keeps_the_contract(shape, q):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        gradients, *groups = two_groups(rng, *shape, flips=0.002 * (seed % 2))
        damping = damping_for(gradients, 1000.0 if seed % 2 else 200.0)
        check_push_through(gradients, damping, aimed(gradients, damping, groups, q, by_norms))


def test_long_sums_over_equal_rows_keep_the_contract():
    """The sum cancels by a little less than what has it computed again in float64."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        gradients, *groups = two_groups(rng, 576, 676, share=rng.uniform(0.1, 0.3))
        damping = damping_for(gradients, 1.5)
        for q in (1.4, 2.9):
            check_push_through(gradients, damping, aimed(gradients, damping, groups, q, by_rows))


@pytest.mark.parametrize("kappa", [1.5, 30.0, 1e4])
def test_products_with_many_equal_rows_keep_the_contract(kappa):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        gradients, *_ = two_groups(rng, 576, 1252, share=1 / 3)
        gradients *= np.float32(rng.uniform(1, 2))
        damping = damping_for(gradients, kappa)
        columns = np.stack([gradients[0], gradients[-1] * np.float32(0.7), gradients.sum(axis=0)], axis=1)
        for inverse in inverses(gradients, damping):
            alone = np.stack([inverse.matvec(column) for column in columns.T], axis=1)
            together = inverse.matmat(columns)
            for x in (alone, together):
                worst = np.max(backward_errors(gradients, damping, columns, x))
                assert worst <= LIMIT, f"R = {worst:.3g}: {inverse}"


@pytest.mark.parametrize(("shape", "kappa"), [((20, 9000), 7.5e5), ((64, 8192), 7.5e5), ((2, 70_000), 2e5)], ids=str)
def test_sweeps_that_do_not_contract_use_a_better_factor(shape, kappa):
    """The float32 Gram matrix of such rows is off by some ten roundings: θκε is above one."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gradients = (rng.uniform(1, 2, (shape[0], 1)) * np.ones(shape)).astype("float32")
        damping, v = damping_for(gradients, kappa), gradients[:1].T
        for inverse in inverses(gradients, damping):
            worst = np.max(backward_errors(gradients, damping, v, inverse.matvec(v[:, 0])[:, None]))
            assert worst <= LIMIT, f"R = {worst:.3g}: {inverse}"


@pytest.mark.parametrize("scale", [1e3, 1.0])
def test_a_column_is_not_judged_by_the_rows_of_another(scale):
    """Two parallel rows of signs among others, and beside their column one with a larger dual."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gradients = rng.standard_normal((100, 8192))
        i, j = rng.choice(100, 2, replace=False)
        gradients[[i, j]] = rng.uniform(1, 2, (2, 1)) * rng.choice([-1.0, 1.0], 8192)
        gradients = gradients.astype("float32")
        damping = damping_for(gradients, 15.0)
        c = np.stack([scale * rng.standard_normal(100), np.eye(100)[i]], axis=1).astype("float32")
        v = gradients.astype("float64").T @ c
        for inverse in inverses(gradients, damping):
            assert np.max(backward_errors(gradients, damping, v, inverse.matvec_gradients(c))) <= LIMIT


@pytest.mark.parametrize("m", [16, 24, 64])
def test_few_rows_are_not_judged_by_chance(m):
    """A third of the rows are parallel rows of signs, and c nearly annihilates these."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gradients = rng.standard_normal((m, 8300))
        some, scales = rng.choice(m, m // 3, replace=False), rng.uniform(1, 2, m // 3)
        gradients[some] = scales[:, None] * rng.choice([-1.0, 1.0], 8300)
        gradients = gradients.astype("float32")
        damping = damping_for(gradients, 31.0)
        scaled = gradients.astype("float64") / np.sqrt(m * damping)
        inverse = WoodburyRankOneInverse(gradients, damping)
        for _ in range(10):
            free, other = rng.standard_normal(m // 3), rng.standard_normal(m)
            y = np.zeros(m)
            y[some] = free - scales * (free @ scales) / (scales @ scales)
            y += other * rng.uniform(0.035, 0.5) * np.linalg.norm(y) * norm(scaled) / np.linalg.norm(scaled.T @ other)
            c = y + scaled @ (scaled.T @ y)
            c = (c / np.abs(c).max()).astype("float32")
            v = gradients.astype("float64").T @ c
            assert backward_errors(gradients, damping, v, inverse.matvec_gradients(c)) <= LIMIT


def test_many_columns_are_not_judged_by_some_rows_alone():
    """Two groups of equal rows between the rows of the sample, which has a larger row at its first place."""
    m, d = 256, 5000
    first, second = np.arange(1, 15), np.arange(17, 31)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        gradients = 0.01 * rng.standard_normal((m, d))
        scales = rng.uniform(1, 2, 2)
        gradients[first], gradients[second], gradients[0] = *scales, 1.5 * rng.standard_normal(d)
        gradients = gradients.astype("float32")
        damping = damping_for(gradients, 100.0)
        cancelling, large = np.zeros(m), np.eye(m)[0]
        cancelling[first], cancelling[second] = 1 / scales[0], -1 / scales[1]
        c = aimed(gradients, damping, [large, large - cancelling], 28.0, by_norms)
        columns = np.outer(c, rng.uniform(0.5, 1, 4)).astype("float32")
        v = gradients.astype("float64").T @ columns
        x = WoodburyRankOneInverse(gradients, damping).matvec_gradients(columns)
        assert np.max(backward_errors(gradients, damping, v, x)) <= LIMIT
