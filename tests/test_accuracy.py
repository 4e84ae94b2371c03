"""The accuracy contract over generated problems: every right-hand side, up to the reach of each arithmetic.

A warning is an error here (see the pytest settings), so these tests also say that nothing inside the reach warns. The
large sample, with a table of the worst figures, is ``python -m tests.accuracy_sweep``.
"""

import contextlib
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import forward_error
from mfac_linalg import (
    BlockDiagonalInverse,
    FactorizationError,
    IllConditionedWarning,
    SlidingWindowInverse,
    WoodburyRankOneInverse,
)
from mfac_linalg.testing import KINDS, LIMIT, make_problem, right_hand_sides, tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import AVAILABLE, FLAVOURS, NUMPY, eps, flavour_name
from tests.cases import construct
from tests.contract import REACH, STATIC_HIGH, decades, measure

ARITHMETIC = [("float32", "default"), ("float32", "high"), ("float64", "default"), ("float64", "high")]
OTHERS = [flavour for flavour in FLAVOURS if flavour[0] is not NUMPY]
LONG = [b for b in AVAILABLE if b.name in ("numpy", "strict:device1", "torch:cpu", "torch:cuda:0", "jax", "cupy")]
READ = [b for b in AVAILABLE if b.name in ("numpy", "strict:CPU_DEVICE", "torch:cpu", "jax")]
BIASED = [f for f in FLAVOURS if f[0].name in ("numpy", "strict:device1", "strict:no_float64")]
SHAPES = [(5, 11), (7, 7), (9, 4)]  # few, because JAX compiles for each
SCALES = [1e-15, 1e-8, 1.0, 1e8, 1e20]


def check(problem, backend, **options):
    """Every answer to a problem keeps both ratios below the limit."""
    for answer in measure(problem, backend, **options):
        assert answer.backward <= LIMIT, f"R = {answer.backward:.3g} for {answer.name}: {problem}, {options}"
        assert answer.forward <= LIMIT, f"forward {answer.forward:.3g} for {answer.name}: {problem}, {options}"


def check_push_through(backend, gradients, damping, c, kappa):
    """F⁻¹Gᵀc keeps the contract in every class, against products in float64."""
    given, coefficients, (m, d) = backend.asarray(gradients), backend.asarray(c), gradients.shape
    wide = gradients.astype("float64")
    inverses = [
        WoodburyRankOneInverse(given, damping),
        SlidingWindowInverse.from_gradients(given, damping),
        BlockDiagonalInverse(given, damping, block_sizes=d),
    ]
    for inverse in inverses:
        x = backend.to_numpy(inverse.matvec_gradients(coefficients)).astype("float64")
        residual = wide.T @ (c - wide @ x / m) - damping * x
        assert np.linalg.norm(residual) <= LIMIT * eps("float32") * kappa * damping * np.linalg.norm(x), inverse


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize(("dtype", "precision"), ARITHMETIC)
def test_every_answer_keeps_the_contract(dtype, precision, whiten):
    @settings(max_examples=80)
    @given(problems(dtype, decades(dtype, precision), largest=40))
    def check_contract(problem):
        check(problem, NUMPY, whiten=whiten, precision=precision)

    check_contract()


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize(("dtype", "precision"), ARITHMETIC)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gradients_keeps_the_contract_at_its_reach(kind, dtype, precision, whiten):
    kappa = 0.99 * REACH[dtype, precision]
    problem = make_problem(1, kind=kind, shape=(6, 10), kappa=kappa, dtype=dtype)
    check(problem, NUMPY, whiten=whiten, precision=precision)
    diagonal = construct(problem, NUMPY, whiten=whiten, precision=precision).diagonal()
    assert np.allclose(diagonal, np.diag(problem.oracle.inverse), rtol=1e-3, atol=0)


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize("flavour", OTHERS, ids=flavour_name)
def test_every_backend_keeps_the_contract(flavour, whiten):
    backend, dtype = flavour

    compiled = backend.library == "jax.numpy"

    @settings(max_examples=6 if compiled else 20)
    @given(
        st.sampled_from(SHAPES[::2] if compiled else SHAPES).flatmap(
            lambda shape: problems(dtype, decades(dtype, "default"), shape=shape)
        )
    )
    def check_contract(problem):
        check(problem, backend, whiten=whiten)

    check_contract()


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@settings(max_examples=100)
@given(data=st.data())
def test_a_static_inverse_in_high_precision_reaches_a_tenth_of_one_over_eps(whiten, data):
    reach = decades("float64", "high", top=STATIC_HIGH)
    problem = data.draw(problems("float64", (9.0, reach[1]), largest=40))
    check(problem, NUMPY, whiten=whiten, precision="high")


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kappa", [10.0, 1e5])
def test_the_contract_does_not_depend_on_units(scale, kappa, whiten):
    problem = make_problem(4, kappa=kappa, dtype="float32").scaled_by(scale)
    check(problem, NUMPY, whiten=whiten)


