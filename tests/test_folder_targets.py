"""What a build in a folder refuses to write to, and what it leaves where it cannot be finished."""

import numpy as np
import pytest

import mfac_linalg as ml
from tests.folders import DAMPING, D, M, gradients, h5py_dataset, zarr_array
from tests.inputs import Dataset


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


def test_a_refused_call_writes_nothing():
    out = np.ones((M, D))
    with pytest.raises(ValueError, match="`out` must be None here"):
        ml.WoodburyRankOneInverse(gradients(), DAMPING, out=out, whiten=False)
    assert np.all(out == 1)


def test_the_file_of_a_folder_is_not_the_folder(tmp_path):
    inverse = ml.WoodburyRankOneInverse(gradients(), DAMPING, out=tmp_path / "folder")
    with pytest.raises(ml.InvalidFileError, match="`path` must be the folder"):
        ml.load(tmp_path / "folder" / "inverse.npz")
    inverse.save(tmp_path / "folder" / "inverse.npz")
    with pytest.raises(ml.InvalidFileError, match="written over"):
        ml.load(tmp_path / "folder")


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
