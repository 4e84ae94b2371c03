"""An inverse and a path which the tests of saves share."""

import os

import numpy as np
import pytest

import mfac_linalg as ml

G = np.random.default_rng(0).standard_normal((3, 5))


def inverse(damping=1.0):
    return ml.WoodburyRankOneInverse(G, damping)


@pytest.fixture
def path(tmp_path):
    """A file that is there, under a mask that is usual."""
    before = os.umask(0o022)
    inverse().save(tmp_path / "inverse.npz")
    yield tmp_path / "inverse.npz"
    os.umask(before)
