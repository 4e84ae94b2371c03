"""Paths that are not a folder, gradients in memory mapped from a folder's files, and folders of other gradients."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests.crafted import read_parts, write_parts
from tests.out_folders import G, build, snapshot

ODD = {
    "null character": "a\0b",
    "nothing": "",
    "long": "a" * 300,
    "long parent": "a" * 300 + "/b",
    "deep": "x/" * 3000 + "y",
    "beneath a file": "file/x",
    "far beneath a file": "file/x/y",
    "a file": "file",
    "a circle": "circle",
    "a pipe": "pipe",
    "a dangling link": "dangling",
    "bytes that are none": bytearray(b"x"),
    "a number": 3,
}


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("circle").symlink_to("circle")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_an_odd_path_is_refused_by_its_argument(name, odd_folder):
    before = sorted(os.listdir())
    for argument, ask in (
        ("out", lambda: build(ODD[name])),
        ("out|resume", lambda: build(ODD[name], resume=True)),
        ("path", lambda: ml.load(ODD[name])),
        ("a save's", lambda: ml.WoodburyRankOneInverse(G, 0.1).save(ODD[name])),
    ):
        if argument == "a save's" and name in ("a file", "a dangling link"):
            continue  # which it takes the place of
        argument = argument.replace("a save's", "path")
        with pytest.raises((TypeError, ValueError, OSError), match=f"`({argument})` must") as caught:
            ask()
        assert not isinstance(caught.value, OSError) or caught.value.errno
    assert sorted(os.listdir()) == before


def test_out_is_a_path_of_any_kind(odd_folder):
    for path in (b"bytes", "text", Path("path"), np.str_("numpy")):
        assert np.array_equal(build(path).diagonal(), ml.load(path).diagonal())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["os.mkdir", "os.scandir", "mfac_linalg._files.atomic._created"])
def test_an_error_of_the_system_keeps_its_number_and_names_out(place, number, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number), "somewhere")

    (tmp_path / "there").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(place, failing)
        with pytest.raises(OSError, match=f"`out` must .* {os.strerror(number)}") as caught:
            build(tmp_path / ("there" if place == "os.scandir" else "a/b/c"))
    assert caught.value.errno == number
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("at", ["factor", "room", "journal"])
def test_a_build_that_fails_leaves_no_folder_that_it_made(at, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "before").mkdir()
    if at != "factor":
        monkeypatch.setattr(*((os, "posix_fallocate") if at == "room" else (_files.archive, "save")), full)
    damping = 1e-320 if at == "factor" else 0.1
    with pytest.raises((OSError, ml.FactorizationError)):
        ml.WoodburyRankOneInverse(1e10 * G, damping, out=tmp_path / "before" / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == [tmp_path / "before"]
    assert not list((tmp_path / "before").iterdir())


DAMAGED = {
    "one bit of W": lambda path: flip(path / "whitened.npy"),
    "W is short": lambda path: os.truncate(path / "whitened.npy", 5000),
    "W is gone": lambda path: (path / "whitened.npy").unlink(),
    "one bit of the rest": lambda path: flip(path / "inverse.npz"),
    "the rest is empty": lambda path: os.truncate(path / "inverse.npz", 0),
    "W is a pipe": lambda path: ((path / "whitened.npy").unlink(), os.mkfifo(path / "whitened.npy")),
    "the rest is a folder": lambda path: ((path / "inverse.npz").unlink(), (path / "inverse.npz").mkdir()),
    "another's": lambda path: ml.WoodburyRankOneInverse(G, 0.1).save(path / "inverse.npz"),
}


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_inverse_is_not_resumed_and_out_is_named(kind, tmp_path):
    build(tmp_path / "folder")
    DAMAGED[kind](tmp_path / "folder")
    with pytest.raises((ml.InvalidFileError, OSError), match="`out` must") as caught:
        build(tmp_path / "folder", resume=True)
    assert "`path`" not in str(caught.value)


def torch_over(array):
    return pytest.importorskip("torch", reason="needs torch").from_numpy(array)


def bytes_over(array):
    return np.frombuffer(array._mmap, array.dtype, offset=array.offset).reshape(array.shape)


VIEWS = {
    "a map": lambda array: array,
    "its view": lambda array: np.asarray(array)[:, :],
    "PyTorch's": torch_over,
    "PyTorch's view": lambda array: torch_over(array).view(array.shape),
    "bytes": bytes_over,
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("view", VIEWS)
def test_gradients_are_not_written_over_through_another_map(view, mode, tmp_path):
    np.save(tmp_path / "g.npy", G)
    (tmp_path / "link.npy").symlink_to("g.npy")
    os.link(tmp_path / "g.npy", tmp_path / "name.npy")
    g = VIEWS[view](np.load(tmp_path / "g.npy", mmap_mode=mode))
    for name in ("g.npy", "link.npy", "name.npy"):
        out = np.load(tmp_path / name, mmap_mode="r+")
        for target in (out, np.asarray(out)[:, :]):
            with pytest.raises(ValueError, match="`out` must not be the gradients"):
                ml.WoodburyRankOneInverse(g, 0.1, out=target)
    assert np.array_equal(np.load(tmp_path / "g.npy"), G)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_regions_of_one_file_that_do_not_overlap_are_two(tmp_path):
    expected = ml.WoodburyRankOneInverse(G, 0.1).diagonal()
    (tmp_path / "raw").write_bytes(G.tobytes() + bytes(2 * G.nbytes))
    g = np.memmap(tmp_path / "raw", G.dtype, "r", 0, G.shape)
    whole = np.memmap(tmp_path / "raw", G.dtype, "r+", 0, (12, 3000))
    wide = np.memmap(tmp_path / "raw", G.dtype, "r+", G.nbytes, (4, 6000))
    for out in (np.memmap(tmp_path / "raw", G.dtype, "r+", G.nbytes, G.shape), whole[4:8], wide[:, 3000:]):
        assert np.allclose(ml.WoodburyRankOneInverse(g, 0.1, out=out).diagonal(), expected, rtol=1e-12)
    wide[:, ::2] = G
    built = ml.WoodburyRankOneInverse(wide[:, ::2], 0.1, out=wide[:, 1::2])
    assert np.allclose(built.diagonal(), expected, rtol=1e-12)
    for out in (np.memmap(tmp_path / "raw", G.dtype, "r+", G.nbytes // 2, G.shape), whole[3:7], whole[1::3]):
        with pytest.raises(ValueError, match="`out` must not be the gradients"):
            ml.WoodburyRankOneInverse(g, 0.1, out=out)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_a_folder_whose_rows_a_tensor_stands_on_is_not_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "whitened.npy", G)
    before = snapshot(tmp_path / "folder")
    for g in (torch_over(np.load(tmp_path / "folder" / "whitened.npy", mmap_mode="c")), G):
        with pytest.raises(ValueError, match="`out` must"):
            ml.WoodburyRankOneInverse(g, 0.1, out=tmp_path / "folder")
    assert snapshot(tmp_path / "folder") == before


@pytest.mark.parametrize("at", ["gram", "whiten", "manifest", "end"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.1, 1e-9])
@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
def test_other_gradients_are_not_resumed_where_the_columns_that_are_compared_agree(
    at, dtype, damping, tmp_path, monkeypatch
):
    def failing(*_):
        raise OSError(errno.EIO, "gone")

    g = G.astype(dtype)
    g[:, [0, 1500, 2999]] = 0
    other = g[:, ::-1].copy()
    other[:, [0, 1500, 2999]] = 0
    where = {"gram": "write", "whiten": "write", "manifest": "finish"}
    if at == "end":
        ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "folder")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(_files.folder.Folder, where[at], failing)
            with pytest.raises(OSError, match="gone"):
                ml.WoodburyRankOneInverse(g, damping, out=tmp_path / "folder")
    changed = 3 * other if at == "gram" else other + np.float32(0.5) * (np.arange(3000) % 7 == 3).astype(dtype)
    with pytest.raises(ValueError, match="`out` must"):
        ml.WoodburyRankOneInverse(changed, damping, out=tmp_path / "folder", resume=True)


def test_a_finished_build_is_taken_up_again_for_any_units_and_library(tmp_path):
    for number, scale in enumerate((1e-15, 1.0, 1e15)):
        g = (G * scale).astype("float32")
        for damping in (0.1 * scale**2, (scale**2 * np.linspace(1, 100, 3000)).astype("float32")):
            made = {
                "weights": np.linspace(0.5, 2, 4).astype("float32"),
                "out": tmp_path / f"{number}-{np.ndim(damping)}",
            }
            built = ml.WoodburyRankOneInverse(g, damping, **made)
            again = ml.WoodburyRankOneInverse(g, damping, **made, resume=True)
            assert np.array_equal(built.diagonal(), again.diagonal())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folder_of_others_that_says_it_is_of_these_is_not_resumed(dtype, tmp_path):
    g, other = G.astype(dtype), G[:, ::-1].astype(dtype)
    ml.WoodburyRankOneInverse(g, 0.1, out=tmp_path / "these")
    ml.WoodburyRankOneInverse(other, 0.1, out=tmp_path / "others")
    header, arrays = read_parts(tmp_path / "others" / "inverse.npz")
    header["facts"]["asked"] = read_parts(tmp_path / "these" / "inverse.npz")[0]["facts"]["asked"]
    write_parts(tmp_path / "others" / "inverse.npz", header, arrays)
    with pytest.raises(ValueError, match=r"`out` must be the folder of the same build .* other \['gradients'\]"):
        ml.WoodburyRankOneInverse(g, 0.1, out=tmp_path / "others", resume=True)


def test_a_build_that_is_refused_beside_another_leaves_that_its_folders(tmp_path, monkeypatch):
    """Also where both have made them, and nothing is in them yet."""
    made, save = _files.atomic.make_folder, _files.archive.save

    def save_beside_another(*given, **options):
        monkeypatch.setattr(_files.archive, "save", save)
        monkeypatch.setattr(_files.atomic, "make_folder", lambda path: [path, path.parent])
        with pytest.raises(ValueError, match="no other build writes to"):
            build(tmp_path / "a" / "b")
        monkeypatch.setattr(_files.atomic, "make_folder", made)
        return save(*given, **options)

    monkeypatch.setattr(_files.archive, "save", save_beside_another)
    build(tmp_path / "a" / "b")
    assert ml.load(tmp_path / "a" / "b").damping == 0.1
