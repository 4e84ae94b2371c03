"""Windows and inverses in read-only memory and on memory maps."""

import copy
import pickle

import numpy as np
import pytest

import mfac_linalg as ml
from tests.window_copies import (
    CHANGES,
    DIM,
    OPTIONS,
    answers,
    apply_changes,
    assert_same,
    random_gradients,
    slid_window,
)

# --- what arrives read-only -----------------------------------------------------------------------------------------


def read_only(x):
    """As a worker gets it: unpickled over read-only buffers."""
    buffers = []
    data = pickle.dumps(x, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b.raw()) for b in buffers])


def test_unpickling_in_this_way_gives_read_only_arrays():
    assert not read_only(np.zeros(3)).flags.writeable


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_window_unpickled_read_only_takes_every_change(options, change):
    window, found = slid_window(**options), read_only(slid_window(**options))
    assert_same(answers(found), answers(window), rtol=0)
    for w in (window, found):
        apply_changes(w, 1, [change, "append", change])
    assert_same(answers(found), answers(window))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: x.with_damping(0.1), read_only])
def test_what_a_window_from_read_only_memory_is_copied_to_can_be_written(how):
    window = how(read_only(slid_window()))
    apply_changes(window, 1, ["append"] * 3)
    control = slid_window()
    apply_changes(control, 1, ["append"] * 3)
    assert_same(answers(window), answers(control))


STATIC = {
    "whitened": lambda g: ml.WoodburyRankOneInverse(g, 0.1, whiten=True),
    "referenced": lambda g: ml.WoodburyRankOneInverse(g, np.full(DIM, 0.1), whiten=False),
    "tall": lambda g: ml.WoodburyRankOneInverse(np.concatenate([g] * 5), 0.1),
    "blocks": lambda g: ml.BlockDiagonalInverse(g, 0.1, block_sizes=3),
    "wide blocks": lambda g: ml.BlockDiagonalInverse(g, 0.1, block_sizes=[10, 2]),
}


@pytest.mark.parametrize("make", STATIC.values(), ids=STATIC)
def test_a_static_inverse_unpickled_read_only_answers_all(make, tmp_path):
    inverse = make(random_gradients(4))
    found = read_only(inverse)
    for again in (found, found.with_damping(0.2).with_damping(0.1), found.astype("float64"), copy.deepcopy(found)):
        assert_same(answers(again), answers(inverse))
        np.testing.assert_allclose(again.diagonal(), inverse.diagonal())
        np.testing.assert_allclose(again.sqrt_matvec(np.ones(DIM)), inverse.sqrt_matvec(np.ones(DIM)))
    found.save(tmp_path / "inverse.npz")
    assert_same(answers(ml.load(tmp_path / "inverse.npz")), answers(inverse))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.parametrize("kind", ["window", *STATIC])
def test_joblib_maps_it_and_the_file_stays_as_it_was(kind, mode, tmp_path):
    joblib = pytest.importorskip("joblib")
    inverse = slid_window() if kind == "window" else STATIC[kind](random_gradients(4))
    joblib.dump(inverse, tmp_path / "inverse")
    content = (tmp_path / "inverse").read_bytes()
    found = joblib.load(tmp_path / "inverse", mmap_mode=mode)
    assert_same(answers(found), answers(inverse))
    if kind == "window":
        apply_changes(found, 1, ["append"] * 3)
        apply_changes(inverse, 1, ["append"] * 3)
    else:
        found, inverse = found.with_damping(0.3), inverse.with_damping(0.3)
    assert_same(answers(found), answers(inverse))
    del found
    assert (tmp_path / "inverse").read_bytes() == content


# --- memory maps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path):
    """Gradients in a file."""
    np.save(tmp_path / "gradients.npy", random_gradients(4))
    return np.load(tmp_path / "gradients.npy", mmap_mode="r")


IN_MEMORY = {
    "array": lambda x: np.array(x, subok=True),
    "copy": lambda x: x.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "astype": lambda x: x.astype("float64", copy=True),
    "sum": lambda x: x + 0.0,
    "chosen rows": lambda x: x[[0, 1, 2, 3]],
    "empty_like": lambda x: np.copyto(y := np.empty_like(x), x) or y,
    "concatenate": lambda x: np.concatenate([x[:2], x[2:]]),
}


@pytest.mark.parametrize("copied", IN_MEMORY.values(), ids=IN_MEMORY)
@pytest.mark.parametrize("make", [STATIC["referenced"], STATIC["whitened"], STATIC["tall"]])
def test_a_copy_of_a_map_in_memory_is_an_array_in_memory(make, copied, mapped, tmp_path):
    gradients = copied(mapped)
    inverse, wanted = make(gradients), make(np.array(mapped))
    assert_same(answers(inverse), answers(wanted))
    assert_same(answers(inverse.astype("float32")), answers(wanted.astype("float32")), rtol=1e-4)  # refused for files
    inverse.save(tmp_path / "inverse.npz")
    assert_same(answers(ml.load(tmp_path / "inverse.npz")), answers(wanted))


VIEWS = {"itself": lambda x: x, "every other column": lambda x: x[:, ::2], "transposed twice": lambda x: x.T.T}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_of_a_map_is_still_read_by_panels(view, mapped):
    inverse = ml.WoodburyRankOneInverse(view(mapped), 0.1)
    assert inverse._current.form.rows.is_streamed
    assert_same(answers(inverse), answers(ml.WoodburyRankOneInverse(np.array(view(mapped)), 0.1)))


@pytest.mark.parametrize("copied", IN_MEMORY.values(), ids=IN_MEMORY)
def test_whitened_rows_are_written_to_a_copy_of_a_map_in_memory(copied, mapped):
    out = copied(mapped)
    inverse = ml.WoodburyRankOneInverse(mapped, 0.1, out=out)
    assert_same(answers(inverse), answers(ml.WoodburyRankOneInverse(np.array(mapped), 0.1)))
