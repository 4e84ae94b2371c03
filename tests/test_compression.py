"""A window that keeps the largest entries of its gradients: what it keeps, feeds back, answers and holds in memory."""

import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg import SlidingWindowInverse, TopK
from tests.backends import AVAILABLE, FLAVOURS, eps, flavour_name
from tests.oracle import LIMIT, Oracle

DIM = 40
AT_ONCE = [flavour for flavour in FLAVOURS if flavour[0].name not in ("strict:no_x64", "jax")]
"""All but one without integers to look entries up, and JAX, which compiles anew for each number of rows: see `KEPT`."""


def rows(count, dim=DIM, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def filled(count=6, window=4, dtype="float64", compression=None, **options):
    compression = compression or TopK(0.3, block_size=16)
    window = SlidingWindowInverse(window, DIM, 0.1, compression=compression, **options)
    for g in rows(count, dtype=dtype):
        window.append(g)
    return window


def error(window):
    """The vector that the next gradient meets."""
    kept = window._state.ring.storage.error
    return np.zeros(window.dim) if kept is None else kept


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
    window = filled(3, compression=compression)
    assert np.array_equal(window.gradients, [largest(g, compression) for g in rows(3)])


def test_a_share_that_is_whole_is_not_rounded_up():
    window = SlidingWindowInverse(2, 100, 0.1, compression=TopK(0.07))  # 0.07 * 100 = 7.000000000000001
    window.append(rows(1, 100)[0])
    assert np.count_nonzero(window.gradients) == 7


@pytest.mark.parametrize("error_feedback", [True, False])
def test_what_is_not_kept_meets_the_next_gradient(error_feedback):
    compression = TopK(0.2, block_size=16, error_feedback=error_feedback)
    window, reference = filled(9, compression=compression), Reference(4, compression, "float64")
    for g in rows(9):
        reference.append(g)
    assert np.array_equal(window.gradients, reference.rows)
    assert np.array_equal(error(window), reference.error)


@given(data=st.data())
@settings(max_examples=30)
def test_nothing_is_lost(data):
    """Rows that ever entered F and the error add up to the gradients."""
    density, dtype = data.draw(st.floats(0.01, 1)), data.draw(st.sampled_from([None, "float32", "float16"]))
    compression = TopK(density, block_size=data.draw(st.integers(1, 50)), dtype=dtype)
    window = SlidingWindowInverse(2, DIM, 0.1, compression=compression)
    stream = rows(8, seed=data.draw(st.integers(0, 99)))
    entered = np.zeros(DIM)
    for g in stream:
        window.append(g)
        entered += window.gradients[-1]
    assert np.allclose(entered + error(window), stream.sum(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 24), ("float16", 11)])
def test_values_are_kept_in_the_dtype_asked_for(dtype, digits):
    window = filled(4, compression=TopK(0.3, block_size=16, dtype=dtype))
    held = window.gradients
    fractions = np.frexp(held)[0]
    assert held.dtype == np.float64
    assert np.array_equal(np.ldexp(fractions, digits), np.rint(np.ldexp(fractions, digits)))
    assert not np.array_equal(held, filled(4).gradients)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-40, 2.0**66, 2.0**83])
