"""Single entries, blocks, forms and diagonals of F^-1 on every backend, against the dense inverse."""

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import make_problem, tolerance
from tests.backends import FLAVOURS, eps, flavour_name
from tests.cases import construct


def entry_limit(built, rows, columns):
    """The contract's bound on an element: 30 eps / sqrt(damping_i damping_j)."""
    roots = built.oracle.roots.astype(np.float64)
    return tolerance(eps(built.dtype)) / (roots[rows] * roots[columns])


def test_the_diagonal_is_the_dense_one(built):
    diagonal = built.inverse.diagonal()
    built.assert_own(diagonal)
    everywhere = np.arange(built.inverse.dim)
    error = np.abs(built.fetch(diagonal) - np.diag(built.oracle.inverse))
    assert np.all(error <= entry_limit(built, everywhere, everywhere))


def test_an_element_is_the_dense_one(built):
    d = built.inverse.dim
    for i, j in [(0, 0), (0, d - 1), (d // 2, d // 3)]:
        element = built.fetch(built.inverse.element(i, j))
        assert element.shape == ()
        assert abs(element - built.oracle.inverse[i, j]) <= entry_limit(built, i, j)


def test_elements_broadcast_their_indices(built):
    d = built.inverse.dim
    rows, columns = np.arange(d)[:, None], np.array([0, d - 1])
    elements = built.inverse.element(built.send(rows), built.send(columns))
    built.assert_own(elements)
    error = np.abs(built.fetch(elements) - built.oracle.inverse[rows, columns])
    assert np.all(error <= entry_limit(built, rows, columns))


def test_negative_indices_count_from_the_end(built):
    d = built.inverse.dim
    element = built.fetch(built.inverse.element(-1, -d))
    assert abs(element - built.oracle.inverse[-1, -d]) <= entry_limit(built, -1, -d)


def test_negative_indices_count_from_the_end_in_arrays(built):
    d = built.inverse.dim
    backwards, forwards = -1 - np.arange(d), d - 1 - np.arange(d)
    negative = built.inverse.element(built.send(backwards), 0)
    positive = built.inverse.element(built.send(forwards), 0)
    assert np.array_equal(built.fetch(negative), built.fetch(positive))


@pytest.mark.parametrize("beyond", [0, -1], ids=["above", "below"])
def test_an_index_out_of_range_is_refused(built, beyond):
    index = built.inverse.dim if beyond == 0 else -built.inverse.dim - 1
    with pytest.raises(IndexError, match=str(index)):
        built.inverse.element(index, 0)


def test_columns_are_the_dense_ones(built):
    wanted = np.array([0, built.inverse.dim - 1, 0])
    columns = built.inverse.columns(built.send(wanted))
    built.assert_own(columns)
    built.assert_close(columns, built.oracle.inverse[:, wanted])


def test_a_submatrix_is_the_dense_block(built):
    d = built.inverse.dim
    rows, columns = np.array([d - 1, 0]), np.arange(d)
    block = built.inverse.submatrix(built.send(rows), built.send(columns))
    built.assert_own(block)
    error = np.abs(built.fetch(block) - built.oracle.inverse[np.ix_(rows, columns)])
    assert np.all(error <= entry_limit(built, rows[:, None], columns))


def test_a_submatrix_of_rows_alone_is_a_principal_one(built):
    rows = np.array([built.inverse.dim - 1, 0])
    block = built.fetch(built.inverse.submatrix(built.send(rows)))
    error = np.abs(block - built.oracle.inverse[np.ix_(rows, rows)])
    assert np.all(error <= entry_limit(built, rows[:, None], rows))


def test_the_quadratic_form_is_the_dense_one(built):
    v = built.vectors(built.inverse.dim)
    form = built.inverse.quadratic_form(built.send(v))
    built.assert_close(form, v.astype(np.float64) @ built.oracle.inverse @ v)


def test_the_quadratic_form_of_columns_has_one_value_each(built):
    v = built.vectors(built.inverse.dim, 3)
    form = built.inverse.quadratic_form(built.send(v))
    built.assert_close(form, np.einsum("dk,de,ek->k", v.astype(np.float64), built.oracle.inverse, v))
    assert built.inverse.quadratic_form(built.send(v[:, :0])).shape == (0,)
    assert built.inverse.quadratic_form(built.send(v[:, 0].copy())).shape == ()


def test_certificates_of_columns_are_those_of_each(built):
    v, x = built.vectors(built.inverse.dim, 2), built.vectors(built.inverse.dim, 2, seed=2)
    for certificate in (built.inverse.backward_error, built.inverse.relative_residual):
        together = built.fetch(certificate(built.send(v), built.send(x)))
        each = [float(built.fetch(certificate(*(built.send(y[:, k].copy()) for y in (v, x))))) for k in range(2)]
        assert together == pytest.approx(each, rel=1e3 * eps(built.dtype))


def test_the_log_determinant_is_the_dense_one(built):
    expected = np.linalg.slogdet(built.oracle.inverse)[1]
    limit = tolerance(eps(built.dtype), built.oracle.kappa) * built.inverse.dim
    assert abs(built.fetch(built.inverse.logdet()) - expected) <= limit


def test_the_trace_is_the_dense_one(built):
    diagonal = np.diag(built.oracle.inverse)
    limit = tolerance(eps(built.dtype)) * np.sum(built.oracle.roots**-2)
    assert abs(built.fetch(built.inverse.trace()) - np.sum(diagonal)) <= limit


def test_the_condition_number_is_the_dense_one_for_scalar_damping(built):
    if built.is_scalar:
        expected = np.linalg.cond(built.oracle.forward)
        assert float(built.fetch(built.inverse.condition_number())) == pytest.approx(expected, rel=1e-4)
    else:
        with pytest.raises(ValueError, match="scalar"):
            built.inverse.condition_number()


def test_the_dense_inverse_is_available_for_small_sizes(built):
    dense = built.inverse.to_dense()
    built.assert_own(dense)
    built.assert_close(dense, built.oracle.inverse)


def test_the_diagonal_of_a_large_inverse_is_made_of_its_elements():
    """Large enough to be summed in several threads."""
    gradients = np.random.default_rng(0).standard_normal((64, 70_000), dtype=np.float32)
    inverse = WoodburyRankOneInverse(gradients, 10.0)
    some = np.arange(0, 70_000, 997)
    assert np.allclose(inverse.diagonal()[some], inverse.element(some, some), rtol=1e-5, atol=0)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=flavour_name)
def test_many_elements_of_many_rows_are_the_dense_ones(flavour):
    """Enough pairs, and more rows than one block of them, to be gathered from transposed blocks of rows."""
    backend, dtype = flavour
    problem = make_problem(0, shape=(70, 90), dtype=dtype)
    inverse, oracle = construct(problem, backend, whiten=True), problem.oracle
    i, j = np.random.default_rng(0).integers(0, 90, (2, 5000))
    values = backend.to_numpy(inverse.element(backend.asarray(i), backend.asarray(j)))
    assert np.max(np.abs(values - oracle.inverse[i, j])) <= tolerance(eps(dtype)) / problem.damping


@pytest.mark.parametrize("shape", [(8, 4), (20, 60)])
@pytest.mark.parametrize("seed", range(8))
def test_the_largest_directions_keep_their_diagonal(shape, seed):
    """A dozen power steps miss ‖F‖ where the largest eigenvalues lie close together."""
    m, d = shape
    gradients = np.zeros(shape)
    rank = min(shape)
    gradients[np.arange(rank), np.arange(rank)] = np.sqrt(np.linspace(1, 0.7, rank))
    gradients += 1e-3 * np.random.default_rng(seed).standard_normal(shape)
    inverse = WoodburyRankOneInverse(gradients, 1e-4)
    exact = np.diag(np.linalg.inv(1e-4 * np.eye(d) + gradients.T @ gradients / m))
    assert np.allclose(inverse.diagonal(), exact, rtol=1e-9)
    assert np.isclose(inverse.trace(), exact.sum(), rtol=1e-9)


@pytest.mark.parametrize("whiten", [True, False])
def test_no_indices_give_no_elements(whiten):
    inverse = WoodburyRankOneInverse(np.eye(3, 5), 0.1, whiten=whiten)
    assert inverse.element([], []).shape == (0,)
    assert inverse.element(0, np.zeros((0, 3), dtype=int)).shape == (0, 3)
