"""A compressed window as a value: refusals, copies, files, dtypes, devices and arguments."""

import copy
import pickle

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import SlidingWindowInverse, TopK
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import AVAILABLE, eps
from tests.compressed import DIM, feedback_error, filled_window, random_rows

# --- guarantees -----------------------------------------------------------------------------------------------------


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.append(np.full(DIM, np.nan)),
        lambda w: w.append_matvec(np.full(DIM, np.inf)),
        lambda w: w.append(np.ones(DIM + 1)),
        lambda w: w.append(np.ones(DIM, "float32")),
        lambda w: w.extend(np.concatenate([random_rows(5), np.full((1, DIM), np.nan)])),
        lambda w: w.replace(0, np.full(DIM, np.nan)),
        lambda w: w.remove(4),
    ],
)
def test_a_refused_call_changes_nothing(call):
    window = filled_window()
    before, answer = window.state_dict(), window @ np.ones(DIM)
    with pytest.raises((ValueError, TypeError, IndexError)):
        call(window)
    assert equal(before, window.state_dict())
    assert np.array_equal(window @ np.ones(DIM), answer)


@pytest.mark.parametrize(
    "where",
    ["_window.ring._backend.write_row", "_capacitance.update.factor_without", "_capacitance.update.factor_with"],
)
def test_a_step_that_breaks_off_leaves_the_window_as_it_was(monkeypatch, where):
    window = filled_window(8)
    before = window.state_dict()

    def break_off(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(f"mfac_linalg.{where}", break_off)
        with pytest.raises(MemoryError):
            window.append_matvec(np.ones(DIM))
    assert equal(before, window.state_dict())


KEPT = [(backend, None) for backend in AVAILABLE if backend.name not in ("strict:no_x64", "strict:no_float64")]


KEPT += [(b, short) for b in AVAILABLE if b.name in ("numpy", "torch:cpu") for short in ("float16", "bfloat16")]


@pytest.mark.parametrize("how", ["dictionary", "pickle", "copy", "file"])
@pytest.mark.parametrize(("backend", "dtype"), KEPT, ids=str)
def test_a_window_kept_elsewhere_takes_the_same_steps(backend, dtype, how, tmp_path):
    if dtype == "bfloat16" and backend.library == "numpy":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    window = SlidingWindowInverse(2, DIM, 0.1, compression=TopK(0.2, block_size=16, dtype=dtype))
    stream = [backend.asarray(g) for g in random_rows(5, dtype="float32")]
    for g in stream[:4]:
        window.append(g)
    window.save(tmp_path / "window.npz")
    place = {} if backend.library == "numpy" else {"xp": backend.namespace, "device": stream[0].device}
    found = {
        "dictionary": lambda: SlidingWindowInverse.from_state_dict(window.state_dict()),
        "pickle": lambda: pickle.loads(pickle.dumps(window)),
        "copy": lambda: copy.deepcopy(window),
        "file": lambda: ml.load(tmp_path / "window.npz", **place),
    }[how]()
    assert repr(found) == repr(window)
    x, y = (backend.to_numpy(w.append_matvec(stream[4])) for w in (found, window))
    assert np.array_equal(x, y)
    held = backend.to_numpy(window.gradients)
    assert np.array_equal(backend.to_numpy(found.gradients), held)
    assert Oracle(held, 0.1).backward_ratio(backend.to_numpy(stream[4]), x, eps("float32")) <= LIMIT


def test_an_empty_window_is_kept_too():
    window = SlidingWindowInverse(3, DIM, 0.1, compression=TopK(0.3))
    found = SlidingWindowInverse.from_state_dict(window.state_dict())
    found.append(random_rows(1)[0])
    assert "compression=TopK(0.3)" in repr(found)
    found.clear()
    assert np.allclose(found @ np.ones(DIM), 10)
    assert np.allclose(found.diagonal(), 10)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"indices": np.full((4, 13), 15, "uint16")}, ValueError, "indices"),
        ({"indices": np.zeros((4, 13), "int64")}, TypeError, "uint16"),
        ({"values": np.zeros((4, 12))}, ValueError, "values"),
        ({"error": np.zeros(3)}, ValueError, "error"),
        ({"error": np.zeros(DIM, "float32")}, TypeError, "error"),
    ],
)
def test_a_changed_state_is_refused(changed, kind, words):
    """Above all indices outside their block, which would be read outside a vector: the last block has 8 columns."""
    with pytest.raises(kind, match=words):
        SlidingWindowInverse.from_state_dict(filled_window().state_dict() | changed)


