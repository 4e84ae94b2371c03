"""Gradients in Dask arrays: what is lazy, how often G is read, and what a cluster may do to it."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.testing import LIMIT, make_problem
from mfac_linalg.testing.strategies import problems
from tests.backends import FLOATS, PRESENT, eps
from tests.cases import construct
from tests.contract import REACH, decades, measure
from tests.source import REPOSITORY as ROOT

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
DASK = next((backend for backend in PRESENT if backend.is_lazy), None)
M, D, WIDTH = 6, 60, 10
G = np.random.default_rng(0).standard_normal((M, D))
V = np.random.default_rng(1).standard_normal(D)
LAZY = {
    "matvec": lambda inverse, v: inverse.matvec(v),
    "matvec_gradients": lambda inverse, v: inverse.matvec_gradients(np.ones(M)),
    "diagonal": lambda inverse, v: inverse.diagonal(),
    "columns": lambda inverse, v: inverse.columns([3, 50]),
    "sqrt_matvec": lambda inverse, v: inverse.sqrt_matvec(v),
    "damping_path": lambda inverse, v: inverse.damping_path(v, [0.5, 2.0]),
    "forward": lambda inverse, v: inverse.forward @ v,
    "forward.diagonal": lambda inverse, v: inverse.forward.diagonal(),
}
SMALL = {
    "dual_coefficients": lambda inverse, v: inverse.dual_coefficients(v),
    "element": lambda inverse, v: inverse.element([3, 50, 3], [1, 1, 3]),
    "submatrix": lambda inverse, v: inverse.submatrix([50, 3, 50]),
    "quadratic_form": lambda inverse, v: inverse.quadratic_form(v),
    "logdet": lambda inverse, v: inverse.logdet(),
    "trace": lambda inverse, v: inverse.trace(),
    "backward_error": lambda inverse, v: inverse.backward_error(v, v),
    "eigenvalues": lambda inverse, v: inverse.forward.eigenvalues(),
}


class Source:
    """A dataset that counts what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, 2
        self.count, self.lock = 0, threading.Lock()

    def __getitem__(self, part):
        found = np.array(self.array[part])
        with self.lock:
            self.count += found.size
        return found

    def passes(self):
        """Passes over the array since the last call."""
        passes, self.count = self.count / self.array.size, 0
        return passes


def to_chunks(array, width=WIDTH, **options):
    """An array in chunks along its last axis."""
    return da.from_array(array, chunks=(-1,) * (array.ndim - 1) + (width,), **options)


@pytest.fixture(scope="module")
def inverse():
    return ml.WoodburyRankOneInverse(to_chunks(G), 0.1)


@pytest.fixture(scope="module")
def expected():
    return ml.WoodburyRankOneInverse(G, 0.1)


