"""Indices in any integer dtype, of any library on the host, in lists and arrays of any shape: the same answers."""

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import mfac_linalg as ml
from mfac_linalg.pruning import group_scores, group_update, n_m_mask
from tests.backends import AVAILABLE, NUMPY, PRESENT

DIM = 300  # more than 8 bits hold
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
GRADIENTS = np.random.default_rng(0).standard_normal((3, DIM)).astype("float32")
CLASSES = {
    "static": lambda g: ml.WoodburyRankOneInverse(g, 0.5),
    "referenced": lambda g: ml.WoodburyRankOneInverse(g, 0.5, whiten=False),
    "blocks": lambda g: ml.BlockDiagonalInverse(g, 0.5, block_sizes=7),
    "window": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.5),
    "top-k": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.5, compression=ml.TopK(0.4, block_size=256)),
}
QUERIES = {
    "columns": (lambda inverse, j: inverse.columns(j), lambda dense, k: dense[:, k]),
    "submatrix": (lambda inverse, j: inverse.submatrix(j), lambda dense, k: dense[np.ix_(k, k)]),
    "element": (lambda inverse, j: inverse.element(j[:, None], j), lambda dense, k: dense[k[:, None], k]),
}


@functools.cache
def make_inverse(backend, kind):
    """An inverse, and F⁻¹ as NumPy has it."""
    gradients = backend.asarray(GRADIENTS)
    inverse = CLASSES[kind](gradients.rechunk((-1, 100)) if backend.is_lazy else gradients)
    return inverse, CLASSES[kind](GRADIENTS).to_dense()


def positions(dtype):
    info = np.iinfo(dtype)
    wanted = np.array([5, -1, 100, -100, DIM - 1, -DIM, 0, 100])
    return wanted[(wanted >= info.min) & (wanted <= info.max)]


def assert_right(backend, kind, query, index, wanted):
    inverse, dense = make_inverse(backend, kind)
    ask, right = QUERIES[query]
    found = backend.to_numpy(ask(inverse, index))
    np.testing.assert_allclose(found, right(dense, wanted), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("backend", PRESENT, ids=repr)
def test_every_integer_dtype_finds_its_entries(backend, query, dtype):
    wanted = positions(dtype)
    if backend.name == "jax" and dtype.endswith("64"):
        return  # which JAX makes 32 bits of
    if backend.name == "strict:no_x64" and dtype.endswith("64"):
        return  # which it has not
    assert_right(backend, "static", query, backend.asarray(wanted.astype(dtype)), wanted)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind != "static"])
@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b.name in ("numpy", "torch:cpu")], ids=repr)
def test_every_class_finds_its_entries(backend, kind, query, dtype):
    wanted = positions(dtype)
    assert_right(backend, kind, query, backend.asarray(wanted.astype(dtype)), wanted)


