"""Rows of a user's class with the public protocol: products of two factors, shards, and methods that are wrong."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings

from mfac_linalg import GradientRows, WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT, Oracle, make_problem
from mfac_linalg.testing.strategies import problems
from tests.backends import FLOATS, NUMPY
from tests.cases import construct
from tests.contract import decades, measure
from tests.inputs import ArrayRows


class KroneckerRows(GradientRows):
    """Rows a_i ⊗ b_i, as of a linear layer: d = p q numbers each, of which p + q are kept."""

    def __init__(self, a, b):
        self.a, self.b = a, b
        self.shape = (len(a), a.shape[1] * b.shape[1])

    def gram(self):
        return (self.a @ self.a.T) * (self.b @ self.b.T)

    def project(self, v):
        cubes = v.reshape(self.a.shape[1], self.b.shape[1], -1)
        return np.einsum("mp,pqk,mq->mk", self.a, cubes, self.b)

    def combine(self, coefficients):
        cubes = np.einsum("mp,mk,mq->pqk", self.a, coefficients, self.b)
        return cubes.reshape(self.shape[1], -1)

    def columns(self, j):
        first, second = np.divmod(j, self.b.shape[1])
        return self.a[:, first] * self.b[:, second]


class ShardedRows(GradientRows):
    """Columns shared out among ranks; vectors of length d are whole on every rank, and so are all decisions."""

    def __init__(self, local, start, dim, communicator):
        self.local, self.place = local, slice(start, start + local.shape[1])
        self.shape, self.all = (len(local), dim), communicator

    def gram(self):
        return self.all.reduce(self.local @ self.local.T)

    def project(self, v):
        return self.all.reduce(self.local @ v[self.place])

    def combine(self, coefficients):
        return np.concatenate(self.all.gather(self.local.T @ coefficients))

    def columns(self, j):
        inside = (self.place.start <= j) & (j < self.place.stop)
        mine = np.zeros((self.shape[0], len(j)))
        mine[:, inside] = self.local[:, j[inside] - self.place.start]
        return self.all.reduce(mine)


class Communicator:
    """What MPI's Allreduce and Allgather do, among threads."""

    def __init__(self, size):
        self.slots, self.barrier = [None] * size, threading.Barrier(size, timeout=60)

    def gather(self, rank, x):
        self.slots[rank] = x
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything

    def on(self, rank):
        return Rank(self, rank)


class Rank:
    """A communicator as one rank sees it."""

    def __init__(self, communicator, rank):
        self.gather = partial(communicator.gather, rank)

    def reduce(self, x):
        return sum(self.gather(x))


