"""Sparse gradients: every format of SciPy, the same answers, and never a dense G."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT, Oracle, make_problem
from mfac_linalg.testing.strategies import problems
from tests.backends import FLOATS, NUMPY, eps
from tests.cases import construct
from tests.contract import REACH, decades, measure

FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")


def random_csr(m, d, *, dtype="float64", density=0.2, seed=0):
    """A random sparse array in CSR form."""
    return sp.random_array((m, d), density=density, random_state=np.random.default_rng(seed), format="csr").astype(
        dtype
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_every_answer_keeps_the_contract(form, dtype):
    @settings(max_examples=25)
    @given(problems(dtype, decades(dtype, "default"), largest=40))
    def check_contract(problem):
        for answer in measure(problem, NUMPY, form=form):
            assert max(answer.backward, answer.forward) <= LIMIT

    check_contract()


@given(st.sampled_from(FLOATS), st.integers(0, 2**32), st.sampled_from([1e2, 1e4, 8e5]))
def test_entries_keep_their_absolute_error(dtype, seed, kappa):
    problem = make_problem(seed, kind="sparse", shape=(8, 30), kappa=kappa, dtype=dtype)
    inverse = construct(problem, NUMPY, form="csr")
    error = inverse.submatrix(np.arange(30)) - problem.oracle.inverse
    unit = eps(dtype) if dtype == "float32" else eps(dtype) * kappa
    assert np.max(np.abs(error)) <= LIMIT * unit / np.min(problem.damping)


@given(st.sampled_from(FLOATS), st.integers(0, 2**32))
def test_the_diagonal_is_right_to_a_thousandth(dtype, seed):
    problem = make_problem(seed, kind="sparse", shape=(8, 30), kappa=0.99 * REACH[dtype, "default"], dtype=dtype)
    diagonal = construct(problem, NUMPY, form="csr").diagonal()
    assert np.allclose(diagonal, np.diag(problem.oracle.inverse), rtol=1e-3, atol=0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_every_format_gives_the_answer_of_the_dense_gradients(form, kind):
    gradients = random_csr(6, 20)
    held = getattr(sp, f"{form}_{kind}")(gradients)
    v = gradients.toarray()[0]
    dense = WoodburyRankOneInverse(gradients.toarray(), 0.1)
    assert np.allclose(WoodburyRankOneInverse(held, 0.1).matvec(v), dense.matvec(v), rtol=1e-12)


def test_entries_given_twice_are_added():
    gradients = sp.coo_array(([1.0, 2.0, 5.0], ([0, 0, 1], [3, 3, 0])), shape=(2, 6))
    diagonal = WoodburyRankOneInverse(gradients, 1.0).forward.diagonal()
    assert np.allclose(diagonal, [13.5, 1, 1, 5.5, 1, 1])


def test_the_callers_matrix_is_not_put_in_order():
    data, indices = np.array([1.0, 2.0, 5.0]), np.array([3, 3, 0])
    gradients = sp.csr_array((data.copy(), indices.copy(), np.array([0, 2, 3])), shape=(2, 6))
    WoodburyRankOneInverse(gradients, 1.0).diagonal()
    assert (gradients.data == data).all()
    assert (gradients.indices == indices).all()


def test_the_gradients_are_the_callers_own():
    gradients = random_csr(4, 9)
    assert WoodburyRankOneInverse(gradients, 1.0).gradients is gradients


def test_a_matrix_without_entries_is_the_damping_alone():
    inverse = WoodburyRankOneInverse(sp.csr_array((3, 8)), 0.5)
    assert np.array_equal(inverse.diagonal(), np.full(8, 2.0))


def test_columns_of_many_and_of_few_entries_are_told_apart():
    gradients = random_csr(30, 100, density=0.1).tolil()
    gradients[:, 7] = np.linspace(1, 2, 30)[:, None]
    gradients[3, 8:60] = 1.0
    gradients = gradients.tocsr()
    oracle = Oracle(gradients.toarray(), 0.01)
    assert np.allclose(WoodburyRankOneInverse(gradients, 0.01).diagonal(), np.diag(oracle.inverse), rtol=1e-10)


@pytest.mark.parametrize("ask", ["matvec", "diagonal", "with_damping", "forward"])
def test_no_array_of_the_gradients_size_is_made(ask):
    m, d = 40, 200_000
    gradients = random_csr(m, d, density=1e-4, dtype="float32")
    calls = {
        "matvec": lambda inverse: inverse.matvec(np.ones(d, "float32")),
        "diagonal": lambda inverse: inverse.diagonal(),
        "with_damping": lambda inverse: inverse.with_damping(1.0),
        "forward": lambda inverse: inverse.forward.diagonal(),
    }
    tracemalloc.start()
    calls[ask](WoodburyRankOneInverse(gradients, 0.1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < m * d * 4 / 2  # a vector in float64 takes a twentieth of this G


@pytest.mark.parametrize("power", [-300, 300])
def test_the_answer_does_not_depend_on_units(power):
    gradients, scale = random_csr(5, 12), 2.0**power
    v = gradients.toarray()[1]
    x = WoodburyRankOneInverse(gradients, 0.1).matvec(v)
    assert np.array_equal(WoodburyRankOneInverse(gradients * scale, 0.1 * scale**2).matvec(v * scale**2), x)


@pytest.mark.parametrize("kind", ["csr_array", "csc_array", "coo_matrix"])
@pytest.mark.parametrize("index", [-1, 7, 10**8])
def test_indices_outside_a_sparse_matrix_are_refused(kind, index):
    g = getattr(sp, kind)(np.ones((2, 5)))
    (g.col if kind.startswith("coo") else g.indices)[0] = index
    with pytest.raises(ValueError, match="`gradients` must be a sparse matrix whose indices are within it"):
        WoodburyRankOneInverse(g, 0.1)
