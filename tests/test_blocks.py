"""Blocks on the diagonal: every query against the blocks' own dense inverses, for every way of cutting."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag

from mfac_linalg import BlockDiagonalInverse, FactorizationError, WoodburyRankOneInverse
from mfac_linalg.testing import KINDS, LIMIT, Oracle, Problem, make_problem, tolerance
from mfac_linalg.testing.strategies import seeds
from tests.backends import AVAILABLE, FLOATS, NUMPY, eps
from tests.contract import REACH
from tests.inputs import ArrayRows, memory_map

CUTS = {"ones": 1, "equal": 3, "uneven": 4, "all in one": 14, "layers": (2, 2, 2, 5, 1, 1, 1)}
DIM = 14


class Blocks:
    """One oracle for each block."""

    def __init__(self, problem, sizes):
        stops = np.cumsum(sizes)
        self.slices = [slice(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
        roots = np.broadcast_to(problem.damping, problem.gradients.shape[1:])
        self.oracles = [
            Oracle(problem.gradients[:, s], roots[s], problem.weights, problem.normalization) for s in self.slices
        ]
        self.inverse = block_diag(*(oracle.inverse for oracle in self.oracles))
        self.forward = block_diag(*(oracle.forward for oracle in self.oracles))

    def worst_ratio(self, v, x, unit):
        """The largest R of a block."""
        pairs = zip(self.oracles, self.slices, strict=True)
        return max(oracle.backward_ratio(v[s], x[s], unit) for oracle, s in pairs)


def sizes_of(cut, dim=DIM):
    """The block sizes that `block_sizes=cut` means."""
    if isinstance(cut, tuple):
        return cut
    return [cut] * (dim // cut) + ([dim % cut] if dim % cut else [])


def construct(problem, cut, backend=NUMPY, held=lambda array: array, **options):
    """The inverse of a problem cut in blocks."""
    damping = problem.damping
    return BlockDiagonalInverse(
        held(backend.asarray(problem.gradients)),
        damping if np.ndim(damping) == 0 else backend.asarray(damping),
        block_sizes=cut,
        weights=None if problem.weights is None else backend.asarray(problem.weights),
        normalization=problem.normalization,
        **options,
    )


V = np.random.default_rng(5).standard_normal(DIM)
ASKED = {
    "matvec": (lambda i, s: i.matvec(s(V)), lambda b: b.inverse @ V),
    "matmat": (lambda i, s: i @ s(np.stack([V, 3 * V], 1)), lambda b: b.inverse @ np.stack([V, 3 * V], 1)),
    "diagonal": (lambda i, s: i.diagonal(), lambda b: np.diag(b.inverse)),
    "columns": (lambda i, s: i.columns([0, 13, 4]), lambda b: b.inverse[:, [0, 13, 4]]),
    "quadratic form": (lambda i, s: i.quadratic_form(s(V)), lambda b: V @ b.inverse @ V),
    "quadratic forms": (
        lambda i, s: i.quadratic_form(s(np.stack([V, 2 * V], 1))),
        lambda b: V @ b.inverse @ V * np.array([1, 4]),
    ),
    "logdet": (lambda i, s: i.logdet(), lambda b: np.linalg.slogdet(b.inverse)[1]),
    "trace": (lambda i, s: i.trace(), lambda b: np.trace(b.inverse)),
    "F": (lambda i, s: i.forward @ s(V), lambda b: b.forward @ V),
    "diagonal of F": (lambda i, s: i.forward.diagonal(), lambda b: np.diag(b.forward)),
    "submatrix": (
        lambda i, s: i.submatrix([13, 0, 1, 1], [2, 0, 13]),
        lambda b: b.inverse[np.ix_([13, 0, 1, 1], [2, 0, 13])],
    ),
    "elements": (
        lambda i, s: i.element([[0], [13], [-1]], [0, 1, 13]),
        lambda b: b.inverse[np.ix_([0, 13, 13], [0, 1, 13])],
    ),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("general", [False, True], ids=["scalar", "general"])
@pytest.mark.parametrize("m", [2, 6, 20])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_every_query_is_that_of_the_dense_blocks(cut, m, general, ask):
    problem = make_problem(1, shape=(m, DIM), vector=general, weighted=general)
    blocks, (asked, expected) = Blocks(problem, sizes_of(cut)), ASKED[ask]
    actual, expected = asked(construct(problem, cut), np.asarray), expected(blocks)
    limit = tolerance(eps("float64"), np.linalg.cond(blocks.forward))
    assert actual.shape == np.shape(expected)
    assert np.linalg.norm(actual - expected) <= limit * np.linalg.norm(expected)


@pytest.mark.parametrize("flavour", [(b, dtype) for b in AVAILABLE for dtype in b.dtypes], ids=str)
@pytest.mark.parametrize("m", [3, 20])
def test_every_backend_gives_the_answers_of_the_dense_blocks(flavour, m):
    backend, dtype = flavour
    problem = make_problem(2, shape=(m, DIM), dtype=dtype, weighted=True)
    blocks, inverse = Blocks(problem, sizes_of(4)), construct(problem, 4, backend)
    limit = tolerance(eps(dtype), np.linalg.cond(blocks.forward))

    def send(array):
        return backend.asarray(array.astype(dtype))

    for asked, expected in ASKED.values():
        actual, wanted = asked(inverse, send), expected(blocks)
        assert np.linalg.norm(backend.to_numpy(actual) - wanted) <= limit * np.linalg.norm(wanted)
    assert backend.is_own(inverse.matvec(send(V)), dtype)


@given(
    seeds(),
    st.sampled_from(FLOATS),
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.booleans(),
)
@settings(max_examples=150)
def test_every_block_keeps_the_contract_whatever_its_size(seed, dtype, kind, m, sizes, vector):
    kappa = 0.99 * REACH[dtype, "default"]
    problem = make_problem(seed, kind=kind, shape=(m, sum(sizes)), kappa=kappa, dtype=dtype, vector=vector)
    blocks, inverse = Blocks(problem, sizes), construct(problem, tuple(sizes))
    rng = np.random.default_rng(seed)
    for v in (problem.gradients[0], rng.standard_normal(sum(sizes)).astype(dtype)):
        assert blocks.worst_ratio(v, inverse.matvec(v), eps(dtype)) <= LIMIT
    diagonal = np.concatenate([np.diag(oracle.inverse) for oracle in blocks.oracles])
    assert np.allclose(inverse.diagonal(), diagonal, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", range(1, 41))
def test_every_size_of_block_keeps_the_contract(size, dtype):
    """At λ = 1e-7 the published recursion's diagonal is off by a factor where a block is narrower than m."""
    rng = np.random.default_rng(size)
    gradients = (rng.standard_normal(40) + 0.1 * rng.standard_normal((24, 40))).astype(dtype)
    problem = Problem("common mean", 0.04 * gradients, 1e-7, None, "mean")
    blocks, inverse = Blocks(problem, sizes_of(size, 40)), construct(problem, size)
    v = problem.gradients[3]
    assert blocks.worst_ratio(v, inverse.matvec(v), eps(dtype)) <= LIMIT
    assert np.allclose(inverse.diagonal(), np.diag(blocks.inverse), rtol=1e-3, atol=0)


