"""Masked arrays and matrices of NumPy, as such or in Dask's chunks, are refused by name; empty chunks are not."""

from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.pruning import group_scores, joint_update, obs_scores, relative_damping
from tests.backends import PRESENT
from tests.inputs import ArrayRows, Dataset

G = np.random.default_rng(0).standard_normal((6, 40))
V = np.random.default_rng(1).standard_normal(40)
LAZY = pytest.mark.skipif(not any(b.is_lazy for b in PRESENT), reason="needs dask")


def masked(x):
    return np.ma.masked_greater(x, 1.5)


def unmasked(x):
    return np.ma.masked_array(x, mask=False)


def matrix(x):
    with pytest.warns(PendingDeprecationWarning):
        return np.matrix(x)


class Slices(Dataset):
    """A dataset whose slices are of some class."""

    def __init__(self, array, make):
        super().__init__(array)
        self.make = make

    def __getitem__(self, part):
        return self.make(super().__getitem__(part))


class Rows(ArrayRows):
    """Rows whose columns are of some class."""

    def __init__(self, array, make):
        super().__init__(array)
        self.make = make

    def columns(self, j):
        return self.make(super().columns(j))


BUILT = {
    "static": lambda: ml.WoodburyRankOneInverse(G, 0.1),
    "tall": lambda: ml.WoodburyRankOneInverse(np.concatenate([G] * 8), 0.1),
    "blocks": lambda: ml.BlockDiagonalInverse(G, 0.1, block_sizes=8),
    "window": lambda: ml.SlidingWindowInverse.from_gradients(G, 0.1),
    "top-k": lambda: ml.SlidingWindowInverse.from_gradients(G, 0.1, compression=ml.TopK(0.5)),
}
GRADIENTS = {
    "static": lambda g: ml.WoodburyRankOneInverse(g, 0.1),
    "streamed": lambda g: ml.WoodburyRankOneInverse(g, 0.1, memory_limit=10**8),
    "blocks": lambda g: ml.BlockDiagonalInverse(g, 0.1, block_sizes=8),
    "window": lambda g: ml.SlidingWindowInverse.from_gradients(g, 0.1),
    "append": lambda g: ml.SlidingWindowInverse(4, 40, 0.1).append(g),
    "append_matvec": lambda g: ml.SlidingWindowInverse(4, 40, 0.1).append_matvec(g),
    "replace": lambda g: ml.SlidingWindowInverse.from_gradients(G, 0.1).replace(0, g),
    "extend": lambda g: ml.SlidingWindowInverse(4, 40, 0.1).extend(g),
    "influence": lambda g: influence(ml.WoodburyRankOneInverse(G, 0.1), g),
    "influence of others": lambda g: influence(ml.WoodburyRankOneInverse(G, 0.1), G, g),
    "self_influence": lambda g: self_influence(ml.WoodburyRankOneInverse(G, 0.1), g),
}


@pytest.mark.parametrize("make", [masked, unmasked, matrix])
@pytest.mark.parametrize("call", GRADIENTS)
def test_gradients_have_to_be_plain(call, make):
    with pytest.raises(TypeError, match=r"`(g|gradients|test_gradients|train_gradients)` must be"):
        GRADIENTS[call](make(G[0] if call.startswith("append") or call == "replace" else G))


@pytest.mark.parametrize("make", [masked, unmasked, matrix])
@pytest.mark.parametrize("held", [Slices, Rows])
def test_slices_and_rows_have_to_be_plain(held, make):
    with pytest.raises(TypeError, match=r"`gradients[.\w]*` must"):
        ml.WoodburyRankOneInverse(held(G, make), 0.1) @ V


QUERIES = {
    "v": lambda inverse, x: inverse.matvec(x),
    "@": lambda inverse, x: inverse @ x,
    "on the right": lambda inverse, x: x @ inverse,
    "V": lambda inverse, x: inverse.matmat(x[:, None] if x.ndim == 1 else x.T),
    "x": lambda inverse, x: inverse.forward.matvec(x),
    "quadratic_form": lambda inverse, x: inverse.quadratic_form(x),
    "certificate": lambda inverse, x: inverse.backward_error(V, x),
    "damping_path": lambda inverse, x: inverse.damping_path(x, [0.1]),
    "dampings": lambda inverse, x: inverse.damping_path(V, abs(x)),
    "coefficients": lambda inverse, x: inverse.matvec_gradients(x[: inverse.num_gradients]),
    "damping": lambda inverse, x: inverse.with_damping(abs(x) + 0.1),
    "weights": lambda inverse, x: obs_scores(x, inverse),
    "mask": lambda inverse, x: joint_update(V, inverse, x > 0),
    "groups": lambda inverse, x: group_scores(V, inverse, (0 * x[:2]).astype(int)),
    "indices": lambda inverse, x: inverse.columns((0 * x).astype(int)),
}


