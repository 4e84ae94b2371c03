"""Square roots, samples, other dampings, F itself and the certificates, on every backend."""

import numpy as np
import pytest

from mfac_linalg.testing import Oracle, tolerance
from tests.backends import FLAVOURS, eps, flavour_name
from tests.cases import CASES, build


def columns_of(built, function):
    """The matrix of a map, column by column."""
    identity = np.eye(built.inverse.dim, dtype=built.dtype)
    return np.stack([built.fetch(function(built.send(column.copy()))) for column in identity], axis=1)


def test_the_square_root_times_its_transpose_is_the_inverse(built):
    root = columns_of(built, built.inverse.sqrt_matvec).astype(np.float64)
    built.assert_near(root @ root.T, built.oracle.inverse)


def test_the_square_root_is_symmetric_for_scalar_damping(built):
    root = columns_of(built, built.inverse.sqrt_matvec)
    roots = built.oracle.roots.astype(np.float64)[:, None]
    symmetric = root if built.is_scalar else root * roots  # damping^1/2 B is the symmetric factor
    assert np.linalg.norm(symmetric - symmetric.T) <= tolerance(eps(built.dtype)) * np.linalg.norm(symmetric)


def test_the_square_root_keeps_library_device_and_dtype(built):
    built.assert_own(built.inverse.sqrt_matvec(built.send(built.vectors(built.inverse.dim))))


def test_samples_keep_library_device_and_dtype(built):
    built.assert_own(built.inverse.sample(3, seed=0))


def test_samples_have_the_inverse_as_covariance(built):
    draws = built.fetch(built.inverse.sample(4000, seed=0)).astype(np.float64)
    d = built.inverse.dim
    assert draws.shape == (4000, d)
    white = draws @ np.linalg.cholesky(built.oracle.forward)
    assert np.linalg.norm(white.T @ white / 4000 - np.eye(d), 2) <= 4 * np.sqrt(d / 4000)


def test_samples_have_mean_zero(built):
    draws = built.fetch(built.inverse.sample(4000, seed=0)).astype(np.float64)
    white = draws @ np.linalg.cholesky(built.oracle.forward)
    assert np.max(np.abs(white.mean(axis=0))) <= 5 / np.sqrt(4000)


