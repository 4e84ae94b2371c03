"""Folders and journals with forged contents and valid checksums: refused, or the answers are those of the contents."""

import contextlib
import copy
import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from mfac_linalg.testing import KINDS, make_problem
from tests import crafted_outcomes
from tests.crafted import read_parts, write_parts
from tests.crafted_outcomes import ALL, assert_refused, outcome, versions
from tests.inputs import Dataset
from tests.stored import gradients

path = crafted_outcomes.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small inverse in a folder, with small entries of its diagonal."""
    path = tmp_path_factory.mktemp("crafted") / "folder"
    g = gradients(4, 40)
    g[:, :2] *= 50
    ml.WoodburyRankOneInverse(g, 0.3, out=path)
    return path


def copy_folder(folder, path):
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_a_folder_with_anything_made_up_is_refused_or_answered_as_it_says(folder, tmp_path):
    made_up = copy_folder(folder, tmp_path / "x")
    assert outcome(made_up)
    header, arrays = read_parts(folder / "inverse.npz")
    assert len(arrays["small.index"])
    wrong = []
    for what, changed_header, changed_arrays in list(versions(header, arrays))[:: 1 if ALL else 3]:
        write_parts(made_up / "inverse.npz", changed_header, changed_arrays)
        try:
            outcome(made_up)
        except BaseException as failure:
            wrong.append(f"{what}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)


def test_runs_that_are_none_are_refused(folder, tmp_path):
    made_up = copy_folder(folder, tmp_path / "x")
    header, arrays = read_parts(folder / "inverse.npz")
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
        write_parts(made_up / "inverse.npz", changed, arrays)
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
    made_up = copy_folder(folder, tmp_path / "x")
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
    header, arrays = read_parts(tmp_path / "begun" / "build.npz")
    w = (tmp_path / "begun" / "whitened.npy").read_bytes()
    expected = ml.WoodburyRankOneInverse(g, 0.3).diagonal()
    wrong, finished = [], 0
    for what, changed_header, changed_arrays in list(versions(header, arrays))[:: 1 if ALL else 4]:
        target = tmp_path / what.replace("/", "")
        target.mkdir()
        (target / "whitened.npy").write_bytes(w)
        write_parts(target / "build.npz", changed_header, changed_arrays)
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
    header, arrays = read_parts(path)
    assert "gradients" not in arrays or kappa > 1e4
    arrays.pop("gradients", None)
    for name, change in FORGED.items():
        write_parts(path, header, {**arrays, "whitened": change(arrays["whitened"])})
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


def stop_build(path, kappa, dim):
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
    g, damping = stop_build(tmp_path / "begun", kappa, 2500)
    header, arrays = read_parts(tmp_path / "begun" / "build.npz")
    arrays = {name: change(len(x)) if change is np.eye else change(x) for name, x in arrays.items()}
    assert arrays
    write_parts(tmp_path / "begun" / "build.npz", header, arrays)
    expected = ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "new").diagonal()
    with contextlib.suppress(ml.InvalidFileError):  # or, of zeros, another Gram matrix, of scaled rows
        built = ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "begun", resume=True)
        assert np.allclose(built.diagonal(), expected, rtol=1e-3)


@pytest.mark.parametrize("value", [1e30, -1e30, 1e300])
def test_a_journal_asks_for_no_more_memory_than_its_build(value, tmp_path, any_kappa):
    g, damping = stop_build(tmp_path / "begun", 1e4, 6000)
    header, arrays = read_parts(tmp_path / "begun" / "build.npz")
    write_parts(tmp_path / "begun" / "build.npz", header, {n: np.full_like(x, value) for n, x in arrays.items()})
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
    header, arrays = read_parts(tmp_path / "begun" / "build.npz")
    write_parts(tmp_path / "begun" / "build.npz", header, {**arrays, "whiten: small": np.arange(9)})
    with pytest.raises(ml.InvalidFileError, match="`out` must hold a whole journal"):
        ml.WoodburyRankOneInverse(g, 0.3, out=tmp_path / "begun", resume=True, memory_limit=240_000)


@pytest.mark.parametrize("kappa", [1e11, 1e13])
def test_a_factor_whose_small_rows_are_made_up_is_made_anew(kappa, path, any_kappa):
    g = np.random.default_rng(0).standard_normal((4, 30)) * np.array([[1.0], [1e-3], [1e-5], [1e-6]])
    built = ml.WoodburyRankOneInverse(g, np.linalg.norm(g, 2) ** 2 / 4 / kappa, whiten=False)
    built.save(path)
    header, arrays = read_parts(path)
    arrays["factor"][-1, -1] *= 0.3
    write_parts(path, header, arrays)
    assert np.allclose(ml.load(path).matvec(g[3]), built.matvec(g[3]), rtol=1e-9)
