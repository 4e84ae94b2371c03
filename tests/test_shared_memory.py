"""Gradients kept by reference: filled anew they are refused by every query, and nothing else ever is."""

import copy
import gc
import pickle
import weakref

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given

import mfac_linalg as ml
from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse, pruning
from mfac_linalg._rows.fingerprint import COUNT, Fingerprint
from tests.backends import AVAILABLE, BACKENDS, NUMPY
from tests.held import mapped
from tests.modes import BLOCKS, QUERIES, SHAPE, TALL, Asked, gradients, same
from tests.modes import answer as answer_or_refusal

LIMIT = 10**5
REFUSED = r"`{}` must not change while an inverse uses its memory; got other values"
WITHOUT_VALUES = {"kappa", "repr"}  # which read no array
TORCH = next((backend for backend in AVAILABLE if backend.name == "torch:cpu"), None)
STRICT = next((backend for backend in AVAILABLE if backend.name == "strict:CPU_DEVICE"), None)


def static(rows, **options):
    return WoodburyRankOneInverse(rows, 0.01, **options)


def referenced(rows):
    return static(rows, whiten=False)


def limited(rows):
    return static(rows, memory_limit=LIMIT)


def overwritten(rows):
    return static(rows, overwrite_gradients=True)


def blocks(rows):
    return BlockDiagonalInverse(rows, 0.01, block_sizes=BLOCKS)


def high(rows):
    return static(rows, precision="high")


def fill(memory, values):
    memory[...] = values


def fill_sparse(matrix, values):
    matrix.data *= -2


def strided(rows):
    base = np.zeros((rows.shape[0], 3 * rows.shape[1]), rows.dtype)
    base[:, ::3] = rows
    return base[:, ::3]


def misaligned(rows):
    memory = np.zeros(rows.nbytes + 1, np.uint8)[1:].view(rows.dtype).reshape(rows.shape)
    memory[...] = rows
    return memory


def numpy_cases():
    """Name to the memory that is shared, the inverse of it, and how its owner fills it anew."""
    rows, tall = gradients(), gradients(TALL)
    found = {
        "by reference": (rows.copy(), referenced, fill),
        "float64": (rows.astype(float), referenced, fill),
        "float16": (rows.astype("float16"), static, fill),
        "column by column": (np.asfortranarray(rows), referenced, fill),
        "a view": (strided(rows), referenced, fill),
        "backwards": (rows.copy()[::-1, ::-1], referenced, fill),
        "misaligned": (misaligned(rows), referenced, fill),
        "another byte order": (rows.astype(rows.dtype.newbyteorder()), referenced, fill),
        "a transposed view": (rows.T.copy(), lambda memory: referenced(memory.T), fill),
        "tall": (tall.copy(), static, fill),
        "high": (rows.copy(), high, fill),
        "blocks": (rows.copy(), blocks, fill),
        "equal blocks": (rows.copy(), lambda memory: BlockDiagonalInverse(memory, 0.01, block_sizes=4), fill),
        "blocks of a mapped file": (mapped(rows), blocks, fill),
        "limited": (rows.copy(), limited, fill),
        "a mapped file": (mapped(rows), static, fill),
        "overwritten": (rows.copy(), overwritten, fill),
        "overwritten, column by column": (np.asfortranarray(rows), overwritten, fill),
        "written to an array": (np.zeros_like(rows), lambda memory: static(rows.copy(), out=memory), fill),
        "written to a mapped file": (mapped(rows), lambda memory: static(rows.copy(), out=memory), fill),
        "weights": (rows.copy(), lambda memory: static(memory, whiten=False, weights=np.arange(1.0, 7.0)), fill),
        "sparse blocks": (scipy.sparse.csr_array(rows), blocks, fill_sparse),
    }
    thin = rows * (np.random.default_rng(2).random(rows.shape) < 0.3)
    for form in ("csr", "csc"):
        for dtype in ("float32", "float64"):
            matrix = scipy.sparse.coo_array(thin.astype(dtype)).asformat(form)
            found[f"{form} of {dtype}"] = (matrix, static, fill_sparse)
    return {("numpy", name): (NUMPY, *case) for name, case in found.items()}


def torch_cases():
    import torch

    rows = torch.from_numpy(gradients())
    found = {
        "by reference": (rows.clone(), referenced, fill),
        "column by column": (rows.T.contiguous().T, referenced, fill),
        "bfloat16": (rows.bfloat16(), static, fill),
        "recorded": (rows.clone().requires_grad_(), referenced, lambda memory, values: fill(memory.detach(), values)),
        "exchanged": (rows.clone(), referenced, lambda memory, values: setattr(memory, "data", values.to(memory))),
        "of NumPy's memory": (rows.clone(), referenced, lambda memory, values: fill(memory.numpy(), values)),
        "blocks": (rows.clone(), blocks, fill),
        "limited": (rows.clone(), limited, fill),
        "overwritten": (rows.clone(), overwritten, fill),
        "tall": (torch.from_numpy(gradients(TALL)), static, fill),
        "written to an array": (np.zeros(SHAPE, "float32"), lambda memory: static(rows.clone(), out=memory), fill),
    }
    return {("torch", name): (TORCH, *case) for name, case in found.items()}


