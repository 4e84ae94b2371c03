"""Saves that fail: full disks, errors of the system and failed reads leave the old file and no other."""

import errno
import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests import atomic_saves
from tests.atomic_saves import G, inverse

path = atomic_saves.path


@pytest.mark.parametrize("size", [100, 5_000, 40_000])
def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(size, path):
    """Told by a limit on the size of files, which ends a write in the middle as well."""
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    large = ml.WoodburyRankOneInverse(np.ones((5, 1000)), 1.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="`path` must be a file that can be written"):
            large.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


@pytest.fixture
def syncs(monkeypatch):
    """The files and folders that are brought to the disk, in their order, among renames."""
    log, sync, rename = [], os.fsync, os.replace

    def watched(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        log.append(("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file", name))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append(("rename", str(b))), rename(a, b)))
    return log


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
def test_the_file_is_on_the_disk_before_it_is_renamed_and_the_folder_after(path, syncs):
    inverse().save(path)
    assert [kind for kind, _ in syncs] == ["file", "rename", "folder"]
    assert syncs[-1][1] == str(path.parent)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
def test_a_new_folder_is_on_the_disk_with_those_above_it(tmp_path, syncs):
    ml.WoodburyRankOneInverse(G, 1.0, out=tmp_path / "a" / "b" / "c")
    synced = [name for kind, name in syncs if kind == "folder"]
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert str(tmp_path / "a" / "b" / "c") in synced


def folders_fail(number, monkeypatch):
    sync = os.fsync

    def failing(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_folder_that_cannot_be_synced_where_none_can_is_no_error(number, path, monkeypatch):
    folders_fail(number, monkeypatch)
    inverse(2.0).save(path)
    assert ml.load(path).damping == 2.0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("beside", ["numpy", "torch"])
def test_a_folder_that_fails_to_be_synced_is_a_warning_since_the_file_is_there(beside, number, path, monkeypatch):
    pytest.importorskip(beside, reason=f"needs {beside}")  # PyTorch puts frames of its own between ours
    folders_fail(number, monkeypatch)
    with pytest.warns(RuntimeWarning, match="is complete, but a loss of power may undo it") as caught:
        inverse(2.0).save(path)
    assert caught[0].filename == __file__
    assert ml.load(path).damping == 2.0


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_before_the_rename_leaves_the_old_file_and_no_other(call, number, path, monkeypatch):
    before = path.read_bytes()

    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="`path`") as caught:
        inverse(2.0).save(path)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


class FailingRead:
    """A file of which a read fails, once, after so many."""

    def __init__(self, file, after):
        self.file, self.left = file, after

    def read(self, *size):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.file.read(*size)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_read_that_fails_is_an_os_error_and_no_damage(path, monkeypatch):
    outcomes = []
    for after in range(60):  # more than there are reads
        monkeypatch.setattr(_files.archive, "open", lambda name, mode, n=after: FailingRead(open(name, mode), n), False)  # noqa: SIM115
        try:
            outcomes.append(ml.load(path) and None)
        except OSError as error:
            outcomes.append(error)
    failed = [error for error in outcomes if error]
    assert 20 < len(failed) < 60
    assert {error.errno for error in failed} == {errno.EIO}
    assert all("`path` must be a file that can be read" in str(error) for error in failed)


def test_a_damaged_file_is_damage_even_while_another_error_is_handled(path):
    path.write_bytes(path.read_bytes()[:-1])
    try:
        raise OSError(errno.EIO, "of something else")
    except OSError:
        with pytest.raises(ml.InvalidFileError):
            ml.load(path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_lock_that_is_never_had_is_an_error_and_leaves_nothing(code, path, monkeypatch):
    before = path.read_bytes()

    def refused(*_):
        raise OSError(code, "Permission denied")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(OSError, match="`path`"):
        ml.load(path).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
