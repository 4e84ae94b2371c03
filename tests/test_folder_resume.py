"""Builds in a folder that were interrupted are resumed, and damage is refused or repaired."""

import os

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests import folders
from tests.folders import DAMPING, STREAMING, D, Failing, M, gradients
from tests.inputs import Dataset

dtype = folders.dtype
short_entries = folders.short_entries


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


def overwrite_bytes(file):
    with open(file, "r+b") as handle:
        handle.seek(9000)
        handle.write(bytes(1000))


def remove_file(file):
    file.unlink()


def other(file):
    np.save(file, np.zeros((3, 3)))


@pytest.mark.parametrize("damage", [cut_off, overwrite_bytes, remove_file, other])
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