@pytest.mark.parametrize("m", [3, 20])
def test_one_block_of_all_columns_is_the_static_inverse(m):
    problem = make_problem(3, shape=(m, DIM))
    one, static = construct(problem, DIM), WoodburyRankOneInverse(problem.gradients, problem.damping)
    assert np.allclose(one.matvec(V), static.matvec(V), rtol=1e-10)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_combination_of_gradients_is_pushed_through(cut):
    problem = make_problem(4, shape=(6, DIM))
    c = np.arange(1.0, 7)
    blocks = Blocks(problem, sizes_of(cut))
    assert np.allclose(construct(problem, cut).matvec_gradients(c), blocks.inverse @ problem.gradients.T @ c)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_there_are_dual_coefficients_for_every_block(cut):
    problem = make_problem(5, shape=(6, DIM), weighted=True)
    sizes = sizes_of(cut)
    duals = construct(problem, cut).dual_coefficients(V)
    combination = np.einsum("bm,mb->b", duals[np.repeat(np.arange(len(sizes)), sizes)], problem.gradients)
    assert duals.shape == (len(sizes), 6)
    assert np.allclose((V - combination) / problem.damping, Blocks(problem, sizes).inverse @ V)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("m", [3, 20])
def test_a_root_of_the_inverse_times_itself_is_the_inverse(cut, m):
    problem = make_problem(6, shape=(m, DIM))
    inverse = construct(problem, cut)
    assert np.allclose(inverse.sqrt_matvec(inverse.sqrt_matvec(V)), Blocks(problem, sizes_of(cut)).inverse @ V)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("m", [3, 20])
