"""What an inverse is as a Python object: its attributes, texts, copies and SciPy operator."""

import copy
import pickle

import array_api_compat
import numpy as np
import pytest
import scipy.sparse.linalg

from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse
from mfac_linalg.testing import make_problem, tolerance
from tests.backends import AVAILABLE, NUMPY, PRESENT, eps
from tests.cases import BUILT, CASES, build, built_name, construct
from tests.inputs import dense


def test_the_sizes_are_those_of_the_gradients(built):
    m, d = built.problem.gradients.shape
    inverse = built.inverse
    assert (inverse.shape, inverse.dim, inverse.num_gradients) == ((d, d), d, m)


def test_dtype_and_device_are_the_gradients(built):
    gradients = built.send(built.problem.gradients)
    assert (built.inverse.dtype, built.inverse.device) == (gradients.dtype, array_api_compat.device(gradients))


def test_the_damping_is_the_one_given(built):
    assert np.array_equal(built.fetch(built.inverse.damping), built.problem.damping)


def test_the_gradients_are_those_given(built):
    gradients = dense(built.inverse.gradients)
    built.assert_own(gradients)
    limit = tolerance(eps(built.dtype), np.sqrt(built.oracle.kappa))
    error = built.fetch(gradients) - built.problem.gradients
    assert np.linalg.norm(error) <= limit * np.linalg.norm(built.problem.gradients)


def test_gradients_are_kept_by_reference_without_whitening(flavour):
    backend, dtype = flavour
    gradients = backend.asarray(make_problem(0, dtype=dtype).gradients)
    assert WoodburyRankOneInverse(gradients, 1.0, whiten=False).gradients is gradients


def test_kappa_is_an_estimate_of_the_condition_number(built):
    assert built.oracle.kappa / 3 <= float(built.fetch(built.inverse.kappa)) <= 3 * built.oracle.kappa * 15


def test_sweeps_is_a_small_positive_count(built):
    assert 1 <= built.inverse.sweeps <= 10


def test_a_repr_names_what_matters(built):
    text = repr(built.inverse)
    m, d = built.problem.gradients.shape
    for word in ("WoodburyRankOneInverse", str(m), str(d), built.dtype, "damping", "kappa", "sweeps", "device"):
        assert word in text


@pytest.mark.parametrize("render", ["__repr__", "_repr_html_"])
def test_a_text_shows_no_array_values(built, render):
    text = getattr(built.inverse, render)()
    marked = built.problem.gradients.flat[0]
    assert f"{marked:.4f}"[:6] not in text
    assert "[" not in text.replace("[0m", "")


def test_the_html_text_is_a_table_or_a_box(built):
    text = built.inverse._repr_html_()
    assert text.lstrip().startswith("<")
    assert "WoodburyRankOneInverse" in text


@pytest.mark.parametrize(("kappa", "is_near"), [(1e3, False), (5e5, True)])
def test_the_html_text_says_when_kappa_is_near_the_limit(kappa, is_near):
    problem = make_problem(0, kappa=kappa, dtype="float32")
    text = WoodburyRankOneInverse(problem.gradients, problem.damping)._repr_html_()
    assert ("near the limit 8.4e+05 of float32: forward errors may be κ eps = 0.06" in text) is is_near


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_gives_the_same_answers(built, clone):
    v = built.send(built.vectors(built.inverse.dim))
    cloned = clone(built.inverse)
    assert np.array_equal(built.fetch(cloned.matvec(v)), built.fetch(built.inverse.matvec(v)))


def test_a_deep_copy_shares_no_memory_with_the_gradients():
    problem = make_problem(0)
    gradients = problem.gradients.copy()
    inverse = WoodburyRankOneInverse(gradients, problem.damping, whiten=False)
    cloned = copy.deepcopy(inverse)
    gradients[:] = 0
    v = np.ones(14)
    assert problem.oracle.backward_ratio(v, cloned.matvec(v), eps("float64")) <= 30


def test_whitening_keeps_no_reference_to_the_gradients():
    problem = make_problem(0)
    gradients = problem.gradients.copy()
    inverse = WoodburyRankOneInverse(gradients, problem.damping, whiten=True)
    gradients[:] = 0
    v = np.ones(14)
    assert problem.oracle.backward_ratio(v, inverse.matvec(v), eps("float64")) <= 30


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_overwriting_the_gradients_gives_the_same_answer(dtype):
    problem = make_problem(0, dtype=dtype)
    gradients = problem.gradients.copy()
    inverse = WoodburyRankOneInverse(gradients, problem.damping, overwrite_gradients=True)
    v = problem.gradients[0]
    assert problem.oracle.backward_ratio(v, inverse.matvec(v), eps(dtype)) <= 30


def test_overwriting_takes_the_memory_of_the_gradients():
    problem = make_problem(0, shape=(6, 4000), dtype="float32")
    gradients = problem.gradients.copy()
    WoodburyRankOneInverse(gradients, problem.damping, overwrite_gradients=True)
    assert not np.array_equal(gradients, problem.gradients)