@pytest.mark.parametrize("scale", [1e-15, 1e20])
@pytest.mark.parametrize("backend", AVAILABLE, ids=repr)
def test_no_backend_depends_on_units(backend, scale):
    check(make_problem(4, kappa=1e5, dtype="float32").scaled_by(scale), backend)


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["decay", "common mean", "nearly dependent", "scaled rows", "bumps", "opposites"])
def test_larger_problems_keep_the_contract(kind, dtype, whiten):
    check(make_problem(1, kind=kind, shape=(60, 1500), kappa=3e5, dtype=dtype), NUMPY, whiten=whiten)


@pytest.mark.parametrize("kappa", [1e3, 4e5])
def test_in_the_span_of_the_gradients_push_through_keeps_the_digits_that_a_product_loses(kappa):
    """What README.md says: both have a small backward error, one of them a forward error of κ eps."""
    figures = {(f["v"], f["way"]): f for f in forward_error.measure_errors(kappa, shape=(8, 500))}
    for v in ("a row", "the mean"):
        textbook, product, push = (figures[v, way] for way in ("textbook", "matvec", "matvec_gradients"))
        assert product["R"] <= LIMIT < textbook["R"]
        assert 0.02 * kappa * eps("float32") < product["forward"] < kappa * eps("float32")
        assert push["forward"] <= 1e-6
        assert push["R"] <= LIMIT
    assert figures["a row", "high"]["forward"] <= 1e-6


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize("kind", ["gaussian", "common mean", "powers"])
@pytest.mark.parametrize("backend", LONG, ids=repr)
def test_long_sums_keep_the_contract(backend, kind, whiten):
    """At a small condition number nothing cancels, and the rounding of sums over many columns is all there is."""
    problem = make_problem(1, kind=kind, shape=(10, 20_000), kappa=3.0, dtype="float32", wide=np.float64)
    check(problem, backend, whiten=whiten)


@pytest.mark.parametrize("flavour", BIASED, ids=flavour_name)
@pytest.mark.parametrize("shape", [(4, 144), (8, 284), (23, 261), (24, 359), (32, 399)], ids=str)
def test_sums_of_equal_terms_keep_the_contract(shape, flavour):
    """A row of ones: its sums round the same way in every step."""
    backend, dtype = flavour
    for seed in range(8):
        check(make_problem(seed, kind="powers", shape=shape, kappa=3.6, dtype=dtype), backend, seed=seed)


@pytest.mark.parametrize("backend", [b for b in LONG if "float64" in b.dtypes], ids=repr)
def test_duplicates_keep_the_contract_at_the_end_of_the_reach(backend):
    for seed in range(8):
        problem = make_problem(seed, kind="duplicates", shape=(28, 203), kappa=0.6 * STATIC_HIGH)
        check(problem, backend, seed=seed, precision="high")


