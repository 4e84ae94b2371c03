"""M-FAC as a gradient transformation: the steps of a dense computation, in Optax's chains and under `jit`."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.source import TEXTS

jax = pytest.importorskip("jax", reason="needs jax")
optax = pytest.importorskip("optax", reason="needs optax")
by_default = pytest.importorskip("mfac_linalg.jax", reason="needs jax").scale_by_mfac
scale_by_mfac = functools.partial(by_default, beta2=None, normalization="mean")
"""The plain method; the defaults have a test of their own."""
jnp = jax.numpy
ORDER, DIM = ("a", "b", "c"), 10
SHAPES = {"a": (2, 3), "b": (3,), "c": ()}


def tree(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def flat(leaves):
    return np.concatenate([np.asarray(leaves[name], float).reshape(-1) for name in ORDER])


TRANSFORM = scale_by_mfac(3, 0.5)
STEP = jax.jit(TRANSFORM.update)
STEP_UNDER = jax.jit(lambda damping, g, state: scale_by_mfac(3, damping).update(g, state))
"""Compiled once for all tests: compiling is what takes time here."""


def run_steps(count, *, transform=TRANSFORM, step=None, state=None, start=0):
    """The updates of some steps, and the state after them."""
    state = transform.init(tree(0)) if state is None else state
    step, updates = step or (STEP if transform is TRANSFORM else jax.jit(transform.update)), []
    for seed in range(start, start + count):
        x, state = step(tree(seed), state)
        updates.append(flat(x))
    return np.array(updates), state


def dense(gradients, damping, divisor=None):
    """F⁻¹ of the newest of these gradients."""
    rows = np.array(gradients)
    fisher = damping * np.eye(rows.shape[1]) + rows.T @ rows / (divisor or len(rows))
    return np.linalg.solve(fisher, rows[-1])


def same(some, others):
    return jax.tree.all(jax.tree.map(np.array_equal, some, others))


# --- the same steps as a dense computation --------------------------------------------------------------------------


@settings(max_examples=20)
@given(damping=st.floats(0.05, 30.0), steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_updates_are_those_of_a_dense_inverse(damping, steps, seed):
    state = TRANSFORM.init(tree(0))
    for step in range(seed, seed + steps):
        found, state = STEP_UNDER(damping, tree(step), state)
    rows = [flat(tree(step)) for step in range(max(seed, step - 2), step + 1)]
    np.testing.assert_allclose(flat(found), dense(rows, damping), rtol=2e-4, atol=2e-5)


def test_normalization_and_precision_are_those_of_the_window():
    transform, window = scale_by_mfac(3, 1e-4, normalization="sum", precision="high"), []
    state, update = transform.init(tree(0)), jax.jit(transform.update)
    for step in range(4):
        g = jax.tree.map(lambda x: 1 + 1e-2 * x, tree(step))
        x, state = update(g, state)
        window = [*window, flat(g)][-3:]
    exact = dense(window, 1e-4, divisor=1)
    assert np.linalg.norm(flat(x) - exact) < 1e-6 * np.linalg.norm(exact)  # float32 alone misses by 1e-2


@pytest.mark.parametrize("momentum_of", ["steps", "gradients"])
@pytest.mark.parametrize("beta2", [None, 0.9])
def test_a_compiled_scan_of_a_chain_follows_the_optimizer_of_pytorch(beta2, momentum_of):
    torch = pytest.importorskip("torch")
    from mfac_linalg.torch import MFAC

    def loss(library, p):
        return (library.tanh(p["a"]).sum(0) * p["b"] - 1).sum() ** 2 + (p["c"] * p["b"]).sum() ** 2

    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(x))) for name, x in tree(0).items()}
    options = {"momentum": 0.6, "momentum_of": momentum_of, "weight_decay": 0.1, "normalization": "mean"}
    optimizer = MFAC(theirs.values(), 0.2, window=3, damping=1.0, beta2=beta2, **options)
    for _ in range(8):
        optimizer.zero_grad()
        loss(torch, theirs).backward()
        optimizer.step()

    if momentum_of == "steps":
        scaled = optax.chain(scale_by_mfac(3, 1.0, beta2=beta2), optax.trace(0.6))
    else:
        scaled = scale_by_mfac(3, 1.0, beta2=beta2, momentum=0.6)
    chain = optax.chain(scaled, optax.add_decayed_weights(0.1), optax.scale(-0.2))

    def step(carry, _):
        params, state = carry
        updates, state = chain.update(jax.grad(lambda p: loss(jnp, p))(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = tree(0)
    ours, _ = jax.jit(lambda p: jax.lax.scan(step, (p, chain.init(p)), None, length=8)[0])(start)
    expected = flat({name: p.detach().numpy() for name, p in theirs.items()})
    np.testing.assert_allclose(flat(ours), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - flat(start)).max() > 0.1


def test_updates_have_the_dtype_of_gradients():
    gradients = tree(0, "bfloat16")
    updates, state = STEP(gradients, TRANSFORM.init(gradients))
    assert {x.dtype.name for x in updates.values()} == {state.inverse.gradients.dtype.name} == {"bfloat16"}
    np.testing.assert_allclose(flat(updates), dense([flat(gradients)], 0.5), rtol=1e-2, atol=1e-3)


def test_a_window_has_the_dtype_to_which_those_of_parameters_promote():
    assert TRANSFORM.init({**tree(0, "bfloat16"), "c": tree(0)["c"]}).inverse.dtype == np.float32


# --- under transformations, with others -----------------------------------------------------------------------------


def test_a_step_is_compiled_once():
    _, state = run_steps(1)
    compiled = STEP._cache_size()
    run_steps(5, state=state, start=1)
    assert STEP._cache_size() == compiled


def test_the_dtype_of_beta2_does_not_matter():
    transform = scale_by_mfac(3, 0.5, beta2=np.float64(0.9))
    with jax.enable_x64(True):
        _, state = transform.update(tree(0), transform.init(tree(0)))
    assert state.moment.root_mean_square.dtype == jnp.float32


def test_the_state_before_a_step_goes_on_answering():
    _, state = run_steps(4)
    before = jax.tree.map(np.array, state)
    run_steps(2, state=state, start=4)
    assert same(before, state)


def test_a_damping_can_follow_a_schedule():
    schedule = optax.linear_schedule(2.0, 0.5, 3)
    transform = optax.inject_hyperparams(scale_by_mfac, static_args="window")(window=3, damping=schedule)
    found, _ = run_steps(6, transform=transform)
    for step in range(6):
        rows = [flat(tree(s)) for s in range(max(0, step - 2), step + 1)]
        expected = dense(rows, max(0.5, 2.0 - 0.5 * step))
        np.testing.assert_allclose(found[step], expected, rtol=1e-4, atol=1e-5)


def test_each_label_has_a_window_and_one_without_parameters_none():
    labels = {"a": "first order", "b": "two", "c": "two"}
    transforms = {"first order": optax.sgd(1.0), "two": scale_by_mfac(2, 0.1), "three": scale_by_mfac(9, 1.0)}
    found, state = run_steps(3, transform=optax.multi_transform(transforms, labels))
    assert np.array_equal(found[-1][:6], -flat(tree(2))[:6])
    expected = dense([flat(tree(step))[6:] for step in range(1, 3)], 0.1)
    np.testing.assert_allclose(found[-1][6:], expected, rtol=1e-4, atol=1e-5)
    assert state.inner_states["three"].inner_state.inverse.dim == 1  # which no step has looked at


def test_a_step_that_is_not_finite_can_be_skipped():
    transform = optax.apply_if_finite(TRANSFORM, 2)
    step = jax.jit(transform.update)
    _, state = run_steps(3, transform=transform, step=step)
    updates, state = step({**tree(3), "b": jnp.full(3, jnp.nan)}, state)
    assert not flat(updates).any()
    found, _ = run_steps(2, state=state, start=4, step=step)
    expected = dense([flat(tree(step)) for step in (2, 4, 5)], 0.5)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("kind", [float, np.float64, np.array, jnp.asarray, "schedule"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_of_any_kind_is_the_same(momentum, kind, x64):
    expected = run_steps(3, transform=scale_by_mfac(3, 0.5, momentum=momentum))[0]
    with jax.enable_x64(x64):
        if kind == "schedule":
            make = optax.inject_hyperparams(scale_by_mfac, static_args="window")
            transform = make(window=3, damping=0.5, momentum=lambda step: jnp.asarray(momentum, float))
        else:
            transform = scale_by_mfac(3, 0.5, momentum=kind(momentum))
        for step in (None, transform.update):  # compiled, and not
            found = run_steps(3, transform=transform, step=step)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["beta2", "momentum"])
def test_a_decay_can_be_a_hyperparameter_that_is_traced(name):
    transform = optax.inject_hyperparams(scale_by_mfac, static_args="window")(window=3, damping=0.5, **{name: 0.9})
    (found, _), (expected, _) = (run_steps(2, transform=t) for t in (transform, scale_by_mfac(3, 0.5, **{name: 0.9})))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_leaves_with_its_row(odd):
    transform = scale_by_mfac(2, 0.5, beta2=0.9)
    step = jax.jit(transform.update)
    state = transform.init(tree(0))
    for seed, b in enumerate([1.0, odd, 1.0, 1.0]):
        updates, state = step({**tree(seed), "b": jnp.full(3, b)}, state)
    assert np.all(np.isfinite(flat(updates)))
    assert np.all(flat(updates)[6:9])
    assert float(jax.grad(lambda c: flat_sum(step, c, state))(1.0)) == 0  # gradients are constants, as without beta2


def flat_sum(step, c, state):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(step(jax.tree.map(lambda x: c * x, tree(9)), state)[0]))


def test_gradients_can_be_accumulated_with_x64_enabled():
    with jax.enable_x64(True):
        found, _ = run_steps(4, transform=optax.MultiSteps(TRANSFORM, 2))
    expected = dense([(flat(tree(step)) + flat(tree(step + 1))) / 2 for step in (0, 2)], 0.5)
    assert not found[0].any()
    np.testing.assert_allclose(found[3], expected, rtol=1e-4, atol=1e-5)


def test_a_state_kept_in_numpy_takes_the_same_steps():
    _, state = run_steps(4)
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    assert np.float64 in {leaf.dtype.type for leaf in kept}
    with jax.enable_x64(True):
        back = jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(leaf) for leaf in kept])
    expected, found = (run_steps(3, state=each, start=4) for each in (state, back))
    assert np.array_equal(expected[0], found[0])
    assert same(expected[1], found[1])


def wrap_transform(transform):
    """A transformation inside Optax's others, by name."""
    labels = {"a": "mfac", "b": "sgd", "c": "mfac"}
    return {
        "alone": transform,
        "chain": optax.chain(transform, optax.trace(0.9), optax.scale(-0.1)),
        "masked": optax.masked(transform, {"a": True, "b": False, "c": True}),
        "labels": optax.multi_transform({"mfac": transform, "sgd": optax.sgd(0.1)}, labels),
        "no label": optax.multi_transform({"mfac": transform, "sgd": optax.sgd(0.1)}, dict.fromkeys(labels, "sgd")),
        "finite": optax.apply_if_finite(transform, 2),
        "steps": optax.MultiSteps(transform, 2),
    }