def test_a_seed_names_its_samples(built):
    first, again, other = (built.fetch(built.inverse.sample(2, seed=seed)) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_samples_are_an_empty_array(built):
    assert built.inverse.sample(0, seed=0).shape == (0, built.inverse.dim)


def test_a_damping_path_holds_one_column_per_damping(built):
    v, problem = built.vectors(built.inverse.dim), built.problem
    if not built.is_scalar:
        with pytest.raises(ValueError, match="scalar"):
            built.inverse.damping_path(built.send(v), [1.0])
        return
    dampings = [problem.damping * factor for factor in (0.1, 1.0, 100.0)]
    path = built.inverse.damping_path(built.send(v), dampings)
    built.assert_own(path)
    path = built.fetch(path)
    for column, damping in zip(path.T, dampings, strict=True):
        oracle = Oracle(problem.gradients, damping, problem.weights, problem.normalization)
        assert oracle.backward_ratio(v, column, eps(built.dtype)) <= 30


def test_another_damping_gives_another_inverse(built):
    problem = built.problem
    changed = built.inverse.with_damping(
        built.send(3 * problem.damping) if not built.is_scalar else 3 * problem.damping
    )
    oracle = Oracle(problem.gradients, 3 * problem.damping, problem.weights, problem.normalization)
    v = built.vectors(built.inverse.dim)
    assert oracle.backward_ratio(v, built.fetch(changed.matvec(built.send(v))), eps(built.dtype)) <= 30


def test_changing_the_damping_leaves_the_first_inverse_alone(built):
    v = built.send(built.vectors(built.inverse.dim))
    before = built.fetch(built.inverse.matvec(v))
    built.inverse.with_damping(1e3)
    assert np.array_equal(built.fetch(built.inverse.matvec(v)), before)


def test_a_scalar_damping_may_become_a_vector(built):
    problem, d = built.problem, built.inverse.dim
    damping = (np.mean(problem.damping) * np.linspace(1, 3, d)).astype(built.dtype)
    oracle = Oracle(problem.gradients, damping, problem.weights, problem.normalization)
    v = built.vectors(d)
    x = built.fetch(built.inverse.with_damping(built.send(damping)).matvec(built.send(v)))
    assert oracle.backward_ratio(v, x, eps(built.dtype)) <= 30


def test_a_vector_damping_may_become_a_scalar(built):
    problem = built.problem
    damping = float(np.mean(problem.damping))
    oracle = Oracle(problem.gradients, damping, problem.weights, problem.normalization)
    v = built.vectors(built.inverse.dim)
    x = built.fetch(built.inverse.with_damping(damping).matvec(built.send(v)))
    assert oracle.backward_ratio(v, x, eps(built.dtype)) <= 30


def test_forward_products_are_dense_products(built):
    v = built.vectors(built.inverse.dim, 2)
    one, forward = built.send(v[:, 0].copy()), built.inverse.forward
    built.assert_own(forward.matvec(one))
    for actual, expected in [
        (forward.matvec(one), built.oracle.forward @ v[:, 0]),
        (forward.matmat(built.send(v)), built.oracle.forward @ v),
        (forward @ one, built.oracle.forward @ v[:, 0]),
        (forward @ built.send(v), built.oracle.forward @ v),
    ]:
        built.assert_close(actual, expected)


def test_the_forward_diagonal_trace_and_dense_form_are_the_dense_ones(built):
    forward, dense = built.inverse.forward, built.oracle.forward
    built.assert_close(forward.diagonal(), np.diag(dense))
    built.assert_close(forward.trace(), np.trace(dense))
    built.assert_close(forward.to_dense(), dense)


def test_the_forward_log_determinant_is_minus_the_inverses(built):
    assert float(built.fetch(built.inverse.forward.logdet())) == -float(built.fetch(built.inverse.logdet()))


def test_the_forward_inverse_inverts(built):
    v = built.vectors(built.inverse.dim)
    built.assert_close(built.inverse.forward @ (built.inverse @ built.send(v)), v.astype(np.float64))


def test_the_eigenvalues_are_the_dense_ones_descending(built):
    if not built.is_scalar:
        with pytest.raises(ValueError, match="scalar"):
            built.inverse.forward.eigenvalues()
        return
    count = min(built.problem.gradients.shape)
    expected = np.linalg.eigvalsh(built.oracle.forward)[::-1][:count]
    eigenvalues = built.fetch(built.inverse.forward.eigenvalues())
    assert eigenvalues.shape == (count,)
    assert np.max(np.abs(eigenvalues - expected)) <= tolerance(eps(built.dtype)) * expected[0]


def test_the_forward_condition_number_is_the_inverses(built):
    if built.is_scalar:
        forward = float(built.fetch(built.inverse.forward.condition_number()))
        assert forward == float(built.fetch(built.inverse.condition_number()))


def test_the_effective_rank_counts_directions_above_the_damping(built):
    sizes = np.linalg.svd(built.oracle.scaled.astype(np.float64))[1] ** 2
    actual = float(built.fetch(built.inverse.forward.effective_rank()))
    assert actual == pytest.approx(np.sum(sizes / (1 + sizes)), abs=tolerance(eps(built.dtype), built.oracle.kappa))


def test_the_backward_error_of_an_answer_passes_its_own_test(built):
    v = built.send(built.vectors(built.inverse.dim))
    assert built.fetch(built.inverse.backward_error(v, built.inverse.matvec(v))) <= 30 * eps(built.dtype)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=flavour_name)
@pytest.mark.parametrize("case", CASES[:2], ids=repr)
def test_the_certificates_of_a_wrong_answer_are_the_dense_ones(flavour, case):
    built = build(*flavour, case)
    v, x = built.vectors(14), built.vectors(14, seed=2)
    residual = np.linalg.norm(v - built.oracle.forward @ x)
    expected = residual / (np.linalg.norm(built.oracle.forward, 2) * np.linalg.norm(x))
    assert float(built.fetch(built.inverse.backward_error(built.send(v), built.send(x)))) == pytest.approx(
        expected, rel=0.05
    )
    relative = float(built.fetch(built.inverse.relative_residual(built.send(v), built.send(x))))
    assert relative == pytest.approx(residual / np.linalg.norm(v), rel=1e-4)