@pytest.mark.parametrize("make", [masked, unmasked, matrix])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", BUILT)
def test_arguments_have_to_be_plain(kind, query, make):
    inverse = BUILT[kind]()
    x = make(V if query != "coefficients" else np.resize(V, inverse.num_gradients))
    with pytest.raises(TypeError, match=r"`\w+` must be"):
        QUERIES[query](inverse, x)


@pytest.mark.parametrize("damping", [np.ma.masked, np.ma.array(0.5, mask=True), np.ma.array(0.5)])
@pytest.mark.parametrize("kind", BUILT)
def test_a_masked_number_is_no_damping(kind, damping):
    with pytest.raises(TypeError, match="`damping` must be"):
        BUILT[kind]().with_damping(damping)


@pytest.mark.parametrize("make", [masked, unmasked, matrix])
def test_weights_have_to_be_plain(make):
    for cls, more in ((ml.WoodburyRankOneInverse, {}), (ml.BlockDiagonalInverse, {"block_sizes": 8})):
        with pytest.raises(TypeError, match="`weights` must be"):
            cls(G, 0.1, weights=make(np.full(6, 0.5)), **more)


# --- Dask's chunks --------------------------------------------------------------------------------------------------


def lazily(x, chunks):
    da = pytest.importorskip("dask.array")
    return da.from_array(x, chunks=chunks)


CHUNKS = [
    ((6,), (0, 10, 0, 30), {}),
    ((0, 6), (40, 0), {}),
    ((6, 0), (0, 0, 40, 0), {}),
    ((6,), (1, 0, 38, 0, 1), {"damping": "vector"}),
    ((6,), (0, 10, 30), {"precision": "high"}),
    ((0, 48), (0, 10, 0, 30), {"tall": True}),
]


@LAZY
@pytest.mark.parametrize(("rows", "widths", "options"), CHUNKS, ids=str)
def test_chunks_of_no_columns_change_no_answer(rows, widths, options):
    precision = options.get("precision", "default")
    g = np.concatenate([G] * 8) if "tall" in options else G
    g = g.astype("float32") if precision == "high" else g
    damping = np.linspace(0.1, 1, 40).astype(g.dtype) if "damping" in options else 0.1
    given = lazily(damping, (widths,)) if "damping" in options else damping
    inverse = ml.WoodburyRankOneInverse(lazily(g, (rows, widths)), given, precision=precision)
    wanted = ml.WoodburyRankOneInverse(g, damping, precision=precision)
    v = V.astype(g.dtype)
    for found, right in (
        (inverse @ lazily(v, (widths,)), wanted @ v),
        (inverse @ lazily(v, 7), wanted @ v),
        (inverse.matmat(lazily(v[:, None], (widths, (1, 0)))), wanted.matmat(v[:, None])),
        (inverse.diagonal(), wanted.diagonal()),
        (inverse.submatrix([3, 39]), wanted.submatrix([3, 39])),
        (inverse.matvec_gradients(g[:, 0]), wanted.matvec_gradients(g[:, 0])),
        (inverse.forward.diagonal(), wanted.forward.diagonal()),
        (influence(inverse, lazily(g[:3], ((0, 3), widths))), influence(wanted, g[:3])),
    ):
        np.testing.assert_allclose(np.asarray(found), right, rtol=1e-3 if precision == "high" else 1e-8, atol=1e-6)


@LAZY
@pytest.mark.parametrize("make", [masked, matrix, scipy.sparse.csr_array])
@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_chunks_have_to_be_plain(make, told):
    """`told`: Dask knows what its chunks are, because it has tried; else it learns when it computes."""
    known = {} if told else {"meta": np.empty((0, 0))}
    with pytest.warns(PendingDeprecationWarning) if make is matrix else nullcontext():
        gradients = lazily(G, (6, 10)).map_blocks(np.matrix if make is matrix else make, dtype=float, **known)
        with pytest.raises(TypeError, match="`gradients`"):
            (ml.WoodburyRankOneInverse(gradients, 0.1) @ lazily(V, 10)).compute()


