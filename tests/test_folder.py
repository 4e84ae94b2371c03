"""Whitened rows outside memory: the same answers, how often they are read and written, and the memory of a build."""

import subprocess
import sys

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg.testing import LIMIT, make_problem
from tests import folders
from tests.backends import AVAILABLE, eps
from tests.folders import DAMPING, STREAMING, D, Failing, M, gradients, h5py_dataset, zarr_array
from tests.inputs import Dataset, memory_map
from tests.source import REPOSITORY as ROOT

dtype = folders.dtype
short_entries = folders.short_entries


class Counting(Dataset):
    """A target that counts the numbers written to it."""

    written = 0

    def __setitem__(self, part, values):
        self.array[part] = values
        self.written += np.size(values)


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


def test_rescaled_rows_under_a_damping_per_parameter_keep_their_small_entries(tmp_path):
    rng, scale = np.random.default_rng(0), np.float32(2.0**45)
    g = 0.01 * rng.standard_normal((16, 20_000), dtype=np.float32)
    g[:, 5] = 200 * rng.standard_normal(16)
    exact = ml.WoodburyRankOneInverse(g.astype(np.float64), 0.1).diagonal()
    damping = np.full(20_000, 0.1, "float32") * scale * scale
    inverse = ml.WoodburyRankOneInverse(g * scale, damping, out=tmp_path / "folder")
    assert np.allclose(inverse.diagonal() * float(scale) ** 2, exact, rtol=1e-3, atol=0)


def test_a_build_whose_squares_overflow_reads_the_gradients_three_times():
    """Their squares, their largest entry, and the squares of the rescaled rows."""
    source = Dataset(gradients("float32") * np.float32(2.0**45))
    ml.WoodburyRankOneInverse(source, 2.0**90)
    assert source.passes == 3


def test_with_whitening_the_squares_are_float64_and_one_pass_is_enough(tmp_path):
    source = Dataset(gradients("float32") * np.float32(2.0**45))
    ml.WoodburyRankOneInverse(source, 2.0**90, out=tmp_path / "folder")
    assert source.passes <= 2.05


def test_what_is_loaded_from_a_folder_stays_in_its_dtype(tmp_path):
    ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    with pytest.raises(TypeError, match="whitened rows in a file"):
        ml.load(tmp_path / "folder").astype("float32")


def test_another_damping_reads_the_gradients_while_they_are_there(tmp_path):
    g = gradients()
    other = ml.WoodburyRankOneInverse(g, DAMPING, out=tmp_path / "folder").with_damping(2.0)
    assert np.allclose(other.diagonal(), ml.WoodburyRankOneInverse(g, 2.0).diagonal())
    with pytest.raises(ValueError, match="`gradients` must be available for another damping"):
        ml.load(tmp_path / "folder").with_damping(2.0)


def test_an_inverse_in_a_folder_is_saved_as_one_file_too(tmp_path):
    inverse = ml.WoodburyRankOneInverse(memory_map(gradients()), DAMPING, out=tmp_path / "folder")
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
