"""Whitened rows outside memory: what is written, how often, and what a build that was killed leaves."""

import os
import subprocess
import sys

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests.backends import AVAILABLE, FLOATS, eps
from tests.held import Dataset, mapped
from tests.oracle import LIMIT
from tests.problems import make_problem
from tests.source import ROOT as PACKAGE

ROOT = PACKAGE.parent
M, D = 6, 3000
DAMPING = 0.5
STREAMING = {"memory_limit": 4 * 10**5}


def gradients(dtype="float64", dim=D):
    """Rows with columns so large that their entries of F⁻¹ are small."""
    made = np.random.default_rng(0).standard_normal((M, dim))
    made[:, :4] *= 300
    return made.astype(dtype)


@pytest.fixture(params=FLOATS)
def dtype(request):
    return request.param


@pytest.fixture
def short_entries(monkeypatch):
    """A journal that takes everything down at once."""
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)


class Counting(Dataset):
    """A target that counts the numbers written to it."""

    written = 0

    def __setitem__(self, part, values):
        self.array[part] = values
        self.written += np.size(values)


class Failing(Dataset):
    """A dataset whose disk fails after so many numbers."""

    def __init__(self, array, numbers):
        super().__init__(array)
        self.left = numbers

    def __getitem__(self, part):
        found = super().__getitem__(part)
        self.left -= found.size
        if self.left < 0:
            msg = "the disk is gone"
            raise OSError(msg)
        return found


def zarr_array(folder, shape, dtype):
    zarr = pytest.importorskip("zarr", reason="needs zarr")
    return zarr.create_array(folder / "w.zarr", shape=shape, chunks=(shape[0], 700), dtype=dtype)


def h5py_dataset(folder, shape, dtype):
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    return h5py.File(folder / "w.h5", "w").create_dataset("w", shape, dtype)


def memmap(folder, shape, dtype):
    return np.lib.format.open_memmap(folder / "w.npy", mode="w+", shape=shape, dtype=dtype)


def in_memory(folder, shape, dtype):
    return np.zeros(shape, dtype, order="F")