@LAZY
@pytest.mark.parametrize("query", QUERIES)
def test_lazy_arguments_have_to_be_plain(query):
    da = pytest.importorskip("dask.array")
    inverse = ml.WoodburyRankOneInverse(lazily(G, (6, 10)), 0.1)
    x = da.ma.masked_greater(lazily(V if query != "coefficients" else V[:6], 10), 1.5)
    with pytest.raises(TypeError, match=r"`\w+` must be"):
        QUERIES[query](inverse, x)


@LAZY
def test_chunks_of_unknown_sizes_are_refused():
    lazy = lazily(G, (6, 10))
    for gradients in (lazy[:, lazy[0] > 0], lazy[lazy[:, 0] > 0]):
        with pytest.raises(TypeError, match="`gradients` must have NumPy arrays of known sizes"):
            ml.WoodburyRankOneInverse(gradients, 0.1)
    inverse = ml.WoodburyRankOneInverse(lazy, 0.1)
    unknown = lazily(V, 10)
    with pytest.raises(ValueError, match="`v` must have shape"):
        inverse @ unknown[unknown > -9]


OTHERS = [("float32", "float64"), ("float64", "float32"), ("int64", "float64"), ("complex128", "float64")]
OTHERS += [("float16", "float32"), ("bool", "float64"), ("object", "float64"), ("longdouble", "float64")]


def lazy_array(x, dtype, made):
    """A lazy array of one dtype whose chunks are of another."""
    da = pytest.importorskip("dask.array")
    lazy = da.from_array(x, chunks=(*x.shape[:-1], 16))
    return lazy.map_blocks(lambda chunk: chunk.astype(made), dtype=dtype, meta=np.empty((0,) * x.ndim, dtype))


ASKED = {
    "v": lambda inverse, x: np.asarray(inverse @ x),
    "V": lambda inverse, x: np.asarray(inverse @ x[:, None]),
    "x": lambda inverse, x: np.asarray(inverse.forward @ x),
    "coefficients": lambda inverse, x: np.asarray(inverse.matvec_gradients(x[:6])),
    "weights": lambda inverse, x: np.asarray(obs_scores(x, inverse)),
    "test_gradients": lambda inverse, x: influence(inverse, x[None, :]),
}


@LAZY
@pytest.mark.parametrize(("made", "dtype"), OTHERS)
def test_chunks_of_another_dtype_than_declared_are_refused(made, dtype):
    right = {"gradients": lazy_array(G.astype(dtype), dtype, dtype), "damping": lazy_array(V**2 + 1, dtype, dtype)}
    right["weights"] = lazy_array(np.ones(6), dtype, dtype)
    inverse = ml.WoodburyRankOneInverse(**right)
    for name, x in {"gradients": G, "damping": V**2 + 1, "weights": np.ones(6)}.items():
        with pytest.raises(TypeError, match=f"`{name}` must have"):
            ml.WoodburyRankOneInverse(**right | {name: lazy_array(x, dtype, made)})
    for name, ask in ASKED.items():
        with pytest.raises(TypeError, match=f"`{name}` must have"):
            ask(inverse, lazy_array(V, dtype, made))
    with pytest.raises(TypeError, match="`gradients` must have chunks"):
        ml.WoodburyRankOneInverse(lazy_array(G.repeat(8, axis=0), dtype, made), 0.1)  # m ≥ d


@LAZY
def test_chunks_of_another_shape_than_declared_are_refused():
    narrow = lazy_array(G, "float64", "float64").map_blocks(lambda chunk: chunk[:, ::2])
    with pytest.raises(ValueError, match="`gradients` must have chunks of the shape"):
        ml.WoodburyRankOneInverse(narrow, 0.1)


@LAZY
def test_chunks_in_another_byte_order_are_those_of_the_dtype():
    inverse = ml.WoodburyRankOneInverse(lazy_array(G, "float64", ">f8"), 0.1)
    assert np.allclose(inverse @ lazy_array(V, "float64", ">f8"), ml.WoodburyRankOneInverse(G, 0.1) @ V)


