"""Gradients in files and in other memories: the same answers in few passes, within a limit of memory."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT, Oracle, make_problem
from mfac_linalg.testing.strategies import problems
from tests.backends import AVAILABLE, FLOATS, NUMPY
from tests.cases import construct
from tests.contract import REACH, decades, measure
from tests.inputs import Dataset, memory_map

M, D = 12, 30_000


def data(dtype="float32", m=M, d=D):
    """Gradients of many panels' width."""
    return np.random.default_rng(0).standard_normal((m, d)).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["dataset", "memmap"])
def test_every_answer_keeps_the_contract(form, dtype):
    @settings(max_examples=25)
    @given(problems(dtype, decades(dtype, "default"), largest=40))
    def check_contract(problem):
        for answer in measure(problem, NUMPY, form=form):
            assert max(answer.backward, answer.forward) <= LIMIT

    check_contract()


@given(st.sampled_from(FLOATS), st.integers(0, 2**32), st.sampled_from(["gaussian", "leading columns", "decay"]))
def test_the_diagonal_is_right_to_a_thousandth(dtype, seed, kind):
    problem = make_problem(seed, kind=kind, shape=(8, 30), kappa=0.99 * REACH[dtype, "default"], dtype=dtype)
    diagonal = construct(problem, NUMPY, form="dataset").diagonal()
    assert np.allclose(diagonal, np.diag(problem.oracle.inverse), rtol=1e-3, atol=0)


@pytest.mark.parametrize("damping", [1e-1, 1e-3], ids=["kappa 3e4", "kappa 3e6"])
def test_a_build_and_a_diagonal_read_the_gradients_twice(damping):
    source = Dataset(data("float64"))
    WoodburyRankOneInverse(source, damping, memory_limit=10**7).diagonal()
    assert source.passes <= 2.05


def test_small_entries_of_the_diagonal_cost_no_pass():
    array = data()
    array[:, 6:] *= 1e-2
    array[:, :6] *= 300  # M_jj far below a hundredth there
    source = Dataset(array)
    inverse = WoodburyRankOneInverse(source, 1.0, memory_limit=10**7)
    diagonal = inverse.diagonal()
    assert source.passes <= 3.05  # the Gram matrix in float32, in float64, and the diagonal
    assert np.count_nonzero(diagonal < 1e-2) >= 5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("v", ["row", "random"])
def test_a_product_of_s_sweeps_reads_the_gradients_once_more_than_it_sweeps(v, dtype, monkeypatch):
    array = data(dtype)
    source = Dataset(array)
    inverse = WoodburyRankOneInverse(source, 1e-2 if dtype == "float32" else 1e-6, memory_limit=10**7)
    vector = array[0] if v == "row" else np.random.default_rng(1).standard_normal(D).astype(dtype)
    sweeps = count_solves(inverse, monkeypatch)
    source.read = 0
    inverse.matvec(vector)
    assert source.passes <= len(sweeps) + 1.05


def count_solves(inverse, monkeypatch):
    """A list that grows with every solve of the small system."""
    kind, solves = type(inverse._current.form.capacitance), []
    solve = kind.solve
    monkeypatch.setattr(kind, "solve", lambda self, b: solves.append(1) or solve(self, b))
    return solves


def test_a_push_through_reads_the_gradients_once():
    source = Dataset(data())
    inverse = WoodburyRankOneInverse(source, 1e-1, memory_limit=10**7)
    source.read = 0
    inverse.matvec_gradients(np.eye(M, dtype="float32")[0])
    assert source.passes <= 1.05


def test_another_damping_reads_nothing():
    source = Dataset(data("float64"))
    inverse = WoodburyRankOneInverse(source, 1e-1, memory_limit=10**7)
    source.read = 0
    inverse.with_damping(1.0)
    assert source.read == 0


def test_columns_are_read_alone():
    source = Dataset(data())
    inverse = WoodburyRankOneInverse(source, 1e-1, memory_limit=10**7)
    inverse.element(0, 0)  # reads G once, for a Gram matrix in float64
    source.read = 0
    inverse.element([5, 20_000, 6], [7, 5, 20_000])
    assert source.read <= 6 * M * 4


