"""Forged values for files, folders and states, and the outcome of each."""

import os
import time
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg import _backend
from tests.crafted import read_parts
from tests.stored import WRITTEN, vector

SECONDS = 20.0  # that a load may take, on a machine that others use
VALUES = (
    *(None, True, False, -1, 0, 1, 2, 7, 13, 10**6, 2**40, 10**30, -0.5, 0.5, 1.5, 1e-30, 1e30),
    *("", "x", "mean", "sum", "high", "float32", "float64", "V1000000000", "object", "float16"),
    *([], [1], [0, 0], [4, 12], [4, 13], [2**40, 0], [1.5, "x"], [[1, "x"]], [2, 7, 3], [2, 10], {}, {"a": 1}),
)
"""Every fact is each of these once."""


def rowwise(x):
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(-1)


def with_entry(value):
    def changed(x):
        x = x.astype(np.int64) if x.dtype.kind == "u" and value < 0 else x.copy()
        if x.size:
            x.flat[x.size // 2] = value
        return x

    return changed


DTYPES = ("f2", "f4", "f8", "i4", "i8", "u2", "c16", "bool", "i1", "S8", ">f8")
ARRAYS = {
    "gone": None,
    "twice as large": lambda x: 2 * x,
    "a little larger": lambda x: (x * 1.02).astype(x.dtype),
    "negative": lambda x: -x.astype(np.int64) if x.dtype.kind == "u" else -x,
    "zeros": np.zeros_like,
    "ones": np.ones_like,
    "turned round": lambda x: x[::-1].copy(),
    "transposed": lambda x: np.ascontiguousarray(x.T),
    "shorter": lambda x: x[:-1],
    "narrower": lambda x: x[..., :-1],
    "longer": lambda x: np.concatenate([x, x]),
    "another number of axes": rowwise,
    "three axes": lambda x: x[None, None] if x.ndim < 2 else x[None],
    "a number": lambda x: x.reshape(-1)[:1].reshape(()) if x.size else np.zeros(()),
    "empty": lambda x: x.reshape(-1)[:0],
    "empty and long": lambda x: np.empty((2**40, 0), x.dtype),
    "empty and wide": lambda x: np.empty((0, 2**40), x.dtype),
    "one entry nan": lambda x: with_entry(np.nan)(x if x.dtype.kind == "f" else x.astype(np.float64)),
    "one entry infinite": lambda x: with_entry(np.inf)(x if x.dtype.kind == "f" else x.astype(np.float64)),
    "one entry large": with_entry(9999),
    "one entry negative": with_entry(-1),
    "one entry zero": with_entry(0),
    "one more": lambda x: x + np.ones((), x.dtype),
    "far more": lambda x: x.astype(np.int64) + 10**9 if x.dtype.kind in "iu" else x + np.float64(1e9).astype(x.dtype),
    **{f"as {dtype}": partial(np.ndarray.astype, dtype=dtype) for dtype in DTYPES},
}


def versions(header, arrays):
    """Names and changed headers and arrays: every fact every bad value, every array in every bad way."""
    for name, before in header["facts"].items():
        for value in VALUES:
            if not (type(value) is type(before) and value == before):
                yield f"{name} = {value!r:.20}", {**header, "facts": {**header["facts"], name: value}}, arrays
        rest = {n: x for n, x in header["facts"].items() if n != name}
        yield f"no {name}", {**header, "facts": rest}, arrays
        if isinstance(before, dict):
            for key in before:
                for value in VALUES[::2]:
                    inner = {**before, key: value}
                    yield f"{name}.{key} = {value!r:.20}", {**header, "facts": {**header["facts"], name: inner}}, arrays
    yield "a fact more", {**header, "facts": {**header["facts"], "more": 1}}, arrays
    for name, change in ARRAYS.items():
        for which, x in arrays.items():
            if change is None:
                yield f"no {which}", header, {n: y for n, y in arrays.items() if n != which}
                continue
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed = change(x)
            if changed.dtype != x.dtype or changed.shape != x.shape or not np.array_equal(changed, x):
                yield f"{which} {name}", header, {**arrays, which: changed}
    for which in ("more", "gradients", "whitened", "weights", "damping", "small.index", "error"):
        if which not in arrays:
            yield f"{which} beside", header, {**arrays, which: np.ones(4)}


def dense(found):
    """F of the gradients and arguments that an inverse reports, (d, d), float64."""
    g = found.gradients
    g = np.asarray(g.toarray() if scipy.sparse.issparse(g) else g, np.float64)
    m, d = g.shape
    if isinstance(found, ml.SlidingWindowInverse):
        state = found.state_dict()
        divisor = {"mean": max(1, m), "sum": 1, "window": found.window}[state["normalization"]]
        c = np.maximum(state["decay"] ** np.arange(m - 1.0, -1.0, -1.0), 1e-250) / divisor  # weights end there
    else:
        weights = np.ones(m) if found._weights is None else np.asarray(found._weights, np.float64)
        c = weights / (m if found._normalization == "mean" else 1)
    outer = (g.T * c) @ g
    if isinstance(found, ml.BlockDiagonalInverse):
        block = np.repeat(np.arange(len(found.block_sizes)), found.block_sizes)
        outer = np.where(block[:, None] == block, outer, 0)
        if np.ndim(found.damping) and len(found.damping) == len(found.block_sizes):
            return outer + np.diag(np.repeat(np.asarray(found.damping, np.float64), found.block_sizes))
    return outer + np.diag(np.broadcast_to(np.asarray(found.damping, np.float64), (d,)))


def assert_right(found):
    """Its answers are those of the dense matrix, or none."""
    repr(found)
    if found.dtype is None:
        return
    name = _backend.dtype_name(found.dtype)
    v, forward = vector(found.dim, name), dense(found)
    if np.linalg.cond(forward) > 1e10:
        return  # beyond this oracle
    expected = np.linalg.inv(forward)
    asked = v if isinstance(found._like, np.ndarray) else _backend.asarray(v, like=found._like)
    try:
        x, diagonal, logdet = found.matvec(asked), found.diagonal(), found.logdet()
    except (OverflowError, ml.FactorizationError):
        return  # an error with a name
    limit = (1e-3 if name == "float32" else 1e-7) * np.linalg.norm(expected) + np.finfo(name).tiny
    assert np.linalg.norm(np.asarray(x) - expected @ v) <= limit * np.linalg.norm(v)
    assert np.linalg.norm(np.asarray(diagonal) - np.diagonal(expected)) <= limit
    assert np.isclose(float(logdet), -np.linalg.slogdet(forward)[1], rtol=1e-3, atol=1e-2)


def outcome(path, **place):
    """Whether a file is loaded; refused in time by the one class, or right."""
    start = time.perf_counter()
    try:
        found = ml.load(path, **place)
    except ml.InvalidFileError as refused:
        if "`path`" not in str(refused):
            raise
        return False
    finally:
        assert time.perf_counter() - start < SECONDS
    assert_right(found)
    return True


ALL = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.fixture
def parts():
    return read_parts(WRITTEN / "weighted.npz")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.npz"


def assert_refused(path, words="`path`"):
    start = time.perf_counter()
    with pytest.raises(ml.InvalidFileError, match=words):
        ml.load(path)
    assert time.perf_counter() - start < SECONDS