def test_a_window_in_another_dtype_has_the_same_rows():
    window = filled_window()
    for dtype in ("float32", "float64"):
        moved = window.astype(dtype)
        assert np.array_equal(moved.gradients, window.gradients.astype(dtype))
        assert np.array_equal(feedback_error(moved), feedback_error(window).astype(dtype))
        v = np.ones(DIM, dtype)
        assert Oracle(moved.gradients, 0.1).backward_ratio(v, moved @ v, eps(dtype)) <= LIMIT
        moved.append(random_rows(1, seed=1, dtype=dtype)[0])


def test_rows_too_large_for_another_dtype_are_kept_in_units_of_their_own():
    window = SlidingWindowInverse(3, DIM, 1e48, compression=TopK(0.3, error_feedback=False))
    window.extend(random_rows(3) * np.array([[1e25], [1.0], [1e-25]]))
    moved = window.astype("float32")
    assert np.allclose(moved.gradients, window.gradients, rtol=1e-6)


def test_a_window_moves_to_another_device():
    first, second = (next(b for b in AVAILABLE if b.name == f"strict:{name}") for name in ("CPU_DEVICE", "device1"))
    window = SlidingWindowInverse(3, DIM, 0.1, compression=TopK(0.3, block_size=16))
    window.extend(first.asarray(random_rows(3)))
    v = second.asarray(np.ones(DIM))
    moved = window.to_device(v.device)
    assert np.array_equal(second.to_numpy(moved.gradients), first.to_numpy(window.gradients))
    assert np.allclose(second.to_numpy(moved @ v), first.to_numpy(window @ first.asarray(np.ones(DIM))))


# --- arguments ------------------------------------------------------------------------------------------------------

REFUSED = {
    "density: zero": (ValueError, "`density`", lambda: TopK(0.0)),
    "density: above one": (ValueError, "`density`", lambda: TopK(1.5)),
    "density: a percentage": (TypeError, "`density`", lambda: TopK("1%")),
    "density: nan": (ValueError, "`density`", lambda: TopK(float("nan"))),
    "block_size: zero": (ValueError, "`block_size`", lambda: TopK(0.1, block_size=0)),
    "block_size: above 16 bits": (ValueError, "`block_size`.*65536", lambda: TopK(0.1, block_size=2**16 + 1)),
    "block_size: a float": (TypeError, "`block_size`", lambda: TopK(0.1, block_size=64.0)),
    "dtype: float64": (ValueError, "`dtype`", lambda: TopK(0.1, dtype="float64")),
    "error_feedback: a number": (TypeError, "`error_feedback`", lambda: TopK(0.1, error_feedback=1)),
    "compression: a number": (TypeError, "`compression`", lambda: SlidingWindowInverse(4, 5, 1.0, compression=0.1)),
    "compression: the class": (TypeError, "`compression`", lambda: SlidingWindowInverse(4, 5, 1.0, compression=TopK)),
}


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_a_bad_argument_is_named(row):
    kind, words, call = row
    with pytest.raises(kind, match=words):
        call()


def test_a_dtype_that_the_library_has_not_is_named():
    backend = next(b for b in AVAILABLE if b.name == "strict:CPU_DEVICE")
    with pytest.raises(TypeError, match=r"`dtype` of TopK.*float16"):
        SlidingWindowInverse(4, DIM, 0.1, xp=backend.namespace, compression=TopK(0.1, dtype="float16"))


def test_a_choice_is_a_value():
    one, other = TopK(0.1, dtype=np.float16), TopK(0.1, dtype="float16")
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == "TopK(0.1, dtype='float16')"
    assert one != TopK(0.1)
    with pytest.raises(AttributeError):
        one.density = 0.5


def test_an_error_that_overflows_is_not_called_a_gradient_that_is_not_finite():
    window = SlidingWindowInverse(4, DIM, 1e76, dtype="float32", compression=TopK(0.1))
    g = np.full(DIM, 2e38, np.float32)
    window.append(g)
    with pytest.raises(ValueError, match="the error of earlier gradients must have a finite sum"):
        window.append(g)
    assert len(window) == 1
