"""Files: the same answers to the bit, nothing damaged accepted, the old or the new file whole at any moment."""

import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg import _files
from mfac_linalg.testing.strategies import problems
from tests.backends import AVAILABLE, FLOATS
from tests.cases import BUILT, build, built_name
from tests.inputs import ArrayRows
from tests.stored import SAVED, WRITTEN

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("array_api_strict", "dask.array")  # no values to store, or no library to load
STORED = [which for which in BUILT if which[2].is_rebuilt and which[0].library not in ELSEWHERE]
G = np.random.default_rng(0).standard_normal((3, 5))


def place(backend):
    """The arguments of `load` for a backend's library and device."""
    if backend.library == "numpy":
        return {}
    return {"xp": backend.namespace, "device": backend.asarray(np.zeros(1, "float32")).device}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "inverse.npz"


@pytest.fixture
def saved(path):
    """A small file with whitened rows, weights and a vector damping."""
    ml.WoodburyRankOneInverse(G, np.linspace(0.1, 1, 5), weights=np.ones(3)).save(path)
    return path


@pytest.mark.parametrize("which", STORED, ids=built_name)
def test_a_loaded_inverse_gives_the_same_answers(which, path):
    built = build(*which)
    built.inverse.save(path)
    found = ml.load(path, **place(built.backend))
    v = built.send(built.vectors(built.inverse.dim))
    assert repr(found) == repr(built.inverse)
    assert type(found.matvec(v)) is type(built.inverse.matvec(v))
    for ask in (lambda i: i.matvec(v), lambda i: i.diagonal(), lambda i: i.logdet(), lambda i: i.forward @ v):
        assert np.array_equal(built.fetch(ask(found)), built.fetch(ask(built.inverse)))


@pytest.mark.parametrize("which", STORED, ids=built_name)
def test_a_loaded_inverse_goes_on_like_the_saved_one(which, path):
    built = build(*which)
    built.inverse.save(path)
    v = built.send(built.vectors(built.inverse.dim))
    found, expected = (i.with_damping(2.0).matvec(v) for i in (ml.load(path, **place(built.backend)), built.inverse))
    assert np.array_equal(built.fetch(found), built.fetch(expected))


@pytest.mark.parametrize("backend", AVAILABLE, ids=repr)
def test_what_any_library_saved_numpy_loads(backend, path):
    built = build(backend, "float32", next(which[2] for which in BUILT if which[0] is backend))
    built.inverse.save(path)
    v = built.vectors(built.inverse.dim)
    assert np.allclose(ml.load(path).matvec(v), built.fetch(built.inverse.matvec(built.send(v))), rtol=1e-4)


def filled_window(steps, **options):
    window = ml.SlidingWindowInverse(4, 5, 0.1, **options)
    for g in np.random.default_rng(1).standard_normal((steps, 5)):
        window.append(g)
    return window


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"normalization": "sum"}, {"precision": "high"}], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 4, 11])
def test_a_loaded_window_takes_the_same_steps(steps, options, path):
    window = filled_window(steps, **options)
    window.save(path)
    found = ml.load(path)
    for g in np.random.default_rng(2).standard_normal((9, 5)):
        assert np.array_equal(found.append_matvec(g), window.append_matvec(g))


@pytest.mark.parametrize("damping", [0.1, np.array([0.1, 0.5, 2.0])], ids=["scalar", "per block"])
@pytest.mark.parametrize("held", [np.asarray, scipy.sparse.csc_array])
def test_loaded_blocks_give_the_same_answers(held, damping, path):
    inverse = ml.BlockDiagonalInverse(held(G), damping, block_sizes=2, weights=np.array([1.0, 2, 3]))
    inverse.save(path)
    assert np.array_equal(ml.load(path).diagonal(), inverse.diagonal())


@given(problems(dtype="float32", decades=(0.1, 6.0)), st.sampled_from(["whitened", "referenced", "high", "window"]))
def test_whatever_is_built_in_float32_is_loaded_again(problem, how):
    assert_loaded_again(problem, how)


@given(problems(decades=(0.1, 14.0)), st.sampled_from(["whitened", "referenced", "high", "window"]))
def test_whatever_is_built_is_loaded_again(problem, how):
    """The checks of a file refuse nothing that was saved, however badly conditioned."""
    assert_loaded_again(problem, how)


def assert_loaded_again(problem, how):
    g = problem.gradients
    if how == "window":
        scalar = float(np.max(problem.damping))
        inverse = ml.SlidingWindowInverse(max(1, len(g) - 1), g.shape[1], scalar, xp=np, dtype=g.dtype)
        for row in g:
            inverse.append(row)
    else:
        options = {"high": {"precision": "high"}, "referenced": {"whiten": False}, "whitened": {}}[how]
        rules = {"weights": problem.weights, "normalization": problem.normalization}
        inverse = ml.WoodburyRankOneInverse(g, problem.damping, **rules, **options)
    with tempfile.TemporaryDirectory() as folder:
        inverse.save(f"{folder}/x.npz")
        found = ml.load(f"{folder}/x.npz")
    assert np.array_equal(found.matvec(g[0]), inverse.matvec(g[0]))