def test_gradients_of_any_size_fit(scale, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    compression = TopK(0.5, block_size=16, dtype=dtype)
    window, usual = (SlidingWindowInverse(3, DIM, 0.1 * s**2, compression=compression) for s in (scale, 1.0))
    for g in rows(5, dtype="float32"):
        window.append(g * np.float32(scale))
        usual.append(g)
    assert np.array_equal(window.gradients / np.float32(scale), usual.gradients)
    v = rows(1, seed=1, dtype="float32")[0] * np.float32(scale)
    oracle = Oracle(window.gradients, 0.1 * scale**2)
    assert oracle.backward_ratio(v, window @ v, eps("float32")) <= LIMIT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_gradients_feed_back_in_float32(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    short = np.dtype(getattr(ml_dtypes, dtype, dtype))
    window = SlidingWindowInverse(8, DIM, 0.1, compression=TopK(0.3, block_size=16))
    stream = rows(8).astype(short)
    for g in stream:
        window.append(g)
    assert error(window).dtype == window.gradients.dtype == window.dtype == np.float32
    assert np.allclose(window.gradients.sum(0) + error(window), stream.astype(float).sum(0), atol=1e-5)


# --- what is answered -----------------------------------------------------------------------------------------------


def ask(window, v, send=lambda x: x):
    """Every query that reads the rows, by name."""
    columns = send(np.array([0, 17, DIM - 1]))
    return {
        "matvec": window @ send(v),
        "diagonal": window.diagonal(),
        "columns": window.columns(columns),
        "submatrix": window.submatrix(columns),
        "logdet": window.logdet(),
        "quadratic_form": window.quadratic_form(send(v)),
        "forward": window.forward @ send(v),
        "forward diagonal": window.forward.diagonal(),
        "gradients": window.matvec_gradients(send(np.ones(len(window), v.dtype))),
    }


def expected(oracle, v):
    exact = np.asarray(oracle.inverse, float)
    index = np.array([0, 17, DIM - 1])
    return {
        "matvec": exact @ v,
        "diagonal": np.diag(exact),
        "columns": exact[:, index],
        "submatrix": exact[np.ix_(index, index)],
        "logdet": np.linalg.slogdet(exact)[1],
        "quadratic_form": v @ exact @ v,
        "forward": oracle.forward @ v,
        "forward diagonal": np.diag(oracle.forward),
        "gradients": exact @ np.asarray(oracle.gradients, float).sum(0),
    }


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("flavour", AT_ONCE, ids=flavour_name)
def test_every_query_is_of_the_rows_that_are_kept(flavour, vector):
    backend, dtype = flavour
    damping = np.linspace(0.1, 0.4, DIM).astype(dtype) if vector else 0.1
    compression = TopK(0.3, block_size=16)
    window = SlidingWindowInverse(5, DIM, backend.asarray(damping) if vector else damping, compression=compression)
    stream = rows(9, dtype=dtype)
    for g in stream[:3]:
        window.append(backend.asarray(g))
    window.extend(backend.asarray(stream[3:]))
    window.replace(1, backend.asarray(stream[0]))
    window.remove(0)
    held = backend.to_numpy(window.gradients)
    oracle = Oracle(held, damping)
    wanted, found = expected(oracle, stream[0].astype(float)), ask(window, stream[0], backend.asarray)
    for name, x in found.items():
        limit = LIMIT * eps(dtype) * oracle.kappa * np.linalg.norm(wanted[name])
        assert np.linalg.norm(backend.to_numpy(x) - wanted[name]) <= limit, name
    assert np.count_nonzero(held, axis=1).max() <= 13


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_entries_answer_as_many_do(dtype, vector):
    """Up to one in sixteen, Gram matrix and diagonal go by the entries that rows have in common."""
    dim = 500
    damping = np.linspace(1e-3, 1, dim).astype(dtype) if vector else 1e-3
    window = SlidingWindowInverse(7, dim, damping, compression=TopK(0.05, block_size=100))
    common = np.concatenate([10 * rows(1, 5, seed=1), np.zeros((1, dim - 5))], axis=1)
    stream = (common + rows(12, dim)).astype(dtype)
    for block in (stream[:1], stream[1:5], stream[5:]):
        window.extend(block)
    oracle = Oracle(window.gradients, damping)
    assert np.count_nonzero(window.gradients) == 7 * 25
    assert oracle.backward_ratio(stream[0], window @ stream[0], eps(dtype)) <= LIMIT
    exact = np.diag(np.asarray(oracle.inverse, float))
    assert np.allclose(window.diagonal(), exact, rtol=1e-3, atol=LIMIT * eps(dtype) * 1e3)
    assert np.isclose(window.logdet(), np.linalg.slogdet(np.asarray(oracle.inverse, float))[1], rtol=1e-5)


@pytest.mark.parametrize("flavour", AT_ONCE, ids=flavour_name)
def test_a_step_answers_for_the_gradient_that_came(flavour):
    backend, dtype = flavour
    window = SlidingWindowInverse(2, DIM, 1e-3, compression=TopK(0.2, block_size=16))
    for g in rows(3, dtype=dtype):
        x = backend.to_numpy(window.append_matvec(backend.asarray(g)))
        assert Oracle(backend.to_numpy(window.gradients), 1e-3).backward_ratio(g, x, eps(dtype)) <= LIMIT


def test_torch_differentiates_products_and_leaves_no_trace():
    torch = pytest.importorskip("torch", reason="needs torch")
    with torch.inference_mode():
        window = SlidingWindowInverse.from_gradients(torch.tensor(rows(4)), 0.1, compression=TopK(0.3, block_size=16))
        window.append_matvec(torch.tensor(rows(1, seed=1)[0]))
    window.append(torch.tensor(rows(1, seed=2)[0], requires_grad=True))
    v = torch.ones(DIM, dtype=torch.float64, requires_grad=True)
    (window @ v).sum().backward()
    assert np.allclose(v.grad, window @ torch.ones(DIM, dtype=torch.float64), rtol=1e-10)
    batch = torch.tensor(rows(3, seed=3))
    assert np.allclose(torch.func.vmap(window.matvec)(batch), window.matmat(batch.T).T, rtol=1e-10)


def test_a_device_without_wide_integers_is_refused():
    backend = next(b for b in AVAILABLE if b.name == "strict:no_x64")
    window = SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3))
    with pytest.raises(TypeError, match=r"`compression`.*NumPy, PyTorch, JAX or CuPy"):
        window.append(backend.asarray(rows(1, dtype="float32")[0]))