@pytest.mark.parametrize("limit", [3 * 10**6, 10**7])
def test_the_limit_is_kept(limit):
    source = Dataset(data(d=50_000))
    v = source.array[0]
    inverse = WoodburyRankOneInverse(source, 1.0, memory_limit=limit)
    inverse.diagonal(), inverse.matvec(v)  # imports, once
    del inverse
    gc.collect()
    tracemalloc.start()
    inverse = WoodburyRankOneInverse(source, 1.0, memory_limit=limit)
    inverse.diagonal()
    inverse.matvec(v)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= limit


def least_limit(source, **options):
    with pytest.raises(ValueError, match="`memory_limit`") as refused:
        WoodburyRankOneInverse(source, 1.0, memory_limit=1, **options)
    return int(str(refused.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))


ONE_VECTOR = {
    "matvec": lambda inverse, v: inverse @ v,
    "diagonal": lambda inverse, v: inverse.diagonal(),
    "element": lambda inverse, v: inverse.element(0, -1),
    "quadratic_form": lambda inverse, v: inverse.quadratic_form(v),
    "dual": lambda inverse, v: inverse.dual_coefficients(v),
    "push-through": lambda inverse, v: inverse.matvec_gradients(np.ones(inverse.num_gradients, v.dtype)),
    "root": lambda inverse, v: inverse.sqrt_matvec(v),
    "sample": lambda inverse, v: inverse.sample(1, seed=0),
    "forward": lambda inverse, v: inverse.forward @ v,
    "forward diagonal": lambda inverse, v: inverse.forward.diagonal(),
    "certificate": lambda inverse, v: inverse.backward_error(v, v),
    "rank": lambda inverse, v: inverse.forward.effective_rank(),
}


@pytest.mark.parametrize("precision", ["default", "high"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(8, 6000), (60, 60), (2000, 40), (20_000, 4), (1, 1000)], ids=str)
def test_the_least_limit_of_every_form_is_kept(shape, dtype, precision):
    """For m ≥ d the small system is d × d: what is asked for is a panel of columns, however many rows there are."""
    source = Dataset(data(dtype, *shape))
    v, options = np.ones(shape[1], dtype), {"precision": precision}
    damping, limit = np.full(shape[1], 0.5, dtype), least_limit(source, **options)
    inverse = WoodburyRankOneInverse(source, damping, memory_limit=limit, **options)
    for ask in ONE_VECTOR.values():
        ask(inverse, v)  # what is imported on first use counts for none of them
    del inverse
    gc.collect()
    tracemalloc.start()
    inverse = WoodburyRankOneInverse(source, damping, memory_limit=limit, **options)
    for ask in ONE_VECTOR.values():
        ask(inverse, v)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= limit


@pytest.mark.parametrize("shape", [(30_000, 10), (10**6, 4), (10**5, 100)], ids=str)
def test_many_rows_of_few_columns_ask_for_little(shape):
    source = Dataset(np.broadcast_to(np.float32(1), shape))
    assert least_limit(source) <= 40 * max(shape[0] * min(shape[1], 10), 2**20) + 64 * shape[0]
    assert source.read == 0


def test_a_limit_too_small_is_refused_before_any_reading():
    source = Dataset(data())
    with pytest.raises(ValueError, match=r"`memory_limit` must be at least 1,[0-9,]+ bytes.*got 1,000"):
        WoodburyRankOneInverse(source, 1.0, memory_limit=1000)
    assert source.read == 0


