"""Gradients kept by reference: after a refill every query raises; with unchanged gradients none does."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse, pruning
from tests import shared_memory
from tests.ambient_queries import QUERIES, SHAPE, gradients, same
from tests.backends import AVAILABLE
from tests.shared_memory import (
    TORCH,
    WITHOUT_VALUES,
    answer,
    asked_of,
    bits_of,
    blocks,
    fill,
    limited,
    overwritten,
    referenced,
    refill_anew,
    static,
)

case = shared_memory.case
REFUSED = r"`{}` must not change while an inverse uses its memory; got other values"


def test_no_query_refuses_or_changes_what_nobody_has_changed(case):
    backend, memory, inverse, _ = case
    asked, before = asked_of(backend, inverse), bits_of(memory)
    first = {name: answer(query, asked) for name, query in QUERIES.items()}
    wrong = [name for name, query in QUERIES.items() if not same(answer(query, asked), first[name])]
    refused = [name for name, got in first.items() if isinstance(got, str) and "must not change" in got]
    assert (wrong, refused) == ([], [])
    assert bits_of(memory) == before


def test_every_query_refuses_a_buffer_that_was_filled_anew(case):
    backend, _, inverse, _ = case
    asked = asked_of(backend, inverse)
    before = {name: answer(query, asked) for name, query in QUERIES.items()}
    refill_anew(case)
    after = {name: answer(query, asked) for name, query in QUERIES.items() if name not in WITHOUT_VALUES}
    is_answered = {name for name in after if not (isinstance(before[name], str) and "Error: " in before[name])}
    assert len(is_answered) > 40
    assert [n for n in is_answered if not (isinstance(after[n], str) and "must not change while" in after[n])] == []


def test_a_query_that_was_never_asked_before_refuses_too(case):
    backend, _, inverse, _ = case
    v = backend.asarray(np.ones(inverse.dim, "float32" if str(inverse.dtype).endswith("32") else "float64"))
    refill_anew(case)
    with pytest.raises(ValueError, match="must not change while an inverse uses its memory"):
        inverse.matvec(v)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_changed_one_refuse_and_those_from_before_that_own_their_memory_do_not(case, copied):
    _, memory, inverse, _ = case
    if getattr(memory, "requires_grad", False):
        copied = copy.copy  # PyTorch makes no deep one of what is differentiated
    answered = inverse.logdet()
    early = copied(inverse)
    refill_anew(case)
    with pytest.raises(ValueError, match="must not change"):
        copied(inverse).logdet()
    if copied is copy.copy:
        with pytest.raises(ValueError, match="must not change"):
            early.logdet()
    else:
        assert early.logdet() == answered


def test_derived_inverses_with_memory_of_their_own_go_on():
    memory = gradients()
    inverse = referenced(memory)
    wide, other = inverse.astype("float64"), inverse.with_damping(0.1)
    wanted = wide.logdet()
    fill(memory, 1.0)
    assert wide.logdet() == wanted
    with pytest.raises(ValueError, match="must not change"):
        other.logdet()
    wide.gradients[...] = 1.0  # it is handed out by reference, too
    with pytest.raises(ValueError, match="must not change"):
        wide.logdet()


def test_an_inverse_from_a_file_refuses_when_its_gradients_are_written_to(tmp_path):
    referenced(gradients()).save(tmp_path / "inverse.npz")
    loaded = ml.load(tmp_path / "inverse.npz")
    loaded.logdet()
    loaded.gradients[...] = 1.0
    with pytest.raises(ValueError, match=REFUSED.format("gradients")):
        loaded.logdet()


def test_forward_and_linear_operators_refuse():
    memory = gradients()
    inverse = referenced(memory)
    forward, operator, v = inverse.forward, inverse.as_linear_operator(), np.ones(SHAPE[1], "float32")
    fill(memory, 1.0)
    for ask in (lambda: forward @ v, lambda: operator @ v, lambda: forward.as_linear_operator() @ v):
        with pytest.raises(ValueError, match=REFUSED.format("gradients")):
            ask()


def test_what_is_read_from_an_array_that_w_was_written_to_is_named_out():
    memory = np.zeros(SHAPE, "float32")
    inverse = static(gradients(), out=memory)
    fill(memory, 1.0)
    with pytest.raises(ValueError, match=REFUSED.format("out")):
        inverse.logdet()


@pytest.mark.parametrize("to_folder", [True, False])
def test_gradients_whose_w_is_elsewhere_are_missed_only_where_they_are_read_again(tmp_path, to_folder):
    memory, v, mask = gradients(), np.ones(SHAPE[1], "float32"), np.arange(SHAPE[1]) % 3 > 0
    inverse = static(memory, out=tmp_path / "folder" if to_folder else np.zeros_like(memory))
    wanted = inverse @ v
    fill(memory, 1.0)
    assert np.array_equal(inverse @ v, wanted)
    asks = (
        lambda: inverse.gradients,
        lambda: inverse.with_damping(0.1),
        lambda: pruning.joint_update(v, inverse, mask),
    )
    for ask in asks:
        with pytest.raises(ValueError, match=REFUSED.format("gradients")):
            ask()


def test_whitened_rows_of_its_own_leave_the_gradients_to_their_owner():
    memory, v = gradients(), np.ones(SHAPE[1], "float32")
    inverse = ml.WoodburyRankOneInverse(memory, 0.01, whiten=True)
    wanted = inverse @ v
    fill(memory, 1.0)
    assert np.array_equal(inverse @ v, wanted)


def test_windows_have_rows_of_their_own(backend):
    rows, v = backend.asarray(gradients()), backend.asarray(np.ones(SHAPE[1], "float32"))
    window = ml.SlidingWindowInverse.from_gradients(rows, 0.01)
    wanted = backend.to_numpy(window @ v)
    if backend.library != "jax.numpy" and backend.name != "numpy:readonly":
        rows[...] = 1.0
    assert np.array_equal(backend.to_numpy(window @ v), wanted)


@pytest.mark.parametrize("block_sizes", [None, 8])
def test_pruning_takes_one_buffer_that_is_filled_for_every_step(block_sizes):
    buffer, weights = np.zeros((6, 40)), np.random.default_rng(1).standard_normal(40)

    def fresh(w, step):
        return np.random.default_rng(step).standard_normal((6, 40)) * (1 + w**2)

    def reused(w, step):
        buffer[...] = fresh(w, step)
        return buffer

    options = {"steps": 4, "damping": 0.1, "block_sizes": block_sizes}
    one, other = (pruning.prune(weights, rows, 0.5, **options) for rows in (fresh, reused))
    assert np.array_equal(one.weights, other.weights)


@pytest.mark.parametrize("build", [referenced, limited, overwritten, blocks])
def test_threads_that_ask_at_once_are_all_answered(build):
    from concurrent.futures import ThreadPoolExecutor

    inverse, v = build(gradients()), np.ones(SHAPE[1], "float32")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: inverse.matvec_gradients(np.ones(6, "float32")) + inverse @ v, range(64)))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.skipif(TORCH is None, reason="needs torch")
def test_the_negative_of_a_memory_is_copied():
    import torch

    rows = torch.from_numpy(gradients())
    memory = torch.complex(rows, -rows).conj().imag
    assert memory.is_neg()
    inverse, v = referenced(memory), torch.ones(SHAPE[1])
    wanted = inverse @ v
    fill(memory, 1.0)
    assert torch.equal(inverse @ v, wanted)
    assert torch.equal(copy.deepcopy(inverse) @ v, wanted)


@pytest.mark.parametrize("form", ["lil", "dok", "coo", "bsr", "dia", "csr", "csc"])
def test_lists_and_arrays_out_of_order_are_copied(form):
    """SciPy sorts the arrays of a matrix when its maximum is computed, which is not a change of the matrix."""
    thin = gradients().astype(float) * (np.random.default_rng(2).random(SHAPE) < 0.3)
    matrix = scipy.sparse.coo_array(thin).asformat(form)
    if form in ("csr", "csc"):
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            matrix.indices[start:stop] = matrix.indices[start:stop][::-1]
            matrix.data[start:stop] = matrix.data[start:stop][::-1]
        matrix = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        assert not matrix.has_canonical_format
    inverse = static(matrix)
    wanted, damped = inverse.diagonal(), static(thin, whiten=False).with_damping(0.1).diagonal()
    if form in ("csr", "csc"):
        matrix.max(axis=0), matrix.max(axis=1)
        assert matrix.has_canonical_format
    elif form in ("lil", "dok"):
        matrix[0, 3] = 5.0
    else:
        matrix.data[...] = 5.0
    assert np.array_equal(inverse.diagonal(), wanted)
    np.testing.assert_allclose(inverse.with_damping(0.1).diagonal(), damped, rtol=1e-9)


def test_entries_that_scipy_sorts_in_place_are_no_change():
    entries = ([3.0, 1.0, 2.0], ([1, 0, 0], [2, 4, 1]))
    matrix = scipy.sparse.coo_array(entries, shape=(2, 6))
    inverse = static(matrix)
    wanted = inverse @ np.ones(6)
    scipy.sparse.linalg.norm(matrix), matrix.todok(), matrix.sum_duplicates()
    assert np.array_equal(inverse @ np.ones(6), wanted)


def test_a_damping_of_jax_on_memory_of_numpy_is_copied():
    jax = pytest.importorskip("jax")
    raw = np.empty(SHAPE[1] * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64  # where JAX takes memory as it is
    damping = raw[start : start + SHAPE[1] * 4].view("float32")
    damping[:] = 0.1
    given, rows = jax.device_put(damping), jax.numpy.asarray(gradients())
    held = [WoodburyRankOneInverse(rows, given), SlidingWindowInverse.from_gradients(rows, given)]
    held.append(BlockDiagonalInverse(rows, given, block_sizes=4))
    damping[:] = 5.0
    assert all(np.array_equal(inverse.damping, np.full(SHAPE[1], 0.1, "float32")) for inverse in held)


def test_a_sparse_matrix_with_other_arrays_is_another():
    for change in (
        lambda x: setattr(x, "data", x.data[:3]),
        lambda x: x.indices.__setitem__(slice(None), np.roll(x.indices, 1)),
        lambda x: x.resize(6, 2),
    ):
        matrix = scipy.sparse.csr_array(gradients() * (gradients() > 0))
        inverse = static(matrix)
        change(matrix)
        with pytest.raises(ValueError, match="must not change"):
            inverse.diagonal()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch imports it for its own rules
@pytest.mark.skipif(TORCH is None, reason="needs torch")
@pytest.mark.parametrize("is_built_inside", [True, False])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast", "grad", "vmap", "jvp"])
def test_no_mode_of_pytorch_hides_a_change_or_makes_one(mode, is_built_inside):
    import torch

    memory, v = torch.from_numpy(gradients()), torch.ones(SHAPE[1])
    modes = {
        "no_grad": lambda ask: torch.no_grad()(ask)(v),
        "inference_mode": lambda ask: torch.inference_mode()(ask)(v),
        "autocast": lambda ask: torch.autocast("cpu")(ask)(v),
        "grad": lambda ask: torch.func.grad(lambda u: ask(u))(v),
        "vmap": lambda ask: torch.func.vmap(ask)(torch.stack([v, v])),
        "jvp": lambda ask: torch.func.jvp(ask, (v,), (v,)),
    }
    built = referenced(memory)

    def ask(u):
        return (referenced(memory) if is_built_inside else built).quadratic_form(u)

    modes[mode](ask)
    modes[mode](ask)
    fill(memory, 1.0)
    if is_built_inside:
        modes[mode](ask)  # of what is there now
    else:
        with pytest.raises(ValueError, match=REFUSED.format("gradients")):
            modes[mode](ask)


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_compiled_functions_ask_as_any_other(library):
    """A NumPy inverse between two compiled graphs, a JAX one in a trace, where there is nothing to look at."""
    backend = next((backend for backend in AVAILABLE if backend.library == library), None)
    if backend is None:
        pytest.skip(f"needs {library.partition('.')[0]}")
    memory, v = backend.asarray(gradients()), backend.asarray(np.ones(SHAPE[1], "float32"))
    inverse = referenced(memory)
    if library == "jax.numpy":
        import jax

        assert inverse._state.form.rows.fingerprint is None
        assert jax.jit(lambda inverse, u: inverse.matvec(u))(inverse, v).shape == v.shape
        return
    import torch

    compiled = torch.compile(lambda u: inverse.matvec(2 * u) + 1, backend="eager")
    compiled(v)
    fill(memory, 1.0)
    with pytest.raises(ValueError, match=REFUSED.format("gradients")):
        compiled(v)
