"""Files of an earlier version: read as before."""

import json
import shutil

import numpy as np
import pytest

import mfac_linalg as ml
from tests.stored import SAVED, STATE, WRITTEN, answers, gradients, window


def assert_answers(inverse, name):
    """As its author gave them, to the rounding of another BLAS."""
    with np.load(WRITTEN / f"{name}.answers.npz") as expected:
        found = answers(inverse)
        assert set(found) == set(expected)
        for query, value in found.items():
            assert np.allclose(value, expected[query], rtol=1e-4 if value.dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("name", SAVED)
def test_a_file_of_an_earlier_version_is_read(name):
    found = ml.load(WRITTEN / f"{name}.npz")
    assert type(found) is type(SAVED[name]())
    assert_answers(found, name)


@pytest.mark.parametrize("name", SAVED)
def test_what_is_written_today_is_what_was_written(name):
    """So that a change of a file's contents is seen, and raises the schema."""
    assert_answers(SAVED[name](), name)


def test_a_folder_of_an_earlier_version_is_read():
    assert_answers(ml.load(WRITTEN / "folder"), "folder")


def test_a_build_that_an_earlier_version_began_is_finished(tmp_path):
    shutil.copytree(WRITTEN / "begun", tmp_path / "begun")
    g = gradients(4, 2500, "float32")
    built = ml.WoodburyRankOneInverse(np.asarray(g), 0.3, out=tmp_path / "begun", resume=True, memory_limit=240_000)
    assert np.allclose(built.diagonal(), ml.WoodburyRankOneInverse(g, 0.3).diagonal(), rtol=1e-4)


def test_a_state_dictionary_of_an_earlier_version_is_read():
    with np.load(WRITTEN / f"{STATE}.npz") as arrays:
        state = {**json.loads((WRITTEN / f"{STATE}.json").read_text()), **arrays}
    found, expected, g = ml.SlidingWindowInverse.from_state_dict(state), window(), gradients(1)[0]
    assert_answers(found, STATE)
    assert np.allclose(found.append_matvec(g), expected.append_matvec(g), rtol=1e-9)


def test_an_optimizer_of_an_earlier_version_goes_on():
    torch = pytest.importorskip("torch", reason="needs torch")
    from mfac_linalg.torch import MFAC

    saved = torch.load(WRITTEN / "optimizer.pt", weights_only=True)
    parameters = [torch.nn.Parameter(p) for p in saved["parameters"]]
    optimizer = MFAC(parameters, normalization="mean")  # the default of then; a state brings the other options
    optimizer.load_state_dict(saved["optimizer"])
    for p in parameters:
        p.grad = torch.cos(torch.arange(p.numel()) * 0.7).reshape(p.shape)
    optimizer.step()
    for p, expected in zip(parameters, torch.load(WRITTEN / "optimizer.answers.pt", weights_only=True), strict=True):
        assert torch.allclose(p, expected, rtol=1e-4)
