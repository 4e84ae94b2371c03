"""Influence functions against dense products, for every class on every backend; what they predict, by retraining."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, TopK, WoodburyRankOneInverse
from mfac_linalg._capacitance.system import Capacitance
from mfac_linalg._forms.state import State
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.testing import KINDS, LIMIT, Oracle, make_problem, tolerance
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import AVAILABLE, BACKENDS, FLOATS, NUMPY, eps
from tests.cases import BUILT, CASES, build, built_name, construct
from tests.inputs import INPUTS

STRICT, ELSEWHERE = (next(b for b in BACKENDS if b.name == name) for name in ("strict:CPU_DEVICE", "strict:device1"))
WHOLE = build(NUMPY, "float64", CASES[0])  # rows, dampings and answers of NumPy in float64
CUTS = itertools.product(FLOATS, [(4, 14), (15, 14)], [1, 5, (2, 2, 5, 5)])
RULES = itertools.product(FLOATS, ["mean", "sum", "window"], [1.0, 0.8], [False, True])
OTHERS = [(backend, backend.dtypes[0]) for backend in AVAILABLE if backend.library not in ("numpy", "jax.numpy")]
BLOCKED = [(NUMPY, *how) for how in CUTS]


BLOCKED += [(*flavour, (4, 14), (2, 2, 5, 5)) for flavour in OTHERS]


SLIDING = [(NUMPY, *rules) for rules in RULES] + [(*flavour, "mean", 0.8, True) for flavour in OTHERS]
ASKED = [(b, d, case) for b, d, case in BUILT if b.library != "jax.numpy" or case.name == "wide-general-referenced"]


@pytest.fixture(params=ASKED, ids=built_name)
def built(request):
    """Each case on each backend in each dtype; JAX, which compiles for each shape, takes one."""
    return build(*request.param)


def in_span(built, count, seed=1):
    """Combinations of the stored rows, one of them a row, in the problem's dtype and of the rows' size."""
    mix = np.random.default_rng(seed).standard_normal((count, built.inverse.num_gradients))
    mix[0] = np.eye(built.inverse.num_gradients)[0]
    return (mix @ built.problem.gradients.astype(np.float64)).astype(built.dtype)


def dense(built, tests, trains):
    """T F⁻¹ Rᵀ by the oracle."""
    return tests.astype(np.float64) @ built.oracle.inverse @ trains.T.astype(np.float64)


def squares(built, rows):
    """The diagonal of R F⁻¹ Rᵀ."""
    return np.einsum("ij,jk,ik->i", rows.astype(np.float64), built.oracle.inverse, rows.astype(np.float64))


# --- against dense products ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 20], ids=["few tests", "more tests than rows"])
def test_tests_in_the_span_of_the_stored_rows_meet_these(built, count):
    tests = in_span(built, count)
    scores = influence(built.inverse, built.send(tests))
    built.assert_close(scores, dense(built, tests, built.problem.gradients))
    built.assert_own(scores)


def test_influence_is_the_dense_product(built):
    tests, trains = in_span(built, 2), built.vectors(5, built.inverse.dim)
    scores = influence(built.inverse, built.send(tests), built.send(trains))
    built.assert_close(scores, dense(built, tests, trains))
    built.assert_own(scores)


def test_self_influence_is_the_diagonal_of_the_dense_product(built):
    rows = np.concatenate([in_span(built, 2), built.vectors(3, built.inverse.dim)])
    values = self_influence(built.inverse, built.send(rows))
    built.assert_close(values, squares(built, rows))
    built.assert_own(values)


def test_self_influence_of_the_stored_rows_is_that_of_the_rows(built):
    values = self_influence(built.inverse)
    built.assert_close(values, squares(built, built.problem.gradients))
    built.assert_own(values)


@pytest.mark.parametrize(("backend", "dtype", "shape", "cut"), BLOCKED, ids=str)
def test_blocks_add_up(backend, dtype, shape, cut):
    general = backend.has_float64
    problem = make_problem(4, shape=shape, dtype=dtype, vector=general, weighted=general)
    damping, weights = problem.damping, problem.weights
    inverse = BlockDiagonalInverse(
        backend.asarray(problem.gradients),
        backend.asarray(damping) if general else damping,
        block_sizes=cut,
        weights=backend.asarray(weights) if general else None,
    )
    exact = np.zeros((shape[1], shape[1]))
    for stop, size in zip(np.cumsum(inverse.block_sizes), inverse.block_sizes, strict=True):
        part = slice(stop - size, stop)
        roots = damping[part] if general else damping
        exact[part, part] = Oracle(problem.gradients[:, part], roots, weights).inverse
    limit = tolerance(eps(dtype), problem.oracle.kappa)
    tests = problem.gradients[:3] - problem.gradients[1:4]
    scores = backend.to_numpy(influence(inverse, backend.asarray(tests)))
    assert np.allclose(scores, tests @ exact @ problem.gradients.T, rtol=0, atol=limit * np.max(np.abs(scores)))
    own = np.einsum("ij,jk,ik->i", problem.gradients, exact, problem.gradients)
    assert np.allclose(backend.to_numpy(self_influence(inverse)), own, rtol=limit, atol=0)


@pytest.mark.parametrize(("backend", "dtype", "normalization", "decay", "general"), SLIDING)
def test_a_window_answers_oldest_first(backend, dtype, normalization, decay, general):
    problem = make_problem(5, shape=(9, 14), dtype=dtype, vector=general)
    damping = backend.asarray(problem.damping) if general else problem.damping
    window = SlidingWindowInverse(5, 14, damping, normalization=normalization, decay=decay)
    window.extend(backend.asarray(problem.gradients))
    window.replace(1, backend.asarray(problem.gradients[0]))  # where age order is not that of the factor
    rows = backend.to_numpy(window.gradients)
    divisor = 1 if normalization == "sum" else 5
    oracle = Oracle(rows, problem.damping, 5 / divisor * decay ** np.arange(4.0, -1, -1))
    limit = tolerance(eps(dtype), oracle.kappa)
    for tests in (rows[:3] + rows[2:5], problem.gradients):
        exact = tests @ oracle.inverse @ rows.T.astype(np.float64)
        scores = backend.to_numpy(influence(window, backend.asarray(tests)))
        assert np.allclose(scores, exact, rtol=0, atol=limit * np.max(np.abs(exact)))
    own = np.einsum("ij,jk,ik->i", rows, oracle.inverse, rows)
    assert np.allclose(backend.to_numpy(self_influence(window)), own, rtol=limit, atol=0)


def test_a_compressed_window_answers_for_the_rows_that_it_keeps():
    window = SlidingWindowInverse(5, 14, 0.1, compression=TopK(0.5))
    window.extend(WHOLE.problem.gradients)
    tests = WHOLE.vectors(3, 14)
    assert np.allclose(influence(window, tests), influence(window, tests, window.gradients))
    assert np.allclose(self_influence(window), self_influence(window, window.gradients))


def test_an_empty_window_has_no_rows_to_blame(backend):
    tests = WHOLE.vectors(3, 14).astype(backend.dtypes[0])
    sent = backend.asarray(tests)
    window = SlidingWindowInverse.from_gradients(sent, 0.5)
    window.clear()
    assert tuple(influence(window, sent).shape) == (3, 0)
    assert tuple(self_influence(window).shape) == (0,)
    assert np.allclose(backend.to_numpy(influence(window, sent, sent)), tests @ tests.T / 0.5)


# --- accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("kappa", [1.01, 1e3, 1e5])
def test_influence_has_the_backward_error_of_a_product(kind, kappa, dtype):
    """Of rows on rows: ‖F‖ ‖F⁻¹t‖ ‖F⁻¹r‖ eps, and the rounding of a dot product."""
    problem = make_problem(1, kind=kind, shape=(8, 20), kappa=kappa, dtype=dtype)
    inverse, rows = construct(problem, NUMPY), problem.gradients.astype(np.longdouble)
    solved = problem.oracle.solve(rows.T)
    sizes, lengths = (
        np.linalg.norm(solved.astype(float), axis=0),
        np.linalg.norm(problem.gradients.astype(float), axis=1),
    )
    forward = kappa * problem.damping * np.outer(sizes, sizes)
    limit = LIMIT * eps(dtype) * (forward + np.maximum(np.outer(lengths, sizes), np.outer(sizes, lengths)))
    for scores in (influence(inverse, problem.gradients), influence(inverse, problem.gradients, problem.gradients)):
        assert np.all(np.abs(scores - rows @ solved) <= limit)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("kappa", [1 + 1e-6, 1e2, 1e5, 8e5])
def test_leverages_do_not_cancel(kind, kappa, dtype):
    """c_i g_iᵀF⁻¹g_i, from next to nothing to next to one: κ eps relative, and eps κ of one."""
    problem = make_problem(2, kind=kind, shape=(8, 20), kappa=kappa, dtype=dtype)
    exact = np.einsum("ij,ji->i", problem.gradients, problem.oracle.solve(problem.gradients.T.astype(np.longdouble)))
    leverages = self_influence(construct(problem, NUMPY)) * problem.oracle.coefficients
    exact = exact * problem.oracle.coefficients
    assert np.all(np.abs(leverages - exact) <= tolerance(eps(dtype), kappa) * (1 if kappa > 2 else exact))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", range(20))
def test_a_self_influence_is_never_negative(seed, dtype):
    """Rows that are almost zero and parallel to huge ones."""
    rows = np.random.default_rng(seed).standard_normal((3, 4))[[0, 0, 1, 1, 2]]
    rows = (rows * [[100.0], [1e-3], [50.0], [1e-4], [0.0]]).astype(dtype)
    inverse = WoodburyRankOneInverse(np.repeat(rows, 8, axis=1), 1.0)
    assert np.all(self_influence(inverse) >= 0)
    assert np.all(self_influence(inverse, inverse.gradients) >= 0)


def test_a_gram_matrix_that_rounding_made_indefinite_has_leverages():
    """Of (1e8, 0) and (1, 0), a few roundings off: 1e-16 at least for the second, what the first has of its dual."""
    system = Capacitance.factor(np.array([[1e16, 1e8], [1e8, 1 - 1e-15]]))
    assert np.all(system.leverages() >= [0.99, 1e-17])


def test_gradients_of_any_size_give_scaled_scores():
    problem = make_problem(1, dtype="float32")
    large = problem.scaled_by(2.0**60)
    for rows, far in ((problem.gradients, large.gradients), (problem.gradients[:2], large.gradients[:2])):
        near_scores, far_scores = influence(construct(problem, NUMPY), rows), influence(construct(large, NUMPY), far)
        assert np.array_equal(near_scores, far_scores)
    assert np.array_equal(self_influence(construct(problem, NUMPY)), self_influence(construct(large, NUMPY)))


def test_long_sums_are_carried_in_float64():
    """100,000 equal terms in float32 would be off by a hundred roundings."""
    rows = np.full((1, 100_000), 0.1, "float32")
    inverse = WoodburyRankOneInverse(np.eye(1, 100_000, dtype="float32"), 1.0)
    exact = rows[:, 1:].astype(float) @ rows[:, 1:].T.astype(float) + float(rows[0, 0]) ** 2 / 2
    assert abs(influence(inverse, rows, rows)[0, 0] / exact[0, 0] - 1) <= 4 * eps("float32")


# --- what it does not depend on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["wide", "wide-general-referenced", "tall-general-referenced", "streamed"])
@pytest.mark.parametrize("backend", [b for b in AVAILABLE if "float64" in b.dtypes], ids=repr)
@pytest.mark.parametrize("block_size", [1, 3, 10**9])
def test_the_block_size_changes_no_answer(backend, case, block_size):
    built = build(backend, "float64", next(c for c in CASES if c.name == case))
    inverse, tests, trains = (
        built.inverse,
        built.vectors(4, built.inverse.dim),
        built.vectors(7, built.inverse.dim, seed=3),
    )
    many = in_span(built, 20)
    pairs = [(tests,), (many,), (tests, trains), (trains, tests)]
    for arguments in pairs:
        sent = [built.send(x) for x in arguments]
        whole, cut = influence(inverse, *sent), influence(inverse, *sent, block_size=block_size)
        built.assert_close(cut, built.fetch(whole))
    built.assert_close(self_influence(inverse, built.send(trains), block_size=block_size), squares(built, trains))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_stored_rows_given_explicitly_change_no_answer(case):
    built = build(NUMPY, "float64", case)
    tests, rows = in_span(built, 2), built.send(built.problem.gradients)
    closed = built.fetch(influence(built.inverse, built.send(tests)))
    built.assert_close(influence(built.inverse, built.send(tests), rows), closed)
    built.assert_close(self_influence(built.inverse, rows), built.fetch(self_influence(built.inverse)))


@given(problems(), seeds(), st.integers(1, 5), st.integers(1, 5))
def test_influence_is_symmetric(problem, seed, t, n):
    rng, inverse = np.random.default_rng(seed), construct(problem, NUMPY)
    x, y = rng.standard_normal((t, inverse.dim)), rng.standard_normal((n, inverse.dim))
    there, back = influence(inverse, x, y), influence(inverse, y, x)
    scale = np.sqrt(np.outer(self_influence(inverse, x), self_influence(inverse, y)))
    assert np.all(np.abs(there - back.T) <= tolerance(eps("float64"), problem.oracle.kappa) * scale)


@given(problems(), seeds(), st.integers(1, 5))
def test_self_influence_is_the_diagonal_of_influence(problem, seed, n):
    inverse = construct(problem, NUMPY)
    x = np.random.default_rng(seed).standard_normal((n, inverse.dim))
    for own, all_pairs in (
        (self_influence(inverse, x), influence(inverse, x, x)),
        (self_influence(inverse), influence(inverse, problem.gradients)),
    ):
        limit = tolerance(eps("float64"), problem.oracle.kappa)
        assert np.allclose(own, np.diag(all_pairs), rtol=limit, atol=limit * np.max(own, initial=0))


@given(problems(), seeds())
def test_permuted_rows_give_permuted_scores(problem, seed):
    order = np.random.default_rng(seed).permutation(len(problem.gradients))
    weights = None if problem.weights is None else problem.weights[order]
    moved = construct(replace(problem, gradients=problem.gradients[order], weights=weights), NUMPY)
    inverse, limit = construct(problem, NUMPY), tolerance(eps("float64"), problem.oracle.kappa)
    scores, own = influence(inverse, problem.gradients), self_influence(inverse)
    assert np.allclose(
        influence(moved, problem.gradients), scores[:, order], rtol=0, atol=limit * np.max(np.abs(scores))
    )
    assert np.allclose(self_influence(moved), own[order], rtol=limit, atol=limit * np.max(own))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("count", "widths"), [(4, [3, 1]), (9, [3, 3])], ids=["fewer tests", "fewer rows"])
def test_the_fewer_are_put_through_in_blocks(monkeypatch, stored, count, widths):
    seen = []

    def spy(original):
        return lambda state, v, *rest, **named: (seen.append(v.shape[1]), original(state, v, *rest, **named))[1]

    for name in ("solve", "solve_gradients", "project"):
        monkeypatch.setattr(State, name, spy(getattr(State, name)))
    trains = None if stored else WHOLE.problem.gradients
    influence(WHOLE.inverse, WHOLE.vectors(count, 14), trains, block_size=3)
    assert seen == widths


def test_jax_compiles_it_for_more_tests_than_rows():
    jax = pytest.importorskip("jax")
    rows, tests = np.float32(WHOLE.problem.gradients[:2]), np.float32(WHOLE.vectors(3, 14))
    inverse = WoodburyRankOneInverse(jax.numpy.asarray(rows), 0.5)
    scores = jax.jit(influence)(inverse, jax.numpy.asarray(tests))
    assert np.allclose(scores, tests @ Oracle(rows, 0.5).inverse @ rows.T, rtol=0, atol=1e-5)


def test_torch_differentiates_by_tests_and_rows():
    torch = pytest.importorskip("torch")
    rows, tests = (
        torch.asarray(x[:3, :5].copy(), requires_grad=True) for x in (WHOLE.problem.gradients, WHOLE.vectors(5, 14))
    )
    assert torch.autograd.gradcheck(lambda g, t: influence(WoodburyRankOneInverse(g, 0.5), t), (rows, tests))
    assert torch.autograd.gradcheck(lambda g: self_influence(WoodburyRankOneInverse(g, 0.5)), (rows,))


def test_inputs_are_left_as_they_were():
    tests, trains = WHOLE.vectors(3, 14), WHOLE.vectors(5, 14, seed=2)
    before = tests.copy(), trains.copy()
    influence(WHOLE.inverse, tests, trains)
    self_influence(WHOLE.inverse, tests)
    assert np.array_equal(tests, before[0])
    assert np.array_equal(trains, before[1])


# --- refusals -----------------------------------------------------------------------------------------------------

T = np.ones((3, 14))
REFUSED = {
    "a list": (TypeError, T.tolist()),
    "None": (TypeError, None),
    "another library": (TypeError, STRICT.asarray(T)),
    "another dtype": (TypeError, T.astype("float32")),
    "integers": (TypeError, T.astype(int)),
    "masked": (TypeError, np.ma.ones((3, 14))),
    "one vector": (ValueError, T[0]),
    "columns": (ValueError, T.T),
    "no rows": (ValueError, T[:0]),
    "a cube": (ValueError, T[None]),
    "nan": (ValueError, np.where(np.eye(3, 14) > 0, np.nan, T)),
    "infinity": (ValueError, np.where(np.eye(3, 14) > 0, np.inf, T)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_rows_are_refused_by_name(what):
    error, rows = REFUSED[what]
    with pytest.raises(error, match="`test_gradients` must"):
        influence(WHOLE.inverse, rows)
    with pytest.raises(error, match="`test_gradients` must"):
        influence(WHOLE.inverse, rows, T)
    if rows is not None:
        with pytest.raises(error, match="`train_gradients` must"):
            influence(WHOLE.inverse, T, rows)
        with pytest.raises(error, match="`gradients` must"):
            self_influence(WHOLE.inverse, rows)


@pytest.mark.parametrize("backend", AVAILABLE, ids=repr)
def test_rows_of_a_users_class_are_those_of_their_array(backend):
    if "dask" in backend.library:
        pytest.skip("GradientRows are not of Dask")
    tests, trains, stored = (backend.asarray(x.astype(backend.dtypes[0])) for x in np.split(np.arange(90.0), 3))
    tests, trains, stored = (backend.namespace.reshape(x, (3, 10)) for x in (tests, trains, stored))
    inverse = WoodburyRankOneInverse(stored, 1.0)
    for arrays in ((tests,), (tests[:1, :], trains), (tests, trains[:2, :])):
        provided = [INPUTS["rows"](x) for x in arrays]
        found, expected = (backend.to_numpy(influence(inverse, *rows, block_size=2)) for rows in (provided, arrays))
        assert np.allclose(found, expected, rtol=1e-5)
    found = self_influence(inverse, INPUTS["rows"](tests), block_size=2)
    assert np.allclose(backend.to_numpy(found), backend.to_numpy(self_influence(inverse, tests)), rtol=1e-5)


def test_rows_of_a_users_class_with_other_columns_or_another_dtype_are_refused():
    for array, error in ((T[:, :5], ValueError), (T.astype("float32"), TypeError)):
        with pytest.raises(error, match="`test_gradients` must"):
            influence(WHOLE.inverse, INPUTS["rows"](array))
        with pytest.raises(error, match="`gradients` must"):
            self_influence(WHOLE.inverse, INPUTS["rows"](array))


def test_rows_on_another_device_are_refused():
    inverse = WoodburyRankOneInverse(STRICT.asarray(WHOLE.problem.gradients), 1.0)
    with pytest.raises(TypeError, match="`train_gradients` must be on the gradients' device"):
        influence(inverse, STRICT.asarray(T), ELSEWHERE.asarray(T))


def test_what_is_no_inverse_is_refused():
    for call in (lambda x: influence(x, T), self_influence):
        with pytest.raises(
            TypeError, match=re.escape("`inverse` must be one of this library's inverses; got an array")
        ):
            call(np.eye(14))


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_block_size_is_a_positive_integer(size, error):
    with pytest.raises(error, match="`block_size` must"):
        influence(WHOLE.inverse, T, block_size=size)
    with pytest.raises(error, match="`block_size` must"):
        self_influence(WHOLE.inverse, block_size=size)


def test_scores_that_do_not_fit_are_named():
    inverse = WoodburyRankOneInverse(np.ones((2, 4), "float32"), 1e-3)
    huge = np.array([[1.0, -1, 0, 0]], "float32") * np.float32(1e25)
    with pytest.raises(OverflowError, match="does not fit into float32"):
        influence(inverse, huge, huge)
    with pytest.raises(OverflowError, match="does not fit into float32"):
        self_influence(inverse, huge)
