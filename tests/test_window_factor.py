"""A window's Cholesky factor: rows that come and go, what a step costs, and how accurate it is."""

import warnings

import numpy as np
import pytest

from mfac_linalg import IllConditionedWarning, SlidingWindowInverse, WoodburyRankOneInverse
from mfac_linalg._capacitance.update import factor_with, factor_without
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import eps
from tests.windows import filled_window, random_rows

# --- the factor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [[], [0], [3], [8], [0, 1, 2], [2, 5, 7], list(range(9))], ids=repr)
@pytest.mark.parametrize("size", [9, 40])
def test_a_factor_follows_rows_that_go(size, dropped):
    spread = random_rows(size, 2 * size)
    matrix = np.eye(size) + spread @ spread.T
    kept = np.delete(np.arange(size), dropped)
    factor = factor_without(np.linalg.cholesky(matrix), np.isin(np.arange(size), kept))
    assert np.allclose(factor @ factor.T, matrix[np.ix_(kept, kept)], atol=1e-12 * np.linalg.norm(matrix))
    assert np.array_equal(factor, np.tril(factor))


@pytest.mark.parametrize("known", [0, 1, 8])
def test_a_factor_follows_rows_that_come(known):
    spread = random_rows(9)
    matrix = np.eye(9) + spread @ spread.T
    padded = factor_without(np.linalg.cholesky(matrix[:known, :known]), np.ones(known, dtype=bool), 9 - known)
    factor = factor_with(padded, matrix[:known, known:], matrix[known:, known:])
    assert np.allclose(factor @ factor.T, matrix, atol=1e-12 * np.linalg.norm(matrix))


# --- what a step costs ----------------------------------------------------------------------------------------------


def test_a_full_window_slides_without_a_new_factorisation():
    window = filled_window(40, window=32)
    before = window.factorizations
    for g in random_rows(100, seed=1):
        window.append(g)
    window.replace(3, random_rows(1, seed=2)[0])
    assert window.factorizations == before


@pytest.mark.parametrize("normalization", ["sum", "window"])
def test_a_window_fills_and_shrinks_without_one_where_its_divisor_stays(normalization):
    window = filled_window(30, window=32, normalization=normalization)
    window.remove(7)
    window.remove(-1)
    assert window.factorizations == 0


def test_a_factor_that_is_wrong_is_noticed_and_made_anew():
    window = filled_window(12, window=8)
    before = window.factorizations
    window._state.factor.cholesky[5, 2] += 1e-6
    g = random_rows(1, seed=3)[0]
    x = window.append_matvec(g)
    assert window.factorizations == before + 1
    assert Oracle(window.gradients, 0.1).backward_ratio(g, x, eps("float64")) <= LIMIT


@pytest.mark.parametrize("shape", [(512, 700), (24, 4000)])
def test_an_extended_window_equals_the_static_inverse(shape):
    block = random_rows(*shape, dtype="float32")
    window = SlidingWindowInverse.from_gradients(block, 30.0)
    v = block[3]
    static = WoodburyRankOneInverse(block, 30.0, whiten=False)
    assert np.linalg.norm(window @ v - static @ v) <= 1e-4 * np.linalg.norm(static @ v)


# --- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "limit"), [("default", 1e-3), ("high", 1e-6)])
@pytest.mark.parametrize("kappa", [1e4, 1e6, 1e7])
def test_a_step_keeps_its_digits_where_rows_share_a_mean(precision, limit, kappa):
    """Float32 rows with a common mean five times the noise: the relative error of F⁻¹g for the newest g."""
    rng = np.random.default_rng(0)
    mean = 5 * rng.standard_normal(2000)
    stream = (mean + rng.standard_normal((24, 2000))).astype("float32")
    damping = float(np.linalg.norm(stream[:16].astype(float), 2) ** 2 / 16 / kappa)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # κ = 1e6 is beyond what any product keeps in float32
        window = SlidingWindowInverse(16, 2000, damping, precision=precision)
        for g in stream:
            x = window.append_matvec(g)
    exact = Oracle(stream[-16:], damping).solve(g)
    assert np.linalg.norm(x - exact) <= limit * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["iid", "correlated", "repeated"])
@pytest.mark.parametrize("damping", [1e-1, 1e-3])
def test_many_steps_do_not_drift(dtype, kind, damping):
    """A short version of ``python -m benchmarks.drift``."""
    rng = np.random.default_rng(0)
    window, g = SlidingWindowInverse(16, 64, damping), np.zeros(64)
    for step in range(1500):
        fresh = rng.standard_normal(64)
        g = {"iid": fresh, "correlated": 0.9 * g + 0.3 * fresh, "repeated": g if step % 3 else fresh}[kind]
        x = window.append_matvec(g.astype(dtype))
        if step % 100 == 99:
            oracle = Oracle(window.gradients, damping, wide=np.float64)
            assert oracle.backward_ratio(g.astype(dtype), x, eps(dtype)) <= LIMIT
    assert window.factorizations <= 16


def test_rows_of_every_size_live_together():
    """Rows whose squares overflow or vanish in float32 are kept in units of their own."""
    scales = np.array([1e-30, 1.0, 1e19, 1e25, 1e-22], dtype="float32")
    block = random_rows(5, 30, dtype="float32") * scales[:, None]
    window = SlidingWindowInverse(4, 30, 1e47)
    for g in block:
        window.append(g)
    assert np.array_equal(window.gradients, block[1:])
    v = block[3]
    oracle = Oracle(block[1:], 1e47)
    assert oracle.backward_ratio(v, window @ v, eps("float32")) <= LIMIT
    assert oracle.backward_ratio(v, window.matvec_gradients(np.eye(4, dtype="float32")[2]), eps("float32")) <= LIMIT
    dual = np.asarray(window.dual_coefficients(v), float)
    assert np.allclose((v - block[1:].T.astype(float) @ dual) / 1e47, window @ v, rtol=1e-3, atol=1e-32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_gradients_are_stored_as_they_are(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes") if dtype == "bfloat16" else None
    short = np.dtype(ml_dtypes.bfloat16) if ml_dtypes else np.dtype("float16")
    window = SlidingWindowInverse(4, 40, 0.1)
    for g in random_rows(6).astype(short):
        window.append(g)
    assert window.gradients.dtype == short
    assert window.dtype == np.float32
    v = random_rows(1, seed=1, dtype="float32")[0]
    assert Oracle(window.gradients.astype(float), 0.1).backward_ratio(v, window @ v, eps("float32")) <= LIMIT
