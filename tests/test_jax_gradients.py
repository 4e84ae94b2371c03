"""Rows of gradients of JAX functions, against one gradient at a time."""

import re

import numpy as np
import pytest

import mfac_linalg as ml

jax = pytest.importorskip("jax")
adapter = pytest.importorskip("mfac_linalg.jax")
jnp = jax.numpy
SAMPLES = 6
X = np.random.default_rng(0).standard_normal((SAMPLES, 4), dtype=np.float32)
Y = np.arange(SAMPLES) % 3
PARAMS = {
    "weight": np.random.default_rng(1).standard_normal((4, 3), dtype=np.float32),
    "bias": np.array([0.1, 0.2, 0.3], dtype=np.float32),
}


def loss(params, x, y):
    return -jax.nn.log_softmax(jnp.tanh(x @ params["weight"]) + params["bias"])[y]


def gradients_of(start, stop):
    """The gradient of the mean loss of some samples, one sample at a time, (d,): bias before weight, as JAX sorts."""
    each = [jax.grad(loss)(PARAMS, x, y) for x, y in zip(X[start:stop], Y[start:stop], strict=True)]
    return np.mean([np.concatenate([np.ravel(g["bias"]), np.ravel(g["weight"])]) for g in each], axis=0)


def rows_of(size):
    return np.stack([gradients_of(start, start + size) for start in range(0, SAMPLES, size)])


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_row_is_the_gradient_of_one_sample(chunk_size):
    rows, _ = adapter.per_sample_gradients(loss, PARAMS, X, Y, chunk_size=chunk_size)
    assert np.allclose(rows, rows_of(1), atol=1e-6)


@pytest.mark.parametrize("size", [3, 4])
def test_a_mean_row_is_the_gradient_of_one_batch(size):
    rows, _ = adapter.mean_gradients(loss, PARAMS, X, Y, batch_size=size)
    assert np.allclose(rows, rows_of(size), atol=1e-6)


def test_unravel_gives_the_pytree_back():
    rows, unravel = adapter.per_sample_gradients(loss, PARAMS, X, Y)
    tree = unravel(rows[0])
    assert np.allclose(tree["weight"], jax.grad(loss)(PARAMS, X[0], Y[0])["weight"], atol=1e-6)


def test_rows_can_be_compiled():
    rows = jax.jit(lambda params: adapter.per_sample_gradients(loss, params, X, Y)[0])(PARAMS)
    assert np.allclose(rows, rows_of(1), atol=1e-6)


def test_what_the_loss_closes_over_is_held_fixed():
    frozen = PARAMS["weight"]
    rows, _ = adapter.per_sample_gradients(
        lambda bias, x, y: loss({"weight": frozen, "bias": bias}, x, y), PARAMS["bias"], X, Y
    )
    assert np.allclose(rows, rows_of(1)[:, :3], atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_come_one_after_the_other(per_sample):
    batches = [(X[i : i + 2], Y[i : i + 2]) for i in range(0, SAMPLES, 2)]
    found = np.stack(list(adapter.iter_gradients(loss, PARAMS, batches, per_sample=per_sample)))
    assert np.allclose(found, rows_of(1 if per_sample else 2), atol=1e-6)


def test_rows_go_into_an_inverse():
    rows, _ = adapter.per_sample_gradients(loss, PARAMS, X, Y)
    dense = np.linalg.inv(0.1 * np.eye(15) + rows_of(1).T.astype(float) @ rows_of(1) / SAMPLES)
    assert np.allclose(ml.WoodburyRankOneInverse(rows, 0.1) @ rows[0], dense @ rows_of(1)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: adapter.per_sample_gradients(loss, PARAMS, X, Y[:2]), ValueError, "as many samples; got"),
        (lambda: adapter.per_sample_gradients(loss, PARAMS, 1.0, Y), TypeError, "must be arrays of shape"),
        (lambda: adapter.per_sample_gradients(loss, PARAMS, X, Y, chunk_size=0), ValueError, "`chunk_size`"),
        (lambda: adapter.mean_gradients(loss, PARAMS, X, Y, batch_size=0), ValueError, "`batch_size`"),
        (lambda: next(adapter.iter_gradients(loss, PARAMS, [(X, Y)], per_sample=1)), TypeError, "`per_sample`"),
        (
            lambda: next(adapter.iter_gradients(loss, PARAMS, (X, Y))),
            TypeError,
            "`batches` must be pairs of inputs and",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- the Fisher matrix of a classifier --------------------------------------------------------------------------------


def logits(params, x):
    return jnp.tanh(x @ params["weight"]) + params["bias"]


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1 / SAMPLES), ("sum", 1.0)])
def test_rows_of_the_fisher_matrix_make_the_dense_one(reduction, factor, chunk_size):
    rows, _ = adapter.fisher_gradients(logits, PARAMS, X, reduction=reduction, chunk_size=chunk_size)
    each = [adapter.per_sample_gradients(loss, PARAMS, X, np.full(SAMPLES, label))[0] for label in range(3)]
    p = jax.nn.softmax(jax.vmap(logits, (None, 0))(PARAMS, X), axis=1)
    expected = sum(g.T @ (p[:, label, None] * g) for label, g in enumerate(each)) * factor
    assert rows.shape == (SAMPLES * 3, 15)
    assert np.allclose(rows.T @ rows, expected, atol=1e-5)
    inverse = ml.WoodburyRankOneInverse(rows, 0.1, normalization="sum")
    assert np.allclose(inverse.forward.to_dense(), 0.1 * np.eye(15) + expected, atol=1e-5)