def test_rows_that_are_nearly_orthogonal_are_loaded_again(path):
    """The power steps of a build then end below the largest entry of the diagonal."""
    g = np.random.default_rng(0).standard_normal((64, 20_000), dtype=np.float32)
    ml.WoodburyRankOneInverse(g, 1.0).save(path)
    assert ml.load(path).num_gradients == 64


def test_what_could_not_be_loaded_is_not_saved(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(_files.archive, "LARGEST_HEADER", 1000)
    inverse = ml.BlockDiagonalInverse(np.ones((2, 900)), 1.0, block_sizes=1)
    with pytest.raises(ValueError, match=r"must be described in 1,000 bytes to be saved.*fewer blocks"):
        inverse.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_column_major_gradients_come_back_so(path):
    ml.WoodburyRankOneInverse(np.asfortranarray(G), 1.0, whiten=False).save(path)
    found = ml.load(path).gradients
    assert found.flags.f_contiguous
    assert np.array_equal(found, G)


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_bfloat16_comes_back(library, path):
    xp = pytest.importorskip(library, reason=f"needs {library}")
    gradients = xp.asarray(G, dtype=xp.bfloat16)
    inverse = ml.WoodburyRankOneInverse(gradients, 0.5)
    inverse.save(path)
    found = ml.load(path, xp=xp)
    assert found.gradients.dtype == xp.bfloat16
    assert bool((found.gradients == gradients).all())


def test_a_class_loads_its_own_files(saved):
    assert isinstance(ml.WoodburyRankOneInverse.load(saved), ml.WoodburyRankOneInverse)


def test_a_class_refuses_the_files_of_another(saved):
    with pytest.raises(ml.InvalidFileError, match=r"SlidingWindowInverse; got WoodburyRankOneInverse"):
        ml.SlidingWindowInverse.load(saved)


def test_numpy_reads_the_arrays(saved):
    with np.load(saved, allow_pickle=False) as arrays:
        assert arrays["factor"].shape == (3, 3)


def test_a_file_tells_what_it_is(saved):
    header = json.loads(zipfile.ZipFile(saved).read("header.json"))
    assert (header["schema"], header["version"], header["kind"]) == (1, ml.__version__, "WoodburyRankOneInverse")
    assert set(header["arrays"]["gradients"]) == {"shape", "dtype", "sha256"}


def test_equal_inverses_make_equal_files(saved, tmp_path):
    first = saved.read_bytes()
    ml.load(saved).save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == first


def test_no_changed_bit_is_accepted(saved):
    whole = saved.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        saved.write_bytes(changed)
        with pytest.raises(ml.InvalidFileError):
            ml.load(saved)


def test_another_array_under_a_right_archive_is_refused(saved):
    """Whose CRC and whose digest of the rest are right: only its SHA-256 is not."""
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    factor = bytearray(members["factor.npy"])
    factor[-1] ^= 1
    members["factor.npy"] = bytes(factor)
    with zipfile.ZipFile(saved, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _files.archive.EPOCH), content)
        archive.comment = b" " * _files.archive.DIGEST_LENGTH
        infos = archive.infolist()
    with open(saved, "r+b") as file:
        digest = _files.archive._digest_around(file, infos)
        file.seek(-_files.archive.DIGEST_LENGTH, os.SEEK_END)
        file.write(digest)
    with pytest.raises(ml.InvalidFileError, match="the checksum of factor is another"):
        ml.load(saved)