@pytest.mark.parametrize("precision", ["default", "high"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kappa", [1e2, 1e5, 1e7])
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_products_keep_the_contract(density, kappa, dtype, precision):
    """Rows with a common mean: of them, of their differences, and of any vector."""
    kappa = min(kappa, 0.05 / eps(dtype))
    rng = np.random.default_rng(0)
    stream = (5 * rng.standard_normal(3000) + rng.standard_normal((12, 3000))).astype(dtype)
    window = SlidingWindowInverse(12, 3000, 1.0, compression=TopK(density, block_size=256), precision=precision)
    window.extend(stream)
    window.damping = damping = float(np.linalg.norm(window.gradients, 2) ** 2 / 12 / kappa)
    held = window.gradients
    oracle = Oracle(held, damping, wide=np.float64)
    for v in (held[3], held[3] - held[4], rng.standard_normal(3000).astype(dtype), stream[-1], held.sum(0)):
        assert oracle.backward_ratio(v, window @ v, eps(dtype)) <= LIMIT


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_equal_entries_keep_the_contract(dtype):
    """Whose sums round with a bias."""
    dim, entries = 30_000, np.array([[0.1], [0.3], [0.7]], dtype)
    size = dim * float(np.sum(entries.astype(float) ** 2)) / 3
    damping = size / min(1e9, 0.05 / eps(dtype))
    window = SlidingWindowInverse(3, dim, damping, compression=TopK(1.0))
    window.extend(entries * np.ones(dim, dtype))
    v = np.full(dim, 0.1, dtype)
    x = (window @ v).astype(float)
    residual = np.linalg.norm(v - (damping * x + size * x.mean()))
    assert residual <= LIMIT * eps(dtype) * size * np.linalg.norm(x)


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
    stream = iter(rows(60, seed=data.draw(st.integers(0, 99)), dtype=dtype))
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
    assert not np.any(error(window))


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
    stream = iter(rows(120, seed=data.draw(st.integers(0, 99)), dtype=dtype))
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
        assert np.array_equal(error(window), reference.error)
        if len(held):
            assert Oracle(held, 0.1, normalization="sum").backward_ratio(g, window @ g, eps(dtype)) <= LIMIT


def test_many_gradients_at_once_are_as_one_by_one():
    """Also those that come and go within one call: they leave an error."""
    one_by_one, at_once = filled(11), SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3, block_size=16))
    at_once.extend(rows(11))
    from_gradients = SlidingWindowInverse.from_gradients(rows(11), 0.1, window=4, compression=TopK(0.3, block_size=16))
    for window in (at_once, from_gradients):
        assert np.array_equal(window.gradients, one_by_one.gradients)
        assert np.array_equal(error(window), error(one_by_one))
        assert np.allclose(window @ np.ones(DIM), one_by_one @ np.ones(DIM), rtol=1e-11)


