"""A window that stores the largest entries of its gradients: which ones, the error feedback, and its memory."""

import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfac_linalg import SlidingWindowInverse, TopK
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import eps
from tests.compressed import DIM, feedback_error, filled_window, random_rows


def largest(x, compression):
    """The rule, as plainly as it can be said."""
    kept = np.zeros_like(x)
    for start in range(0, len(x), compression.block_size):
        block = x[start : start + compression.block_size]
        count = math.ceil(compression.density * len(block) - 1e-9)
        chosen = np.argsort(-np.abs(block), kind="stable")[:count]
        kept[start + chosen] = block[chosen]
    return kept


class Reference:
    """Rows and error of a window by `largest`, on values of float32 or float64."""

    def __init__(self, window, compression, dtype):
        self.window, self.compression = window, compression
        self.rows, self.error = [], np.zeros(DIM, dtype)

    def compressed(self, g):
        total = g + self.error
        kept = largest(total, self.compression)
        self.error = total - kept if self.compression.error_feedback else self.error
        return kept

    def append(self, g):
        self.rows = [*self.rows, self.compressed(g)][-self.window :]


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 3, 7, 16, 40, 1000])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99])
def test_the_largest_entries_of_each_block_are_kept(density, block_size):
    compression = TopK(density, block_size=block_size, error_feedback=False)
    window = filled_window(3, compression=compression)
    assert np.array_equal(window.gradients, [largest(g, compression) for g in random_rows(3)])


def test_a_share_that_is_whole_is_not_rounded_up():
    window = SlidingWindowInverse(2, 100, 0.1, compression=TopK(0.07))  # 0.07 * 100 = 7.000000000000001
    window.append(random_rows(1, 100)[0])
    assert np.count_nonzero(window.gradients) == 7


@pytest.mark.parametrize("error_feedback", [True, False])
def test_what_is_not_kept_meets_the_next_gradient(error_feedback):
    compression = TopK(0.2, block_size=16, error_feedback=error_feedback)
    window, reference = filled_window(9, compression=compression), Reference(4, compression, "float64")
    for g in random_rows(9):
        reference.append(g)
    assert np.array_equal(window.gradients, reference.rows)
    assert np.array_equal(feedback_error(window), reference.error)


@given(data=st.data())
@settings(max_examples=30)
def test_nothing_is_lost(data):
    """Rows that ever entered F and the error add up to the gradients."""
    density, dtype = data.draw(st.floats(0.01, 1)), data.draw(st.sampled_from([None, "float32", "float16"]))
    compression = TopK(density, block_size=data.draw(st.integers(1, 50)), dtype=dtype)
    window = SlidingWindowInverse(2, DIM, 0.1, compression=compression)
    stream = random_rows(8, seed=data.draw(st.integers(0, 99)))
    entered = np.zeros(DIM)
    for g in stream:
        window.append(g)
        entered += window.gradients[-1]
    assert np.allclose(entered + feedback_error(window), stream.sum(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 24), ("float16", 11)])
def test_values_are_kept_in_the_dtype_asked_for(dtype, digits):
    window = filled_window(4, compression=TopK(0.3, block_size=16, dtype=dtype))
    held = window.gradients
    fractions = np.frexp(held)[0]
    assert held.dtype == np.float64
    assert np.array_equal(np.ldexp(fractions, digits), np.rint(np.ldexp(fractions, digits)))
    assert not np.array_equal(held, filled_window(4).gradients)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-40, 2.0**66, 2.0**83])