def test_a_damping_path_is_that_of_inverses_built_for_each(cut, m):
    problem = make_problem(7, shape=(m, DIM))
    path = construct(problem, cut).damping_path(V, [0.1, 3.0])
    expected = [construct(problem, cut).with_damping(damping).matvec(V) for damping in (0.1, 3.0)]
    assert np.allclose(path, np.stack(expected, axis=1))


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("m", [3, 20])
def test_the_spectrum_is_that_of_the_blocks(cut, m):
    problem = make_problem(8, shape=(m, DIM))
    inverse, blocks = construct(problem, cut), Blocks(problem, sizes_of(cut))
    values = np.linalg.eigvalsh(blocks.forward)[::-1]
    moved = inverse.forward.eigenvalues()
    assert np.allclose(moved, values[: len(moved)])
    assert np.allclose(inverse.condition_number(), values[0] / values[-1])


@pytest.mark.parametrize("cut", [1, 3])
def test_a_damping_per_parameter_serves_every_library(backend, cut):
    if backend.is_lazy:  # blocks want their rows in memory
        return
    problem = make_problem(2, shape=(6, DIM), dtype="float32", vector=True)
    x = backend.to_numpy(construct(problem, cut, backend).matvec(backend.asarray(V, "float32")))
    assert np.allclose(x, Blocks(problem, sizes_of(cut)).inverse @ V, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [3, (2, 2, 2, 5, 1, 1, 1)], ids=["equal", "layers"])
def test_each_block_may_have_its_damping(cut):
    problem, sizes = make_problem(9, shape=(4, DIM)), sizes_of(cut)
    dampings = np.linspace(0.1, 2, len(sizes))
    inverse = BlockDiagonalInverse(problem.gradients, dampings, block_sizes=cut)
    spread = Problem("spread", problem.gradients, np.repeat(dampings, sizes), None, "mean")
    assert np.allclose(inverse.matvec(V), Blocks(spread, sizes).inverse @ V)
    assert np.array_equal(inverse.damping, dampings)


def test_the_certificate_holds():
    problem = make_problem(10, shape=(4, DIM))
    inverse = construct(problem, 4)
    assert inverse.backward_error(V, inverse.matvec(V)) <= LIMIT * eps("float64")


@pytest.mark.parametrize("clone", [lambda x: pickle.loads(pickle.dumps(x)), lambda x: x.astype("float64")])
def test_a_copy_gives_the_same_answers(clone):
    inverse = construct(make_problem(11, shape=(4, DIM), vector=True, weighted=True), 3)
    assert np.array_equal(clone(inverse).matvec(V), inverse.matvec(V))


@pytest.mark.parametrize("held", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, np.asfortranarray])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_sparse_and_column_major_gradients_are_cut_as_well(cut, held):
    problem = make_problem(12, shape=(5, DIM), kind="sparse")
    expected = construct(problem, cut)
    actual = construct(problem, cut, held=held)
    assert np.allclose(actual.matvec(V), expected.matvec(V))
    assert np.allclose(actual.diagonal(), expected.diagonal())


def test_narrow_gradients_are_kept_as_they_are():
    gradients = make_problem(13, shape=(5, DIM)).gradients.astype("float16")
    inverse = BlockDiagonalInverse(gradients, 0.5, block_sizes=3)
    expected = BlockDiagonalInverse(gradients.astype("float64"), 0.5, block_sizes=3).matvec(V)
    assert inverse.gradients is gradients
    assert np.allclose(inverse.matvec(V.astype("float32")), expected, rtol=1e-5)


@pytest.mark.parametrize("power", [-300, 300])
def test_the_answer_does_not_depend_on_units(power):
    problem, scale = make_problem(14, shape=(5, DIM)), 2.0**power
    expected = construct(problem, 4).matvec(V)
    inverse = BlockDiagonalInverse(problem.gradients * scale, problem.damping * scale**2, block_sizes=4)
    assert np.array_equal(inverse.matvec(V * scale**2), expected)


def test_gradients_that_overflow_have_no_factor():
    with pytest.raises(FactorizationError):
        BlockDiagonalInverse(np.full((3, 4), 1e200), 1e-100, block_sizes=2)


