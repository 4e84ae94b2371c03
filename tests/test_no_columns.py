"""No right-hand sides, no indices, no draws, no gradients: empty answers of the right shape and dtype everywhere."""

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from tests.backends import AVAILABLE, PRESENT
from tests.inputs import ArrayRows

WIDE, TALL = (np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in ((3, 8), (9, 4)))
STATIC = {
    "whitened": lambda g: ml.WoodburyRankOneInverse(g, 0.1),
    "referenced": lambda g: ml.WoodburyRankOneInverse(g, 0.1, whiten=False),
}
CLASSES = {
    **STATIC,
    "streamed": lambda g: ml.WoodburyRankOneInverse(g, 0.1, memory_limit=10**8),
    "blocks": lambda g: ml.BlockDiagonalInverse(g, 0.1, block_sizes=2),
    "wide blocks": lambda g: ml.BlockDiagonalInverse(g, 0.1, block_sizes=[g.shape[1] - 1, 1]),
    "window": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.1),
    "top-k": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.1, compression=ml.TopK(0.5)),
    "top-k of all": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.1, compression=ml.TopK(1.0, block_size=3)),
    "empty window": lambda g: clear_window(None, g),
    "empty top-k": lambda g: clear_window(ml.TopK(0.5), g),
}
OTHER_FORMS = {
    "csr": lambda g: ml.WoodburyRankOneInverse(scipy.sparse.csr_array(g), 0.1),
    "csr of zeros": lambda g: ml.WoodburyRankOneInverse(scipy.sparse.csr_array(g.shape, dtype="float32"), 0.1),
    "csr blocks": lambda g: ml.BlockDiagonalInverse(scipy.sparse.csr_array(g), 0.1, block_sizes=2),
    "rows": lambda g: ml.WoodburyRankOneInverse(ArrayRows(g), 0.1),
}


def clear_window(compression, g):
    window = ml.SlidingWindowInverse.from_gradients(g, 0.1, compression=compression)
    window.clear()
    return window


def assert_empty_answers(inverse, send, fetch=np.asarray):
    d, m = inverse.dim, inverse.num_gradients
    none, of_gradients = (send(np.zeros((size, 0), "float32")) for size in (d, m))
    for found, shape in (
        (inverse.matmat(none), (d, 0)),
        (inverse.rmatmat(none), (d, 0)),
        (inverse @ none, (d, 0)),
        (inverse.forward.matmat(none), (d, 0)),
        (inverse.forward @ none, (d, 0)),
        (inverse.matvec_gradients(of_gradients), (d, 0)),
        (inverse.columns([]), (d, 0)),
        (inverse.submatrix([]), (0, 0)),
        (inverse.submatrix([], [1]), (0, 1)),
        (inverse.submatrix([1, 2], []), (2, 0)),
        (inverse.element([], []), (0,)),
        (inverse.element([], 1), (0,)),
        (inverse.sample(0, seed=0), (0, d)),
    ):
        assert fetch(found).shape == shape
        assert fetch(found).dtype == np.float32
    assert inverse.as_linear_operator().matmat(np.zeros((d, 0))).shape == (d, 0)


SOME = [b for b in AVAILABLE if b.name in ("numpy", "strict:device1", "torch:cpu")]
ON_JAX = ("referenced", "window")  # which compiles for each shape


@pytest.mark.parametrize("gradients", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize(
    ("backend", "kind"),
    [(b, kind) for b in SOME for kind in CLASSES] + [(b, k) for b in AVAILABLE if b.name == "jax" for k in ON_JAX],
    ids=str,
)
def test_no_columns_give_no_answers(backend, kind, gradients):
    inverse = CLASSES[kind](backend.asarray(gradients))
    assert_empty_answers(inverse, backend.asarray, backend.to_numpy)


@pytest.mark.parametrize("gradients", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("kind", OTHER_FORMS)
def test_no_columns_give_no_answers_however_gradients_are_held(kind, gradients):
    assert_empty_answers(OTHER_FORMS[kind](gradients), np.asarray)


@pytest.mark.parametrize("gradients", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("backend", [b for b in PRESENT if b.is_lazy], ids=repr)
def test_no_columns_give_no_answers_lazily(backend, gradients):
    assert_empty_answers(STATIC["referenced"](backend.asarray(gradients)), backend.asarray, backend.to_numpy)


@pytest.mark.parametrize("gradients", [WIDE, TALL], ids=["wide", "tall"])
def test_no_columns_give_no_answers_from_a_pytree(gradients):
    jnp = pytest.importorskip("jax.numpy")
    from mfac_linalg.jax import SlidingWindowState

    assert_empty_answers(SlidingWindowState.from_gradients(jnp.asarray(gradients), 0.1), jnp.asarray)


def test_no_columns_give_no_answers_from_a_folder(tmp_path):
    assert_empty_answers(ml.WoodburyRankOneInverse(WIDE, 0.1, out=tmp_path / "whitened"), np.asarray)


@pytest.mark.parametrize("compression", [None, ml.TopK(0.5)], ids=repr)
@pytest.mark.parametrize("backend", SOME, ids=repr)
def test_no_gradients_leave_a_window_as_it_is(backend, compression):
    for g in (WIDE, WIDE[:1]):
        window = ml.SlidingWindowInverse.from_gradients(backend.asarray(g), 0.1, window=4, compression=compression)
        before = backend.to_numpy(window.to_dense())
        window.extend(backend.asarray(np.zeros((0, 8), "float32")))
        assert len(window) == len(g)
        assert np.array_equal(backend.to_numpy(window.to_dense()), before)


def test_no_gradients_place_an_empty_window():
    window = ml.SlidingWindowInverse(4, 8, 0.1)
    window.extend(np.zeros((0, 8), "float32"))
    window.append(WIDE[0])
    assert len(window) == 1