def test_progress_changes_no_answer(capsys):
    problem = make_problem(0)
    quiet, loud = (construct(problem, NUMPY, progress=progress) for progress in (False, True))
    assert np.array_equal(quiet.matvec(problem.gradients[0]), loud.matvec(problem.gradients[0]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", CASES[:10], ids=repr)
def test_scipy_solves_with_the_inverse_as_preconditioner(case):
    built = build(NUMPY, "float64", case)
    operator = built.inverse.as_linear_operator()
    v = built.vectors(built.inverse.dim)
    steps = []
    x, info = scipy.sparse.linalg.cg(built.oracle.forward, v, M=operator, rtol=1e-10, callback=steps.append)
    assert info == 0
    assert len(steps) <= 3
    assert np.linalg.norm(built.oracle.forward @ x - v) <= 1e-8 * np.linalg.norm(v)


def test_the_scipy_operator_is_symmetric_and_has_matrix_products():
    built = build(NUMPY, "float64", CASES[0])
    operator = built.inverse.as_linear_operator()
    assert isinstance(operator, scipy.sparse.linalg.LinearOperator)
    v = built.vectors(14, 3)
    built.assert_close(operator @ v, built.oracle.inverse @ v)
    built.assert_close(operator.T @ v, built.oracle.inverse @ v)
    built.assert_close(operator.H @ v, built.oracle.inverse @ v)


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b.library == "numpy"], ids=repr)
def test_the_scipy_operator_has_the_inverses_dtype(backend):
    assert build(backend, "float32", CASES[0]).inverse.as_linear_operator().dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [case for case in CASES if case.is_rebuilt], ids=repr)
def test_astype_answers_in_the_other_dtype(case, dtype):
    built = build(NUMPY, "float64", case)
    cast = built.inverse.astype(dtype)
    v = built.vectors(built.inverse.dim).astype(dtype)
    x = cast.matvec(v)
    assert x.dtype == dtype
    assert built.oracle.backward_ratio(v, x, eps(dtype)) <= 30


@pytest.mark.parametrize("request_", [which for which in BUILT if which[2].is_rebuilt], ids=built_name)
def test_moving_to_its_own_device_changes_no_answer(request_):
    built = build(*request_)
    moved = built.inverse.to_device(built.inverse.device)
    v = built.send(built.vectors(built.inverse.dim))
    assert moved.device == built.inverse.device
    built.assert_close(moved.matvec(v), built.oracle.inverse @ built.fetch(v))


def no_devices(backend):
    """What no library has as a device; dtypes and arrays of its own among them, which PyTorch's `to` takes."""
    yield from (
        None,
        True,
        -1,
        1.5,
        float("nan"),
        "nonsense",
        b"cpu",
        float,
        ["cpu"],
        object(),
        np.float64,
        np.zeros(2),
    )
    yield backend.asarray(np.zeros(1, "float32"))
    yield backend.dtype("float32")
    if "float64" in backend.dtypes:
        yield backend.dtype("float64")


@pytest.mark.parametrize("backend", PRESENT, ids=repr)
def test_what_is_no_device_is_refused_by_name(backend):
    gradients = backend.asarray(make_problem(0, dtype="float32").gradients)
    inverses = [WoodburyRankOneInverse(gradients, 1.0)]
    if not backend.is_lazy:
        inverses += [SlidingWindowInverse.from_gradients(gradients, 1.0)]
        inverses += [BlockDiagonalInverse(gradients, 1.0, block_sizes=5)]
    for inverse in inverses:
        for device in no_devices(backend):
            with pytest.raises(TypeError, match="`device`"):
                inverse.to_device(device)


@pytest.mark.parametrize(
    "dtype", [None, 5, "float16", "no", b"float64", object(), np.zeros(2), [float], complex, "<f2"]
)
def test_what_is_no_dtype_of_answers_is_refused_by_name(backend, dtype):
    inverse = WoodburyRankOneInverse(backend.asarray(make_problem(0, dtype="float32").gradients), 1.0)
    with pytest.raises(TypeError, match="`dtype`"):
        inverse.astype(dtype)


def test_an_inverse_moves_to_another_device():
    strict = {backend.name: backend for backend in AVAILABLE}
    here, there = strict["strict:CPU_DEVICE"], strict["strict:device1"]
    built = build(here, "float64", CASES[0])
    device = there.asarray(np.zeros(1)).device
    moved = built.inverse.to_device(device)
    v = built.vectors(built.inverse.dim)
    x = moved.matvec(there.asarray(v))
    assert x.device == device
    built.assert_near(there.to_numpy(x), built.oracle.inverse @ v)


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if "float32" in b.dtypes], ids=repr)
def test_scipy_solves_whatever_the_library(backend):
    """SciPy's vectors are NumPy's, in float64."""
    built = build(backend, "float32", CASES[0])
    operator = built.inverse.as_linear_operator()
    v = np.random.default_rng(1).standard_normal(14)
    x, info = scipy.sparse.linalg.cg(built.oracle.forward, v, M=operator, rtol=1e-8)
    assert info == 0
    assert np.linalg.norm(built.oracle.forward @ x - v) <= 1e-6 * np.linalg.norm(v)
    assert (operator @ np.ones((14, 1))).shape == (14, 1)