def test_decay_and_damping_are_of_the_rows_that_are_kept():
    window = filled(decay=0.8)
    window.damping = np.linspace(0.1, 1, DIM)
    oracle = Oracle(window.gradients, np.linspace(0.1, 1, DIM), 0.8 ** np.arange(3.0, -1, -1))
    v = rows(1, seed=1)[0]
    assert oracle.backward_ratio(v, window @ v, eps("float64")) <= LIMIT
    other = window.with_damping(2.0)
    assert Oracle(window.gradients, 2.0, oracle.weights).backward_ratio(v, other @ v, eps("float64")) <= LIMIT


def test_clearing_forgets_the_error():
    window = filled()
    assert np.any(error(window))
    window.clear()
    window.append(rows(1, seed=3)[0])
    fresh = SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3, block_size=16))
    fresh.append(rows(1, seed=3)[0])
    assert np.array_equal(window.gradients, fresh.gradients)


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
        lambda w: w.extend(np.concatenate([rows(5), np.full((1, DIM), np.nan)])),
        lambda w: w.replace(0, np.full(DIM, np.nan)),
        lambda w: w.remove(4),
    ],
)
def test_a_refused_call_changes_nothing(call):
    window = filled()
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
    window = filled(8)
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
    stream = [backend.asarray(g) for g in rows(5, dtype="float32")]
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
    found.append(rows(1)[0])
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
    """Above all indices beside their block, which would be read beside a vector: the last block has 8 columns."""
    with pytest.raises(kind, match=words):
        SlidingWindowInverse.from_state_dict(filled().state_dict() | changed)


def test_a_window_in_another_dtype_has_the_same_rows():
    window = filled()
    for dtype in ("float32", "float64"):
        moved = window.astype(dtype)
        assert np.array_equal(moved.gradients, window.gradients.astype(dtype))
        assert np.array_equal(error(moved), error(window).astype(dtype))
        v = np.ones(DIM, dtype)
        assert Oracle(moved.gradients, 0.1).backward_ratio(v, moved @ v, eps(dtype)) <= LIMIT
        moved.append(rows(1, seed=1, dtype=dtype)[0])


def test_rows_too_large_for_another_dtype_are_kept_in_units_of_their_own():
    window = SlidingWindowInverse(3, DIM, 1e48, compression=TopK(0.3, error_feedback=False))
    window.extend(rows(3) * np.array([[1e25], [1.0], [1e-25]]))
    moved = window.astype("float32")
    assert np.allclose(moved.gradients, window.gradients, rtol=1e-6)


def test_a_window_moves_to_another_device():
    first, second = (next(b for b in AVAILABLE if b.name == f"strict:{name}") for name in ("CPU_DEVICE", "device1"))
    window = SlidingWindowInverse(3, DIM, 0.1, compression=TopK(0.3, block_size=16))
    window.extend(first.asarray(rows(3)))
    v = second.asarray(np.ones(DIM))
    moved = window.to_device(v.device)
    assert np.array_equal(second.to_numpy(moved.gradients), first.to_numpy(window.gradients))
    assert np.allclose(second.to_numpy(moved @ v), first.to_numpy(window @ first.asarray(np.ones(DIM))))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [256, 1024])
def test_one_percent_takes_a_fortieth_of_the_memory(capacity):
    """All that the window holds, the m × m system and the error included, beside the float32 rows alone."""
    dim = 1_000_000
    stream = rows(3, dim).astype("float32")
    filled().append_matvec(np.ones(DIM))  # which imports what there is to import
    tracemalloc.start()
    window = SlidingWindowInverse(capacity, dim, 1e4, compression=TopK(0.01))
    for g in stream:
        window.append_matvec(g)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 40 * held <= 4 * capacity * dim
    assert most - held <= 20 * 4 * dim


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