def test_gradients_of_any_size_fit(scale, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    compression = TopK(0.5, block_size=16, dtype=dtype)
    window, usual = (SlidingWindowInverse(3, DIM, 0.1 * s**2, compression=compression) for s in (scale, 1.0))
    for g in random_rows(5, dtype="float32"):
        window.append(g * np.float32(scale))
        usual.append(g)
    assert np.array_equal(window.gradients / np.float32(scale), usual.gradients)
    v = random_rows(1, seed=1, dtype="float32")[0] * np.float32(scale)
    oracle = Oracle(window.gradients, 0.1 * scale**2)
    assert oracle.backward_ratio(v, window @ v, eps("float32")) <= LIMIT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_gradients_feed_back_in_float32(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    short = np.dtype(getattr(ml_dtypes, dtype, dtype))
    window = SlidingWindowInverse(8, DIM, 0.1, compression=TopK(0.3, block_size=16))
    stream = random_rows(8).astype(short)
    for g in stream:
        window.append(g)
    assert feedback_error(window).dtype == window.gradients.dtype == window.dtype == np.float32
    assert np.allclose(window.gradients.sum(0) + feedback_error(window), stream.astype(float).sum(0), atol=1e-5)


# --- all of the entries ---------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=25)
def test_to_keep_all_is_to_keep_the_gradients(data):
    rules = {
        "normalization": data.draw(st.sampled_from(["mean", "sum", "window"])),
        "decay": data.draw(st.sampled_from([1.0, 0.8])),
    }
    capacity, dtype = data.draw(st.integers(1, 6)), data.draw(st.sampled_from(["float32", "float64"]))
    compression = TopK(1.0, block_size=data.draw(st.integers(1, 50)))
    exact = SlidingWindowInverse(capacity, DIM, 0.1, **rules)
    window = SlidingWindowInverse(capacity, DIM, 0.1, compression=compression, **rules)
    stream = iter(random_rows(60, seed=data.draw(st.integers(0, 99)), dtype=dtype))
    both = (exact, window)
    for w, g in zip(both, [next(stream)] * 2, strict=True):
        w.append(g)
    for what in data.draw(st.lists(st.sampled_from("aaammeerd"), min_size=1, max_size=8)):
        g, block = next(stream), np.stack([next(stream) for _ in range(4)])
        calls = {
            "a": lambda w, g=g: w.append(g),
            "m": lambda w, g=g: w.append_matvec(g),
            "e": lambda w, block=block: w.extend(block),
            "r": lambda w, g=g: w.replace(-1, g) if len(w) else None,
            "d": lambda w: w.remove(0) if len(w) else None,
        }
        x, y = (calls[what](w) for w in both)
        assert x is None or np.linalg.norm(x - y) <= LIMIT * eps(dtype) * window.kappa * np.linalg.norm(x)
        assert np.array_equal(exact.gradients, window.gradients)
        x, y = (w @ g for w in both)
        assert np.linalg.norm(x - y) <= LIMIT * eps(dtype) * window.kappa * np.linalg.norm(x)
    assert not np.any(feedback_error(window))


# --- any sequence of calls ------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=30)
def test_a_window_is_the_inverse_of_the_rows_it_should_hold(data):
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    compression = TopK(
        data.draw(st.floats(0.02, 0.9)),
        block_size=data.draw(st.integers(1, 50)),
        error_feedback=data.draw(st.booleans()),
    )
    capacity = data.draw(st.integers(1, 5))
    window = SlidingWindowInverse(capacity, DIM, 0.1, compression=compression, normalization="sum")
    reference = Reference(capacity, compression, dtype)
    stream = iter(random_rows(120, seed=data.draw(st.integers(0, 99)), dtype=dtype))
    window.append(g := next(stream))
    reference.append(g)
    for what in data.draw(st.lists(st.sampled_from("aaeerdcpks"), max_size=10)):
        g = next(stream)
        if what == "a":
            window.append(g)
            reference.append(g)
        elif what == "e":
            block = np.stack([next(stream) for _ in range(data.draw(st.integers(1, 7)))])
            window.extend(block)
            for row in block:
                reference.append(row)
        elif what == "r" and len(window):
            window.replace(-1, g)
            reference.rows[-1] = reference.compressed(g)
        elif what == "d" and len(window):
            window.remove(0)
            del reference.rows[0]
        elif what == "c":
            window.clear()
            reference = Reference(capacity, compression, dtype)
        elif what == "p":
            window = pickle.loads(pickle.dumps(window))
        elif what == "k":
            window = copy.deepcopy(window)
        elif what == "s":
            window = SlidingWindowInverse.from_state_dict(window.state_dict())
        held = np.reshape(reference.rows, (-1, DIM))
        assert np.array_equal(window.gradients, held)
        assert np.array_equal(feedback_error(window), reference.error)
        if len(held):
            assert Oracle(held, 0.1, normalization="sum").backward_ratio(g, window @ g, eps(dtype)) <= LIMIT


def test_many_gradients_at_once_are_as_one_by_one():
    """Also those that come and go within one call: they leave an error."""
    one_by_one, at_once = filled_window(11), SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3, block_size=16))
    at_once.extend(random_rows(11))
    from_gradients = SlidingWindowInverse.from_gradients(
        random_rows(11), 0.1, window=4, compression=TopK(0.3, block_size=16)
    )
    for window in (at_once, from_gradients):
        assert np.array_equal(window.gradients, one_by_one.gradients)
        assert np.array_equal(feedback_error(window), feedback_error(one_by_one))
        assert np.allclose(window @ np.ones(DIM), one_by_one @ np.ones(DIM), rtol=1e-11)


def test_decay_and_damping_are_of_the_rows_that_are_kept():
    window = filled_window(decay=0.8)
    window.damping = np.linspace(0.1, 1, DIM)
    oracle = Oracle(window.gradients, np.linspace(0.1, 1, DIM), 0.8 ** np.arange(3.0, -1, -1))
    v = random_rows(1, seed=1)[0]
    assert oracle.backward_ratio(v, window @ v, eps("float64")) <= LIMIT
    other = window.with_damping(2.0)
    assert Oracle(window.gradients, 2.0, oracle.weights).backward_ratio(v, other @ v, eps("float64")) <= LIMIT


def test_clearing_forgets_the_error():
    window = filled_window()
    assert np.any(feedback_error(window))
    window.clear()
    window.append(random_rows(1, seed=3)[0])
    fresh = SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3, block_size=16))
    fresh.append(random_rows(1, seed=3)[0])
    assert np.array_equal(window.gradients, fresh.gradients)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [256, 1024])
def test_one_percent_takes_a_fortieth_of_the_memory(capacity):
    """All memory of the window, the m × m system and the error included, against the float32 rows alone."""
    dim = 1_000_000
    stream = random_rows(3, dim).astype("float32")
    filled_window().append_matvec(np.ones(DIM))  # which imports what there is to import
    tracemalloc.start()
    window = SlidingWindowInverse(capacity, dim, 1e4, compression=TopK(0.01))
    for g in stream:
        window.append_matvec(g)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 40 * held <= 4 * capacity * dim
    assert most - held <= 20 * 4 * dim