TARGETS = {
    "folder": lambda folder, shape, dtype: folder / "inverse",
    "text": lambda folder, shape, dtype: str(folder / "inverse"),
    "zarr": zarr_array,
    "h5py": h5py_dataset,
    "memmap": memmap,
    "array": in_memory,
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_query_answers_as_one_in_memory(target, dtype, tmp_path):
    g = gradients(dtype)
    expected = ml.WoodburyRankOneInverse(g.astype(np.float64), DAMPING)
    inverse = ml.WoodburyRankOneInverse(g, DAMPING, out=TARGETS[target](tmp_path, g.shape, dtype), **STREAMING)
    v = g[0] - g[1]
    assert inverse.backward_error(v, inverse.matvec(v)) <= LIMIT * eps(dtype)
    assert inverse.backward_error(g[2], inverse.matvec_gradients(np.eye(M, dtype=dtype)[2])) <= LIMIT * eps(dtype)
    assert np.allclose(inverse.diagonal(), expected.diagonal(), rtol=1e-3, atol=0)
    i, j = np.array([0, 5, 700]), np.array([0, 5, 2999])
    assert np.allclose(inverse.element(i, j), expected.element(i, j), rtol=0, atol=30 * eps(dtype) / DAMPING)
    assert np.allclose(inverse.submatrix(i), expected.submatrix(i), rtol=0, atol=30 * eps(dtype) / DAMPING)
    assert np.allclose(inverse.forward.diagonal(), expected.forward.diagonal(), rtol=1e-4)
    assert np.isclose(inverse.logdet(), expected.logdet())


@pytest.mark.parametrize("options", [{}, {"vector": True, "weighted": True}], ids=["scalar", "general"])
def test_a_folder_is_loaded_with_the_same_answers_to_the_bit(options, dtype, tmp_path):
    problem = make_problem(1, shape=(6, 400), kappa=1e3, dtype=dtype, **options)
    arguments = (problem.gradients, problem.damping)
    inverse = ml.WoodburyRankOneInverse(*arguments, weights=problem.weights, out=tmp_path / "folder")
    loaded = ml.load(tmp_path / "folder")
    v = problem.gradients[0]
    for ask in (lambda x: x.matvec(v), lambda x: x.diagonal(), lambda x: x.element(3, 4), lambda x: x.logdet()):
        assert np.array_equal(ask(loaded), ask(inverse))
    assert isinstance(loaded, ml.WoodburyRankOneInverse)
    assert np.allclose(loaded.gradients, problem.gradients, atol=1e-4 * np.abs(problem.gradients).max())


def test_gradients_are_read_twice_and_whitened_rows_written_once():
    source, target = Dataset(gradients("float32")), Counting(np.zeros((M, D), "float32"))
    ml.WoodburyRankOneInverse(source, DAMPING, out=target, **STREAMING)
    assert source.passes <= 2.05
    assert target.written == M * D + M  # and a column, to see whether it can be written


def test_a_product_reads_the_whitened_rows_once_more_than_it_sweeps_and_a_diagonal_once():
    target = Counting(np.zeros((M, D)))
    inverse = ml.WoodburyRankOneInverse(gradients(), DAMPING, out=target, **STREAMING)
    target.read = 0
    inverse.diagonal()
    assert target.passes == 1
    target.read = 0
    inverse.matvec(gradients()[0])
    assert target.passes <= 4


def test_small_entries_of_a_loaded_diagonal_have_their_digits(dtype, tmp_path):
    g = gradients(dtype)
    ml.WoodburyRankOneInverse(Dataset(g), DAMPING, out=tmp_path / "folder")
    exact = ml.WoodburyRankOneInverse(g.astype(np.float64), DAMPING).diagonal()
    assert np.any(exact * DAMPING < 1e-2)
    assert np.allclose(ml.load(tmp_path / "folder").diagonal(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if "float32" in b.dtypes], ids=repr)
def test_a_folder_is_written_from_and_loaded_to_any_library(backend, tmp_path):
    place = {"xp": backend.namespace, "device": getattr(backend.asarray(np.zeros(1, "float32")), "device", None)}
    if backend.library == "numpy":
        place = {}
    g = gradients("float32")
    v = backend.asarray(g[0])
    inverse = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder", **place)
    loaded = ml.load(tmp_path / "folder", **place)
    expected = ml.WoodburyRankOneInverse(g, DAMPING).diagonal()
    assert np.allclose(backend.to_numpy(inverse.diagonal()), expected, rtol=1e-3, atol=0)
    for answer in (inverse.matvec(v), loaded.matvec(v)):
        assert backend.is_own(answer, "float32")
        assert np.allclose(
            backend.to_numpy(inverse.diagonal()), ml.WoodburyRankOneInverse(g, DAMPING).diagonal(), rtol=1e-3
        )
        assert inverse.backward_error(v, answer) <= LIMIT * eps("float32")


@pytest.mark.parametrize("share", [0.3, 0.9, 1.2, 1.7])
def test_a_build_that_failed_goes_on_where_it_was(share, dtype, tmp_path, short_entries):
    g, narrow = gradients(dtype, 20_000), {"memory_limit": 10**6}
    with pytest.raises(OSError, match="disk is gone"):
        ml.WoodburyRankOneInverse(Failing(g, int(share * g.size)), DAMPING, out=tmp_path / "folder", **narrow)
    with pytest.raises(ml.InvalidFileError, match=r"finished folder.*resume=True"):
        ml.load(tmp_path / "folder")
    source = Dataset(g)
    resumed = ml.WoodburyRankOneInverse(source, DAMPING, out=tmp_path / "folder", resume=True, **narrow)
    assert source.passes <= 2.2 - share
    whole = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "whole", **narrow)
    for ask in (lambda x: x.matvec(g[0]), lambda x: x.diagonal()):
        assert np.array_equal(ask(resumed), ask(whole))
        assert np.array_equal(ask(ml.load(tmp_path / "folder")), ask(whole))


def test_without_resume_a_build_starts_again(tmp_path, short_entries):
    g = gradients()
    with pytest.raises(OSError, match="disk is gone"):
        ml.WoodburyRankOneInverse(Failing(g, g.size), DAMPING, out=tmp_path / "folder", **STREAMING)
    source = Dataset(g)
    ml.WoodburyRankOneInverse(source, 2 * DAMPING, out=tmp_path / "folder", **STREAMING)
    assert 2 <= source.passes <= 2.05
    assert ml.load(tmp_path / "folder").damping == 2 * DAMPING


def test_resuming_what_is_whole_reads_nothing_again(tmp_path):
    source = Dataset(gradients())
    first = ml.WoodburyRankOneInverse(source, DAMPING, out=tmp_path / "folder")
    source.read = 0
    again = ml.WoodburyRankOneInverse(source, DAMPING, out=tmp_path / "folder", resume=True)
    assert source.passes <= 0.02  # of some columns, that are compared
    assert again.gradients is source
    assert np.array_equal(again.diagonal(), first.diagonal())