@pytest.mark.parametrize("name", LAZY)
def test_answers_of_size_d_are_lazy_and_right(inverse, expected, name):
    found = LAZY[name](inverse, to_chunks(V))
    assert isinstance(found, da.Array)
    assert found.dtype == np.float64
    assert np.allclose(found.compute(), LAZY[name](expected, V), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_small_answers_are_numbers(inverse, expected, name):
    found = SMALL[name](inverse, to_chunks(V))
    assert isinstance(found, np.ndarray | np.generic)
    assert np.allclose(found, SMALL[name](expected, V), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["decay", "common mean", "nearly dependent", "scaled rows"])
def test_every_kind_of_gradients_keeps_the_contract_at_its_reach(kind, dtype):
    problem = make_problem(1, kind=kind, shape=(6, 14), kappa=0.99 * REACH[dtype, "default"], dtype=dtype)
    worst = max(measure(problem, DASK), key=lambda answer: answer.backward)
    assert worst.backward <= LIMIT, f"R = {worst.backward:.3g} for {worst.name}: {problem}"
    diagonal = construct(problem, DASK).diagonal().compute()
    assert np.allclose(diagonal, np.diag(problem.oracle.inverse), rtol=1e-3, atol=0)


def test_the_smallest_entries_of_a_diagonal_keep_float32s_digits():
    g = G.astype(np.float32)
    g[0, 5] = 1000
    found = ml.WoodburyRankOneInverse(da.from_array(g, chunks=(M, WIDTH)), 0.5).diagonal().compute()
    exact = ml.WoodburyRankOneInverse(g.astype(np.float64), 0.5).diagonal()
    assert exact.min() < 1e-3
    assert np.allclose(found, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_answer_keeps_the_contract(dtype):
    @settings(max_examples=3)
    @given(
        st.sampled_from([(5, 11), (9, 4)]).flatmap(
            lambda shape: problems(dtype, decades(dtype, "default"), shape=shape)
        )
    )
    def check_contract(problem):
        for answer in measure(problem, DASK):
            assert answer.backward <= LIMIT, f"R = {answer.backward:.3g} for {answer.name}: {problem}"

    check_contract()


@pytest.mark.parametrize("dtype", FLOATS)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    others=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    shift=st.integers(0, 5),
)
@settings(max_examples=6)
def test_any_chunks_of_matrix_vector_and_damping_give_the_same_answer(dtype, widths, others, shift):
    dim = max(sum(widths), sum(others))
    cuts = [(*sizes, *[dim - sum(sizes)] * (sum(sizes) < dim)) for sizes in (widths, others)]
    problem = make_problem(shift, shape=(4, dim), vector=True, dtype=dtype)
    v = V[:1].astype(dtype) * np.arange(1, dim + 1, dtype=dtype)
    inverse = ml.WoodburyRankOneInverse(
        da.from_array(problem.gradients, chunks=((4,), cuts[0])),
        da.from_array(problem.damping, chunks=(cuts[1],)),
    )
    x = inverse.matvec(da.from_array(v, chunks=(cuts[1],))).compute()
    assert problem.oracle.backward_ratio(v[:, None], x[:, None], eps(dtype), np.zeros(1))[0] <= LIMIT


def test_a_build_reads_once_and_a_product_once_more_than_it_sweeps():
    source = Source(G)
    inverse = ml.WoodburyRankOneInverse(da.from_array(source, chunks=(-1, WIDTH), meta=G[:0]), 1e-4)
    assert source.passes() == 1
    inverse.matvec(to_chunks(V)).compute()
    assert source.passes() == inverse.sweeps + 1
    inverse.diagonal().compute()
    assert source.passes() == 1
    inverse.with_damping(1e-3)
    inverse.logdet()
    assert source.passes() == 0


def test_nothing_is_read_before_an_answer_is_asked_for():
    source = Source(G)
    inverse = ml.WoodburyRankOneInverse(da.from_array(source, chunks=(-1, WIDTH), meta=G[:0]), 0.1)
    source.passes()
    for ask in LAZY.values():
        ask(inverse, to_chunks(V))
    assert source.passes() == 0


def test_an_element_reads_the_chunks_that_it_lies_in():
    source = Source(G)
    inverse = ml.WoodburyRankOneInverse(da.from_array(source, chunks=(-1, WIDTH), meta=G[:0]), 0.1)
    source.passes()
    inverse.element(3, 50)
    assert source.passes() == 2 * WIDTH / D


def test_no_chunk_is_held_from_one_pass_to_the_next():
    """Alive at a time, on one thread: the chunk in use and those that the scheduler has not yet released."""
    alive, most, lock = set(), [0], threading.Lock()

    class Tracked(np.ndarray):
        def __del__(self):
            with lock:
                alive.discard(id(self))

    def tracked(block):
        found = np.array(block).view(Tracked)
        with lock:
            alive.add(id(found))
            most[0] = max(most[0], len(alive))
        return found

    wide = np.random.default_rng(0).standard_normal((4, 400))
    made = to_chunks(wide).map_blocks(tracked, meta=wide[:0])
    inverse = ml.WoodburyRankOneInverse(made, 1e-4)
    most[0] = 0
    with dask.config.set(scheduler="sync"):
        inverse.matvec(to_chunks(np.ones(400))).compute()
    assert inverse.sweeps > 1
    assert most[0] <= 3


def test_rows_that_need_several_tasks_each_are_made_anew_for_each_pass():
    merged = da.from_array(G, chunks=(-1, 7)).rechunk((-1, WIDTH)).map_blocks(np.negative)
    inverse = ml.WoodburyRankOneInverse(merged, 0.1)
    assert np.allclose(inverse.matvec(to_chunks(V)).compute(), ml.WoodburyRankOneInverse(-G, 0.1) @ V)


def test_persisted_gradients_are_taken_from_memory():
    source = Source(G)
    held = da.from_array(source, chunks=(-1, WIDTH), meta=G[:0]).persist()
    inverse = ml.WoodburyRankOneInverse(held, 0.1)
    inverse.matvec(to_chunks(V)).compute()
    assert source.passes() == 1


def test_answers_are_the_same_to_the_bit_on_any_number_of_threads(inverse):
    x = inverse.matvec(to_chunks(V))
    first, second = (dask.compute(x, scheduler=name)[0] for name in ("sync", "threads"))
    assert np.array_equal(first, second)


def misalign_block(block):
    """The same numbers at an odd address, as a socket leaves them."""
    buffer = np.empty(block.nbytes + 65, np.uint8)
    start = -buffer.ctypes.data % 64 + 1
    moved = buffer[start : start + block.nbytes].view(block.dtype).reshape(block.shape)
    moved[...] = block
    assert not moved.flags.aligned
    return moved


def test_answers_are_the_same_to_the_bit_wherever_blocks_lie():
    wide = np.random.default_rng(0).standard_normal((24, 4000), dtype=np.float32)
    v = to_chunks(wide[0] - wide[1], 1000)
    first, second = (
        ml.WoodburyRankOneInverse(to_chunks(wide, 1000).map_blocks(place, meta=wide[:0]), 0.1).matvec(v).compute()
        for place in (np.array, misalign_block)
    )
    assert np.array_equal(first, second)


def test_small_arguments_may_be_of_either_library():
    weights = np.arange(1.0, M + 1)
    answers = [
        ml.WoodburyRankOneInverse(to_chunks(G), 0.1, weights=give(weights)).matvec_gradients(give(weights)).compute()
        for give in (np.asarray, da.from_array)
    ]
    assert np.array_equal(*answers)
    assert np.allclose(answers[0], ml.WoodburyRankOneInverse(G, 0.1, weights=weights).matvec_gradients(weights))


def test_draws_have_the_covariance_of_the_inverse(inverse, expected):
    draws = inverse.sample(4000, seed=0).compute()
    assert np.linalg.norm(np.cov(draws.T) - expected.to_dense()) <= 0.3 * np.linalg.norm(expected.to_dense())


def test_sixteen_bit_chunks_are_answered_in_float32():
    half = G.astype(np.float16)
    inverse = ml.WoodburyRankOneInverse(to_chunks(half), 0.1)
    x = inverse.matvec(to_chunks(V.astype(np.float32)))
    assert x.dtype == np.float32
    exact = ml.WoodburyRankOneInverse(half.astype(np.float64), 0.1) @ V
    assert np.linalg.norm(x.compute() - exact) <= 1e-4 * np.linalg.norm(exact)


def test_rows_whose_squares_overflow_are_scaled():
    huge = (G * 1e20).astype(np.float32)
    x = ml.WoodburyRankOneInverse(to_chunks(huge), 1e40).matvec(to_chunks(huge[0])).compute()
    exact = np.linalg.solve(np.eye(D) + G.T @ G / M, G[0]) * 1e-20
    assert np.linalg.norm(x - exact) <= 1e-4 * np.linalg.norm(exact)


def test_an_inverse_survives_a_pickle(inverse):
    copy = pickle.loads(pickle.dumps(inverse))
    assert np.array_equal(copy.matvec(to_chunks(V)).compute(), inverse.matvec(to_chunks(V)).compute())


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (lambda: da.from_array(G, chunks=(2, 10)), ValueError, "all rows in each chunk.*rechunk"),
        (lambda: to_chunks(G)[:, to_chunks(V) > 0], TypeError, "known sizes.*compute_chunk_sizes"),
        (lambda: to_chunks(G.astype(int)), TypeError, "float16, bfloat16, float32 or float64.*Cast"),
        (lambda: to_chunks(G[0]), ValueError, r"shape \(m, d\)"),
        (lambda: to_chunks(np.where(G > 2, np.nan, G)), ValueError, "finite.*Drop"),
    ],
    ids=["rows cut", "unknown", "integers", "vector", "nan"],
)
def test_what_cannot_be_used_is_refused(given, kind, words):
    with pytest.raises(kind, match=words):
        ml.WoodburyRankOneInverse(given(), 0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"memory_limit": 10**6}, "memory_limit.*Leave it out"), ({"whiten": True}, "whiten.*Leave it out")],
    ids=str,
)
def test_options_of_other_rows_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ml.WoodburyRankOneInverse(to_chunks(G), 0.1, **options)