@pytest.mark.parametrize("kappa", [3.0, 50.0, 5e3])
@pytest.mark.parametrize("backend", READ, ids=repr)
def test_the_difference_of_nearly_equal_rows_keeps_the_contract(backend, kappa):
    """The terms of Sᵀy cancel by 1e5, by more than kappa: no sweep would correct their rounding in float32."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((20, 300))
    gradients = np.concatenate([half, half + 1e-5 * rng.standard_normal(half.shape)]).astype("float32")
    wide, c = gradients.astype("float64"), np.eye(40, dtype="float32")[0] - np.eye(40, dtype="float32")[20]
    damping = float(np.linalg.norm(wide, 2) ** 2 / 40 / (kappa - 1))
    check_push_through(backend, gradients, damping, c, kappa)


@pytest.mark.parametrize("kappa", [1.2, 50.0])
@pytest.mark.parametrize("backend", READ, ids=repr)
def test_coefficients_that_nearly_annihilate_many_rows_keep_the_contract(backend, kappa):
    """More rows than columns: Gᵀc cancels for the residual c of any least-squares fit."""
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((64, 3)) @ rng.standard_normal((3, 20)) + 1e-5 * rng.standard_normal((64, 20))
    gradients = gradients.astype("float32")
    wide = gradients.astype("float64")
    left, values, _ = np.linalg.svd(wide, full_matrices=False)
    c, damping = left[:, -1].astype("float32"), float(values[0] ** 2 / 64 / (kappa - 1))
    check_push_through(backend, gradients, damping, c, kappa)


def test_whitened_rows_that_products_use_are_rounded_once():
    """Columns are short here, and W from float32 products with L⁻¹ would do for elements; a sum Sᵀy would lose more."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((16, 8192))
    gradients[1::2] = gradients[::2] * (1 + 1e-3 * rng.standard_normal((8, 1)))
    gradients = gradients.astype("float32")
    wide, c, kappa = gradients.astype("float64"), np.zeros(16, "float32"), 1e4
    c[0], c[1] = 1, -1
    damping = float(np.linalg.norm(wide, 2) ** 2 / 16 / (kappa - 1))
    x = WoodburyRankOneInverse(gradients, damping, whiten=True).matvec_gradients(c).astype("float64")
    residual = wide.T @ (c - wide @ x / 16) - damping * x
    assert np.linalg.norm(residual) <= LIMIT * eps("float32") * kappa * damping * np.linalg.norm(x)