LAYOUTS = {
    "reversed": lambda j: np.array(j)[::-1][::1],
    "big-endian": lambda j: np.array(j).astype(">i2"),
    "every other": lambda j: np.repeat(j, 2)[::2],
    "read-only": lambda j: np.broadcast_to(j, np.shape(j)),
    "list": list,
    "tuple": tuple,
    "list of NumPy's integers": lambda j: [np.int16(k) for k in j],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", PRESENT, ids=repr)
def test_numpys_indices_of_any_layout_are_taken_everywhere(backend, layout):
    wanted = positions("int16")
    index = LAYOUTS[layout](wanted)
    assert_right(backend, "static", "columns", index, np.asarray(index, np.int64))


@pytest.mark.parametrize("there", [b for b in AVAILABLE if b.name in ("numpy", "torch:cpu", "jax")], ids=repr)
@pytest.mark.parametrize("here", [b for b in PRESENT if b.name in ("numpy", "torch:cpu", "jax", "dask")], ids=repr)
def test_indices_may_be_of_another_library_on_the_host(here, there):
    wanted = positions("int16")
    assert_right(here, "static", "submatrix", there.asarray(wanted.astype("int16")), wanted)


@given(
    wanted=st.lists(st.integers(-DIM, DIM - 1), max_size=4),
    query=st.sampled_from(list(QUERIES)),
    dtype=st.sampled_from([None, *DTYPES]),
    kind=st.sampled_from(list(CLASSES)),
)
def test_any_indices_find_their_entries(wanted, query, dtype, kind):
    fits = dtype is not None and all(np.iinfo(dtype).min <= k <= np.iinfo(dtype).max for k in wanted)
    index = np.array(wanted, dtype if fits else np.int64)
    if query != "element" and not fits:
        index = wanted
    assert_right(NUMPY, kind, query, index, np.array(wanted, np.int64))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("none", [[], (), np.zeros(0, np.int8), np.zeros((0, 2), np.uint8), [[]]], ids=repr)
def test_no_indices_give_no_entries(kind, none):
    inverse, _ = make_inverse(NUMPY, kind)
    shape = np.shape(none)
    assert inverse.element(none, none).shape == shape
    if len(shape) == 1:
        assert inverse.columns(none).shape == (DIM, 0)
        assert inverse.submatrix(none).shape == (0, 0)
        assert inverse.submatrix([1, 2], none).shape == (2, 0)
        assert inverse.submatrix(none, np.uint8([1])).shape == (0, 1)


@pytest.mark.parametrize("i", [200, np.uint8(200), np.int16(200), np.array(200, np.uint8), np.array(-100, np.int8)])
@pytest.mark.parametrize("backend", [b for b in PRESENT if b.name in ("numpy", "torch:cpu", "jax", "dask")], ids=repr)
def test_one_element_for_one_index_of_any_kind(backend, i):
    inverse, dense = make_inverse(backend, "static")
    found = backend.to_numpy(inverse.element(i, 7))
    assert found.shape == ()
    np.testing.assert_allclose(found, dense[i, 7], atol=1e-5)


BAD = {
    "bool": (True, TypeError),
    "numpy's bool": (np.bool_(True), TypeError),
    "bools": ([True, False], TypeError),
    "a bool among integers": ([True, 5], TypeError),
    "a bool among integers, nested": ([[1, 5], [np.True_, 2]], TypeError),
    "a mask": (np.ones(DIM, bool), TypeError),
    "a float": (1.0, TypeError),
    "floats": ([1.0, 2.0], TypeError),
    "a float among integers": ([1, 2.0], TypeError),
    "no index of floats": (np.zeros(0), TypeError),
    "a word": ("1", TypeError),
    "None": (None, TypeError),
    "a huge number": (10**30, IndexError),
    "a huge number in a list": ([0, -(10**30)], IndexError),
    "numbers of which 64 bits hold either": ([-1, 2**63], IndexError),
    "the largest of 64 bits": (np.array([2**64 - 1], np.uint64), IndexError),
    "beyond d in 16 bits": (np.array([DIM], np.int16), IndexError),
    "the largest of 8 bits": (np.array([-128], np.int8), None),
    "the largest of 16 bits": (np.array([2**15 - 1], np.int16), IndexError),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("backend", [b for b in PRESENT if b.name in ("numpy", "torch:cpu", "jax", "dask")], ids=repr)
def test_what_is_no_index_is_refused_by_name(backend, case):
    index, error = BAD[case]
    inverse, dense = make_inverse(backend, "static")
    if error is None:
        np.testing.assert_allclose(backend.to_numpy(inverse.element(index, 0)), dense[index, 0], atol=1e-5)
        return
    with pytest.raises(error, match="`i` must be"):
        inverse.element(index, 0)


def test_traced_indices_are_widened_too():
    jax = pytest.importorskip("jax")
    (backend,) = (b for b in AVAILABLE if b.name == "jax")
    inverse, dense = make_inverse(backend, "static")
    wanted = np.array([5, -100, 127])
    found = jax.jit(inverse.columns)(jax.numpy.asarray(wanted, "int8"))
    np.testing.assert_allclose(found, dense[:, wanted], atol=1e-5)


def test_a_traced_index_on_another_library_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="`j` must be of the gradients' library"):
        jax.jit(make_inverse(NUMPY, "static")[0].columns)(jax.numpy.asarray([1, 2], "int8"))


def test_the_functional_window_takes_small_indices():
    jax = pytest.importorskip("jax")
    from mfac_linalg.jax import SlidingWindowState

    window = SlidingWindowState.from_gradients(jax.numpy.asarray(GRADIENTS), 0.5)
    dense, wanted = make_inverse(NUMPY, "static")[1], np.array([5, -100, 127])
    np.testing.assert_allclose(window.columns(jax.numpy.asarray(wanted, "int8")), dense[:, wanted], atol=1e-5)
    found = window.element(jax.numpy.asarray(wanted, "int8"), np.uint8(250))
    np.testing.assert_allclose(found, dense[wanted, 250], atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b.name in ("numpy", "torch:cpu", "jax")], ids=repr)
def test_groups_of_weights_are_found_by_small_indices(backend, dtype):
    inverse, _ = make_inverse(backend, "static")
    weights = backend.asarray(np.linspace(-1, 1, DIM).astype("float32"))
    wanted = np.arange(100, 108).reshape(2, 4)
    for function in (group_scores, group_update, lambda *given: n_m_mask(*given[:2], 2, 4, groups=given[2])):
        found, right = (function(weights, inverse, backend.asarray(g)) for g in (wanted.astype(dtype), wanted))
        np.testing.assert_allclose(backend.to_numpy(found), backend.to_numpy(right), rtol=1e-6)


@pytest.mark.parametrize("size", [np.uint8(4), np.array(4, np.int8), np.int16(4)])
def test_the_size_of_groups_and_blocks_may_be_any_integer(size):
    inverse, _ = make_inverse(NUMPY, "static")
    weights = np.linspace(-1, 1, DIM).astype("float32")
    assert np.array_equal(group_scores(weights, inverse, size), group_scores(weights, inverse, 4))
    assert ml.BlockDiagonalInverse(GRADIENTS, 0.5, block_sizes=size).block_sizes == (4,) * 75
    wide = ml.BlockDiagonalInverse(GRADIENTS, 0.5, block_sizes=np.array([200, 100], np.uint8))
    assert wide.block_sizes == (200, 100)


@pytest.mark.parametrize("integer", [np.int8, np.uint8, int])
def test_sizes_and_ages_of_a_window_may_be_any_integers(integer):
    window = ml.SlidingWindowInverse(integer(100), np.int16(DIM), 0.5)
    for g in np.tile(GRADIENTS, (50, 1)):
        window.append(g)
    window.replace(integer(99), GRADIENTS[0])
    window.remove(integer(0))
    if integer is not np.uint8:
        window.remove(integer(-99))
        assert len(window) == 98