def strict_cases():
    found = {
        "by reference": (STRICT.asarray(gradients()), referenced, fill),
        "blocks": (STRICT.asarray(gradients()), blocks, fill),
    }
    return {("strict", name): (STRICT, *case) for name, case in found.items()}


def cases():
    """All of them, in memory that nobody else has."""
    return {**numpy_cases(), **(torch_cases() if TORCH else {}), **(strict_cases() if STRICT else {})}


@pytest.fixture(params=cases(), ids=", ".join)
def case(request):
    """A backend, some memory, the inverse built on it, and how it is filled anew."""
    backend, memory, build, refill = cases()[request.param]
    return backend, memory, build(memory), refill


def asked_of(backend, inverse):
    return Asked(inverse, backend, "float64" if str(inverse.dtype).endswith("64") else "float32")


def other_values(backend, memory):
    return backend.asarray(np.random.default_rng(8).standard_normal(memory.shape).astype("float32"))


def refill_anew(case):
    backend, memory, _, refill = case
    refill(memory, other_values(NUMPY if isinstance(memory, np.ndarray) else backend, memory))


def answer(query, asked):
    """What a query gives, or how it is refused; PyTorch copies nothing that is differentiated."""
    try:
        return answer_or_refusal(query, asked)
    except RuntimeError as refused:
        return f"{type(refused).__name__}: {refused}"


def bits_of(memory):
    return [part.tobytes() for part in ml._backend.host_memory(memory)]


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
    inverse = static(memory)
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
    """SciPy puts the arrays of a matrix in order when it is asked for a maximum: nobody has changed it then."""
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


# --- what is looked at --------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(2, 600)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    order=st.sampled_from("CF"),
    share=st.sampled_from([1.0, 0.3, 0.05]),
    change=st.sampled_from(["drawn anew", "doubled", "negated", "rows turned", "zeros"]),
    seed=st.integers(0, 99),
)
def test_any_filling_is_another(shape, dtype, order, share, change, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape) * (rng.random(shape) < share)
    rows[0, 0] = 1.0
    memory = np.asarray(rows, dtype, order)
    found = Fingerprint.of(memory)
    found.require_same()
    new = {
        "drawn anew": rng.standard_normal(shape) * (rng.random(shape) < share),
        "doubled": 2 * memory,
        "negated": -memory,
        "rows turned": np.roll(memory, 1, axis=0) + (shape[0] == 1),
        "zeros": 0,
    }
    memory[...] = new[change]
    with pytest.raises(ValueError, match="must not change"):
        found.require_same()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (64, 1000), (300, 3000)])
def test_some_dozens_of_entries_are_looked_at_whatever_the_size(shape, order):
    memory = np.asarray(np.random.default_rng(0).standard_normal(shape), order=order)
    found = Fingerprint.of(memory)
    assert len(found.positions[0]) == min(COUNT, memory.size)
    assert {0, shape[1] - 1, memory.size - shape[1], memory.size - 1} <= set(found.positions[0].tolist())
    others = np.ones(memory.size, dtype=bool)
    others[found.positions[0]] = False
    memory[others.reshape(shape)] = np.nan
    found.require_same()  # no other entry is read


def test_a_view_is_not_copied_to_be_looked_at():
    """NumPy's `take` copies what is not contiguous as a whole: 160 MB here for a few entries."""
    import tracemalloc

    found = Fingerprint.of(np.zeros((100, 400_000))[:, ::2])
    tracemalloc.start()
    found.require_same()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**5


def test_entries_that_are_not_zero_are_looked_at_first():
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((20, 5000)) * (rng.random((20, 5000)) < 0.02)
    (positions,) = Fingerprint.of(rows).positions
    assert np.count_nonzero(rows.ravel()[positions]) > 10


@pytest.mark.parametrize("build", [referenced, overwritten, blocks, limited])
def test_each_query_looks_once(build, monkeypatch):
    inverse, looks = build(gradients()), []
    look = Fingerprint.require_same
    monkeypatch.setattr(Fingerprint, "require_same", lambda self: looks.append(self) or look(self))
    asked = Asked(inverse, NUMPY)
    names = [n for n in QUERIES if not n.startswith(("save", "prune", "with_damping", "to_device", "astype", "joint"))]
    for name in set(names) - WITHOUT_VALUES:
        looks.clear()
        QUERIES[name](asked)
        assert (name, len(looks)) == (name, 1)


def test_an_array_does_not_outlive_its_inverse():
    memory = gradients()
    inverse, alive = referenced(memory), weakref.ref(memory)
    inverse.logdet()
    gc.disable()
    try:
        del inverse, memory
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["jax", "dask", "strict:device1"])
def test_nothing_is_remembered_of_what_is_not_in_the_host_s_memory_or_never_changes(name):
    backend = next(backend for backend in BACKENDS if backend.name == name)
    if backend.missing:
        pytest.skip(backend.missing)
    assert Fingerprint.of(backend.asarray(gradients())) is None