def test_a_vector_in_memory_is_refused_by_name(inverse):
    with pytest.raises(TypeError, match=r"`v` must be of the gradients' library.*Convert it"):
        inverse.matvec(V)


def test_a_damping_with_an_entry_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="`damping` must be finite and > 0 in every entry"):
        ml.WoodburyRankOneInverse(to_chunks(G), to_chunks(np.where(V > 2, 0.0, 1.0)))


@pytest.mark.parametrize("index", [60, -61])
def test_an_index_out_of_range_is_refused(inverse, index):
    with pytest.raises(IndexError, match=r"\[-60, 60\)"):
        inverse.element(da.from_array(np.array([0, index])), 0)


@pytest.mark.parametrize(
    "make", [ml.SlidingWindowInverse.from_gradients, ml.BlockDiagonalInverse], ids=["window", "blocks"]
)
def test_windows_and_blocks_want_their_rows_in_memory(make):
    options = {"block_sizes": 10} if make is ml.BlockDiagonalInverse else {}
    with pytest.raises(TypeError, match=r"must be .*in memory"):
        make(to_chunks(G), 0.1, **options)


def test_gradients_that_are_elsewhere_are_not_saved(inverse, tmp_path):
    with pytest.raises(TypeError, match=r"in memory.*Save what they are made of"):
        inverse.save(tmp_path / "inverse.npz")


def test_a_killed_worker_costs_time_and_not_the_answer(tmp_path):
    """In a process of its own: a cluster's processes start by importing the program's main module."""
    pytest.importorskip("distributed")
    command = [sys.executable, "-m", "tests.kill_workers", str(tmp_path), "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 runs the same to the bit" in done.stdout
    assert "without workers: refused" in done.stdout