def test_the_least_that_would_do_does():
    source = Dataset(data())
    with pytest.raises(ValueError, match="`memory_limit`") as refused:
        WoodburyRankOneInverse(source, 1.0, memory_limit=1000)
    least = int(str(refused.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert WoodburyRankOneInverse(source, 1.0, memory_limit=least).matvec(source.array[0]).shape == (D,)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_callers_array_is_not_written_to(dtype):
    array = data(dtype)
    before = array.copy()
    inverse = WoodburyRankOneInverse(array, 0.1, memory_limit=10**7)
    inverse.diagonal()
    inverse.columns([1])
    assert np.array_equal(array, before)


def test_a_read_only_file_serves():
    array = memory_map(data())
    array.flags.writeable = False
    v = np.array(array[0])
    inverse, oracle = WoodburyRankOneInverse(array, 0.1), Oracle(np.array(array), 0.1, wide=np.float64)
    assert oracle.backward_ratio(v, inverse.matvec(v), np.finfo("float32").eps) <= LIMIT


def test_own_changes_to_a_mapped_file_are_kept(tmp_path):
    array = data()
    np.save(tmp_path / "g.npy", array)
    private = np.load(tmp_path / "g.npy", mmap_mode="c")
    private[0, 0] = 7.0
    WoodburyRankOneInverse(private, 0.1)
    assert private[0, 0] == 7.0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["h5py", "zarr"])
def test_datasets_of_libraries_serve(kind, dtype, tmp_path):
    library = pytest.importorskip(kind, reason=f"needs {kind}")
    array = data(dtype, d=3000)
    if kind == "h5py":
        source = library.File(tmp_path / "g.h5", "w").create_dataset("g", data=array, chunks=(5, 700))
    else:
        source = library.create_array(tmp_path / "g.zarr", shape=array.shape, dtype=dtype, chunks=(5, 700))
        source[:] = array
    inverse, oracle = WoodburyRankOneInverse(source, 0.1), Oracle(array.astype("float64"), 0.1, wide=np.float64)
    v = array[0].astype(inverse.dtype)
    assert oracle.backward_ratio(v, inverse.matvec(v), np.finfo(inverse.dtype).eps) <= LIMIT
    assert inverse.gradients is source


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if "float32" in b.dtypes], ids=repr)
def test_a_file_is_computed_with_on_any_device(backend):
    array = data(d=4000)
    like = backend.asarray(np.zeros(1, "float32"))
    inverse = WoodburyRankOneInverse(memory_map(array), 0.1, xp=backend.namespace, device=like.device)
    x = inverse.matvec(backend.asarray(array[0]))
    assert backend.is_own(x, "float32")
    oracle = Oracle(array.astype("float64"), 0.1, wide=np.float64)
    assert oracle.backward_ratio(array[0], backend.to_numpy(x), np.finfo("float32").eps) <= LIMIT


def test_an_array_in_memory_is_paged_to_another_device():
    strict = {backend.name: backend for backend in AVAILABLE}
    here, there = strict["strict:CPU_DEVICE"], strict["strict:device1"]
    array = data(d=4000)
    device = there.asarray(np.zeros(1)).device
    inverse = WoodburyRankOneInverse(here.asarray(array), 0.1, device=device)
    x = inverse.matvec(there.asarray(array[0]))
    expected = WoodburyRankOneInverse(array, 0.1).matvec(array[0])
    assert inverse.device == device
    assert np.allclose(there.to_numpy(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "name", "options"),
    [
        (ValueError, "whiten", {"whiten": True}),
        (ValueError, "overwrite_gradients", {"overwrite_gradients": True}),
        (TypeError, "memory_limit", {"memory_limit": 1e9}),
        (TypeError, "xp", {"xp": 3}),
        (TypeError, "device", {"device": "nowhere"}),
    ],
)
def test_a_bad_argument_is_named(error, name, options):
    with pytest.raises(error, match=f"`{name}`"):
        WoodburyRankOneInverse(Dataset(data(d=100)), 1.0, **options)


@pytest.mark.parametrize("dtype", [int, complex, "U3"])
def test_a_dataset_of_other_things_is_refused(dtype):
    with pytest.raises(TypeError, match="`gradients` must be float16"):
        WoodburyRankOneInverse(Dataset(np.zeros((3, 5), dtype)), 1.0)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 4)])