@settings(max_examples=100)
@given(problems("float32", (0.1, 7.0), shape=(9, 30)), st.booleans(), seeds())
def test_high_precision_in_float32_is_right_to_1e_6_for_rows(problem, whiten, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # the contract of R ends at 0.1 / eps, this one does not
        inverse = construct(problem, NUMPY, whiten=whiten, precision="high")
    coefficients = np.random.default_rng(seed).standard_normal(9).astype("float32")
    v = problem.gradients.astype(np.float64).T @ coefficients
    assert problem.oracle.forward_ratio(v, inverse.matvec_gradients(coefficients), 1 / problem.oracle.kappa) <= 1e-6


@settings(max_examples=100)
@given(problems("float32", (0.1, 7.0), shape=(9, 30)), st.booleans(), seeds())
def test_high_precision_in_float32_is_right_to_1e_4_for_any_vector(problem, whiten, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        inverse = construct(problem, NUMPY, whiten=whiten, precision="high")
    for name, v in right_hand_sides(problem, seed).items():
        error = problem.oracle.forward_ratio(v, inverse.matvec(v), 1 / problem.oracle.kappa)
        assert error <= (1e-6 if "row" in name and "orthogonal" not in name else 1e-4), name


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize(("dtype", "precision"), ARITHMETIC)
def test_the_diagonal_is_right_to_a_thousandth(dtype, precision, whiten):
    @settings(max_examples=60)
    @given(problems(dtype, decades(dtype, precision), largest=24))
    def check_diagonal(problem):
        diagonal = construct(problem, NUMPY, whiten=whiten, precision=precision).diagonal()
        assert np.allclose(diagonal, np.diag(problem.oracle.inverse), rtol=1e-3, atol=0)

    check_diagonal()


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize(("dtype", "precision"), ARITHMETIC)
def test_the_diagonal_keeps_its_bounds_at_every_condition_number(dtype, precision, whiten):
    @settings(max_examples=60)
    @given(problems(dtype, decades(dtype, precision), largest=24))
    def check_bounds(problem):
        diagonal = construct(problem, NUMPY, whiten=whiten, precision=precision).diagonal()
        scaled = diagonal * problem.oracle.roots.astype(np.float64) ** 2
        assert np.all(scaled <= 1 + 8 * eps(dtype))  # of which the test rounds half
        assert np.all(scaled >= (1 - 8 * eps(dtype)) / problem.oracle.kappa)

    check_bounds()


@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize(("dtype", "precision"), ARITHMETIC)
def test_entries_keep_their_absolute_error(dtype, precision, whiten):
    """30 eps / damping in float32, whose small system is float64; in float64 it answers to kappa eps."""

    @settings(max_examples=60)
    @given(problems(dtype, decades(dtype, precision), largest=24))
    def check_entries(problem):
        inverse = construct(problem, NUMPY, whiten=whiten, precision=precision)
        roots, everywhere = problem.oracle.roots.astype(np.float64), np.arange(inverse.dim)
        limit = tolerance(eps(dtype), problem.oracle.kappa if dtype == "float64" else 1.0)
        error = np.abs(inverse.element(everywhere[:, None], everywhere) - problem.oracle.inverse)
        assert np.max(error * roots[:, None] * roots) <= limit
        assert np.max(np.abs(inverse.diagonal() - np.diag(problem.oracle.inverse)) * roots**2) <= limit

    check_entries()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_every_column_of_a_damping_path_keeps_the_contract_of_its_own_damping(kind, dtype, seed):
    problem = make_problem(seed, kind=kind, shape=(8, 24), kappa=6.0, dtype=dtype)
    inverse = construct(problem, NUMPY)
    others = [replace(problem, damping=problem.damping * factor) for factor in (1.0, 1e-5, 1e3)]
    for name, v in right_hand_sides(problem, seed).items():
        path = inverse.damping_path(v, [other.damping for other in others])
        for other, x in zip(others, path.T, strict=True):
            assert other.oracle.backward_ratio(v, x, eps(dtype)) <= LIMIT, name


def check_unless_refused(problem, backend, **options):
    """An inverse may warn or fail; what it says in silence is accurate."""
    with contextlib.suppress(IllConditionedWarning, FactorizationError):
        check(problem, backend, **options)


@pytest.mark.parametrize("precision", ["default", "high"])
@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_silent_answer_is_an_accurate_one(dtype, whiten, precision):
    @settings(max_examples=80)
    @given(problems(dtype, (5.0, 20.0), largest=16))
    def check_silent_answers(problem):
        check_unless_refused(problem, NUMPY, whiten=whiten, precision=precision)

    check_silent_answers()


@pytest.mark.parametrize("kappa", [1e7, 1e10, 1e14, 1e18])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=flavour_name)
def test_a_silent_answer_is_an_accurate_one_on_every_backend(flavour, kappa):
    backend, dtype = flavour
    for shape in SHAPES:
        check_unless_refused(make_problem(3, shape=shape, kappa=kappa, dtype=dtype), backend)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_warning_says_what_to_do(dtype):
    problem = make_problem(3, kind="common mean", kappa=1e18, dtype=dtype)
    with pytest.raises((IllConditionedWarning, FactorizationError), match="damping"):
        construct(problem, NUMPY)
