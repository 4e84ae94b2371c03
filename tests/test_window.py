"""What a sliding window promises in addition to an inverse: costs, guarantees, placement, refusals."""

import copy
import pickle
import threading

import numpy as np
import pytest

from mfac_linalg import IllConditionedWarning, SlidingWindowInverse, TopK
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import AVAILABLE, eps
from tests.windows import filled_window, random_rows

STRICT, ELSEWHERE = (next(b for b in AVAILABLE if b.name == f"strict:{name}") for name in ("CPU_DEVICE", "device1"))

# --- guarantees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where",
    ["ring._backend.write_row", "update.factor_without", "update.factor_with", "update.CurrentCholesky._with_norm"],
)
def test_a_step_that_breaks_off_leaves_the_window_as_it_was(monkeypatch, error, where):
    window = filled_window(8)
    before, answer = window.state_dict(), window @ np.ones(40)

    def break_off(*_, **__):
        raise error

    room = {"ring": "_window", "update": "_capacitance"}[where.partition(".")[0]]
    with monkeypatch.context() as patch:
        patch.setattr(f"mfac_linalg.{room}.{where}", break_off)
        with pytest.raises(error):
            window.append_matvec(np.ones(40))
    after = window.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert np.array_equal(window @ np.ones(40), answer)


def test_a_warning_that_is_an_error_refuses_the_step():
    window = SlidingWindowInverse.from_gradients(random_rows(4, 6, dtype="float32"), 0.1)
    before = window.gradients
    with pytest.raises(IllConditionedWarning):  # pytest makes errors of warnings
        window.append(np.full(6, 1e5, "float32"))
    assert np.array_equal(window.gradients, before)


def test_the_last_row_can_go():
    window = filled_window(1)
    window.remove(0)
    assert len(window) == 0
    assert np.allclose(window @ np.ones(40), 10 * np.ones(40))


def test_a_damping_per_parameter_is_copied_in_and_out():
    damping = np.linspace(0.1, 0.4, 40)
    window = filled_window(4, damping=damping)
    answer = window @ np.ones(40)
    damping[:] = 5
    window.damping[:] = 7
    window.state_dict()["damping"][:] = 9
    assert np.array_equal(window.damping, np.linspace(0.1, 0.4, 40))
    restored = SlidingWindowInverse.from_state_dict(window.state_dict())
    assert np.array_equal(restored @ np.ones(40), answer)


def test_a_window_from_gradients_is_restored_to_the_bit():
    block = random_rows(40, 3000)
    window = SlidingWindowInverse.from_gradients(block, 1e-3)
    assert np.array_equal(SlidingWindowInverse.from_state_dict(window.state_dict()) @ block[0], window @ block[0])


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_kappa_follows_a_gradient_of_another_size_at_once(size):
    """On a device it decides how many sweeps there are, and everywhere whether to warn."""
    window = filled_window(24, window=24, dim=600, damping=1e-4, normalization="window")
    for g in (size * random_rows(1, 600, seed=1)[0], random_rows(1, 600, seed=2)[0]):
        window.append(g)
        exact = 1 + np.linalg.norm(window.gradients, 2) ** 2 / 24 / 1e-4
        assert 0.5 * exact <= window.kappa <= 1.01 * exact
    for _ in range(22):
        window.append(random_rows(1, 600, seed=3)[0])
    assert window.backward_error(g, window.matvec(g)) <= LIMIT * eps("float64")


def test_products_on_a_device_hold_while_kappa_jumps():
    rng = np.random.default_rng(1)
    window = SlidingWindowInverse(24, 600, 1e-4, normalization="window")
    for g in rng.standard_normal((24, 600)) / 600**0.5:
        window.append(ELSEWHERE.asarray(g, "float32"))
    g = (10 * rng.standard_normal(600) / 600**0.5).astype("float32")
    near = (g + 0.01 * rng.standard_normal(600) / 600**0.5).astype("float32")
    window.extend(ELSEWHERE.asarray(np.stack([near, g])))
    x = ELSEWHERE.to_numpy(window @ ELSEWHERE.asarray(g + near))
    oracle = Oracle(ELSEWHERE.to_numpy(window.gradients), 1e-4)
    assert oracle.backward_ratio(g + near, x, eps("float32")) <= LIMIT