def test_no_piece_of_a_file_is_accepted(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(ml.InvalidFileError, match="`path`"):
            ml.load(saved)


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive" * 100])
def test_what_is_no_file_of_ours_is_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(ml.InvalidFileError, match=r"`path` must be a whole file"):
        ml.load(path)


def test_an_archive_of_numpy_is_refused(path):
    np.savez(path, factor=np.eye(3))
    with pytest.raises(ml.InvalidFileError):
        ml.load(path)


def test_a_newer_schema_is_refused_by_name(saved, monkeypatch):
    monkeypatch.setattr("mfac_linalg._files.archive.SCHEMA", 2)
    ml.load(saved).save(saved)
    monkeypatch.undo()
    with pytest.raises(ml.InvalidFileError, match=r"got schema 2.*Update"):
        ml.load(saved)


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        ml.load(path)


def test_rows_of_a_users_object_are_refused_and_nothing_is_written(tmp_path):
    inverse = ml.WoodburyRankOneInverse(ArrayRows(G), 1.0)
    with pytest.raises(TypeError, match=r"`gradients` must be in memory"):
        inverse.save(tmp_path / "none.npz")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_no_other(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ml.WoodburyRankOneInverse(2 * G, 1.0).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_library_without_the_dtype_is_refused(path):
    jax = pytest.importorskip("jax", reason="needs jax")
    ml.WoodburyRankOneInverse(G, 1.0).save(path)
    with pytest.raises(TypeError, match=r"`xp` must have float64"):
        ml.load(path, xp=jax.numpy)


def in_no_memory(library):
    """A library or device whose arrays have no values, and the argument that names it."""
    if library == "dask.array":
        return "xp", {"xp": pytest.importorskip("dask.array", reason="needs dask")}
    return "device", {"xp": pytest.importorskip("torch", reason="needs torch"), "device": "meta"}


@pytest.mark.parametrize("library", ["dask.array", "torch"])
@pytest.mark.parametrize("name", [*SAVED, "folder"])
def test_a_place_that_holds_no_values_is_refused_by_load(name, library):
    argument, where = in_no_memory(library)
    file = WRITTEN / ("folder" if name == "folder" else f"{name}.npz")
    for load in (ml.load, type(ml.load(file)).load):
        with pytest.raises(TypeError, match=f"`{argument}` must hold"):
            load(file, **where)


@pytest.mark.parametrize("library", ["dask.array", "torch"])
def test_a_place_that_holds_no_values_is_refused_where_it_is_chosen(library):
    argument, where = in_no_memory(library)
    for ask in (
        lambda: ml.WoodburyRankOneInverse(G, 1.0, **where),
        lambda: ml.SlidingWindowInverse(3, 5, 1.0, **where),
        lambda: ml.SlidingWindowInverse(3, 5, 1.0, compression=ml.TopK(0.5), **where),
    ):
        with pytest.raises(TypeError, match=f"`{argument}` must hold"):
            ask()


def test_a_device_that_holds_no_values_is_nowhere_to_move():
    torch = pytest.importorskip("torch", reason="needs torch")
    rows, window = torch.from_numpy(G), ml.SlidingWindowInverse.from_gradients
    for made in (
        ml.WoodburyRankOneInverse(rows, 1.0),
        ml.WoodburyRankOneInverse(rows.T.contiguous(), 1.0),
        ml.BlockDiagonalInverse(rows, 1.0, block_sizes=2),
        window(rows, 1.0),
        window(rows, 1.0, compression=ml.TopK(0.5)),
        ml.SlidingWindowInverse(3, 5, 1.0, xp=torch),
    ):
        with pytest.raises(TypeError, match=r"`device` must be .* arrays have no values"):
            made.to_device("meta")


@pytest.mark.parametrize("name", ["rows", "gram", "factor", "ages"])
def test_a_state_that_holds_no_values_is_refused_by_name(name):
    torch = pytest.importorskip("torch", reason="needs torch")
    state = ml.SlidingWindowInverse.from_gradients(torch.from_numpy(G), 1.0).state_dict()
    with pytest.raises(TypeError, match=rf"`state\['{name}'\]` must have values"):
        ml.SlidingWindowInverse.from_state_dict({**state, name: state[name].to("meta")})


@pytest.mark.parametrize("library", ["torch", "jax.numpy", "array_api_strict"])
@pytest.mark.parametrize("name", ["sparse", "sparse-blocks"])
def test_sparse_gradients_are_loaded_where_sparse_matrices_are(name, library):
    xp = pytest.importorskip(library, reason=f"needs {library}")
    with pytest.raises(TypeError, match="`xp` must "):
        ml.load(WRITTEN / f"{name}.npz", xp=xp)


@pytest.mark.parametrize("dtype", FLOATS)
def test_memory_for_a_save_is_not_that_of_the_rows(dtype, path):
    inverse = ml.WoodburyRankOneInverse(np.ones((4, 10**6), dtype), 1e2)
    inverse.save(path)
    tracemalloc.start()
    inverse.save(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_a_link_stays_one(path):
    link = path.with_name("link.npz")
    link.symlink_to(path)
    ml.WoodburyRankOneInverse(G, 1.0).save(link)
    assert link.is_symlink()
    assert ml.load(path).damping == 1.0


@pytest.mark.parametrize(
    "spell", [str, os.fsencode, lambda path: path.with_name("x" * 250)], ids=["str", "bytes", "long"]
)
def test_any_spelling_of_a_path_will_do(spell, path):
    ml.WoodburyRankOneInverse(G, 1.0).save(spell(path))
    assert ml.load(spell(path)).damping == 1.0


def test_killed_saves_leave_one_whole_file(path):
    command = [sys.executable, str(ROOT / "tests" / "kill_saves.py"), str(path), "100", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_a_window_is_loaded_into_another_library(library, path):
    xp = pytest.importorskip(library, reason=f"needs {library}")
    window = filled_window(9)
    window.save(path)
    found, g = ml.load(path, xp=xp), np.random.default_rng(3).standard_normal(5)
    assert np.allclose(np.asarray(found.append_matvec(xp.asarray(g))), window.append_matvec(g))
