"""What `out` writes to: no file of the user, nothing twice, and no journal entry too early."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests.out_folders import G, build, snapshot


def own_array(folder):
    np.save(folder / "whitened.npy", np.arange(5))


def own_archive(folder):
    np.savez(folder / "build.npz", a=np.arange(5))


def own_both(folder):
    own_array(folder)
    own_archive(folder)


def linked_array(folder):
    (folder.parent / "precious").write_text("precious")
    (folder / "whitened.npy").symlink_to(folder.parent / "precious")


def dangling(folder):
    (folder / "whitened.npy").symlink_to(folder / "nowhere")


def linked_journal(folder):
    own_archive(folder.parent)
    (folder / "build.npz").symlink_to(folder.parent / "build.npz")


def an_inverse(folder):
    ml.WoodburyRankOneInverse(G, 0.1).save(folder / "build.npz")


def hidden(folder):
    (folder / ".film.part").write_text("mine")


USERS = (own_array, own_archive, own_both, linked_array, dangling, linked_journal, an_inverse, hidden)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("put", USERS, ids=lambda put: put.__name__)
def test_a_users_files_are_not_written_over(put, resume, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    put(folder)
    before, beside = snapshot(folder), snapshot(tmp_path) if not folder.exists() else None
    with pytest.raises(ValueError, match="`out` must"):
        build(folder, resume=resume)
    assert snapshot(folder) == before
    if (tmp_path / "precious").exists():
        assert (tmp_path / "precious").read_text() == "precious"
    assert beside is None


def stop_build(path, monkeypatch, at="whiten"):
    """A build that fails in the middle of its second pass, or before its first."""
    with monkeypatch.context() as patch:
        if at == "whiten":
            patch.setattr(_files.folder.Folder, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
        else:
            patch.setattr(_files.folder.Folder, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
        with pytest.raises(OSError, match="gone"):
            build(path)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("at", ["whiten", "gram"])
def test_a_build_that_stopped_at_any_time_is_its_own(at, resume, tmp_path, monkeypatch):
    stop_build(tmp_path / "folder", monkeypatch, at)
    assert sorted(snapshot(tmp_path / "folder")) == ["build.npz", "whitened.npy"]
    assert np.array_equal(build(tmp_path / "folder", resume=resume).diagonal(), build(tmp_path / "other").diagonal())


def test_a_link_in_a_folder_that_was_begun_is_not_followed(tmp_path, monkeypatch):
    stop_build(tmp_path / "folder", monkeypatch)
    (tmp_path / "precious").write_bytes((tmp_path / "folder" / "whitened.npy").read_bytes())
    (tmp_path / "folder" / "whitened.npy").unlink()
    (tmp_path / "folder" / "whitened.npy").symlink_to(tmp_path / "precious")
    before = (tmp_path / "precious").read_bytes()
    for resume in (True, False):
        with pytest.raises(ValueError, match="`out` must be a new or empty folder"):
            build(tmp_path / "folder", resume=resume)
    assert (tmp_path / "precious").read_bytes() == before


def test_another_name_of_whitened_rows_keeps_them(tmp_path, monkeypatch):
    stop_build(tmp_path / "folder", monkeypatch)
    os.link(tmp_path / "folder" / "whitened.npy", tmp_path / "backup.npy")
    before = (tmp_path / "backup.npy").read_bytes()
    build(tmp_path / "folder")
    assert (tmp_path / "backup.npy").read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_not_in_use(number, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    build(tmp_path / "folder")
    assert ml.load(tmp_path / "folder").damping == 0.1


def test_a_lock_that_fails_is_an_os_error(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        build(tmp_path / "folder")


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=f"`out` must be a file that can be written; {os.strerror(errno.ENOSPC)}"):
        build(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_file_system_that_reserves_no_room_is_written_to(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    build(tmp_path / "folder")
    assert ml.load(tmp_path / "folder").damping == 0.1


def test_whitened_rows_are_on_the_disk_before_a_journal_or_an_inverse_tells_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)
    log, flush, write, save = [], np.memmap.flush, _files.folder.Folder.write, _files.archive.save
    monkeypatch.setattr(np.memmap, "flush", lambda self: (log.append("flush"), flush(self)))
    monkeypatch.setattr(_files.folder.Folder, "write", lambda *given: (log.append("write"), write(*given)))
    monkeypatch.setattr(_files.archive, "save", lambda *given: (log.append("save"), save(*given)))
    build(tmp_path / "folder", memory_limit=300_000)
    dirty, saves = False, 0
    for event in log:
        dirty = event == "write" or (dirty and event != "flush")
        if event == "save":
            assert not dirty, log
            saves += 1
    assert log.count("write") > 1
    assert saves > 3


class Failing:
    """An open file of which reads fail."""

    def __init__(self, file):
        self.file = file

    def readinto(self, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.fixture
def unreadable(monkeypatch):
    """Whitened rows whose reads fail, the first time."""

    def opened(name, mode, **options):
        file = Path(name).open(mode, **options)  # noqa: SIM115
        monkeypatch.delattr(_files.matrix_file, "open")
        return Failing(file)

    return lambda: monkeypatch.setattr(_files.matrix_file, "open", opened, raising=False)


def test_a_read_of_whitened_rows_that_fails_is_no_damage(tmp_path, unreadable):
    build(tmp_path / "folder")
    unreadable()
    with pytest.raises(OSError, match=f"`path` must be a file that can be read; {os.strerror(errno.EIO)}"):
        ml.load(tmp_path / "folder")
    assert ml.load(tmp_path / "folder").damping == 0.1


def test_a_resumption_that_fails_to_read_leaves_what_is_there(tmp_path, unreadable, monkeypatch):
    monkeypatch.setattr(_files.folder, "SECONDS", 0.0)
    monkeypatch.setattr(_files.folder, "RUN_BYTES", 10**4)
    write, count = _files.folder.Folder.write, []

    def fail_third_write(self, *arguments):
        count.append(1)
        if len(count) == 3:
            raise OSError(errno.EIO, "gone")
        write(self, *arguments)

    monkeypatch.setattr(_files.folder.Folder, "write", fail_third_write)
    with pytest.raises(OSError, match="gone"):
        build(tmp_path / "folder", memory_limit=300_000)
    before = snapshot(tmp_path / "folder")
    unreadable()
    with pytest.raises(OSError, match="`path` must be a file that can be read"):
        build(tmp_path / "folder", resume=True, memory_limit=300_000)
    assert snapshot(tmp_path / "folder") == before
    load = _files.archive.load

    def failing(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_files.archive, "load", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        build(tmp_path / "folder", resume=True, memory_limit=300_000)
    assert snapshot(tmp_path / "folder") == before
    monkeypatch.setattr(_files.archive, "load", load)
    built = build(tmp_path / "folder", resume=True, memory_limit=300_000)
    assert np.array_equal(built.diagonal(), build(tmp_path / "other", memory_limit=300_000).diagonal())


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_an_out_that_is_no_folder_is_refused(kind, tmp_path):
    path = tmp_path / "x"
    path.write_text("mine") if kind == "file" else os.mkfifo(path)
    with pytest.raises(ValueError, match="`out` must be a new or empty folder"):
        build(path)


def test_a_folder_as_a_path_object_of_bytes_is_taken(tmp_path):
    class Bytes:
        def __fspath__(self):
            return os.fsencode(tmp_path / "folder")

    build(Bytes())
    assert ml.load(Bytes()).damping == 0.1


def test_an_inverse_from_a_folder_is_saved_as_a_file_again_and_again(tmp_path):
    g = G.copy()
    g[:, :3] *= 100  # small entries of the diagonal
    ml.WoodburyRankOneInverse(g, 0.1, out=tmp_path / "folder")
    first = ml.load(tmp_path / "folder")
    first.save(tmp_path / "a.npz")
    ml.load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    assert np.allclose(ml.load(tmp_path / "b.npz").diagonal(), first.diagonal(), rtol=1e-9)
