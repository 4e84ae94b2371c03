"""F⁻¹ and F as operators: of other libraries' solvers, with complex vectors, in pickles, and in compositions."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as sla

from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse
from mfac_linalg.testing import Oracle, make_problem, tolerance
from tests.backends import NUMPY, PRESENT, eps

D = 14
CLASSES = {
    "static": WoodburyRankOneInverse,
    "window": SlidingWindowInverse.from_gradients,
    "blocks": lambda gradients, damping: BlockDiagonalInverse(gradients, damping, block_sizes=5),
}
KINDS = ("inverse", "forward")
SOLVERS = ("cg", "cgs", "bicg", "bicgstab", "gmres", "lgmres", "minres", "qmr", "tfqmr", "gcrotmk", "lsqr", "lsmr")
PRECONDITIONED = SOLVERS[:-2]
DEFERRING = [b for b in PRESENT if b.library != "array_api_strict"]  # which raises where others ask the right operand
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


def dense(name, dtype="float64"):
    """F⁻¹ and F of a class, dense and in float64."""
    problem = make_problem(2, shape=(6, D), dtype=dtype)
    forward = Oracle(problem.gradients, problem.damping).forward
    if name == "blocks":
        blocks = np.arange(D) // 5
        forward = np.where(blocks[:, None] == blocks, forward, 0)
    return {"inverse": np.linalg.inv(forward), "forward": forward}


def operators(name, dtype="float64", backend=NUMPY):
    """F⁻¹ and F of a class."""
    problem = make_problem(2, shape=(6, D), dtype=dtype)
    inverse = CLASSES[name](backend.asarray(problem.gradients), problem.damping)
    return {"inverse": inverse, "forward": inverse.forward}


def limit(matrices, dtype):
    """What the relative error of a product may be."""
    return tolerance(eps(dtype), np.linalg.cond(matrices["forward"]))


def assert_near(actual, expected, bound):
    assert np.shape(actual) == np.shape(expected)
    assert np.linalg.norm(actual - expected) <= bound * np.linalg.norm(expected)


def vectors(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def solve_with(name, operator, v, rtol=1e-12, **options):
    """The solution of a solver of SciPy's."""
    if name in ("lsqr", "lsmr"):
        options = {"iter_lim" if name == "lsqr" else "maxiter": 500, "atol": rtol / 100, "btol": rtol / 100}
        return getattr(sla, name)(operator, v, **options)[0]
    if name != "minres":
        options["atol"] = 0.0
    return getattr(sla, name)(operator, v, rtol=rtol, maxiter=500, **options)[0]


# --- SciPy's solvers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_a_solver_inverts_the_operator(name, kind, dtype, solver):
    matrices, operator, v = dense(name, dtype), operators(name, dtype)[kind].as_linear_operator(), vectors(D)
    rtol = {"float32": 1e-5, "float64": 1e-12}[dtype]  # products rounded to float32 are no more linear than that
    x = solve_with(solver, operator, v, rtol)
    assert x.dtype == np.float64
    assert np.linalg.norm(matrices[kind] @ x - v) <= 100 * rtol * np.linalg.norm(v)


