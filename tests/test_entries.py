"""Diagonal, elements, trace, log det and spectrum up to the end of the reach of κ, on every class, compared exactly."""

import warnings

import array_api_compat
import numpy as np
import pytest
from scipy.sparse import csr_array

import mfac_linalg as ml
from mfac_linalg._forms.dual import DualForm
from mfac_linalg.testing import LIMIT, make_problem
from tests.backends import AVAILABLE, eps
from tests.inputs import PanelledRows
from tests.oracle import ExactOracle, exact


def in_chunks(g):
    """Dask's, in chunks narrower and wider than they are high."""
    dask = pytest.importorskip("dask.array", reason="needs dask")
    d = g.shape[1]
    return dask.from_array(g, chunks=(len(g), (1, d // 2, d - 1 - d // 2)))


def beside(inverse, v):
    """The vector in the library of the inverse."""
    return array_api_compat.array_namespace(inverse.diagonal()).asarray(v)


CLASSES = {
    "whitened": lambda g, damping: ml.WoodburyRankOneInverse(g, damping),
    "referenced": lambda g, damping: ml.WoodburyRankOneInverse(g, damping, whiten=False),
    "streamed": lambda g, damping: ml.WoodburyRankOneInverse(g, damping, memory_limit=10**5),
    "window": lambda g, damping: ml.SlidingWindowInverse.from_gradients(g, damping),
    "compressed": lambda g, damping: ml.SlidingWindowInverse.from_gradients(g, damping, compression=ml.TopK(1.0)),
    "blocks": lambda g, damping: ml.BlockDiagonalInverse(g, damping, block_sizes=g.shape[1]),
    "sparse": lambda g, damping: ml.WoodburyRankOneInverse(csr_array(g), damping),
    "sparse blocks": lambda g, damping: ml.BlockDiagonalInverse(csr_array(g), damping, block_sizes=g.shape[1]),
    "brought": lambda g, damping: ml.WoodburyRankOneInverse(PanelledRows(g), damping),
    "dask": lambda g, damping: ml.WoodburyRankOneInverse(in_chunks(g), damping),
}
CLASS = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)


def with_kinds(*kinds, of_dask):
    """Each class with each kind of gradients; Dask's, whose m × m system is NumPy's, with one: it is slow."""
    pairs = [(kind, name) for kind in kinds for name in CLASSES if name != "dask" or kind == of_dask]
    values = [pytest.param(kind, CLASSES[name], id=f"{kind}-{name}") for kind, name in pairs]
    return pytest.mark.parametrize(("kind", "make"), values)


NEAR = ((9, 6), (6, 6), (5, 6), (4, 6))  # m near d
REACH = 0.099 / eps("float64")


@with_kinds("gaussian", "duplicates", "common mean", "leading columns", "powers", of_dask="leading columns")
@pytest.mark.parametrize("shape", NEAR, ids=str)
def test_entries_are_right_to_the_end_of_the_reach_where_m_is_near_d(kind, shape, make):
    problem = make_problem(1, kind=kind, shape=shape, kappa=REACH / 2)
    oracle = ExactOracle(problem.gradients, problem.damping)
    inverse, dense = make(problem.gradients, problem.damping), oracle.inverse.astype(float)
    assert np.allclose(inverse.diagonal(), np.diag(dense), rtol=1e-5, atol=0)
    assert np.isclose(inverse.trace(), np.trace(dense), rtol=1e-5)
    assert np.abs(inverse.submatrix(np.arange(6)) - dense).max() * problem.damping <= 1e-5
    assert abs(inverse.logdet() - oracle.logdet) <= 1e-5
    for v in (problem.gradients[0], np.linalg.svd(problem.gradients)[2][0]):
        square = float(exact(v) @ oracle.inverse @ exact(v))
        assert np.isclose(inverse.quadratic_form(beside(inverse, v)), square, rtol=1e-5)
    values = 1 + np.linalg.svd(problem.gradients, compute_uv=False) ** 2 / (shape[0] * problem.damping)
    assert np.isclose(inverse.condition_number(), values[0] / (values[-1] if shape[0] >= 6 else 1), rtol=1e-5)
    assert np.isclose(inverse.forward.effective_rank(), 6 - problem.damping * np.trace(dense), rtol=0, atol=1e-5)


@CLASS
def test_many_equal_columns_have_the_diagonal_of_the_closed_form(make):
    """F = λ I + a 1 1ᵀ: the diagonal of F⁻¹ is (λ + (d − 1) a)/(λ (λ + d a))."""
    gradients = np.arange(1.0, 6.0)[:, None] * np.ones(4)
    a = float(np.mean(gradients[:, 0] ** 2))
    damping = 4 * a / (REACH / 2)
    inverse = make(gradients, damping)
    assert np.allclose(inverse.diagonal(), (damping + 3 * a) / (damping * (damping + 4 * a)), rtol=1e-5, atol=0)
    assert np.isclose(inverse.logdet(), -3 * np.log(damping) - np.log(damping + 4 * a), rtol=0, atol=1e-5)


@CLASS
@pytest.mark.parametrize("kappa", [300.0, 1e4, 7e4, 5e5])
@pytest.mark.parametrize("kind", ["gaussian", "common mean", "opposites"])
def test_elements_keep_their_absolute_error_in_float32(kind, kappa, make):
    problem = make_problem(2, kind=kind, shape=(6, 40), kappa=kappa, dtype="float32")
    inverse, unit = make(problem.gradients, problem.damping), LIMIT * eps("float32")
    dense = problem.oracle.inverse
    assert np.abs(inverse.submatrix(np.arange(40)) - dense).max() * problem.damping <= unit
    assert abs(inverse.element(3, 3) - dense[3, 3]) * problem.damping <= unit
    assert abs(inverse.logdet() - np.linalg.slogdet(dense)[1]) <= unit * 40


@pytest.mark.parametrize(("kappa", "float64_gram"), [(100.0, False), (5e5, False), (5e6, True)])
def test_a_float32_window_takes_its_gram_matrix_in_float64_where_sweeps_need_it(kappa, float64_gram):
    problem = make_problem(2, shape=(6, 20_000), kappa=kappa, dtype="float32")
    with warnings.catch_warnings(action="ignore", category=ml.IllConditionedWarning):
        window = ml.SlidingWindowInverse.from_gradients(problem.gradients, problem.damping)
    assert window.state_dict()["sharp"] is float64_gram
    gram = window.state_dict()["gram"]
    wide = problem.gradients.astype(float)
    assert float64_gram == (np.abs(gram - wide @ wide.T).max() <= 1e-12 * np.abs(gram).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@with_kinds("gaussian", "duplicates", "nearly dependent", "common mean", "bumps", "opposites", of_dask="bumps")
@pytest.mark.parametrize("kappa", [1e13, 1e20, 1e60])
def test_entries_keep_their_bounds_at_any_condition_number(kappa, kind, dtype, make):
    """0 < M_ii ≤ 1 and |M_ij| ≤ 1 for M = λ F⁻¹; nothing is nan, nothing negative that cannot be."""
    problem = make_problem(1, kind=kind, shape=(4, 9), kappa=kappa, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ml.IllConditionedWarning)
        try:
            inverse = make(problem.gradients, problem.damping)
            diagonal, block = inverse.diagonal(), inverse.submatrix(np.arange(9))
            squares = [inverse.quadratic_form(beside(inverse, g)) for g in problem.gradients if np.any(g)]
        except (OverflowError, ml.FactorizationError):
            return
    unit = 1 + 4 * eps(dtype)
    assert np.all((diagonal > 0) & (diagonal * problem.damping <= unit))
    assert np.all((np.diag(block) > 0) & (np.abs(block * problem.damping) <= unit).all())
    assert all(square >= 0 for square in squares)


@CLASS
@pytest.mark.parametrize("shape", [(4, 9), (7, 5)], ids=str)
def test_a_damping_path_warns_beyond_the_reach(shape, make):
    problem = make_problem(1, shape=shape, kappa=100.0)
    inverse = make(problem.gradients, problem.damping)
    v = beside(inverse, np.ones(shape[1]))
    inverse.damping_path(v, [problem.damping / 1e6])
    with pytest.warns(ml.IllConditionedWarning, match="kappa"):
        inverse.damping_path(v, [problem.damping, problem.damping / 1e14])


def test_entries_of_a_jax_window_of_as_many_rows_as_columns_are_right_beyond_1e10():
    jax = pytest.importorskip("jax", reason="needs jax")
    from mfac_linalg.jax import SlidingWindowState

    problem = make_problem(1, shape=(5, 4), kappa=REACH / 2, dtype="float32")
    state = SlidingWindowState.from_gradients(jax.numpy.asarray(problem.gradients), problem.damping)
    oracle = ExactOracle(problem.gradients, problem.damping)
    assert np.allclose(state.diagonal(), np.diag(oracle.inverse).astype(float), rtol=1e-5, atol=0)
    assert np.isclose(float(state.logdet()), oracle.logdet, rtol=1e-6)


def test_an_element_of_the_diagonal_is_positive_where_whitened_rows_cancel():
    problem = make_problem(1, kind="leading columns", shape=(6, 30), kappa=1e13, dtype="float32")
    with pytest.warns(ml.IllConditionedWarning):
        inverse = ml.WoodburyRankOneInverse(problem.gradients, problem.damping, whiten=True)
    index = np.arange(30)
    assert np.all(inverse.element(index, index) > 0)
    assert np.all(np.diag(inverse.submatrix(index)) > 0)


@pytest.mark.parametrize("kind", ["decay", "cluster"])
def test_the_diagonal_keeps_its_bounds_where_there_is_no_float64(kind):
    """Products of float32 alone diverge at this κ, and the entries that they give with them."""
    backend = next(b for b in AVAILABLE if not b.has_float64 and b.library == "array_api_strict")
    problem = make_problem(0, kind=kind, shape=(6, 30), kappa=1e10, dtype="float32")
    with pytest.warns(ml.IllConditionedWarning):
        inverse = ml.WoodburyRankOneInverse(backend.asarray(problem.gradients), problem.damping, whiten=False)
    diagonal = backend.to_numpy(inverse.diagonal()) * problem.damping
    assert np.all((diagonal > 0) & (diagonal <= 1 + 4 * eps("float32")))


def test_small_entries_are_redone_few_columns_at_a_time(monkeypatch):
    """Also where no small system has their digits: columns of d numbers for each of m would be a matrix of d × m."""
    monkeypatch.setattr("mfac_linalg._forms.diagonal._by_downdates", lambda *_: None)
    rng, widths, solve = np.random.default_rng(0), [], DualForm.solve_with_dual
    monkeypatch.setattr(DualForm, "solve_with_dual", lambda form, v: (widths.append(v.shape[1]), solve(form, v))[1])
    g = rng.standard_normal((200, 400))
    g[:, :150] *= 1e3
    inverse = ml.WoodburyRankOneInverse(g, 1.0, whiten=False)
    dense = np.linalg.inv(np.eye(400) + g.T @ g / 200)
    assert np.allclose(inverse.diagonal(), np.diagonal(dense), rtol=1e-6)
    assert sum(widths) == 150
    assert max(widths) <= 64