def test_resuming_a_folder_that_is_not_there_builds_it(tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder", resume=True)
    assert ml.load(tmp_path / "folder").damping == DAMPING


@pytest.mark.parametrize(
    "changed",
    [{"damping": 0.6}, {"gradients": -gradients()}, {"normalization": "sum"}, {"weights": np.ones(M)}],
    ids=["damping", "gradients", "normalization", "weights"],
)
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "begun"])
def test_another_build_is_not_resumed(changed, is_whole, tmp_path, short_entries):
    asked = {"gradients": gradients(), "damping": DAMPING, "out": tmp_path / "folder"}
    if is_whole:
        ml.WoodburyRankOneInverse(**asked)
    else:
        with pytest.raises(OSError, match="disk is gone"):
            ml.WoodburyRankOneInverse(**{**asked, "gradients": Failing(gradients(), M * D)}, **STREAMING)
    with pytest.raises(ValueError, match=f"same build to resume it.*{next(iter(changed))}"):
        ml.WoodburyRankOneInverse(**{**asked, **changed}, resume=True)


@pytest.mark.parametrize("name", ["whitened.npy", "inverse.npz"])
def test_a_changed_bit_in_a_folder_is_refused(name, tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    file = tmp_path / "folder" / name
    whole = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ml.InvalidFileError):
            ml.load(tmp_path / "folder")