def test_short_rows_of_every_size_come_back_as_they_were():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    window = SlidingWindowInverse(3, 40, 1e28)
    block = (random_rows(3, dtype="float32") * np.float32(1e15)).astype(ml_dtypes.bfloat16)
    for g in block:
        window.append(g)
    assert np.array_equal(window.gradients, block)


def test_a_torch_damping_is_a_constant():
    torch = pytest.importorskip("torch", reason="needs torch")
    damping = torch.full((40,), 0.1, dtype=torch.float64, requires_grad=True)
    window = SlidingWindowInverse.from_gradients(torch.tensor(random_rows(4)), damping)
    assert not window.damping.requires_grad
    assert not window.logdet().requires_grad


def test_torch_inference_mode_leaves_no_trace():
    torch = pytest.importorskip("torch", reason="needs torch")
    block, v = torch.tensor(random_rows(6)), torch.ones(40, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        window = SlidingWindowInverse.from_gradients(block[:4], 0.1)
        window.append_matvec(block[4])
    window.append(block[5])
    (window @ v).sum().backward()
    assert np.allclose(v.grad, window @ torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("compression", [None, TopK(0.3, block_size=16)], ids=repr)
def test_a_first_query_under_a_trace_leaves_no_trace(compression):
    jax = pytest.importorskip("jax", reason="needs jax")
    window = SlidingWindowInverse.from_gradients(jax.numpy.asarray(random_rows(3)), 0.1, compression=compression)
    v = jax.numpy.ones(40, dtype="float32")
    assert np.allclose(jax.jit(window.matvec)(v), window @ v, rtol=1e-4)


def test_clearing_keeps_the_count_of_factorisations():
    window = filled_window(4)
    before = window.factorizations
    window.clear()
    assert window.factorizations == before > 0


def test_forward_follows_the_window():
    window = filled_window(8)
    forward = window.forward
    window.append(np.ones(40))
    assert np.allclose(forward @ np.ones(40), Oracle(window.gradients, 0.1).forward @ np.ones(40))


def test_the_gradients_are_a_copy():
    window = filled_window(8)
    window.gradients[:] = 0
    assert np.linalg.norm(window.gradients) > 1


def test_with_damping_leaves_the_window_alone():
    window = filled_window(8)
    other = window.with_damping(7.0)
    other.append(np.ones(40))
    assert (window.damping, other.damping) == (0.1, 7.0)
    assert not np.array_equal(window.gradients, other.gradients)


def test_several_threads_may_ask_at_once():
    window, v = filled_window(8, dim=3000), np.ones(3000)
    expected, found = window @ v, []
    threads = [threading.Thread(target=lambda: found.append(window @ v)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(x, expected) for x in found)
    assert len(found) == 4


def test_a_step_beyond_the_arithmetic_warns_once():
    window = SlidingWindowInverse(4, 40, 1e-7)
    with pytest.warns(IllConditionedWarning, match="kappa"):
        window.append(random_rows(1, dtype="float32")[0])
    window.append(random_rows(1, seed=1, dtype="float32")[0])  # a warning is an error here


# --- where it lives -------------------------------------------------------------------------------------------------


def test_the_first_gradient_decides_where_a_window_lives(flavour):
    backend, dtype = flavour
    window = SlidingWindowInverse(4, 5, 0.1)
    assert (window.dtype, window.device, len(window)) == (None, None, 0)
    assert backend.is_own(window.append_matvec(backend.asarray(np.ones(5, dtype))), dtype)


def test_a_refused_first_gradient_decides_nothing():
    window = SlidingWindowInverse(4, 5, 0.1)
    with pytest.raises(ValueError, match="shape"):
        window.append(np.ones(6))
    window.append(np.ones(5, "float32"))
    assert window.dtype == np.float32


def test_an_empty_window_is_the_damping(backend):
    like = backend.asarray(np.ones(5, backend.dtypes[0]))
    window = SlidingWindowInverse(4, 5, 0.5, xp=backend.namespace, dtype=like.dtype, device=like.device)
    assert np.allclose(backend.to_numpy(window @ like), 2)
    assert np.allclose(backend.to_numpy(window.diagonal()), 2)
    assert np.isclose(float(backend.to_numpy(window.logdet())), 5 * np.log(2))
    assert tuple(window.forward.eigenvalues().shape) == (0,)


def test_a_vector_of_dampings_decides_too():
    window = SlidingWindowInverse(4, 5, STRICT.asarray(np.full(5, 0.1)))
    with pytest.raises(TypeError, match="library"):
        window.append(np.ones(5))


G = np.ones(40)
REFUSED = {
    "window: zero": (ValueError, "`window`", lambda: SlidingWindowInverse(0, 5, 1.0)),
    "window: a float": (TypeError, "`window`", lambda: SlidingWindowInverse(2.0, 5, 1.0)),
    "dim: zero": (ValueError, "`dim`", lambda: SlidingWindowInverse(4, 0, 1.0)),
    "damping: zero": (ValueError, "`damping`", lambda: SlidingWindowInverse(4, 5, 0.0)),
    "damping: wrong length": (ValueError, "`damping`", lambda: SlidingWindowInverse(4, 5, np.ones(6))),
    "normalization: unknown": (ValueError, "`normalization`", lambda: filled_window(normalization="max")),
    "decay: zero": (ValueError, "`decay`", lambda: filled_window(decay=0.0)),
    "decay: above one": (ValueError, "`decay`", lambda: filled_window(decay=1.5)),
    "decay: a string": (TypeError, "`decay`", lambda: filled_window(decay="1")),
    "precision: unknown": (ValueError, "`precision`", lambda: filled_window(precision="double")),
    "xp: a name": (TypeError, "`xp`", lambda: filled_window(xp="numpy")),
    "dtype: integers": (TypeError, "`dtype`", lambda: SlidingWindowInverse(4, 5, 1.0, dtype=int)),
    "device: unknown": (TypeError, "`device`", lambda: SlidingWindowInverse(4, 5, 1.0, device="cuda")),
    "a query too early": (ValueError, "gradient", lambda: SlidingWindowInverse(4, 5, 1.0).diagonal()),
    "append: wrong length": (ValueError, "`g`", lambda: filled_window().append(np.ones(41))),
    "append: a matrix": (ValueError, "`g`", lambda: filled_window().append(np.ones((1, 40)))),
    "append: a list": (TypeError, "`g`", lambda: filled_window().append([1.0] * 40)),
    "append: integers": (TypeError, "`g`", lambda: filled_window().append(np.ones(40, int))),
    "append: float32": (TypeError, "`g`", lambda: filled_window().append(np.ones(40, "float32"))),
    "append: masked": (TypeError, "`g`", lambda: filled_window().append(np.ma.ones(40))),
    "append: nan": (ValueError, "`g`", lambda: filled_window().append(G * np.nan)),
    "append: infinity": (ValueError, "`g`", lambda: filled_window().append(G * np.inf)),
    "append: another library": (TypeError, "`g`", lambda: filled_window().append(STRICT.asarray(G))),
    "append_matvec: wrong length": (ValueError, "`g`", lambda: filled_window().append_matvec(np.ones(39))),
    "extend: a vector": (ValueError, "`gradients`", lambda: filled_window().extend(G)),
    "extend: nan": (ValueError, "`gradients`", lambda: filled_window().extend(np.full((2, 40), np.nan))),
    "damping: a list": (TypeError, r"shape \(40,\)", lambda: SlidingWindowInverse(4, 40, [0.1] * 40)),
    "damping: integers": (TypeError, "`damping`", lambda: SlidingWindowInverse(4, 40, np.arange(1, 41))),
    "damping: complex": (TypeError, "`damping`", lambda: SlidingWindowInverse(4, 40, np.full(40, 1j))),
    "damping: 16 bit": (TypeError, "`damping`", lambda: SlidingWindowInverse(4, 40, np.ones(40, "float16"))),
    "damping: other length": (ValueError, r"shape \(40,\)", lambda: SlidingWindowInverse(4, 40, np.ones(39))),
    "replace: out of range": (IndexError, "`age`", lambda: filled_window().replace(4, G)),
    "remove: out of range": (IndexError, "`age`", lambda: filled_window().remove(-5)),
    "remove: a float": (TypeError, "`age`", lambda: filled_window().remove(1.0)),
    "damping set to zero": (ValueError, "`damping`", lambda: setattr(filled_window(), "damping", 0)),
    "matvec: wrong length": (ValueError, "`v`", lambda: filled_window().matvec(np.ones(39))),
    "matvec_gradients: too many": (ValueError, "`coefficients`", lambda: filled_window().matvec_gradients(np.ones(5))),
    "state: not a dictionary": (TypeError, "`state`", lambda: SlidingWindowInverse.from_state_dict([1])),
    "state: another version": (ValueError, "version", lambda: SlidingWindowInverse.from_state_dict({"version": 9})),
    "state: incomplete": (ValueError, "decay", lambda: restore_window(without=("decay",))),
    "state: a cast factor": (TypeError, "factor", lambda: restore_window(factor=np.eye(4, dtype="float32"))),
    "state: a shape": (ValueError, "gram", lambda: restore_window(gram=np.eye(3))),
    "state: a slot twice": (ValueError, "slots", lambda: restore_window(slots=np.zeros(4, int))),
}


def restore_window(without=(), **changed):
    state = filled_window().state_dict() | changed
    return SlidingWindowInverse.from_state_dict({k: v for k, v in state.items() if k not in without})


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_a_bad_argument_is_named(row):
    error, words, call = row
    with pytest.raises(error, match=words):
        call()


def test_a_traced_gradient_is_refused():
    jax = pytest.importorskip("jax")
    window = SlidingWindowInverse(4, 5, 0.1)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(window.append)(jax.numpy.ones(5))


def test_a_window_moves_to_another_device():
    window = SlidingWindowInverse.from_gradients(STRICT.asarray(random_rows(3, 5)), 0.1)
    like = ELSEWHERE.asarray(np.ones(5))
    moved = window.to_device(like.device)
    assert (moved @ like).device == like.device
    expected = Oracle(random_rows(3, 5), 0.1).inverse @ np.ones(5)
    assert np.allclose(ELSEWHERE.to_numpy(moved @ like), expected)


@pytest.mark.parametrize("layout", ["big-endian", "columns", "reversed", "read-only"])
def test_gradients_of_any_layout_are_taken_in(layout):
    block = random_rows(5)
    laid_out = {
        "big-endian": lambda x: x.astype(">f8"),
        "columns": np.asfortranarray,
        "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
        "read-only": lambda x: np.broadcast_to(x, x.shape),
    }[layout](block)
    window = SlidingWindowInverse.from_gradients(laid_out, 0.1, window=4)
    window.append(laid_out[0])
    assert np.array_equal(window.gradients, np.concatenate([block[2:], block[:1]]))
    assert window.gradients.dtype == np.dtype(float)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_window_that_no_gradient_has_placed_can_be_copied(clone):
    window = clone(SlidingWindowInverse(4, 40, 0.1))
    assert np.array_equal(
        window.append_matvec(random_rows(1)[0]), SlidingWindowInverse(4, 40, 0.1).append_matvec(random_rows(1)[0])
    )
