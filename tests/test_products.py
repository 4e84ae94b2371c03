"""Products with F^-1 on every backend: matvec, matmat, @, push-through, dual coefficients."""

from dataclasses import replace

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import make_problem
from tests.backends import AVAILABLE, Backend
from tests.cases import CASES, WIDE, build, construct

RIGHT_AND_LEFT = [b for b in AVAILABLE if b.library in ("numpy", "torch", "jax.numpy", "cupy")]


def test_matvec_is_the_dense_product(built):
    v = built.vectors(built.inverse.dim)
    built.assert_close(built.inverse.matvec(built.send(v)), built.oracle.inverse @ v)


def test_matmat_is_the_dense_product(built):
    v = built.vectors(built.inverse.dim, 3)
    built.assert_close(built.inverse.matmat(built.send(v)), built.oracle.inverse @ v)


def test_the_adjoint_products_are_the_products(built):
    v = built.vectors(built.inverse.dim, 2)
    built.assert_close(built.inverse.rmatvec(built.send(v[:, 0].copy())), built.oracle.inverse @ v[:, 0])
    built.assert_close(built.inverse.rmatmat(built.send(v)), built.oracle.inverse @ v)


@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "matrix"])
def test_the_operator_sign_takes_vectors_and_matrices(built, columns):
    v = built.vectors(built.inverse.dim, *columns)
    built.assert_close(built.inverse @ built.send(v), built.oracle.inverse @ v)


@pytest.mark.parametrize("rows", [(), (3,)], ids=["vector", "matrix"])
@pytest.mark.parametrize("backend", RIGHT_AND_LEFT, ids=repr)
def test_an_array_may_stand_on_the_left(backend, rows):
    built = build(backend, "float32", CASES[0])
    v = built.vectors(*rows, built.inverse.dim)
    built.assert_close(built.send(v) @ built.inverse, v @ built.oracle.inverse)


def test_transposing_returns_the_object_itself(built):
    assert built.inverse.T is built.inverse
    assert built.inverse.H is built.inverse


@pytest.mark.parametrize("columns", [(), (3,)], ids=["vector", "matrix"])
def test_push_through_maps_a_combination_of_gradients(built, columns):
    c = built.vectors(built.inverse.num_gradients, *columns)
    expected = built.oracle.inverse @ (built.problem.gradients.astype(np.float64).T @ c)
    built.assert_close(built.inverse.matvec_gradients(built.send(c)), expected)


def test_dual_coefficients_give_the_product_without_stored_gradients(built):
    v = built.vectors(built.inverse.dim)
    a = built.fetch(built.inverse.dual_coefficients(built.send(v)))
    gradients, damping = built.problem.gradients.astype(np.float64), built.problem.damping
    built.assert_near((v - gradients.T @ a) / damping, built.oracle.inverse @ v)


@pytest.mark.parametrize("columns", [(), (2,)], ids=["vector", "matrix"])
def test_products_keep_library_device_and_dtype(built, columns):
    v, c = built.vectors(built.inverse.dim, *columns), built.vectors(built.inverse.num_gradients, *columns)
    built.assert_own(built.inverse @ built.send(v))
    built.assert_own(built.inverse.matvec_gradients(built.send(c)))


def test_dual_coefficients_keep_library_device_and_dtype(built):
    built.assert_own(built.inverse.dual_coefficients(built.send(built.vectors(built.inverse.dim))))


def test_a_zero_vector_maps_to_zero(built):
    zero = np.zeros(built.inverse.dim, built.dtype)
    assert not np.any(built.fetch(built.inverse.matvec(built.send(zero))))


def test_no_columns_give_no_columns(built):
    assert built.inverse.matmat(built.send(np.zeros((built.inverse.dim, 0), built.dtype))).shape == (
        built.inverse.dim,
        0,
    )


def test_a_column_of_matmat_is_a_matvec_to_rounding(built):
    v = built.vectors(built.inverse.dim, 3)
    together = built.fetch(built.inverse.matmat(built.send(v)))
    built.assert_close(built.inverse.matvec(built.send(v[:, 1].copy())), together[:, 1])


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("general", [False, True], ids=["plain", "general"])
def test_inputs_are_left_as_they_were(backend, whiten, general):
    problem = make_problem(5, dtype="float32", vector=general, weighted=general)
    gradients = backend.asarray(problem.gradients)
    damping = backend.asarray(problem.damping) if general else problem.damping
    weights = backend.asarray(problem.weights) if general else None
    v, c = backend.asarray(problem.gradients[0]), backend.asarray(np.ones(WIDE[0], "float32"))
    inverse = WoodburyRankOneInverse(gradients, damping, weights=weights, whiten=whiten)
    inverse.matvec(v)
    inverse.matvec_gradients(c)
    inverse.diagonal()
    for array, original in [
        (gradients, problem.gradients),
        (damping, problem.damping),
        (weights, problem.weights),
        (v, problem.gradients[0]),
        (c, np.ones(WIDE[0], "float32")),
    ]:
        assert original is None or np.array_equal(backend.to_numpy(array), original)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_memory_layout_of_numpy_arrays_does_not_matter(layout, whiten, dtype):
    problem = make_problem(7, dtype=dtype)
    change = LAYOUTS[layout]
    inverse = construct(problem, Backend("layout", "numpy", (dtype,), lambda _, a: change(a)), whiten=whiten)
    v = problem.gradients[0] + problem.gradients[1]
    x = inverse.matvec(change(v.copy()))
    assert problem.oracle.backward_ratio(v, x, np.finfo(dtype).eps) <= 30


SIXTEEN_BITS = [
    pytest.param(b, name, id=f"{b}-{name}")
    for b in AVAILABLE
    for name in ("float16", "bfloat16")
    if b.library in ("torch", "jax.numpy", "cupy") or (b.library == "numpy" and name == "float16")
    if (b.library, name) != ("cupy", "bfloat16")
]


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize(("backend", "name"), SIXTEEN_BITS)
def test_sixteen_bit_gradients_are_computed_in_float32(backend, name, whiten):
    problem = make_problem(2, dtype="float32")
    xp = backend.namespace
    dtype = np.float16 if backend.library == "numpy" else getattr(xp, name)
    gradients = xp.asarray(backend.asarray(problem.gradients), dtype=dtype)
    rounded = replace(problem, gradients=backend.to_numpy(xp.asarray(gradients, dtype=backend.dtype("float32"))))
    x = WoodburyRankOneInverse(gradients, problem.damping, whiten=whiten).matvec(gradients[0])
    assert backend.is_own(x, "float32")
    assert rounded.oracle.backward_ratio(rounded.gradients[0], backend.to_numpy(x), 2**-23) <= 30


def test_sums_longer_than_a_panel_are_put_together(flavour):
    backend, dtype = flavour
    gradients = np.random.default_rng(0).standard_normal((4, 700)).astype(dtype)
    inverse = WoodburyRankOneInverse(backend.asarray(gradients), 1.0)
    dense = np.linalg.inv(np.eye(700) + gradients.T.astype(float) @ gradients / 4)
    answer = backend.to_numpy(inverse.matmat(backend.asarray(gradients[:2].T.copy())))
    assert np.allclose(answer, dense @ gradients[:2].T, rtol=0, atol=1e-5)