@pytest.mark.parametrize("size", [0, 60, 128, 5000])
def test_whitened_rows_that_are_cut_off_are_refused(size, tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    os.truncate(tmp_path / "folder" / "whitened.npy", size)
    with pytest.raises(ml.InvalidFileError, match="whole folder"):
        ml.load(tmp_path / "folder")


def test_whitened_rows_that_are_gone_are_refused(tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    (tmp_path / "folder" / "whitened.npy").unlink()
    with pytest.raises(ml.InvalidFileError, match="damaged or gone"):
        ml.load(tmp_path / "folder")


def test_a_whole_folder_is_not_written_over(tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    with pytest.raises(ValueError, match=r"`out` must be a new or empty folder.*load"):
        ml.WoodburyRankOneInverse(gradients(), 2 * DAMPING, out=tmp_path / "folder")
    assert ml.load(tmp_path / "folder").damping == DAMPING


def test_a_folder_of_other_things_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds \['thesis.tex'\]"):
        ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"whiten": False}, ValueError, "`out` must be None here.*whiten=False"),
        ({"precision": "high"}, ValueError, "`out` must be None here.*needs the gradients"),
        ({"overwrite_gradients": True}, ValueError, "`overwrite_gradients`"),
        ({"out": np.zeros((M, D))}, ValueError, "shape .* and dtype float32"),
        ({"out": np.zeros((D, M), "float32")}, ValueError, "shape .* and dtype float32"),
        ({"out": [1.0]}, TypeError, "`out` must be a path"),
        ({"out": np.broadcast_to(np.float32(0), (M, D))}, ValueError, "writable"),
        ({"out": np.zeros((M, D), "float32"), "resume": True}, ValueError, "`resume` must be False"),
        ({"out": None, "resume": True}, ValueError, "`resume` must be False"),
        ({"resume": "yes"}, TypeError, "`resume`"),
    ],
    ids=lambda x: None,
)
def test_what_cannot_be_written_is_refused(options, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        ml.WoodburyRankOneInverse(gradients("float32"), DAMPING, **{"out": tmp_path / "folder", **options})
    assert not (tmp_path / "folder").exists()


def test_the_gradients_themselves_are_no_target(tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "g.npy", mode="w+", shape=(M, D), dtype=np.float64)
    file[:] = gradients()
    for out in (file, file[:], np.load(tmp_path / "g.npy", mmap_mode="r+")):
        with pytest.raises(ValueError, match="`out` must not be the gradients themselves"):
            ml.WoodburyRankOneInverse(file, DAMPING, out=out)
    assert np.array_equal(file, gradients())


@pytest.mark.parametrize("make", [zarr_array, h5py_dataset])
def test_a_dataset_opened_twice_is_no_target_for_itself(make, tmp_path):
    first = make(tmp_path, (M, D), "float64")
    first[:, :] = gradients()
    second = first.file["w"] if make is h5py_dataset else type(first).open(first.store)
    with pytest.raises(ValueError, match="`out` must not be the gradients themselves"):
        ml.WoodburyRankOneInverse(first, DAMPING, out=second)


def test_the_folder_of_the_gradients_is_no_target(tmp_path):
    np.save(tmp_path / "whitened.npy", gradients())
    with pytest.raises(ValueError, match="`out` must not be the folder that the gradients are in"):
        ml.WoodburyRankOneInverse(np.load(tmp_path / "whitened.npy", mmap_mode="r"), DAMPING, out=tmp_path)
    assert np.array_equal(np.load(tmp_path / "whitened.npy"), gradients())


@pytest.mark.parametrize("shift", [-45, 0, 45, 55])
def test_rows_of_any_unit_have_the_same_inverse_to_the_bit(shift, tmp_path):
    g = gradients("float32")
    v, scale = g[0], np.float32(2.0**shift)
    found, expected = (
        ml.WoodburyRankOneInverse(Dataset(g * s), DAMPING * float(s) ** 2, out=tmp_path / str(i))
        for i, s in enumerate([scale, np.float32(1)])
    )
    assert np.array_equal(found.diagonal() * scale * scale, expected.diagonal())
    assert np.array_equal(found.matvec(v * scale) * scale, expected.matvec(v))


def test_rescaled_rows_under_a_damping_per_parameter_keep_their_small_entries(tmp_path):
    rng, scale = np.random.default_rng(0), np.float32(2.0**45)
    g = 0.01 * rng.standard_normal((16, 20_000), dtype=np.float32)
    g[:, 5] = 200 * rng.standard_normal(16)
    exact = ml.WoodburyRankOneInverse(g.astype(np.float64), 0.1).diagonal()
    damping = np.full(20_000, 0.1, "float32") * scale * scale
    inverse = ml.WoodburyRankOneInverse(g * scale, damping, out=tmp_path / "folder")
    assert np.allclose(inverse.diagonal() * float(scale) ** 2, exact, rtol=1e-3, atol=0)


def test_a_refused_call_writes_nothing():
    out = np.ones((M, D))
    with pytest.raises(ValueError, match="`out` must be None here"):
        ml.WoodburyRankOneInverse(gradients(), DAMPING, out=out, whiten=False)
    assert np.all(out == 1)


def test_a_rescaled_build_is_one_pass_too():
    source = Dataset(gradients("float32") * np.float32(2.0**45))
    ml.WoodburyRankOneInverse(source, 2.0**90)
    assert source.passes == 1


def test_a_build_waits_for_nobody_and_is_refused_beside_another(tmp_path):
    folder = _files.folder.Folder(tmp_path / "folder", {"dtype": "float64", "shape": [M, D]}, resume=False)
    with pytest.raises(ValueError, match="`out` must be a folder that no other build writes to"):
        ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    folder.close()
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")


def begun(path, share):
    """A folder in which a build has failed after so many passes."""
    g = gradients(dim=20_000)
    with pytest.raises(OSError, match="disk is gone"):
        ml.WoodburyRankOneInverse(Failing(g, int(share * g.size)), DAMPING, out=path, memory_limit=10**6)
    return g


def cut_off(file):
    os.truncate(file, 5000)


def changed(file):
    with open(file, "r+b") as handle:
        handle.seek(9000)
        handle.write(bytes(1000))


def gone(file):
    file.unlink()


def other(file):
    np.save(file, np.zeros((3, 3)))


@pytest.mark.parametrize("damage", [cut_off, changed, gone, other])
def test_a_resumed_build_makes_damaged_columns_again(damage, tmp_path, short_entries):
    g = begun(tmp_path / "folder", 1.7)
    damage(tmp_path / "folder" / "whitened.npy")
    resumed = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder", resume=True, memory_limit=10**6)
    whole = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "whole", memory_limit=10**6)
    assert np.array_equal(resumed.diagonal(), whole.diagonal())
    assert np.array_equal(ml.load(tmp_path / "folder").matvec(g[0]), whole.matvec(g[0]))


def test_small_entries_beyond_damaged_columns_are_found_once(tmp_path, short_entries):
    g = gradients(dim=20_000)
    g[:, [9_000, 15_000]] *= 3000
    with pytest.raises(OSError, match="disk is gone"):
        ml.WoodburyRankOneInverse(Failing(g, int(1.95 * g.size)), DAMPING, out=tmp_path / "folder", memory_limit=10**6)
    with open(tmp_path / "folder" / "whitened.npy", "r+b") as handle:
        handle.seek(8_000 * 8 * M)
        handle.write(bytes(100))
    ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder", resume=True, memory_limit=10**6)
    with np.load(tmp_path / "folder" / "inverse.npz") as file:
        assert file["small.index"].tolist() == [9_000, 15_000]