WRAPPERS = list(wrap_transform(TRANSFORM))


@pytest.mark.parametrize("beta2", [None, 0.9])
@pytest.mark.parametrize("name", [*WRAPPERS, "hyperparameters"])
def test_parameters_in_a_state_can_be_told_from_the_rest(name, beta2):
    transform = scale_by_mfac(3, 0.5, beta2=beta2)
    injected = optax.inject_hyperparams(scale_by_mfac, static_args="window")
    optimizer = {**wrap_transform(transform), "hyperparameters": injected(window=3, damping=0.5, beta2=beta2)}[name]
    state = optimizer.init(tree(0))
    assert same(optax.tree_map_params(optimizer, lambda p: p, state), state)
    found = optax.tree_map_params(optimizer, lambda p: "p", state, transform_non_params=lambda x: "x")
    marks = jax.tree.leaves(found)
    assert len(marks) == len(jax.tree.leaves(state))
    copies = {"chain": 3, "steps": 3}  # the trace, and the gradients accumulated
    assert marks.count("p") == copies.get(name, 0)
    repr(found)


def test_a_state_can_be_placed_by_its_parameters():
    sharding = jax.sharding
    mesh = sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    chain = optax.chain(TRANSFORM, optax.trace(0.9))
    specs = {name: sharding.NamedSharding(mesh, sharding.PartitionSpec()) for name in ORDER}
    state = chain.init(tree(0))
    where = optax.tree_map_params(chain, lambda _, spec: spec, state, specs, transform_non_params=lambda _: specs["a"])
    placed = jax.device_put(state, where)
    assert same(placed, state)
    assert {leaf.sharding for leaf in jax.tree.leaves(placed)} == {specs["a"]}


