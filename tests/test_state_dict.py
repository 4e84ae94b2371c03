"""A window's state dictionary through the files of others: the same window, to the bit, and no pickle."""

import io

import numpy as np
import pytest

from mfac_linalg import SlidingWindowInverse, TopK
from tests.backends import AVAILABLE

DIM = 12
OPTIONS = {
    "plain": {},
    "decay": {"decay": 0.9, "normalization": "window"},
    "high": {"precision": "high"},
    "vector": {"damping": np.linspace(0.1, 2, DIM).astype("float32")},
    "top-k": {"compression": TopK(0.5, block_size=4)},
    "top-k in float16": {"compression": TopK(0.25, dtype="float16")},
    "top-k in bfloat16": {"compression": TopK(0.25, block_size=5, dtype="bfloat16")},
    "no feedback": {"compression": TopK(0.5, error_feedback=False)},
    "top-k of all": {"compression": TopK(1.0)},
}


def stream(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype("float32")


def make_window(backend, count, *, dtype=None, damping=0.1, **options):
    damping = damping if isinstance(damping, float) else backend.asarray(damping)
    window = SlidingWindowInverse(4, DIM, damping, **options)
    for g in gradients(backend, count, dtype=dtype):
        window.append(g)
    return window


def gradients(backend, count, seed=0, dtype=None):
    found = [backend.asarray(g) for g in stream(count, seed)]
    if dtype is None:
        return found
    if backend.library == "torch":
        return [g.to(getattr(backend.namespace, dtype)) for g in found]
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    return [g.astype(dtype) for g in found]


def through_numpy(state, *, as_it_is=False):
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **state)
    file.seek(0)
    found = np.load(file, allow_pickle=False)
    return found if as_it_is else dict(found)


def through_torch(state):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_goes_on_alike(found, window, backend, dtype=None):
    """The same rows and the same steps, to the bit."""
    assert repr(found) == repr(window)
    for g in [None, *gradients(backend, 5, 1, dtype)]:
        if g is not None:
            window.append(g)
            found.append(g)
        for x, y in zip(found.state_dict().values(), window.state_dict().values(), strict=True):
            assert type(x) is type(y)
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None)
        if len(window):
            assert np.array_equal(*(backend.to_numpy(w.to_dense()) for w in (found, window)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("count", [0, 2, 7])
def test_a_torch_window_goes_through_torch_load(options, count):
    pytest.importorskip("torch")
    (backend,) = (b for b in AVAILABLE if b.name == "torch:cpu")
    window = make_window(backend, count, **options)
    found = SlidingWindowInverse.from_state_dict(through_torch(window.state_dict()))
    assert_goes_on_alike(found, window, backend)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_torch_window_of_16_bits_goes_through_torch_load(dtype):
    pytest.importorskip("torch")
    (backend,) = (b for b in AVAILABLE if b.name == "torch:cpu")
    window = make_window(backend, 7, dtype=dtype)
    found = SlidingWindowInverse.from_state_dict(through_torch(window.state_dict()))
    assert_goes_on_alike(found, window, backend, dtype)


@pytest.mark.parametrize("count", [0, 2, 7])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_window_goes_through_savez(options, count):
    if getattr(options.get("compression"), "dtype", None) == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    (backend,) = (b for b in AVAILABLE if b.name == "numpy")
    window = make_window(backend, count, **options)
    for state in (through_numpy(window.state_dict()), through_numpy(window.state_dict(), as_it_is=True)):
        assert_goes_on_alike(
            SlidingWindowInverse.from_state_dict(state),
            SlidingWindowInverse.from_state_dict(window.state_dict()),
            backend,
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", ">f4"])
def test_a_window_of_other_dtypes_goes_through_savez(dtype):
    (backend,) = (b for b in AVAILABLE if b.name == "numpy")
    window = make_window(backend, 7, dtype=dtype)
    found = SlidingWindowInverse.from_state_dict(through_numpy(window.state_dict()))
    assert_goes_on_alike(found, window, backend, dtype)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["vector"], OPTIONS["top-k"]], ids=str)
@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b.name in ("torch:cpu", "jax")], ids=repr)
def test_what_numpy_saved_becomes_a_window_of_its_library_again(backend, options):
    """Of NumPy where nothing is said; the arrays of d numbers are brought back by hand."""
    window = make_window(backend, 7, **options)
    state = through_numpy(window.state_dict())
    own = {name for name in ("rows", "values", "indices", "error", "damping") if np.ndim(state.get(name, 0.0))}
    found = SlidingWindowInverse.from_state_dict(state | {name: backend.asarray(state[name]) for name in own})
    assert_goes_on_alike(found, window, backend)
    plain = SlidingWindowInverse.from_state_dict(state)
    assert isinstance(plain.gradients, np.ndarray)


@pytest.mark.parametrize("backend", AVAILABLE, ids=repr)
def test_a_state_has_no_objects_but_arrays_numbers_and_words(backend):
    for options in (OPTIONS["plain"], OPTIONS["top-k"]):
        if options and backend.name == "strict:no_x64":
            continue
        for value in make_window(backend, 3, **options).state_dict().values():
            assert type(value) in (str, int, float, bool) or (hasattr(value, "shape") and value.shape)


@pytest.mark.parametrize(("dtype", "options"), [("bfloat16", {}), ("float32", OPTIONS["top-k in bfloat16"])], ids=str)
def test_bfloat16_tensors_go_through_savez_as_the_documentation_says(dtype, options):
    """PyTorch refuses to make them NumPy's; their bits are taken by hand, and become a window of NumPy."""
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    (backend,) = (b for b in AVAILABLE if b.name == "torch:cpu")
    state = make_window(backend, 7, dtype=dtype, **options).state_dict()
    with pytest.raises(TypeError, match="unsupported ScalarType"):
        through_numpy(state)
    bits = {
        name: x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        for name, x in state.items()
        if isinstance(x, torch.Tensor) and x.dtype is torch.bfloat16
    }
    assert bits
    found = SlidingWindowInverse.from_state_dict(through_numpy(state | bits)).state_dict()
    for name, x in bits.items():
        assert np.array_equal(found[name].view(np.uint16), x.view(np.uint16))
    assert "torch.int16" in SlidingWindowInverse.state_dict.__doc__