@pytest.mark.parametrize("resume", [True, False])
def test_a_damaged_journal_is_refused_by_name(resume, tmp_path, short_entries):
    """Without `resume` as well: what is damaged need not be a journal."""
    g = begun(tmp_path / "folder", 1.7)
    cut_off(tmp_path / "folder" / "build.npz")
    before = {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()}
    with pytest.raises(ml.InvalidFileError, match=r"`out` must hold a whole journal.*Remove what is there yourself"):
        ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder", resume=resume)
    assert {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()} == before


def test_the_file_of_a_folder_is_not_the_folder(tmp_path):
    inverse = ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    with pytest.raises(ml.InvalidFileError, match="`path` must be the folder"):
        ml.load(tmp_path / "folder" / "inverse.npz")
    inverse.save(tmp_path / "folder" / "inverse.npz")
    with pytest.raises(ml.InvalidFileError, match="written over"):
        ml.load(tmp_path / "folder")


def test_what_is_loaded_from_a_folder_stays_in_its_dtype(tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    with pytest.raises(TypeError, match="whitened rows in a file"):
        ml.load(tmp_path / "folder").astype("float32")


def test_a_dataset_that_is_read_only_is_refused_before_anything_is_read(tmp_path):
    h5py_dataset(tmp_path, (M, D), "float64").file.close()
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    source, target = Dataset(gradients()), h5py.File(tmp_path / "w.h5", "r")["w"]
    with pytest.raises(ValueError, match="`out` must be writable; got a Dataset"):
        ml.WoodburyRankOneInverse(source, DAMPING, out=target)
    assert source.read == 0


@pytest.mark.parametrize("column", [0, 1700])
def test_a_build_that_cannot_be_finished_leaves_nothing(column, tmp_path):
    g = gradients()
    g[2, column] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_more_rows_than_columns_leave_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match=r"`out` must be None here.*m ≥ d"):
        ml.WoodburyRankOneInverse(np.eye(3), DAMPING, out=tmp_path / "folder")


def test_another_damping_reads_the_gradients_while_they_are_there(tmp_path):
    g = gradients()
    other = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder").with_damping(2.0)
    assert np.allclose(other.diagonal(), ml.WoodburyRankOneInverse(g, 2.0).diagonal())
    with pytest.raises(ValueError, match="`gradients` must be available for another damping"):
        ml.load(tmp_path / "folder").with_damping(2.0)


def test_an_inverse_in_a_folder_is_saved_as_one_file_too(tmp_path):
    inverse = ml.WoodburyRankOneInverse(mapped(gradients()), DAMPING, out=tmp_path / "folder")
    inverse.save(tmp_path / "file.npz")
    assert np.allclose(ml.load(tmp_path / "file.npz").diagonal(), inverse.diagonal(), rtol=1e-12)


def test_the_working_set_of_a_build_in_a_folder_is_within_its_limit():
    """In a process of its own, whose peak is the build's."""
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 60_000, done.stdout


PEAK = """
import resource, tempfile
import numpy as np
import mfac_linalg as ml

with tempfile.TemporaryDirectory() as folder:
    g = np.lib.format.open_memmap(folder + "/g.npy", mode="w+", dtype="float32", shape=(64, 800_000))
    for start in range(0, 800_000, 20_000):
        g[:, start : start + 20_000] = np.random.default_rng(start).standard_normal((64, 20_000), dtype="float32")
    del g
    g = np.load(folder + "/g.npy", mmap_mode="r")
    ml.WoodburyRankOneInverse(np.ascontiguousarray(g[:, :20_000]), 1.0, out=folder + "/small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ml.WoodburyRankOneInverse(g, 1.0, out=folder + "/folder", memory_limit=64_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_killed_builds_leave_nothing_that_loads_and_can_be_resumed(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "kill_builds.py"), str(tmp_path), "6", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= 2


@pytest.mark.parametrize(
    "view", [np.asarray, lambda g: g[:, :], lambda g: g.view(np.ndarray)], ids=["asarray", "slice", "view"]
)
def test_a_view_of_the_gradients_own_file_is_no_target(view, tmp_path):
    np.save(tmp_path / "g.npy", gradients())
    source, target = (np.load(tmp_path / "g.npy", mmap_mode=mode) for mode in ("r", "r+"))
    with pytest.raises(ValueError, match="`out` must not be the gradients themselves"):
        ml.WoodburyRankOneInverse(view(source), DAMPING, out=target)
    assert np.array_equal(np.load(tmp_path / "g.npy"), gradients())