def test_rows_of_the_fisher_matrix_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    from mfac_linalg.torch import fisher_gradients

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.tensor(PARAMS["bias"]))
            self.weight = torch.nn.Parameter(torch.tensor(PARAMS["weight"]))

        def forward(self, x):
            return torch.tanh(x @ self.weight) + self.bias

    expected, _ = fisher_gradients(Model(), torch.tensor(X))
    assert np.allclose(adapter.fisher_gradients(logits, PARAMS, X)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: adapter.fisher_gradients(None, PARAMS, X), TypeError, "`logits_fn` must be a function; got None"),
        (lambda: adapter.fisher_gradients(logits, PARAMS, X[:0]), ValueError, "at least one sample; got none"),
        (lambda: adapter.fisher_gradients(logits, PARAMS, X, reduction="max"), ValueError, "`reduction`"),
        (
            lambda: adapter.fisher_gradients(lambda params, x: x[:1], PARAMS, X),
            ValueError,
            "`logits_fn` must return the logits of one sample, shape (classes,)",
        ),
        (lambda: adapter.per_sample_gradients(None, PARAMS, X, Y), TypeError, "`loss_fn` must be a function; got None"),
        (lambda: adapter.per_sample_gradients(loss, PARAMS, X[:0], Y[:0]), ValueError, "at least one sample; got none"),
        (lambda: adapter.per_sample_gradients(loss, PARAMS, X * np.nan, Y), ValueError, "finite losses; got nan"),
        (lambda: adapter.mean_gradients(loss, PARAMS, X * np.nan, Y, batch_size=4), ValueError, "got nan"),
        (lambda: list(adapter.iter_gradients(loss, PARAMS, [(X * np.nan, Y)])), ValueError, "got nan"),
        (
            lambda: list(adapter.iter_gradients(loss, PARAMS, [(X * np.nan, Y)], per_sample=True)),
            ValueError,
            "got nan",
        ),
        (lambda: adapter.mean_gradients(loss, PARAMS, X[:0], Y[:0], batch_size=2), ValueError, "at least one sample"),
        (lambda: list(adapter.iter_gradients(loss, PARAMS, [(X[:0], Y[:0])])), ValueError, "at least one sample"),
        (lambda: list(adapter.iter_gradients(loss, PARAMS, None)), TypeError, "`batches` must be an iterable"),
        (lambda: list(adapter.iter_gradients(None, PARAMS, [(X, Y)])), TypeError, "`loss_fn` must be a function"),
    ],
)
def test_what_is_no_function_or_holds_no_samples_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


# --- what cannot be differentiated ------------------------------------------------------------------------------------


def per_sample(loss, params, x=X, y=Y):
    return adapter.per_sample_gradients(loss, params, x, y)[0]


CALLS = {
    "samples": per_sample,
    "chunks": lambda loss, params, x=X, y=Y: adapter.per_sample_gradients(loss, params, x, y, chunk_size=2)[0],
    "means": lambda loss, params, x=X, y=Y: adapter.mean_gradients(loss, params, x, y, batch_size=4)[0],
    "batches": lambda loss, params, x=X, y=Y: list(adapter.iter_gradients(loss, params, [(x, y)])),
    "batches of rows": lambda loss, params, x=X, y=Y: list(
        adapter.iter_gradients(loss, params, [(x, y)], per_sample=True)
    ),
    "fisher": lambda loss, params, x=X, y=Y: adapter.fisher_gradients(
        lambda params, x: jnp.stack([loss(params, x, 0)] * 3), params, x
    )[0],
    "fisher in chunks": lambda loss, params, x=X, y=Y: adapter.fisher_gradients(
        lambda params, x: jnp.stack([loss(params, x, 0)] * 3), params, x, chunk_size=2
    )[0],
}
BY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@BY_CALL
@pytest.mark.parametrize("leaf", [np.arange(3), np.ones(2, bool), np.ones(2, complex), 3, 1j, "x"])
def test_leaves_that_are_not_real_floating_are_refused(call, leaf):
    with pytest.raises(TypeError, match="`params` must be real floating; got a leaf that is"):
        call(lambda params, x, y: loss(params["in"], x, y), {"in": PARAMS, "leaf": leaf})


@BY_CALL
@pytest.mark.parametrize("kind", [jnp.int32, jnp.complex64, jnp.bool_])
def test_results_that_are_not_real_floating_are_refused(call, kind):
    with pytest.raises(TypeError, match=r"`(loss|logits)_fn` must return real floating numbers; got"):
        call(lambda params, x, y: loss(params, x, y).astype(kind), PARAMS)


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if "fisher" not in name])
def test_losses_that_are_not_scalars_are_refused(call):
    with pytest.raises(ValueError, match=r"`loss_fn\(params, x, y\)` must have shape \(\)"):
        call(lambda params, x, y: logits(params, x), PARAMS)
    with pytest.raises(TypeError, match="`loss_fn` must return real floating numbers; got"):
        call(lambda params, x, y: (loss(params, x, y), 1), PARAMS)


@BY_CALL
def test_samples_of_another_library_are_refused(call):
    torch = pytest.importorskip("torch")
    for x in (torch.tensor(X), X.tolist(), np.array(["a"] * SAMPLES)[0]):
        with pytest.raises(TypeError, match=r"must be arrays of shape .* JAX or NumPy"):
            call(loss, PARAMS, x, Y)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_logits_of_16_bits_have_the_rows_of_float32(dtype):
    rows = adapter.fisher_gradients(lambda params, x: logits(params, x).astype(dtype), PARAMS, X)[0]
    expected = adapter.fisher_gradients(logits, PARAMS, X)[0]
    assert rows.dtype == np.float32
    assert np.max(np.abs(rows - expected)) <= 8 * float(jnp.finfo(dtype).eps) * np.max(np.abs(expected))