def test_a_state_has_names_and_shapes_before_it_is_made():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(TRANSFORM.init(tree(0)))]
    assert paths[0] == ".inverse.arrays.rows"
    shapes = jax.eval_shape(TRANSFORM.init, tree(0))
    assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(TRANSFORM.init(tree(0)))]
    assert "d=10" in repr(shapes)


def test_a_state_restored_in_numpy_goes_on_to_the_bit():
    _, state = run_steps(4)
    restored = jax.tree.map(np.asarray, state)
    found, expected = (TRANSFORM.update(tree(4), each) for each in (restored, state))
    assert same(found, expected)


def test_a_state_that_was_cast_is_refused():
    state = jax.tree.map(lambda x: jnp.asarray(x, "float32") if x.dtype == np.float64 else x, TRANSFORM.init(tree(0)))
    with pytest.raises(TypeError, match="must be float64"):
        TRANSFORM.update(tree(0), state)


@pytest.mark.parametrize("beta2", [None, 0.9])
def test_several_states_are_refused_outside_of_vmap(beta2):
    transform = scale_by_mfac(3, 0.5, beta2=beta2)
    states = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), transform.init(tree(0)))
    with pytest.raises(ValueError, match=r"rows of shape \(window, d\); got \(2, 3, .*a batch"):
        transform.update(tree(1), states)