@pytest.mark.parametrize("m", [16, 64])
def test_the_memory_of_many_blocks_is_that_of_their_factors(m):
    dim, size = 40_960, 32
    gradients = np.random.default_rng(0).standard_normal((m, dim), dtype=np.float32)
    tracemalloc.start()
    inverse = BlockDiagonalInverse(gradients, 1.0, block_sizes=size)
    inverse.matvec(gradients[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1.5 * 2 * 8 * dim * min(m, size) ** 2 / size + 2**23


G = np.random.default_rng(0).standard_normal((3, 6))
WRONG = {
    "sizes: zero": (ValueError, "block_sizes", (G, 1.0), {"block_sizes": 0}),
    "sizes: negative": (ValueError, "block_sizes", (G, 1.0), {"block_sizes": [7, -1]}),
    "sizes: too few columns": (ValueError, "block_sizes.*add up to d = 6", (G, 1.0), {"block_sizes": [2, 3]}),
    "sizes: none": (ValueError, "block_sizes", (G, 1.0), {"block_sizes": []}),
    "sizes: a float": (TypeError, "block_sizes", (G, 1.0), {"block_sizes": 2.0}),
    "sizes: floats": (TypeError, "block_sizes", (G, 1.0), {"block_sizes": [2.0, 4.0]}),
    "sizes: a string": (TypeError, "block_sizes", (G, 1.0), {"block_sizes": "23"}),
    "sizes: None": (TypeError, "block_sizes", (G, 1.0), {"block_sizes": None}),
    "damping: neither": (ValueError, "damping", (G, np.ones(4)), {"block_sizes": 2}),
    "damping: zero of a block": (ValueError, "damping", (G, np.array([1.0, 0, 1])), {"block_sizes": 2}),
    "damping: another dtype": (TypeError, "damping", (G, np.ones(3, "float32")), {"block_sizes": 2}),
    "weights: wrong length": (ValueError, "weights", (G, 1.0), {"block_sizes": 2, "weights": np.ones(2)}),
    "gradients: nan": (ValueError, "gradients", (np.full((3, 6), np.nan), 1.0), {"block_sizes": 2}),
    "gradients: rows": (TypeError, "gradients", (ArrayRows(G), 1.0), {"block_sizes": 2}),
    "precision": (ValueError, "precision", (G, 1.0), {"block_sizes": 2, "precision": "low"}),
    "normalization": (ValueError, "normalization", (G, 1.0), {"block_sizes": 2, "normalization": "window"}),
}


@pytest.mark.parametrize("row", WRONG)
def test_a_bad_argument_is_named(row):
    error, text, arguments, options = WRONG[row]
    with pytest.raises(error, match=text):
        BlockDiagonalInverse(*arguments, **options)


def test_a_repr_names_the_blocks():
    assert "BlockDiagonalInverse(blocks=3, m=3, d=6" in repr(BlockDiagonalInverse(G, 1.0, block_sizes=2))


def test_jit_takes_an_inverse_of_blocks():
    jax = pytest.importorskip("jax", reason="needs jax")
    problem = make_problem(15, shape=(4, DIM), dtype="float32")
    gradients, v = jax.numpy.asarray(problem.gradients), jax.numpy.asarray(V, dtype="float32")

    def product(gradients, v):
        return BlockDiagonalInverse(gradients, problem.damping, block_sizes=3).matvec(v)

    assert np.allclose(jax.jit(product)(gradients, v), Blocks(problem, sizes_of(3)).inverse @ V, rtol=1e-4)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_no_columns_give_no_columns(cut):
    inverse = construct(make_problem(16, shape=(5, DIM)), cut)
    assert (inverse @ np.zeros((DIM, 0))).shape == (DIM, 0)
    assert inverse.columns([]).shape == (DIM, 0)
    assert inverse.matvec_gradients(np.zeros((5, 0))).shape == (DIM, 0)


def test_a_mapped_file_is_cut_as_any_array():
    problem = make_problem(17, shape=(5, DIM))
    assert np.array_equal(construct(problem, 4, held=memory_map).matvec(V), construct(problem, 4).matvec(V))


def test_a_zero_dimensional_size_is_a_size():
    assert BlockDiagonalInverse(G, 1.0, block_sizes=np.array(4)).block_sizes == (4, 2)


def test_traced_indices_are_refused_by_name():
    jax = pytest.importorskip("jax", reason="needs jax")
    inverse = BlockDiagonalInverse(jax.numpy.asarray(G, dtype="float32"), 1.0, block_sizes=2)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda i: inverse.element(i, i))(jax.numpy.asarray([0, 3]))


def test_a_block_without_gradients_divides_nothing_by_zero():
    gradients = np.random.default_rng(0).standard_normal((20, 64 * 6)).astype(np.float32)
    gradients[:, 64:128] = 0
    inverse = BlockDiagonalInverse(gradients, 1e-2, block_sizes=64)
    (run,) = inverse._state.form.runs
    u = gradients[:1].reshape(6, 64, 1)
    with np.errstate(all="raise"):
        r, _ = run.form._dual_sweeps.from_zero(u)
    assert np.array_equal(r[1], u[1])