def test_a_dataset_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="`gradients` must have shape"):
        WoodburyRankOneInverse(Dataset(np.zeros(shape)), 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_dataset_that_is_not_finite_is_refused(value):
    array = data(d=100)
    array[3, 7] = value
    with pytest.raises(ValueError, match="`gradients` must be finite"):
        WoodburyRankOneInverse(Dataset(array), 1.0)


@pytest.mark.parametrize("move", [lambda inverse: inverse.astype("float64"), lambda inverse: inverse.to_device("cpu")])
def test_a_file_is_not_read_into_memory_by_the_way(move):
    with pytest.raises(TypeError, match="`gradients` must be in memory here"):
        move(WoodburyRankOneInverse(memory_map(data(d=100)), 1.0))


@pytest.mark.parametrize("library", ["torch", "jax.numpy", "numpy"])
def test_bfloat16_numbers_travel_as_numbers(library):
    torch = pytest.importorskip("torch", reason="needs torch")
    xp = pytest.importorskip(library, reason=f"needs {library}")
    gradients = torch.from_numpy(data(d=200)).bfloat16()
    expected = WoodburyRankOneInverse(gradients.float().numpy(), 0.1).logdet()
    assert np.allclose(float(WoodburyRankOneInverse(gradients, 0.1, xp=xp).logdet()), float(expected), rtol=1e-5)


@pytest.mark.parametrize("library", ["torch", "jax.numpy", "array_api_strict"])
@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(">f4"), lambda a: a[::-1, ::-1], np.asfortranarray],
    ids=["big-endian", "backwards", "by columns"],
)
def test_arrays_in_any_order_travel(change, library):
    xp = pytest.importorskip(library, reason=f"needs {library}")
    array = change(data(d=200))
    expected = WoodburyRankOneInverse(array.astype("f4"), 0.1).logdet()
    assert np.allclose(float(WoodburyRankOneInverse(array, 0.1, xp=xp).logdet()), float(expected), rtol=1e-5)


def test_no_indices_give_no_elements():
    inverse = WoodburyRankOneInverse(Dataset(data(d=200)), 0.1)
    assert inverse.element(np.zeros(0, int), 0).shape == (0,)
    assert inverse.columns([]).shape == (200, 0)


def test_changes_of_ones_own_are_kept_whatever_became_of_the_mode(tmp_path):
    np.save(tmp_path / "g.npy", np.ones((3, 5)))
    private = np.load(tmp_path / "g.npy", mmap_mode="c")
    private[:] = 7
    WoodburyRankOneInverse(np.asarray(private).view(np.memmap), 0.1)
    assert (private == 7).all()


@pytest.mark.parametrize("query", ["diagonal", "trace"])
def test_a_source_that_hands_out_views_is_not_written_to(query):
    class Views(Dataset):
        def __getitem__(self, part):
            return self.array[part]

    g = data(d=400)
    getattr(WoodburyRankOneInverse(Views(g), 0.1), query)()
    assert np.array_equal(g, data(d=400))


def test_slices_of_another_dtype_are_refused():
    class Complex(Dataset):
        def __getitem__(self, part):
            return super().__getitem__(part) * 1j

    with pytest.raises(TypeError, match="`gradients` must have slices of their dtype"):
        WoodburyRankOneInverse(Complex(data(d=20)), 0.1)


def test_masked_slices_are_refused():
    class Masked(Dataset):
        def __getitem__(self, part):
            return np.ma.masked_array(super().__getitem__(part), mask=False)

    with pytest.raises(TypeError, match="whose mask would be lost"):
        WoodburyRankOneInverse(Masked(data(d=20)), 0.1)


def test_traced_gradients_are_refused_by_name():
    jax = pytest.importorskip("jax", reason="needs jax")
    with pytest.raises(TypeError, match="`gradients` must have values now"):
        jax.jit(lambda g: WoodburyRankOneInverse(g, 0.1, memory_limit=10**7) @ g[0])(jax.numpy.ones((3, 9)))


def test_a_library_without_the_dtype_of_the_answers_is_refused():
    jax = pytest.importorskip("jax", reason="needs jax")
    with pytest.raises(TypeError, match="`xp` must have float64"):
        WoodburyRankOneInverse(np.ones((3, 9)), 0.1, xp=jax.numpy)


def test_a_list_is_refused_by_name():
    with pytest.raises(TypeError, match="`gradients` must be an array"):
        WoodburyRankOneInverse([[1.0, 2.0]], 0.1, xp=np)
