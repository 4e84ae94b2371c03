"""Dampings, weights, rows and vectors over the whole range of a dtype: right, or one named error; compared exactly."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings

import mfac_linalg as ml
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.pruning import group_scores, obs_scores
from mfac_linalg.testing import LIMIT, make_problem
from tests.backends import AVAILABLE, eps
from tests.oracle import ExactOracle, exact
from tests.wild_problems import check_all, wild_problems

SOME = [b for b in AVAILABLE if b.name in ("numpy", "strict:no_x64", "torch:cpu", "jax")]


def whitened(p):
    return ml.WoodburyRankOneInverse(p.gradients, p.damping, weights=p.weights)


def referenced(p):
    return ml.WoodburyRankOneInverse(p.gradients, p.damping, weights=p.weights, whiten=False)


def streamed(p):
    return ml.WoodburyRankOneInverse(p.gradients, p.damping, weights=p.weights, memory_limit=10**5)


def sparse(p):
    return ml.WoodburyRankOneInverse(scipy.sparse.csr_array(p.gradients), p.damping, weights=p.weights)


def blocks(p):
    return ml.BlockDiagonalInverse(p.gradients, p.damping, weights=p.weights, block_sizes=p.gradients.shape[1])


def window(p):
    return ml.SlidingWindowInverse.from_gradients(p.gradients, p.damping)


def window_with_a_damping_set_later(p):
    made = ml.SlidingWindowInverse.from_gradients(p.gradients, 1.0)
    made.damping = p.damping
    return made


WEIGHTED = [whitened, referenced, streamed, sparse, blocks]
PLAIN = [window, window_with_a_damping_set_later]


@pytest.mark.parametrize("make", WEIGHTED)
@settings(max_examples=25)
@given(wild_problems())
def test_answers_over_the_whole_range_are_right_or_named_errors(make, problem):
    check_all(make, problem)


def test_a_certificate_is_a_number_where_kappa_is_none_of_float32():
    g = np.array([[8.9e22, 2.4e-25, 1.3e23, -3.0e-14], [-1.8e-08, -1.2e16, 1.0e-08, 8.6e-02]], "float32")
    v = np.ones(4, "float32")
    for make in (ml.WoodburyRankOneInverse, ml.SlidingWindowInverse.from_gradients):
        with pytest.warns(ml.IllConditionedWarning):
            inverse = make(g, 0.014)
        x = inverse @ v
        assert inverse.backward_error(v, x) < 30 * np.finfo("float32").eps
        assert not np.isnan(inverse.relative_residual(v, x))  # κ eps, which may be outside of float32


@pytest.mark.parametrize("make", PLAIN)
@settings(max_examples=25)
@given(wild_problems(weighted=False))
def test_so_are_those_of_a_window(make, problem):
    check_all(make, problem)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e20])
def test_a_combination_that_vanishes_is_no_underflow(scale):
    """A difference of equal rows is zero, and what rounding makes of it may be lost."""
    gradients = np.tile(make_problem(0, shape=(1, 14)).gradients, (4, 1)) * scale
    inverse = ml.WoodburyRankOneInverse(gradients.astype("float32"), 1e-3 * scale**2, normalization="sum")
    x = inverse.matvec_gradients(np.array([1, -1, 1, -1], "float32"))
    assert np.abs(x).max() * scale <= 1e-3


@pytest.mark.parametrize(
    "backend", [b for b in AVAILABLE if b.name in ("numpy", "strict:no_x64", "torch:cpu", "jax")], ids=repr
)
@pytest.mark.parametrize("case", ["wide", "frozen", "weights"])
def test_every_backend_is_right_or_says_what_is_too_much(case, backend):
    rng = np.random.default_rng(6)
    sizes = np.geomspace(1e-10, 1e10, 6)
    gradients, damping, weights = rng.standard_normal((4, 6)), np.full(6, 1e-3), None
    if case == "wide":
        gradients, damping = gradients * sizes, sizes**2
    elif case == "frozen":
        damping[2] = np.finfo("float32").max
    else:
        weights = np.array([1e-30, 1.0, 1e30, 1e10], "float32")
        gradients = gradients / np.sqrt(weights.astype(float))[:, None]
    gradients, damping = gradients.astype("float32"), damping.astype("float32")
    v = (rng.standard_normal(6) * np.sqrt(damping.astype(float))).astype("float32")
    given = {} if weights is None else {"weights": backend.asarray(weights)}
    makes = [
        lambda g, d: ml.WoodburyRankOneInverse(g, d, **given),
        lambda g, d: ml.BlockDiagonalInverse(g, d, block_sizes=6, **given),
    ]
    if weights is None:
        makes.append(ml.SlidingWindowInverse.from_gradients)
    oracle = ExactOracle(gradients, damping, weights)
    for make in makes:
        if not backend.has_float64:
            with pytest.raises((ValueError, ml.FactorizationError), match="`damping`"):
                make(backend.asarray(gradients), backend.asarray(damping))
            continue
        inverse = make(backend.asarray(gradients), backend.asarray(damping))
        x = backend.to_numpy(inverse @ backend.asarray(v))
        assert oracle.backward_ratio(exact(v), x, eps("float32")) <= LIMIT
        if case != "frozen" or backend.library != "jax.numpy":  # XLA makes zero of subnormal numbers
            diagonal = backend.to_numpy(inverse.diagonal())
            assert np.allclose(diagonal, np.diag(oracle.inverse).astype(float), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "query",
    [
        lambda inverse: inverse.diagonal(),
        lambda inverse: inverse.trace(),
        lambda inverse: inverse.element(1, 1),
        lambda inverse: inverse.submatrix([0, 1]),
        lambda inverse: inverse.columns([0]),
        lambda inverse: inverse @ np.ones(6, "float32"),
        lambda inverse: inverse.quadratic_form(np.ones(6, "float32")),
        lambda inverse: inverse.matvec_gradients(np.full(inverse.num_gradients, 1e-20, "float32")),
    ],
)
@pytest.mark.parametrize("shape", [(3, 6), (7, 6)], ids=str)
def test_an_answer_that_underflows_is_refused(shape, query):
    gradients = (1e24 * np.random.default_rng(0).standard_normal(shape)).astype("float32")
    made = [
        ml.WoodburyRankOneInverse(gradients, 1e48),
        ml.WoodburyRankOneInverse(gradients, 1e48, whiten=False),
        ml.BlockDiagonalInverse(gradients, 1e48, block_sizes=3),
        ml.SlidingWindowInverse.from_gradients(gradients, 1e48),
    ]
    for inverse in made:
        with pytest.raises(OverflowError, match="too small for float32"):
            query(inverse)


def test_zero_has_a_zero_answer_whatever_the_damping():
    inverse = ml.WoodburyRankOneInverse(np.full((3, 6), 1e24, "float32"), 1e48)
    assert not np.any(inverse @ np.zeros(6, "float32"))
    assert inverse.quadratic_form(np.zeros(6, "float32")) == 0
    assert not np.any(inverse.matvec_gradients(np.zeros(3, "float32")))


def test_a_float32_window_of_a_steep_decay_answers_for_its_oldest_rows():
    gradients = np.random.default_rng(0).standard_normal((12, 15)).astype("float32")
    window = ml.SlidingWindowInverse(12, 15, 0.5, decay=1e-5)
    window.extend(gradients)
    weights = 1e-5 ** np.arange(11.0, -1.0, -1.0)
    oracle = ExactOracle(gradients, 0.5, weights)
    c = np.zeros(12, "float32")
    c[0] = 1
    x = window.matvec_gradients(c)
    assert oracle.backward_ratio(exact(gradients[0]), x, eps("float32")) <= LIMIT


@pytest.mark.parametrize("scale", [1e-12, 1e-11, 1e-9, 1e12])
@pytest.mark.parametrize("kappa", [1e2, 8e5])
def test_ordinary_gradients_of_any_unit_ask_for_no_float64(kappa, scale):
    """Where there is none they are scaled by a power of two, and not refused."""
    backend = next(b for b in AVAILABLE if not b.has_float64 and b.library == "array_api_strict")
    problem = make_problem(0, shape=(6, 300), kappa=kappa, dtype="float32").scaled_by(scale)
    inverse = ml.WoodburyRankOneInverse(backend.asarray(problem.gradients), problem.damping, whiten=False)
    x = backend.to_numpy(inverse @ backend.asarray(problem.gradients[0]))
    assert problem.oracle.backward_ratio(problem.gradients[0], x, eps("float32")) <= LIMIT


def queries_to_blame(size):
    """Queries with one argument of a size, which does not fit where gradients have its inverse; by that argument."""
    vector, rows, ones = (np.full(shape, size, "float32") for shape in ((6,), (2, 6), (2, 6)))
    larger, ones = np.full(6, size**1.4, "float32"), ones / rows
    return {
        "`v`": [
            lambda inverse: inverse @ vector,
            lambda inverse: inverse.dual_coefficients(vector),
            lambda inverse: inverse.sqrt_matvec(larger),
            lambda inverse: inverse.quadratic_form(vector),
            lambda inverse: inverse.damping_path(vector, [inverse.damping]),
        ],
        "`V`": [lambda inverse: inverse @ rows.T],
        "`coefficients`": [lambda inverse: inverse.matvec_gradients(larger[:4])],
        "`x`": [lambda inverse: inverse.forward @ (1 / vector)],
        "`X`": [lambda inverse: inverse.forward @ (1 / rows.T)],
        "`weights`": [
            lambda inverse: obs_scores(1 / vector, inverse),
            lambda inverse: group_scores(1 / vector, inverse, 2),
        ],
        "`test_gradients`": [
            lambda inverse: influence(inverse, rows),
            lambda inverse: influence(inverse, rows, ones),
            lambda inverse: influence(inverse, np.tile(rows, (3, 1))),
        ],
        "`train_gradients`": [lambda inverse: influence(inverse, ones, rows[:1])],
        "`gradients`": [lambda inverse: self_influence(inverse, rows)],
    }


@pytest.mark.parametrize(
    "make",
    [
        ml.WoodburyRankOneInverse,
        ml.SlidingWindowInverse.from_gradients,
        lambda gradients, damping: ml.BlockDiagonalInverse(gradients, damping, block_sizes=3),
    ],
    ids=["static", "window", "blocks"],
)
@pytest.mark.parametrize("argument", queries_to_blame(1.0))
@pytest.mark.parametrize("sign", [1, -1], ids=["too large", "too small"])
def test_an_answer_that_does_not_fit_names_the_argument_that_it_is_an_answer_to(sign, argument, make):
    gradients = (10.0 ** (-15 * sign) * np.random.default_rng(0).standard_normal((4, 6))).astype("float32")
    inverse = make(gradients, 10.0 ** (-30 * sign))
    for query in queries_to_blame(10.0 ** (26 * sign))[argument]:
        with pytest.raises(OverflowError, match=f"Scale {argument}, or the stored gradients"):
            query(inverse)


@pytest.mark.parametrize(
    "query",
    [
        lambda inverse: inverse.diagonal(),
        lambda inverse: inverse.trace(),
        lambda inverse: inverse.element(1, 1),
        lambda inverse: inverse.columns([0]),
        lambda inverse: self_influence(inverse) * inverse.forward.diagonal(),
    ],
)
@pytest.mark.parametrize("size", [1e24, 1e-24])
def test_an_answer_without_an_argument_names_none(size, query):
    gradients = (size * np.random.default_rng(0).standard_normal((3, 6))).astype("float32")
    with pytest.raises(OverflowError, match="Scale the stored gradients") as refusal:
        query(ml.WoodburyRankOneInverse(gradients, size**2))
    assert "`v`" not in str(refusal.value)


def test_a_window_names_the_gradient_that_it_was_given():
    window = ml.SlidingWindowInverse(2, 6, 1e20, dtype="float32")
    with pytest.raises(OverflowError, match="Scale `g`"):
        window.append_matvec(np.full(6, 1e-30, "float32"))
