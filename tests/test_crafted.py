"""Files whose checksums are right and whose contents are made up: refused, or answered as what they say."""

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg import _backend, _files
from tests.crafted import as_npy, described, put_together, taken_apart
from tests.held import Dataset
from tests.problems import KINDS, make_problem
from tests.stored import SAVED, WRITTEN, gradients, vector, window

ROOT = Path(__file__).parents[1]
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
    """F of what an inverse says that it holds, (d, d), float64."""
    g = found.gradients
    g = np.asarray(g.toarray() if scipy.sparse.issparse(g) else g, np.float64)
    m, d = g.shape
    if isinstance(found, ml.SlidingWindowInverse):
        c = (
            found._options.weights(m)
            / {"mean": max(1, m), "sum": 1, "window": found.window}[found._options.normalization]
        )
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


def all_outcomes(path, header, arrays, every=1, **place):
    """How many made-up files were loaded and right; fails where one was neither that nor refused."""
    wrong, loaded = [], 0
    chosen = list(versions(header, arrays))
    start = 0 if every == 1 else len(arrays) % every
    for what, changed_header, changed_arrays in chosen[start::every]:
        put_together(path, changed_header, changed_arrays)
        try:
            loaded += outcome(path, **place)
        except BaseException as failure:
            wrong.append(f"{what}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)
    return loaded


ALL = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("name", SAVED)
def test_a_file_with_anything_made_up_is_refused_or_answered_as_it_says(name, tmp_path):
    header, arrays = taken_apart(WRITTEN / f"{name}.npz")
    put_together(tmp_path / "x.npz", header, arrays)
    assert outcome(tmp_path / "x.npz")
    loaded = all_outcomes(tmp_path / "x.npz", header, arrays, every=1 if ALL else 4)
    assert loaded <= 60  # of hundreds: a damping, a capacity, a divisor of rows that are not at hand


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("name", ["weighted", "half", "tall", "blocks", "window", "compressed-window"])
def test_the_same_under_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    header, arrays = taken_apart(WRITTEN / f"{name}.npz")
    all_outcomes(tmp_path / "x.npz", header, arrays, every=2 if ALL else 16, xp=torch)


@pytest.mark.parametrize("name", ["single", "half"])
def test_the_same_under_jax(name, tmp_path):
    jax = pytest.importorskip("jax", reason="needs jax")
    header, arrays = taken_apart(WRITTEN / f"{name}.npz")
    all_outcomes(tmp_path / "x.npz", header, arrays, every=4 if ALL else 40, xp=jax.numpy)


# --- what a file is made of -------------------------------------------------------------------------------------------


@pytest.fixture
def parts():
    return taken_apart(WRITTEN / "weighted.npz")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.npz"


def assert_refused(path, words="`path`"):
    start = time.perf_counter()
    with pytest.raises(ml.InvalidFileError, match=words):
        ml.load(path)
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", ["schema", "version", "kind", "facts", "arrays"])
def test_a_header_of_other_types_is_refused(name, value, path, parts):
    header, arrays = parts
    put_together(
        path,
        {**header, "arrays": {n: described(x, as_npy(x)) for n, x in arrays.items()}, name: value},
        arrays,
        describe=False,
    )
    is_first = name == "schema" and type(value) is int and value < 2  # 0 and below have never been
    if not is_first and not (name == "version" and isinstance(value, str)):
        assert_refused(path)


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", ["shape", "dtype", "sha256"])
def test_an_array_described_otherwise_is_refused(name, value, path, parts):
    header, arrays = parts
    told = {n: described(x, as_npy(x)) for n, x in arrays.items()}
    told["weights"][name] = value
    put_together(path, {**header, "arrays": told}, arrays, describe=False)
    if (name, value) != ("dtype", "float64"):
        assert_refused(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" + "[]," * 400_000 + "[]]",
        '{"schema": ' + "9" * 5_000 + "}",
        '{"schema": 1e999, "version": "", "kind": "", "facts": {}, "arrays": {}}',
        '{"schema": NaN, "version": "", "kind": "", "facts": {}, "arrays": {}}',
        "null",
        "[]",
        '""',
        "",
        "{}",
        " " * 2**25,
        '{"schema": 1, "schema": 1}',
    ],
    ids=[
        "lists",
        "dictionaries",
        "wide",
        "digits",
        "infinity",
        "nan",
        "null",
        "list",
        "text",
        "nothing",
        "empty",
        "long",
        "twice",
    ],
)
def test_a_header_that_is_none_is_refused(text, path, parts):
    put_together(path, *parts, text=text)
    assert_refused(path)


