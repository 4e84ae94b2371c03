"""Triangles in blocks: as accurate as LAPACK, over arrays of any layout, and the same in any number of threads."""

import numpy as np
import pytest
import scipy.linalg

from mfac_linalg._backend import (
    column_squares,
    factor_solve,
    invert_triangular,
    linalg,
    multiply_triangular,
    solve_triangular,
)

SIZES = [1, 5, 31, 32, 33, 64, 65, 130]
EPS = np.finfo(float).eps


def factor(size, order="C"):
    """The Cholesky factor of a matrix with a condition number of about 1e10, two rows of it nearly the same."""
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((size, 2 * size)) * np.geomspace(1, 1e-3, 2 * size)
    rows[-1] = rows[0] + 1e-4 * rows[-1]
    matrix = rows @ rows.T
    matrix += 1e-10 * np.trace(matrix) * np.eye(size)
    return np.array(np.linalg.cholesky(matrix), order=order)


def right_sides(size, count):
    return np.random.default_rng(count).standard_normal((size, count))


@pytest.fixture(params=[1, 2, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(linalg, "thread_count", lambda: request.param)
    return request.param


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("count", [1, 4, 40])
@pytest.mark.parametrize("size", SIZES)
def test_a_solve_leaves_a_residual_of_rounding(size, count, order, transposed):
    lower, b = factor(size, order), right_sides(size, count)
    x = solve_triangular(lower, b, transposed=transposed)
    matrix = lower.T if transposed else lower
    residual = np.abs(matrix @ x - b)
    assert np.all(residual <= 8 * size * EPS * (np.abs(matrix) @ np.abs(x)))


@pytest.mark.parametrize("count", [1, 4, 40])
@pytest.mark.parametrize("size", SIZES)
def test_a_solve_with_the_factor_is_as_accurate_as_that_of_lapack(size, count):
    lower, b = factor(size), right_sides(size, count)
    matrix = lower @ lower.T

    def error(x):
        return np.linalg.norm(matrix @ x - b) / np.linalg.norm(matrix) / np.linalg.norm(x)

    assert error(factor_solve(lower, b)) <= 3 * error(scipy.linalg.cho_solve((lower, True), b)) + EPS / 10


def test_signs_on_the_diagonal_and_numbers_above_it_do_not_matter():
    lower, b = factor(70), right_sides(70, 9)
    lower *= np.where(np.arange(70) % 3, 1.0, -1.0)
    wanted = solve_triangular(lower, b)
    assert np.array_equal(solve_triangular(lower + np.triu(np.ones((70, 70)), 1), b), wanted)


@pytest.mark.parametrize("size", SIZES)
def test_an_inverse_is_that_of_the_triangle(size):
    lower = factor(size)
    inverse = invert_triangular(lower)
    assert np.array_equal(inverse, np.tril(inverse))
    error = np.abs(lower @ inverse - np.eye(size))
    assert np.all(error <= 8 * size * EPS * (np.abs(lower) @ np.abs(inverse)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_a_product_is_written_where_it_is_asked_for(size, dtype, threads):
    lower, b = np.tril(right_sides(size, size)).astype(dtype), right_sides(size, 50).astype(dtype)
    wanted = lower @ b
    tolerance = {"rtol": 0, "atol": size * np.finfo(dtype).eps * np.max(np.abs(lower) @ np.abs(b))}
    assert np.allclose(multiply_triangular(lower, b), wanted, **tolerance)
    wide = np.zeros((size, 60))
    multiply_triangular(lower, b[:, 5:], wide[:, 10:55])
    assert np.allclose(wide[:, 10:55], wanted[:, 5:], **tolerance)
    assert not np.any(wide[:, :10])
    assert not np.any(wide[:, 55:])
    multiply_triangular(lower, b[:, :20], b[:, :20])
    assert np.allclose(b[:, :20], wanted[:, :20], **tolerance)
    assert np.array_equal(b[:, 20:], right_sides(size, 50).astype(dtype)[:, 20:])


@pytest.mark.parametrize(
    "shape", [(300, 2**14), (17, 2**18), (3, 2**21), (2**12 + 5, 1100), (10**5 + 7, 3), (5, 2), (0, 4), (4, 0)]
)
def test_squares_of_columns_are_the_same_in_threads(shape, threads):
    x = np.random.default_rng(0).standard_normal(shape, dtype="float32")
    wanted = np.sum(x.astype(float) ** 2, axis=0)
    assert np.allclose(column_squares(x), wanted, rtol=shape[0] * np.finfo("float32").eps)
