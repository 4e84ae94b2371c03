"""Gradients and builds which the tests of inverses in folders share."""

import numpy as np
import pytest

from mfac_linalg import _files
from tests.backends import FLOATS
from tests.inputs import Dataset

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
    """A journal that records every step immediately."""
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)


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