def test_a_fact_that_is_there_twice_is_refused(path, parts):
    header, arrays = parts
    told = {n: described(x, as_npy(x)) for n, x in arrays.items()}
    text = json.dumps({**header, "arrays": told})
    put_together(path, header, arrays, text=text)
    ml.load(path)
    put_together(path, header, arrays, text=text.replace('"damping": null', '"damping": null, "damping": null'))
    assert_refused(path, "twice")


def test_a_member_that_is_not_listed_is_refused(path, parts):
    put_together(path, *parts, members=(("more.npy", as_npy(np.ones(3))),))
    assert_refused(path, "members")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", ["weights.npy", "header.json"])
def test_a_member_that_is_there_twice_is_refused(name, path, parts):
    put_together(path, *parts, members=((name, as_npy(np.ones(4))),))
    assert_refused(path)


def test_a_header_that_is_compressed_is_refused(path, parts):
    put_together(path, *parts, compression=zipfile.ZIP_DEFLATED)
    assert_refused(path, "compressed")


@pytest.mark.parametrize("where", ["before", "between"])
def test_anything_beside_the_members_is_refused(where, path, parts):
    put_together(path, *parts)
    whole = path.read_bytes()
    at = 0 if where == "before" else whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:at] + bytes(100) + whole[at:])
    assert_refused(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of memory as Linux has them")
def test_a_file_asks_for_no_more_memory_than_it_fills(path):
    """Within the address space of a small machine; a process that is killed, or that hangs, fails."""
    code = """
import resource, sys, mfac_linalg as ml
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
try:
    ml.load(sys.argv[1])
except ml.InvalidFileError as refused:
    print(refused)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    for name, facts in (
        ("empty-window", {"window": 10**6}),
        ("window", {"window": 10**6}),
        ("window", {"window": 20_000}),
        ("unplaced-window", {"window": 10**9, "dim": 10**9}),
        ("compressed-window", {"window": 10**6}),
    ):
        header, arrays = taken_apart(WRITTEN / f"{name}.npz")
        put_together(path, {**header, "facts": {**header["facts"], **facts}}, arrays)
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "`window` must leave room" in done.stdout


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small inverse in a folder, with small entries of its diagonal."""
    path = tmp_path_factory.mktemp("crafted") / "folder"
    g = gradients(4, 40)
    g[:, :2] *= 50
    ml.WoodburyRankOneInverse(g, 0.3, out=path)
    return path


def copied(folder, path):
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_a_folder_with_anything_made_up_is_refused_or_answered_as_it_says(folder, tmp_path):
    made_up = copied(folder, tmp_path / "x")
    assert outcome(made_up)
    header, arrays = taken_apart(folder / "inverse.npz")
    assert len(arrays["small.index"])
    wrong = []
    for what, changed_header, changed_arrays in list(versions(header, arrays))[:: 1 if ALL else 3]:
        put_together(made_up / "inverse.npz", changed_header, changed_arrays)
        try:
            outcome(made_up)
        except BaseException as failure:
            wrong.append(f"{what}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)


def test_runs_that_are_none_are_refused(folder, tmp_path):
    made_up = copied(folder, tmp_path / "x")
    header, arrays = taken_apart(folder / "inverse.npz")
    ((stop, digest),) = header["facts"]["whitened"]["runs"]
    for runs in (
        [],
        [[stop, digest, 1]],
        [[stop, digest[:-1]]],
        [[stop, 5]],
        [[float(stop), digest]],
        [[0, digest]],
        [[stop - 1, digest]],
        [[stop + 1, digest]],
        [[stop, digest], [stop, digest]],
        [[10**30, digest]],
        [[True, digest]],
    ):
        changed = copy.deepcopy(header)
        changed["facts"]["whitened"]["runs"] = runs
        put_together(made_up / "inverse.npz", changed, arrays)
        assert_refused(made_up, "whole folder")


W_FILES = {
    "transposed": lambda w: np.save("whitened.npy", np.ascontiguousarray(w.T)),
    "by rows": lambda w: np.save("whitened.npy", np.ascontiguousarray(w)),
    "of another dtype": lambda w: np.save("whitened.npy", w.astype("float32")),
    "of objects": lambda w: np.save("whitened.npy", w.astype(object)),
    "wide": lambda w: np.save("whitened.npy", np.empty((0, 2**40))),
    "no .npy": lambda w: Path("whitened.npy").write_bytes(b"x" * 1000),
    "a pipe": lambda w: os.mkfifo("whitened.npy"),
    "a folder": lambda w: os.mkdir("whitened.npy"),
}


@pytest.mark.parametrize("kind", W_FILES)
def test_whitened_rows_of_another_form_are_refused(kind, folder, tmp_path, monkeypatch):
    made_up = copied(folder, tmp_path / "x")
    monkeypatch.chdir(made_up)
    w = np.load("whitened.npy")
    os.unlink("whitened.npy")
    W_FILES[kind](w)
    with pytest.raises((ml.InvalidFileError, OSError), match="`path`"):
        ml.load(made_up)


def begun(path):
    """A folder in which a build has stopped, and what it was asked."""

    class Failing(Dataset):
        left = 1.6

        def __getitem__(self, part):
            found = super().__getitem__(part)
            self.left -= found.size / self.array.size
            if self.left < 0:
                raise OSError(5, "gone")
            return found

    g = gradients(4, 2500, "float32")
    with pytest.raises(OSError, match="gone"):
        ml.WoodburyRankOneInverse(Failing(g), 0.3, out=path, memory_limit=240_000)
    return g


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
def test_a_journal_with_anything_made_up_is_refused_or_finished_right(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)
    g = begun(tmp_path / "begun")
    monkeypatch.undo()
    header, arrays = taken_apart(tmp_path / "begun" / "build.npz")
    w = (tmp_path / "begun" / "whitened.npy").read_bytes()
    expected = ml.WoodburyRankOneInverse(g, 0.3).diagonal()
    wrong, finished = [], 0
    for what, changed_header, changed_arrays in list(versions(header, arrays))[:: 1 if ALL else 4]:
        target = tmp_path / what.replace("/", "")
        target.mkdir()
        (target / "whitened.npy").write_bytes(w)
        put_together(target / "build.npz", changed_header, changed_arrays)
        try:
            built = ml.WoodburyRankOneInverse(g, 0.3, out=target, resume=True, memory_limit=240_000)
            assert np.allclose(built.diagonal(), expected, rtol=1e-3)
            finished += 1
        except (ml.InvalidFileError, ValueError) as refused:
            if "`out`" not in str(refused):
                wrong.append(f"{what}: {refused!s:.200}")
        except BaseException as failure:
            wrong.append(f"{what}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)


FORGED = {
    "zeros": np.zeros_like,
    "twice as large": lambda w: 2 * w,
    "without its last row": lambda w: np.concatenate([w[:-1], 0 * w[-1:]]),
    "without its first row": lambda w: np.concatenate([0 * w[:1], w[1:]]),
    "without half of its columns": lambda w: np.where(np.arange(w.shape[1]) % 2, w, 0),
}
KAPPAS = (1 + 1e-9, 2.0, 1e4, 1e8, 1e13, 1e17)


@pytest.fixture
def any_kappa():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ml.IllConditionedWarning)
        yield


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kappa", KAPPAS)
def test_whitened_rows_that_are_made_up_are_refused_whatever_kappa(kappa, dtype, path, any_kappa):
    problem = make_problem(1, kind="gaussian", kappa=kappa, dtype=dtype)
    g = problem.gradients * np.logspace(0, -1.5, 6).astype(dtype)[:, None]
    ml.WoodburyRankOneInverse(g, problem.damping, overwrite_gradients=True).save(path)
    header, arrays = taken_apart(path)
    assert "gradients" not in arrays or kappa > 1e4
    arrays.pop("gradients", None)
    for name, change in FORGED.items():
        put_together(path, header, {**arrays, "whitened": change(arrays["whitened"])})
        with pytest.raises(ml.InvalidFileError, match="`whitened` must be"):
            pytest.fail(f"{name}: {ml.load(path)}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded_whatever_kappa_and_rows(kind, dtype, tmp_path, any_kappa):
    for number, (kappa, graded) in enumerate([(2.0, 0), (1e6, 8), (1e13, 0), (1e17, 8)]):
        problem = make_problem(number, kind=kind, kappa=kappa, dtype=dtype, weighted=number % 2 == 1)
        g = (problem.gradients * np.logspace(0, -graded, 6)[::-1, None]).astype(dtype)
        options = {"damping": problem.damping, "weights": problem.weights}
        for place in ({"overwrite_gradients": True}, {"out": tmp_path / f"{number}"}, {"whiten": False}):
            built = ml.WoodburyRankOneInverse(g.copy(), **options, **place)
            saved = place.get("out", tmp_path / "x.npz")
            if "out" not in place:
                built.save(saved)
            assert np.array_equal(ml.load(saved).diagonal(), built.diagonal())
        window = ml.SlidingWindowInverse.from_gradients(g, problem.damping)
        window.save(tmp_path / "x.npz")
        assert np.array_equal(ml.load(tmp_path / "x.npz").matvec(g[0]), window.matvec(g[0]))


def stopped(path, kappa, dim):
    """Gradients and the damping of a build that stopped after its first pass."""

    class Unfinished(_files.folder.Folder):
        def write(self, columns, block):
            raise OSError(5, "gone")

    g = gradients(4, dim, "float32")
    damping = float(np.linalg.norm(g, 2)) ** 2 / 4 / (kappa - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfac_linalg._static.woodbury.Folder", Unfinished)
        with pytest.raises(OSError, match="gone"):
            ml.WoodburyRankOneInverse(g, damping, out=path)
    return g, damping


@pytest.mark.parametrize("kappa", KAPPAS[1:])
@pytest.mark.parametrize("change", [np.zeros_like, np.eye, lambda gram: 4 * gram], ids=["zeros", "identity", "larger"])
def test_a_gram_matrix_that_a_journal_makes_up_changes_no_answer_whatever_kappa(change, kappa, tmp_path, any_kappa):
    g, damping = stopped(tmp_path / "begun", kappa, 2500)
    header, arrays = taken_apart(tmp_path / "begun" / "build.npz")
    arrays = {name: change(len(x)) if change is np.eye else change(x) for name, x in arrays.items()}
    assert arrays
    put_together(tmp_path / "begun" / "build.npz", header, arrays)
    expected = ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "new").diagonal()
    with contextlib.suppress(ml.InvalidFileError):  # or, of zeros, another Gram matrix, of scaled rows
        built = ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "begun", resume=True)
        assert np.allclose(built.diagonal(), expected, rtol=1e-3)


@pytest.mark.parametrize("value", [1e30, -1e30, 1e300])
def test_a_journal_asks_for_no_more_memory_than_its_build(value, tmp_path, any_kappa):
    g, damping = stopped(tmp_path / "begun", 1e4, 6000)
    header, arrays = taken_apart(tmp_path / "begun" / "build.npz")
    put_together(tmp_path / "begun" / "build.npz", header, {n: np.full_like(x, value) for n, x in arrays.items()})
    tracemalloc.start()
    with contextlib.suppress(ml.InvalidFileError):  # or another Gram matrix, of scaled rows
        built = ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "begun", resume=True)
        assert np.allclose(built.diagonal(), ml.WoodburyRankOneInverse(g, damping).diagonal(), rtol=1e-3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_journal_of_more_small_entries_than_rows_can_have_is_refused(tmp_path, monkeypatch):
    """Each would cost a pass over the rows."""
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)
    g = begun(tmp_path / "begun")
    header, arrays = taken_apart(tmp_path / "begun" / "build.npz")
    put_together(tmp_path / "begun" / "build.npz", header, {**arrays, "whiten: small": np.arange(9)})
    with pytest.raises(ml.InvalidFileError, match="`out` must hold a whole journal"):
        ml.WoodburyRankOneInverse(g, 0.3, out=tmp_path / "begun", resume=True, memory_limit=240_000)


@pytest.mark.parametrize("kappa", [1e11, 1e13])
def test_a_factor_whose_small_rows_are_made_up_is_made_anew(kappa, path, any_kappa):
    g = np.random.default_rng(0).standard_normal((4, 30)) * np.array([[1.0], [1e-3], [1e-5], [1e-6]])
    built = ml.WoodburyRankOneInverse(g, np.linalg.norm(g, 2) ** 2 / 4 / kappa, whiten=False)
    built.save(path)
    header, arrays = taken_apart(path)
    arrays["factor"][-1, -1] *= 0.3
    put_together(path, header, arrays)
    assert np.allclose(ml.load(path).matvec(g[3]), built.matvec(g[3]), rtol=1e-9)


# --- state dictionaries -----------------------------------------------------------------------------------------------


STATE_VALUES = (*VALUES, np.nan, np.inf, -np.inf, object(), np.ones(3), np.ones((4, 12), "float32"), np.array(2.0))


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("compression", [None, ml.TopK(0.5, block_size=5)], ids=["whole", "compressed"])
def test_a_state_with_anything_made_up_is_refused_by_name_or_answered_as_it_says(compression):
    state, wrong = window(compression).state_dict(), []
    for name, before in state.items():
        values = [*STATE_VALUES]
        if isinstance(before, np.ndarray):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values += [change(before) for change in ARRAYS.values() if change]
        for value in values[:: 1 if ALL else 2]:
            try:
                assert_right(ml.SlidingWindowInverse.from_state_dict({**state, name: value}))
            except (TypeError, ValueError) as refused:
                if name not in str(refused):
                    wrong.append(f"{name} = {value!r:.40}: {type(refused).__name__} {refused!s:.200}")
            except BaseException as failure:
                wrong.append(f"{name} = {value!r:.40}: {type(failure).__name__} {failure!s:.200}")
        rest = {n: x for n, x in state.items() if n != name}
        if name != "compression":  # which may be left out
            with pytest.raises(ValueError, match=name):
                ml.SlidingWindowInverse.from_state_dict(rest)
    assert not wrong, "\n".join(wrong)


def test_a_compression_stands_in_a_dictionary_of_its_own_or_beside_the_rest():
    state = window(ml.TopK(0.5, block_size=5)).state_dict()
    nested = {name.removeprefix("compression."): x for name, x in state.items() if name.startswith("compression.")}
    nested = nested or state["compression"]
    rest = {name: x for name, x in state.items() if not name.startswith("compression")}
    flat = {f"compression.{name}": x for name, x in nested.items() if x is not None}
    for form in ({"compression": nested}, flat):
        found = ml.SlidingWindowInverse.from_state_dict({**rest, **form})
        assert np.array_equal(found.matvec(vector()), window(ml.TopK(0.5, block_size=5)).matvec(vector()))


@pytest.mark.parametrize("size", [10**6, 10**30])
def test_a_window_that_no_memory_holds_is_refused_by_name(size):
    for place in ({}, {"xp": np}):
        with pytest.raises(ValueError, match="`window` must "):
            ml.SlidingWindowInverse(size, 6, 0.1, **place)
        with pytest.raises(ValueError, match="`dim` must "):
            ml.SlidingWindowInverse(2, 10**30, 0.1, **place)


@pytest.mark.parametrize("shape", [(2**50,), (2**25, 2**25), (2**61,), (2**33,)], ids=str)
def test_no_memory_is_taken_for_an_array_that_is_shorter_than_its_header_says(shape, path, parts):
    """Both the archive's header and the array's own say so, and neither is believed."""
    header, arrays = parts
    told = {n: described(x, as_npy(x)) for n, x in arrays.items()}
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    content = file.getvalue() + bytes(64)
    told["weights"] = {"shape": list(shape), "dtype": "float64", "sha256": hashlib.sha256(content).hexdigest()}
    rest = {n: x for n, x in arrays.items() if n != "weights"}
    put_together(path, {**header, "arrays": told}, rest, describe=False, members=(("weights.npy", content),))
    tracemalloc.start()
    assert_refused(path, "weights is not as long as the header says")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def replaced_at(state, keys, value):
    """A state dictionary with another value under some keys, one in the other."""
    return value if not keys else {**state, keys[0]: replaced_at(state[keys[0]], keys[1:], value)}


def leaves(state, keys=()):
    """The keys of what is no dictionary, and its values."""
    for name, value in state.items():
        yield from (leaves(value, (*keys, name)) if isinstance(value, dict) else [((*keys, name), value)])


@pytest.mark.parametrize("compressed", [False, True])
def test_an_optimizers_state_with_anything_made_up_is_refused_or_taken(compressed):
    torch = pytest.importorskip("torch", reason="needs torch")
    from mfac_linalg.torch import MFAC

    def made():
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        compression = ml.TopK(0.5, block_size=3) if compressed else None
        return weights, MFAC([weights], lr=0.1, window=3, damping=0.1, momentum=0.9, compression=compression)

    weights, optimizer = made()
    for step in range(5):
        weights.grad = torch.sin(torch.arange(6.0) * 1.3 + step)
        optimizer.step()
    state, wrong = optimizer.state_dict(), []
    values = (*VALUES, math.nan, torch.ones(3), torch.full((2, 2), math.nan), torch.ones(3, dtype=torch.float64))
    for keys, before in leaves(state["state"]):
        changed = []
        if isinstance(before, torch.Tensor) and before.ndim and before.is_floating_point():
            changed = [2 * before, -before, before[:-1], before * math.nan]
        for value in [*values[:: 1 if ALL else 4], *values[-4:], *changed]:
            weights, optimizer = made()
            try:
                optimizer.load_state_dict({**state, "state": replaced_at(state["state"], keys, value)})
            except (TypeError, ValueError) as refused:
                if "state" not in str(refused) and keys[-1] not in str(refused):
                    wrong.append(f"{keys} = {value!r:.40}: {refused!s:.200}")
            except BaseException as failure:
                wrong.append(f"{keys} = {value!r:.40}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)
