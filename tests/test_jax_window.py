"""The window as a pytree: it takes the steps of `SlidingWindowInverse`, under JAX's transformations too."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfac_linalg import IllConditionedWarning, SlidingWindowInverse
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import eps

jax = pytest.importorskip("jax", reason="needs jax")
State = pytest.importorskip("mfac_linalg.jax", reason="needs jax").SlidingWindowState

SCALAR, VECTOR = 0.1, np.linspace(0.05, 0.4, 7).astype("float32")


def rows(count, dim=7, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype("float32")


def as_given(damping):
    return damping if isinstance(damping, float) else jax.numpy.asarray(damping)


def filled_state(block, *, window=4, damping=SCALAR, **options):
    state = State(window, block.shape[1], as_given(damping), **options)
    for g in block:
        state = state.append(jax.numpy.asarray(g))
    return state


def shapes(state):
    return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]


# --- the same window ------------------------------------------------------------------------------------------------


COMPILED = [(1, SCALAR, "sum", 0.7), (4, VECTOR, "mean", 1.0), (9, SCALAR, "window", 0.7)]
"""Every option at least once: XLA takes seconds for each combination."""


@settings(max_examples=12)
@given(count=st.integers(0, 11), compiled=st.sampled_from(COMPILED), seed=st.integers(0, 99))
def test_it_answers_as_the_class_does(count, compiled, seed):
    window, damping, normalization, decay = compiled
    options = {"window": window, "damping": damping, "normalization": normalization, "decay": decay}
    block, v = rows(count, seed=seed), rows(1, seed=seed + 1)[0]
    state = filled_state(block, **options)
    ours = SlidingWindowInverse(dim=7, dtype="float32", **options)
    for g in block:
        ours.append(g)
    assert np.allclose(state.matvec(jax.numpy.asarray(v)), ours.matvec(v), rtol=1e-4, atol=1e-5)
    assert np.allclose(state.diagonal(), ours.diagonal(), rtol=1e-4)
    assert np.allclose(state.logdet(), ours.logdet(), rtol=1e-4, atol=1e-4)
    assert int(state.count) == len(ours)
    held, missing = np.asarray(state.gradients), window - len(ours)
    assert not held[:missing].any()
    assert np.array_equal(held[missing:], np.asarray(ours.gradients).reshape(-1, 7))


@pytest.mark.parametrize("window", [4, 9], ids=["dual", "primal"])
@pytest.mark.parametrize("normalization", ["mean", "sum", "window"])
def test_a_scan_over_gradients_gives_the_steps_of_the_class(window, normalization):
    block = rows(13)
    ours = SlidingWindowInverse(window, 7, 0.1, normalization=normalization)
    exact = [ours.append_matvec(g) for g in block]
    start = State(window, 7, 0.1, normalization=normalization)
    state, steps = jax.lax.scan(State.append_matvec, start, jax.numpy.asarray(block))
    assert np.allclose(steps, np.stack(exact), rtol=1e-4, atol=1e-5)
    assert shapes(state) == shapes(start)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_it_can_start_from_gradients(count, decay):
    block = rows(count)
    made = State.from_gradients(jax.numpy.asarray(block), 0.1, window=4, decay=decay)
    grown = filled_state(block, decay=decay)
    assert shapes(made) == shapes(grown)
    for state in (made, made.append(jax.numpy.ones(7))):
        fresh = grown if state is made else grown.append(jax.numpy.ones(7))
        assert np.array_equal(state.gradients, fresh.gradients)
        assert np.allclose(state.to_dense(), fresh.to_dense(), rtol=1e-4, atol=1e-5)


def test_coefficients_are_those_of_rows_by_age():
    state, block = filled_state(rows(6)), rows(6)
    c = np.asarray([1.0, -2.0, 0.5, 3.0], "float32")
    exact = Oracle(block[-4:], 0.1).solve(block[-4:].T.astype(float) @ c)
    assert np.allclose(state.matvec_gradients(jax.numpy.asarray(c)), exact.astype(float), rtol=1e-4)
    a = np.asarray(state.dual_coefficients(jax.numpy.ones(7)))
    assert np.allclose((1 - block[-4:].T @ a) / 0.1, state.matvec(jax.numpy.ones(7)), rtol=1e-3, atol=1e-4)


def test_rows_of_every_size_live_together():
    block = rows(5) * np.array([1e-30, 1.0, 1e19, 1e25, 1e-22], "float32")[:, None]
    state = filled_state(block, damping=1e47)
    assert np.array_equal(state.gradients, block[1:])
    oracle, select = Oracle(block[1:], 1e47), np.eye(4, dtype="float32")[2]
    for x in (state.matvec(jax.numpy.asarray(block[3])), state.matvec_gradients(jax.numpy.asarray(select))):
        assert oracle.backward_ratio(block[3], np.asarray(x), eps("float32")) <= LIMIT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_gradients_are_stored_as_they_are(dtype):
    block = jax.numpy.asarray(rows(6)).astype(dtype)
    state = State(4, 7, 0.1, dtype=dtype)
    for g in block:
        state = state.append(g)
    assert state.gradients.dtype == dtype
    assert np.array_equal(np.asarray(state.gradients, float), np.asarray(block[-4:], float))
    exact = Oracle(np.asarray(block[-4:], float), 0.1).solve(np.ones(7))
    assert np.allclose(state @ jax.numpy.ones(7), exact.astype(float), rtol=1e-4)


# --- under transformations ------------------------------------------------------------------------------------------


def test_jit_compiles_a_step_once():
    step, state = jax.jit(State.append_matvec), State(4, 7, 0.1)
    for g in rows(9):
        state, x = step(state, jax.numpy.asarray(g))
    assert step._cache_size() == 1
    assert np.allclose(x, filled_state(rows(8)).append_matvec(jax.numpy.asarray(rows(9)[-1]))[1], rtol=1e-4)


steps_of, product_of = jax.jit(lambda state, g: jax.lax.scan(State.append_matvec, state, g)), jax.jit(State.matvec)


@pytest.mark.parametrize("kappa", [1e2, 1e4, 5e5])
@pytest.mark.parametrize("kind", ["independent", "repeated", "common mean"])
def test_a_compiled_step_keeps_its_digits(kind, kappa):
    block = {
        "independent": rows(24, 200),
        "repeated": rows(8, 200)[np.arange(24) // 3],
        "common mean": rows(24, 200) + 5 * rows(1, 200, seed=1),
    }[kind]
    damping = float(np.linalg.norm(block[-16:].astype(float), 2) ** 2 / 16 / kappa)
    state, steps = steps_of(State(16, 200, damping), block)
    oracle = Oracle(block[-16:], damping)
    assert oracle.backward_ratio(block[-1], np.asarray(steps[-1]), eps("float32")) <= LIMIT
    product = product_of(state, block[3])
    assert oracle.backward_ratio(block[3], np.asarray(product), eps("float32")) <= LIMIT


def test_high_precision_keeps_more_of_them():
    block = rows(24, 200) + 5 * rows(1, 200, seed=1)
    damping = float(np.linalg.norm(block[-16:].astype(float), 2) ** 2 / 16 / 1e6)
    _, steps = steps_of(State(16, 200, damping, precision="high"), block)
    exact = Oracle(block[-16:], damping).solve(block[-1]).astype(float)
    assert np.linalg.norm(steps[-1] - exact) <= 1e-6 * np.linalg.norm(exact)


def test_states_can_be_batched():
    blocks = np.stack([rows(6, seed=seed) for seed in range(3)])
    state, steps = jax.vmap(lambda block: jax.lax.scan(State.append_matvec, State(4, 7, 0.1), block))(blocks)
    for k in range(3):
        alone = filled_state(blocks[k, :-1]).append_matvec(jax.numpy.asarray(blocks[k, -1]))[1]
        assert np.allclose(steps[k, -1], alone, rtol=1e-3, atol=1e-5)
    assert jax.vmap(lambda one: one.gradients)(state).shape == (3, 4, 7)


@pytest.mark.parametrize("damping", [0.7, VECTOR * 3], ids=["scalar", "vector"])
@pytest.mark.parametrize("before", [SCALAR, VECTOR], ids=["scalar", "vector"])
def test_a_damping_can_be_set_anew_and_traced(before, damping):
    block = rows(6)
    again = jax.jit(State.with_damping)(filled_state(block, damping=before), as_given(damping))
    fresh = filled_state(block, damping=damping)
    assert shapes(again) == shapes(fresh)
    assert np.allclose(again.to_dense(), fresh.to_dense(), rtol=1e-4, atol=1e-5)


def test_products_are_differentiable_and_gradients_taken_in_are_constants():
    state, g = filled_state(rows(6)), jax.numpy.ones(7)
    dense = np.asarray(state.to_dense())
    assert np.allclose(jax.grad(lambda v: state.matvec(v) @ v)(g), 2 * dense @ np.ones(7), rtol=1e-4)
    assert not np.any(jax.grad(lambda g: state.append_matvec(g)[1].sum())(g))


def test_what_is_compiled_does_not_grow_with_the_dimension():
    def operations(dim):
        step = jax.make_jaxpr(State.append_matvec)(State(4, dim, 0.1), jax.numpy.ones(dim))
        return str(step).count(" = ")

    assert operations(60_007) == operations(1_007)


def test_no_switch_of_jax_is_touched():
    jax.jit(State.append_matvec)(State(4, 7, 0.1), jax.numpy.ones(7))
    assert not jax.config.jax_enable_x64


# --- guarantees -----------------------------------------------------------------------------------------------------


def test_a_step_leaves_the_state_before_as_it_was():
    state = filled_state(rows(6))
    before = jax.tree.map(np.array, state)
    state.append(jax.numpy.ones(7))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, state))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_take_the_same_steps(copied):
    state, g = filled_state(rows(6)), jax.numpy.ones(7)
    assert np.array_equal(copied(state).append_matvec(g)[1], state.append_matvec(g)[1])
    assert shapes(copied(state)) == shapes(state)


def test_it_can_move_and_widen():
    state = filled_state(rows(6))
    moved = state.to_device(jax.devices()[0])
    assert np.allclose(moved.to_dense(), state.to_dense(), rtol=1e-5)
    with jax.enable_x64(True):
        wide = state.astype("float64")
        assert wide.dtype == np.float64
        exact = Oracle(rows(6)[-4:], 0.1).solve(np.ones(7)).astype(float)
        assert np.allclose(wide @ jax.numpy.ones(7), exact, rtol=1e-12)


def list_refusals():
    state = filled_state(rows(6))
    float32 = jax.tree.map(lambda x: x.astype("float32") if x.dtype == np.float64 else x, state)
    return {
        "shape": (ValueError, "`g` must have shape", lambda: state.append(jax.numpy.ones(6))),
        "dtype": (
            TypeError,
            "`g` must have dtype float32",
            lambda: state.append(jax.numpy.ones(7, "float16").view("int16")),
        ),
        "library": (TypeError, "`g` must be", lambda: state.append([1.0] * 7)),
        "nan": (ValueError, "`g` must be finite", lambda: state.append(jax.numpy.full(7, np.nan))),
        "damping": (ValueError, "`damping` must be finite and > 0", lambda: state.with_damping(-1.0)),
        "float64": (TypeError, "`dtype` must be float32", lambda: State(4, 7, 0.1, dtype="float64")),
        "window": (ValueError, "`window` must be", lambda: State(0, 7, 0.1)),
        "kind": (TypeError, "`dtype`", lambda: State(4, 7, 0.1, dtype="int32")),
        "no dtype": (TypeError, "`dtype`", lambda: State(4, 7, 0.1, dtype=5)),
        "dtype of an array": (TypeError, "`dtype`", lambda: State(4, 7, 0.1, dtype=jax.numpy.ones(2))),
        "huge": (ValueError, "`window` must be at most", lambda: State(10**30, 7, 0.1)),
        "key": (TypeError, "`damping`", lambda: state.with_damping(jax.random.key(0))),
        "cast": (TypeError, "must be float64", lambda: float32.matvec(jax.numpy.ones(7))),
        "cast step": (TypeError, "must be float64", lambda: float32.append(jax.numpy.ones(7))),
        "NumPy": (TypeError, "library", lambda: State.from_gradients(rows(3), 0.1)),
    }


@pytest.mark.parametrize("case", list_refusals())
def test_bad_input_is_refused_by_name(case):
    error, words, call = list_refusals()[case]
    with pytest.raises(error, match=words):
        call()


def test_a_gradient_that_overflowed_leaves_with_its_row():
    state, step = State(4, 7, 0.1), jax.jit(State.append)
    for g in [np.full(7, np.nan, "float32"), *rows(4)]:
        state = step(state, g)
    exact = Oracle(rows(4), 0.1).solve(np.ones(7)).astype(float)
    assert np.allclose(state @ jax.numpy.ones(7), exact, rtol=1e-4)


def test_an_overflowed_gradient_is_named_where_answers_can_be_read():
    state = jax.jit(State.append)(filled_state(rows(4)), np.full(7, np.nan, "float32"))
    assert "kappa=nan" in repr(state)
    with pytest.raises(ValueError, match="a stored gradient, is not finite"):
        state.matvec(jax.numpy.ones(7))


def test_half_precision_keeps_its_small_entries():
    g = np.full(8, 1e-3, "float16")
    g[0] = 60000
    assert np.array_equal(State(4, 8, 1e4, dtype="float16").append(jax.numpy.asarray(g)).gradients[-1], g)


def test_kappa_beyond_the_arithmetic_is_warned_of():
    with pytest.warns(IllConditionedWarning, match="kappa"):
        State(4, 100, 1e-12).append(jax.numpy.ones(100))


def test_damping_is_a_constant_of_differentiation():
    state = filled_state(rows(6))
    assert jax.grad(lambda damping: state.with_damping(damping).logdet())(0.3) == 0


def test_a_batch_of_states_has_a_repr():
    batch = jax.vmap(lambda g: State(4, 7, 0.1).append(g))(jax.numpy.asarray(rows(3)))
    assert "kappa=array" in repr(batch)


def test_shapes_alone_have_a_repr():
    assert repr(jax.eval_shape(lambda: State(4, 7, 0.1))) == "SlidingWindowState(m=4, d=7, dtype=float32)"


def test_a_repr_says_what_it_is():
    assert repr(filled_state(rows(2))).startswith("SlidingWindowState(m=4, d=7, damping=0.1, dtype=float32")


# --- several states as one --------------------------------------------------------------------------------------------


def stack_states(*states):
    with jax.enable_x64(True):
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *states)


QUERIES = {
    "matvec": lambda s, g: s @ g,
    "matmat": lambda s, g: s.matmat(g[:, None]),
    "matvec_gradients": lambda s, g: s.matvec_gradients(jax.numpy.ones(4)),
    "dual_coefficients": lambda s, g: s.dual_coefficients(g),
    "diagonal": lambda s, g: s.diagonal(),
    "element": lambda s, g: s.element(0, 1),
    "columns": lambda s, g: s.columns([0]),
    "submatrix": lambda s, g: s.submatrix([0]),
    "quadratic_form": lambda s, g: s.quadratic_form(g),
    "logdet": lambda s, g: s.logdet(),
    "trace": lambda s, g: s.trace(),
    "to_dense": lambda s, g: s.to_dense(),
    "forward": lambda s, g: s.forward @ g,
    "kappa": lambda s, g: s.kappa,
    "gradients": lambda s, g: s.gradients,
    "append": lambda s, g: s.append(g),
    "append_matvec": lambda s, g: s.append_matvec(g),
    "with_damping": lambda s, g: s.with_damping(0.2),
    "astype": lambda s, g: s.astype("float32"),
    "to_device": lambda s, g: s.to_device(jax.devices()[0]),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_several_states_are_refused_outside_of_vmap_with_the_cure(query):
    states = stack_states(*(filled_state(rows(4, seed=seed)) for seed in (0, 1, 2)))
    with pytest.raises(ValueError, match=r"rows of shape \(window, d\); got \(3, 4, 7\), a batch\. .*jax\.vmap"):
        query(states, jax.numpy.ones(7))
    assert "SlidingWindowState(m=4, d=7" in repr(states)


def test_one_of_several_states_answers():
    one, other = filled_state(rows(4)), filled_state(rows(4, seed=1))
    with jax.enable_x64(True):
        chosen = jax.tree.map(lambda x: x[1], stack_states(one, other))
    assert np.array_equal(chosen @ jax.numpy.ones(7), other @ jax.numpy.ones(7))