def kronecker(m, *, seed=0):
    """Rows a_i ⊗ b_i, and the same as an array."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, 3)), rng.standard_normal((m, 5))
    return KroneckerRows(a, b), np.einsum("mp,mq->mpq", a, b).reshape(m, 15)


ASKED = {
    "matvec": lambda inverse, v: inverse.matvec(v),
    "diagonal": lambda inverse, v: inverse.diagonal(),
    "submatrix": lambda inverse, v: inverse.submatrix([0, 3, 3], [1, 2]),
    "element": lambda inverse, v: inverse.element([4, -1], [[0], [14]]),
    "quadratic form": lambda inverse, v: inverse.quadratic_form(v),
    "logdet": lambda inverse, v: inverse.logdet(),
    "F": lambda inverse, v: inverse.forward @ v,
    "diagonal of F": lambda inverse, v: inverse.forward.diagonal(),
    "another damping": lambda inverse, v: inverse.with_damping(3.0) @ v,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED.keys())
@pytest.mark.parametrize("damping", [0.2, np.linspace(0.1, 1, 15)], ids=["scalar", "vector"])
@pytest.mark.parametrize("m", [4, 30])
def test_rows_of_two_factors_answer_like_their_array(m, damping, ask):
    rows, array = kronecker(m)
    v = np.random.default_rng(1).standard_normal(15)
    expected = ask(WoodburyRankOneInverse(array, damping), v)
    assert np.allclose(ask(WoodburyRankOneInverse(rows, damping), v), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_answer_keeps_the_contract(dtype):
    @settings(max_examples=40)
    @given(problems(dtype, decades(dtype, "default"), largest=40))
    def check_contract(problem):
        for answer in measure(problem, NUMPY, form="rows"):
            assert max(answer.backward, answer.forward) <= LIMIT

    check_contract()


@pytest.mark.parametrize("kappa", [1e2, 8e5])
def test_entries_of_float32_rows_with_a_float64_gram_matrix_keep_their_error(kappa):
    problem = make_problem(0, shape=(8, 30), kappa=kappa, dtype="float32")
    error = construct(problem, NUMPY, form="rows").submatrix(np.arange(30)) - problem.oracle.inverse
    assert np.max(np.abs(error)) <= kappa * LIMIT * np.finfo("float32").eps / problem.damping


def test_ranks_that_share_the_columns_agree_with_one_that_has_all():
    array = np.random.default_rng(0).standard_normal((4, 30))
    v, everyone = array[1], Communicator(3)

    def ask(rank):
        start = 10 * rank
        rows = ShardedRows(array[:, start : start + 10], start, 30, everyone.on(rank))
        inverse = WoodburyRankOneInverse(rows, 1e-6)
        return inverse.matvec(v), inverse.diagonal()

    oracle = Oracle(array, 1e-6)
    with ThreadPoolExecutor(3) as pool:
        for x, diagonal in pool.map(ask, range(3)):
            assert oracle.backward_ratio(v, x, np.finfo(float).eps) <= LIMIT
            assert np.allclose(diagonal, np.diag(oracle.inverse), rtol=1e-3)


def test_the_gradients_are_the_callers_object():
    rows, _ = kronecker(4)
    assert WoodburyRankOneInverse(rows, 1.0).gradients is rows


def test_an_object_with_the_methods_need_not_derive_from_the_protocol():
    class Own:
        shape = (2, 3)
        array = np.arange(6.0).reshape(2, 3)
        gram = lambda self: self.array @ self.array.T  # noqa: E731
        project = lambda self, v: self.array @ v  # noqa: E731
        combine = lambda self, c: self.array.T @ c  # noqa: E731
        columns = lambda self, j: self.array[:, j]  # noqa: E731
        panels = lambda self: [self.array]  # noqa: E731

    expected = WoodburyRankOneInverse(Own.array, 1.0).to_dense()
    assert np.allclose(WoodburyRankOneInverse(Own(), 1.0).to_dense(), expected)


WRONG = {
    "gram": (lambda inverse: None, lambda rows: np.ones((3, 4))),
    "project": (lambda inverse: inverse.matvec(np.ones(9)), lambda rows, v: np.ones(4)),
    "combine": (lambda inverse: inverse.matvec(np.ones(9)), lambda rows, c: np.ones((8, 1))),
    "columns": (lambda inverse: inverse.element(0, 1), lambda rows, j: [1.0]),
    "panels": (lambda inverse: inverse.diagonal(), lambda rows: [np.ones((4, 5))]),
}


@pytest.mark.parametrize("method", WRONG)
def test_a_method_that_returns_the_wrong_shape_is_named(method):
    ask, wrong = WRONG[method]
    rows = type("Wrong", (ArrayRows,), {method: wrong})(np.random.default_rng(0).standard_normal((4, 9)))
    with pytest.raises(ValueError, match=rf"`gradients.{method}` must"):
        ask(WoodburyRankOneInverse(rows, 1.0))


def test_a_method_that_returns_another_dtype_is_named():
    rows = type("Wrong", (ArrayRows,), {"combine": lambda self, c: np.ones((9, 1), "float32")})(np.ones((4, 9)))
    with pytest.raises(TypeError, match=r"`gradients.combine` must return float64"):
        WoodburyRankOneInverse(rows, 1.0).matvec(np.ones(9))


@pytest.mark.parametrize("shape", [(4,), (0, 9), [4, 9], (4, 9.0)])
def test_a_shape_that_is_none_is_refused(shape):
    rows = ArrayRows(np.ones((4, 9)))
    rows.shape = shape
    with pytest.raises(ValueError, match=r"`gradients.shape` must"):
        WoodburyRankOneInverse(rows, 1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("whiten", {"whiten": True}), ("overwrite_gradients", {"overwrite_gradients": True})],
)
def test_what_needs_an_array_is_refused(name, options):
    with pytest.raises(ValueError, match=f"`{name}` must not be True"):
        WoodburyRankOneInverse(ArrayRows(np.ones((4, 9))), 1.0, **options)


def test_high_precision_is_refused_for_rows_that_compute_in_float32():
    with pytest.raises(ValueError, match=r"`precision` must be 'default'.*float32"):
        WoodburyRankOneInverse(ArrayRows(np.ones((4, 9), "float32")), 1.0, precision="high")


@pytest.mark.parametrize("value", [1e17, 1e-17, np.nan, np.inf])
def test_rows_whose_squares_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match=r"`gradients` must be finite"):
        WoodburyRankOneInverse(ArrayRows(np.full((4, 9), value, "float32")), 1.0)


@pytest.mark.parametrize("move", [lambda inverse: inverse.astype("float32"), lambda inverse: inverse.to_device("cpu")])
def test_rows_are_not_moved_for_their_author(move):
    with pytest.raises(TypeError, match=r"`gradients` must be in memory here; got ArrayRows"):
        move(WoodburyRankOneInverse(ArrayRows(np.ones((4, 9))), 1.0))


@pytest.mark.parametrize("damping", [0.1, np.linspace(0.1, 1, 9)], ids=["scalar", "vector"])
def test_views_that_a_user_hands_out_are_not_written_to(damping):
    class Views(ArrayRows):
        def columns(self, j):
            return self.array[:, j[0] : j[-1] + 1] if len(j) == 1 + j[-1] - j[0] else self.array[:, j]

        def panels(self):
            yield self.array

    array = np.random.default_rng(0).standard_normal((4, 9))
    before, inverse = array.copy(), WoodburyRankOneInverse(Views(array), damping)
    inverse.diagonal()
    inverse.submatrix([2, 3, 4])
    assert np.array_equal(array, before)


def test_sizes_may_be_numpys_integers():
    rows = ArrayRows(np.ones((4, 9)))
    rows.shape = (np.int64(4), np.int64(9))
    assert WoodburyRankOneInverse(rows, 1.0).shape == (9, 9)


# --- rows that are not what they say ----------------------------------------------------------------------------------

TALL = np.random.default_rng(4).standard_normal((40, 7)).astype("float32")
LONG = np.random.default_rng(3).standard_normal((4, 600)).astype("float32")


class Source:
    """Shape, dtype and slices, which are what a function makes of the right ones."""

    def __init__(self, made, array, after=0):
        self.array, self.shape, self.dtype, self.made, self.left = array, array.shape, array.dtype, made, after

    def __getitem__(self, part):
        self.left -= 1
        return self.array[part] if self.left >= 0 else self.made(self.array[part])


def answers(gradients, damping, **place):
    """A build, and what asks for all that it has."""
    inverse = WoodburyRankOneInverse(gradients, damping, **place)
    return inverse.matvec(np.ones(inverse.dim, "float32")), inverse.diagonal(), inverse.forward.diagonal()


def raises(error):
    def fail(x):
        raise error

    return fail


SLICES = {
    "None": lambda x: None,
    "too short": lambda x: x[:, :-1],
    "too few": lambda x: x[:-1],
    "none": lambda x: x[:0],
    "too wide": lambda x: np.concatenate([x, x], axis=1),
    "without an axis": lambda x: x.ravel(),
    "with an axis more": lambda x: x[None],
    "one row for all": lambda x: x[:1],
    "one column for all": lambda x: x[:, :1] if x.shape[1] > 1 else x[:, :0],
    "turned": lambda x: x.T if x.shape[0] != x.shape[1] else x[:1],
    "numbers": lambda x: 1.0,
    "text": lambda x: "text",
    "a generator": lambda x: (row for row in x),
    "float64": lambda x: x.astype("float64"),
    "integers": lambda x: x.astype(int),
    "objects": lambda x: x.astype(object),
    "complex": lambda x: x.astype("complex64"),
    "a list": lambda x: x.tolist(),
    "masked": lambda x: np.ma.array(x, mask=x > 0),
    "KeyError": raises(KeyError("lost")),
    "RuntimeError": raises(RuntimeError("lost")),
    "StopIteration": raises(StopIteration("lost")),
    "an error of its own": raises(type("Lost", (Exception,), {})("lost")),
}


@pytest.mark.parametrize("g", [LONG, TALL], ids=["long", "tall"])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("kind", SLICES)
def test_slices_that_are_none_of_the_gradients_are_refused_by_name(kind, after, g, tmp_path):
    for place in ({}, {"memory_limit": 200_000}, {"out": tmp_path / "folder"}):
        source = Source(SLICES[kind], g, after)
        if g is TALL and "out" in place:
            continue
        with pytest.raises((TypeError, ValueError), match="`gradients` must"):
            answers(source, 0.1, **place)


def test_an_error_of_the_disk_or_of_memory_keeps_its_class():
    for error in (OSError(5, "gone"), MemoryError("gone"), type("OutOfMemoryError", (RuntimeError,), {})("gone")):
        with pytest.raises(type(error), match="gone"):
            WoodburyRankOneInverse(Source(raises(error), LONG), 0.1)


def test_a_build_whose_source_failed_is_resumed(tmp_path):
    def failing(path):
        source = Source(raises(KeyError("lost")), LONG, after=2)
        WoodburyRankOneInverse(source, 0.1, out=path)

    with pytest.raises(ValueError, match="`gradients` must"):
        failing(tmp_path / "folder")
    built = WoodburyRankOneInverse(LONG, 0.1, out=tmp_path / "folder", resume=True)
    assert np.array_equal(built.diagonal(), WoodburyRankOneInverse(LONG, 0.1, out=tmp_path / "other").diagonal())


@pytest.mark.parametrize(
    "shape", [None, 4, "ab", (4,), (4, 600, 1), (-4, 600), (4.0, 600), (True, 600), (4, 0), (4, 2**62), [[4], 600]]
)
def test_shapes_that_are_none_are_refused_by_name(shape):
    source = Source(lambda x: x, LONG)
    source.shape = shape
    with pytest.raises((TypeError, ValueError), match="`gradients` must have"):
        WoodburyRankOneInverse(source, 0.1)


@pytest.mark.parametrize("method", ["gram", "project", "combine", "columns", "panels"])
def test_a_method_of_rows_that_raises_is_named(method):
    rows = ArrayRows(LONG)
    setattr(rows, method, lambda *_: {}["lost"])
    with pytest.raises(ValueError, match=rf"`gradients.{method}` must .* KeyError: 'lost'"):
        answers(rows, 0.1 if method == "gram" else np.ones(600, "float32"))
    setattr(rows, method, lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(OSError, match="gone"):
        answers(rows, 0.1 if method == "gram" else np.ones(600, "float32"))


def test_datasets_of_a_file_that_is_closed_are_refused_by_name(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(tmp_path / "g.h5", "w") as file:
        g, out = file.create_dataset("g", data=LONG), file.create_dataset("out", LONG.shape, LONG.dtype)
        built = WoodburyRankOneInverse(g, 0.1)
        outside = WoodburyRankOneInverse(LONG, 0.1, out=out)
    for place in ({}, {"memory_limit": 200_000}, {"out": tmp_path / "folder"}, {"out": np.zeros_like(LONG)}):
        with pytest.raises(ValueError, match="`gradients` must"):
            WoodburyRankOneInverse(g, 0.1, **place)
    with pytest.raises(ValueError, match="`out` must"):
        WoodburyRankOneInverse(LONG, 0.1, out=out)
    for inverse in (built, outside):
        with pytest.raises(ValueError, match="`gradients` must"):
            inverse.matvec(LONG[0])
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("writeable", [True, False])
def test_what_combine_returns_stays_as_it_is(writeable):
    """It may be kept by the rows and returned again."""
    g = np.random.default_rng(0).standard_normal((6, 40))

    known = {}

    class Remembering(ArrayRows):
        def combine(self, coefficients):
            key = coefficients.tobytes()
            if key not in known:
                known[key] = super().combine(coefficients)
                known[key].flags.writeable = writeable
            return known[key]

    inverse = WoodburyRankOneInverse(Remembering(g), 0.1)
    first = inverse.matvec(g[0])
    assert np.array_equal(inverse.matvec(g[0]), first)
    c = np.eye(6)[0]
    pushed = inverse.matvec_gradients(c)
    pushed[:] = 0
    assert np.allclose(inverse.matvec_gradients(c), first)