# --- PyTorch's tensors that are no plain arrays -----------------------------------------------------------------------


KINDS_OF_TENSOR = {
    "sparse_coo": lambda torch, x: x.to_sparse(),
    "sparse_csr": lambda torch, x: (x if x.ndim == 2 else x[None, :]).to_sparse_csr(),
    "nested": lambda torch, x: torch.nested.nested_tensor(list(x) if x.ndim == 2 else [x, x[:1]]),
    "jagged": lambda torch, x: torch.nested.nested_tensor([x[:1], x[:2]], layout=torch.jagged),
    "quantized": lambda torch, x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "mkldnn": lambda torch, x: x.float().to_mkldnn(),
    "masked": lambda torch, x: torch.masked.masked_tensor(x, x > 0),
}
WITH_TENSORS = {
    "gradients": [
        lambda torch, make: ml.WoodburyRankOneInverse(make(G), 0.1),
        lambda torch, make: ml.WoodburyRankOneInverse(make(G), 0.1, memory_limit=10**8),
        lambda torch, make: ml.BlockDiagonalInverse(make(G), 0.1, block_sizes=8),
        lambda torch, make: ml.SlidingWindowInverse.from_gradients(make(G), 0.1),
        lambda torch, make: ml.SlidingWindowInverse(4, 40, 0.1).extend(make(G)),
        lambda torch, make: relative_damping(make(G), 0.1),
        lambda torch, make: self_influence(in_torch(torch), make(G)),
    ],
    "test_gradients": [lambda torch, make: influence(in_torch(torch), make(G))],
    "g": [
        lambda torch, make: ml.SlidingWindowInverse(4, 40, 0.1).append(make(V)),
        lambda torch, make: ml.SlidingWindowInverse(4, 40, 0.1).append_matvec(make(V)),
    ],
    "v|V": [
        lambda torch, make: in_torch(torch) @ make(V),
        lambda torch, make: make(V) @ in_torch(torch),
        lambda torch, make: in_torch(torch).quadratic_form(make(V)),
        lambda torch, make: in_torch(torch).damping_path(make(V), [0.1]),
        lambda torch, make: in_torch(torch).matmat(make(G)),
    ],
    "x|X": [lambda torch, make: in_torch(torch).forward @ make(V)],
    "coefficients": [lambda torch, make: in_torch(torch).matvec_gradients(make(V[:6]))],
    "damping": [
        lambda torch, make: ml.WoodburyRankOneInverse(torch.tensor(G), make(V**2)),
        lambda torch, make: ml.BlockDiagonalInverse(torch.tensor(G), make(V**2), block_sizes=8),
        lambda torch, make: ml.SlidingWindowInverse(4, 40, make(V**2)),
        lambda torch, make: in_torch(torch).with_damping(make(V**2)),
    ],
    "weights": [
        lambda torch, make: ml.WoodburyRankOneInverse(torch.tensor(G), 0.1, weights=make(V[:6] ** 2)),
        lambda torch, make: obs_scores(make(V), in_torch(torch)),
        lambda torch, make: joint_update(make(V), in_torch(torch), torch.tensor(V > 0)),
    ],
    "dampings": [lambda torch, make: in_torch(torch).damping_path(torch.tensor(V), make(V**2))],
    "j": [lambda torch, make: in_torch(torch).columns(make(V))],
    "groups": [lambda torch, make: group_scores(torch.tensor(V), in_torch(torch), make(G))],
    "block_sizes": [lambda torch, make: ml.BlockDiagonalInverse(torch.tensor(G), 0.1, block_sizes=make(V))],
}


def in_torch(torch):
    return ml.WoodburyRankOneInverse(torch.tensor(G), 0.1)


@pytest.mark.filterwarnings("ignore:.*(prototype|nested|[Ss]parse|quantiz|deprecated)")
@pytest.mark.parametrize("kind", KINDS_OF_TENSOR)
@pytest.mark.parametrize("name", WITH_TENSORS)
def test_tensors_that_are_no_plain_arrays_are_refused_by_name(name, kind):
    torch = pytest.importorskip("torch", reason="needs torch")
    for call in WITH_TENSORS[name]:
        with pytest.raises(TypeError, match=rf"`({name})` must be a plain tensor; got a "):
            call(torch, lambda x: KINDS_OF_TENSOR[kind](torch, torch.tensor(x)))