@pytest.mark.parametrize("solver", PRECONDITIONED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_a_solver_needs_a_step_or_two_with_the_operator_as_preconditioner(name, kind, dtype, solver):
    matrix, other = dense(name, dtype)[kind], KINDS[kind == "inverse"]
    operator, v = operators(name, dtype)[other].as_linear_operator(), vectors(D)
    given = {"M1": operator, "M2": sla.aslinearoperator(np.eye(D))} if solver == "qmr" else {"M": operator}
    steps = []
    counted = sla.LinearOperator((D, D), lambda x: steps.append(1) or matrix @ x, lambda x: matrix @ x, dtype="float64")
    x = solve_with(solver, counted, v, **given)
    exact = 1e-4 if (solver, dtype) == ("tfqmr", "float32") else 1e-8  # it never looks at the residual that is left
    assert np.linalg.norm(matrix @ x - v) <= exact * np.linalg.norm(v)
    assert len(steps) <= 30


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_solver_takes_the_object_itself(kind, solver):
    operator, v = operators("static")[kind], vectors(D)
    x = solve_with(solver, operator, v)
    assert np.linalg.norm(dense("static")[kind] @ x - v) <= 1e-10 * np.linalg.norm(v)


@pytest.mark.parametrize("wrap", ["own", "aslinearoperator"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_eigenvalues_singular_values_and_exponentials_are_the_dense_ones(name, kind, wrap):
    matrices, operator = dense(name), operators(name)[kind]
    operator = operator.as_linear_operator() if wrap == "own" else sla.aslinearoperator(operator)
    values = np.linalg.eigvalsh(matrices[kind])
    bound = limit(matrices, "float64") * values[-1]
    start = vectors(D)
    found = sla.eigsh(operator, k=3, which="LA", v0=start, return_eigenvectors=False)
    assert np.allclose(np.sort(found), values[-3:], rtol=0, atol=bound)
    found = sla.svds(operator, k=3, v0=start, return_singular_vectors=False)
    assert np.allclose(np.sort(found), values[-3:], rtol=0, atol=bound)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lobpcg on 14 rows hands over to a dense solver, and says so
        found = sla.lobpcg(operator, vectors(D, 2), largest=True, tol=1e-12, maxiter=200)[0]
        assert np.allclose(np.sort(found), values[-2:], rtol=0, atol=1e-8 * values[-1])
    grown = sla.expm_multiply(-operator / values[-1], vectors(D, 3), traceA=-np.sum(values) / values[-1])
    powers, basis = np.linalg.eigh(-matrices[kind] / values[-1])
    assert_near(grown, basis @ (np.exp(powers)[:, None] * (basis.T @ vectors(D, 3))), 1e-10)


# --- vectors of every kind -------------------------------------------------------------------------------------------

GIVEN = {
    "complex128": lambda v: v[:, 0] + 1j * v[:, 1],
    "complex64": lambda v: (v[:, 0] + 1j * v[:, 1]).astype("complex64"),
    "clongdouble": lambda v: (v[:, 0] + 1j * v[:, 1]).astype(np.clongdouble),
    "complex columns": lambda v: v[:, :2] + 1j * v[:, 1:],
    "purely imaginary": lambda v: 1j * v[:, 0],
    "float32": lambda v: v[:, 0].astype("float32"),
    "float16": lambda v: v[:, 0].astype("float16"),
    "longdouble": lambda v: v[:, 0].astype(np.longdouble),
    "integers": lambda v: np.arange(D),
    "small integers": lambda v: np.arange(D, dtype=np.int8),
    "booleans": lambda v: np.arange(D) > 3,
    "a list": lambda v: list(range(D)),
    "every other": lambda v: v.reshape(-1)[: 2 * D : 2],
    "reversed": lambda v: v[::-1, 0],
    "a column": lambda v: v[:, :1],
    "a complex column": lambda v: v[:, :1] * 1j,
    "columns of columns": lambda v: np.asfortranarray(v),
    "big-endian": lambda v: v[:, 0].astype(">f8"),
    "zeros": lambda v: np.zeros(D),
    "huge": lambda v: 1e200 * v,
    "tiny": lambda v: 1e-200 * v[:, 0] * 1j,
    "of many sizes": lambda v: v * np.array([1e-100, 1.0, 1e100]),
    "no columns": lambda v: v[:, :0],
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_the_scipy_operator_answers_vectors_of_every_kind_as_a_matrix_does(name, kind, dtype, given):
    matrices, operator = dense(name, dtype), operators(name, dtype)[kind].as_linear_operator()
    v = GIVEN[given](vectors(D, 3))
    expected, got = matrices[kind] @ np.asarray(v), operator @ v
    assert got.dtype == np.result_type(dtype, np.asarray(v).dtype)
    assert got.shape == expected.shape
    columns = expected.reshape(D, -1)
    for actual, exact in zip(got.reshape(D, columns.shape[1]).T, columns.T, strict=True):
        size = np.max(np.abs(exact)) or 1.0  # squares of the largest would overflow
        assert_near(actual / size, exact / size, limit(matrices, dtype))


@pytest.mark.parametrize("backend", PRESENT, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_the_scipy_operator_takes_and_gives_numpys_arrays_whatever_the_library(backend, kind):
    matrices, operator = dense("static", "float32"), operators("static", "float32", backend)[kind].as_linear_operator()
    read_only, v = np.arange(D) * 1.0, vectors(D, 2)
    read_only.flags.writeable = False
    for given in (v, v[:, 0] + 1j * v[:, 1], v[::-1], read_only, v[:, 0].astype("float32")):
        got = operator @ given
        assert type(got) is np.ndarray
        assert got.dtype == np.result_type("float32", given.dtype)
        assert_near(got, matrices[kind] @ given, limit(matrices, "float32"))


@pytest.mark.parametrize("backend", PRESENT, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_complex_vectors_are_answered_by_parts(backend, kind):
    matrices, operator = dense("static", "float32"), operators("static", "float32", backend)[kind]
    z = (vectors(D, 3) + 1j * vectors(D, 3, seed=2)).astype("complex64")
    one = z[:, 0].copy()
    for actual, expected in [
        (operator.matvec(backend.asarray(one)), matrices[kind] @ one),
        (operator.rmatvec(backend.asarray(z[:, :1])), matrices[kind] @ z[:, :1]),
        (operator @ backend.asarray(one), matrices[kind] @ one),
        (operator.__rmatmul__(backend.asarray(one)), matrices[kind] @ one),
        (operator @ backend.asarray(z), matrices[kind] @ z),
        (operator.__rmatmul__(backend.asarray(z.T.copy())), z.T @ matrices[kind]),
        (operator.rmatmat(backend.asarray(z)), matrices[kind] @ z),
    ]:
        assert type(actual) is type(backend.asarray(z))
        values = backend.to_numpy(actual)
        assert values.dtype == np.complex64
        assert_near(values, expected, limit(matrices, "float32"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_real_and_imaginary_part_are_the_products_with_each(name, kind):
    operator, v = operators(name)[kind], vectors(D, 2)
    together = operator @ (v[:, 0] + 1j * v[:, 1])
    both = operator @ v
    assert np.array_equal(together.real, both[:, 0])
    assert np.array_equal(together.imag, both[:, 1])


BAD = {
    "objects": (TypeError, np.ones(D, object)),
    "strings": (TypeError, np.full(D, "a")),
    "masked": (TypeError, np.ma.ones(D)),
    "masked columns": (TypeError, np.ma.ones((D, 2))),
    "dates": (TypeError, np.zeros(D, "datetime64[s]")),
    "nan": (ValueError, np.full(D, np.nan)),
    "an infinite imaginary part": (ValueError, np.full(D, complex(0, np.inf))),
    "too long": (ValueError, np.ones(D + 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", KINDS)
def test_the_scipy_operator_refuses_what_a_product_would_drop(kind, bad, dtype):
    error, v = BAD[bad]
    operator = operators("static", dtype)[kind].as_linear_operator()
    with pytest.raises(error):
        (operator.matvec if v.ndim == 1 else operator.matmat)(v)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_factors_are_refused_from_both_sides(kind):
    operator, factor = operators("static")[kind], scipy.sparse.eye_array(D).tocsr()
    with pytest.raises(TypeError, match=r"`V` must be dense; got csr_array"):
        operator @ factor
    with pytest.raises(TypeError, match=r"`V` must be dense; got csr_array"):
        factor @ operator


# --- the forward operator is as good as the inverse ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_both_operators_have_the_same_products(name, kind):
    matrices, operator, v = dense(name), operators(name)[kind], vectors(D, 3)
    one, column, matrix = v[:, 0], v[:, :1], matrices[kind]
    bound = limit(matrices, "float64")
    assert operator.T is operator
    assert operator.H is operator
    assert (operator.shape, operator.dim, operator.dtype) == ((D, D), D, np.float64)
    assert operator.device == "cpu"
    for method, given in [
        ("matvec", one),
        ("matvec", column),
        ("rmatvec", one),
        ("rmatvec", column),
        ("matmat", v),
        ("rmatmat", v),
    ]:
        assert_near(getattr(operator, method)(given), matrix @ given, bound)
    assert_near(one @ operator, matrix @ one, bound)
    assert_near(v.T @ operator, v.T @ matrix, bound)


@pytest.mark.parametrize("backend", DEFERRING, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_products_from_the_left_are_the_operators_in_every_library(backend, kind):
    matrices, operator = dense("static", "float32"), operators("static", "float32", backend)[kind]
    v = vectors(3, D).astype("float32")
    for given in (v, v[0].copy()):
        got = backend.asarray(given) @ operator
        assert backend.is_own(got, "float32")
        assert_near(backend.to_numpy(got), given @ matrices[kind], limit(matrices, "float32"))


@pytest.mark.parametrize("name", CLASSES)
def test_the_forward_texts_name_what_matters(name):
    forward = operators(name)["forward"]
    for word in ("Forward", "d=14", "m=6", "damping", "float64", "cpu"):
        assert word in repr(forward)
    assert "<table>" in forward._repr_html_()


def test_the_forward_operator_of_a_window_without_a_gradient_has_a_text_and_a_shape():
    forward = SlidingWindowInverse(4, 6, 0.1).forward
    assert "d=6" in repr(forward)
    assert forward.shape == (6, 6)


def test_the_forward_operator_slides_with_its_window():
    window = operators("window")["inverse"]
    forward, operator = window.forward, window.forward.as_linear_operator()
    window.append(vectors(D))
    expected = window.forward.to_dense()
    assert_near(forward @ np.eye(D), expected, 1e-12)
    assert_near(operator @ np.eye(D), expected, 1e-12)


@pytest.mark.parametrize("clone", COPIES)
@pytest.mark.parametrize("what", ["inverse", "forward", "linear inverse", "linear forward"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_copy_of_an_operator_gives_the_same_answers(name, what, clone):
    operator = operators(name)[what.split()[-1]]
    operator = operator.as_linear_operator() if what.startswith("linear") else operator
    cloned, v = COPIES[clone](operator), vectors(D, 2)
    assert cloned is not operator
    assert np.array_equal(cloned @ v, operator @ v)
    assert np.array_equal(cloned.matvec(v[:, 0] * 1j), operator.matvec(v[:, 0] * 1j))


@pytest.mark.parametrize("backend", PRESENT, ids=repr)
def test_the_scipy_operator_can_be_pickled_in_every_library(backend):
    operator = operators("static", "float32", backend)["inverse"].as_linear_operator()
    v = vectors(D)
    assert np.array_equal(pickle.loads(pickle.dumps(operator)) @ v, operator @ v)


def test_a_pickled_operator_of_a_window_stays_as_it_was():
    window = operators("window")["inverse"]
    operator, v = window.as_linear_operator(), vectors(D)
    before, cloned = operator @ v, COPIES["pickle"](operator)
    window.append(v)
    assert np.array_equal(cloned @ v, before)
    assert not np.array_equal(operator @ v, before)


@pytest.mark.parametrize("name", CLASSES)
def test_compositions_are_the_dense_ones(name):
    matrices, v = dense(name), vectors(D, 2)
    inverse, forward = (operators(name)[kind].as_linear_operator() for kind in KINDS)
    f, x = matrices["forward"], matrices["inverse"]
    bound = limit(matrices, "float64") * np.linalg.cond(f)
    for composed, expected in [
        (inverse * 2, 2 * x),
        (2j * inverse, 2j * x),
        (-inverse, -x),
        (inverse.T, x),
        (inverse.H, x),
        (inverse @ forward, np.eye(D)),
        (inverse + forward, x + f),
        (inverse - forward, x - f),
        (inverse**2, x @ x),
        ((inverse * 1j).H, -1j * x),
        (inverse + sla.aslinearoperator(1j * np.eye(D)), x + 1j * np.eye(D)),
    ]:
        assert_near(composed @ v, expected @ v, bound)
        assert_near(v.T @ composed, v.T @ expected, bound)


# --- PyLops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("complexflag", [0, 1, 2, 3])
@pytest.mark.parametrize("wrap", ["own", "itself"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_pylops_dot_test_passes(kind, dtype, wrap, complexflag, monkeypatch):
    monkeypatch.setenv("CUPY_PYLOPS", "0")  # a CuPy without CUDA would keep it from being imported
    pylops = pytest.importorskip("pylops", reason="needs pylops")
    operator = operators("static", dtype)[kind]
    wrapped = pylops.aslinearoperator(operator.as_linear_operator() if wrap == "own" else operator)
    np.random.seed(0)
    assert pylops.utils.dottest(wrapped, D, D, complexflag=complexflag, rtol=1e-3, atol=1e-4)
    v = vectors(D, 2).astype(dtype)
    assert_near(wrapped.H @ v, dense("static", dtype)[kind] @ v, limit(dense("static", dtype), dtype))