@pytest.mark.parametrize("beta2", [None, 0.9])
def test_updates_are_constants_of_differentiation(beta2):
    """As the docstring says; what is applied to them afterwards has its derivative."""
    transform = scale_by_mfac(3, 0.5, beta2=beta2)
    g = jnp.asarray([1.0, 2.0])
    state = transform.init(g)
    assert "Updates are constants of differentiation" in by_default.__doc__
    assert not jnp.any(jax.grad(lambda g: jnp.sum(transform.update(g, state)[0]))(g))
    rate = jax.grad(lambda lr: jnp.sum(lr * transform.update(g, state)[0]))(1.0)
    assert rate == pytest.approx(float(jnp.sum(transform.update(g, state)[0])), rel=1e-6)


def test_the_library_imports_no_optax():
    assert not any(re.search(r"import.*optax", text) for text in TEXTS.values())


# --- refusals -------------------------------------------------------------------------------------------------------


def call_update(gradients):
    return lambda: TRANSFORM.update(gradients, TRANSFORM.init(tree(0)))


REFUSALS = {
    "window": (ValueError, "`window` must be at least 1", lambda: scale_by_mfac(0, 0.5)),
    "damping": (ValueError, "`damping` must be finite and > 0", lambda: scale_by_mfac(3, 0.0)),
    "damping word": (TypeError, "`damping` must be a number; got '0.5' (str)", lambda: scale_by_mfac(3, "0.5")),
    "no damping": (TypeError, "`damping` must be a number; got None", lambda: scale_by_mfac(3, None)),
    "a longer dtype": (
        TypeError,
        "`updates` must have the parameters' dtype, bfloat16, or a shorter one; got float32",
        lambda: TRANSFORM.update(tree(0), TRANSFORM.init(tree(0, "bfloat16"))),
    ),
    "damping vector": (TypeError, "`damping` must be a number; got an array", lambda: scale_by_mfac(3, jnp.ones(4))),
    "beta2": (ValueError, "`beta2` must be in [0, 1); got 1.5", lambda: scale_by_mfac(3, 0.5, beta2=1.5)),
    "momentum": (ValueError, "`momentum` must be in [0, 1); got 1.0", lambda: scale_by_mfac(3, 0.5, momentum=1.0)),
    "momentum word": (TypeError, "`momentum` must be a number; got None", lambda: scale_by_mfac(3, 0.5, momentum=None)),
    "beta2 word": (TypeError, "`beta2` must be a number; got 'x'", lambda: scale_by_mfac(3, 0.5, beta2="x")),
    "normalization": (ValueError, "`normalization`", lambda: scale_by_mfac(3, 0.5, normalization="max")),
    "precision": (ValueError, "`precision`", lambda: scale_by_mfac(3, 0.5, precision="low")),
    "integers": (TypeError, "`params` must be real floating", lambda: scale_by_mfac(3, 0.5).init({"n": jnp.arange(3)})),
    "complex": (TypeError, "`updates` must be real floating", call_update({"a": jnp.ones(3, complex)})),
    "size": (
        ValueError,
        "`updates` must have the 10 entries of the parameters; got 9",
        call_update({"a": jnp.ones(9)}),
    ),
    "nothing": (ValueError, "`updates` must have the 10 entries of the parameters; got 0", call_update({})),
    "beta2 function": (
        TypeError,
        "`beta2` must be a number; got <function",
        lambda: scale_by_mfac(3, 0.5, beta2=lambda step: 0.9),
    ),
    "beta2 complex": (TypeError, "`beta2` must be a number; got 1j", lambda: scale_by_mfac(3, 0.5, beta2=1j)),
    "beta2 flag": (TypeError, "`beta2` must be a number", lambda: scale_by_mfac(3, 0.5, beta2=np.array(True))),
    "words": (TypeError, "`updates` must be real floating; got a leaf that is 'x'", call_update({"a": "x"})),
    "params words": (TypeError, "`params` must be real floating; got a leaf", lambda: TRANSFORM.init({"a": "x"})),
    "no state": (TypeError, "`state` must be what `init`", lambda: TRANSFORM.update(tree(0), None)),
    "another state": (
        TypeError,
        "`state` must be what `init` or `update` returned; got tuple",
        lambda: TRANSFORM.update(tree(0), optax.sgd(0.1, 0.9).init(tree(0))),
    ),
    "nan": (ValueError, "`updates` must be finite", call_update({**tree(0), "c": jnp.asarray(jnp.nan)})),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_is_refused_by_name(case):
    error, words, call = REFUSALS[case]
    with pytest.raises(error, match=re.escape(words)):
        call()
