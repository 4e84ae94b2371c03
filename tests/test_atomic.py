"""Where a file is written: what it takes the place of, and what killed, failed and concurrent saves leave."""

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import _files

G = np.random.default_rng(0).standard_normal((3, 5))
ROOT = Path(__file__).parents[1]


def inverse(damping=1.0):
    return ml.WoodburyRankOneInverse(G, damping)


@pytest.fixture
def path(tmp_path):
    """A file that is there, under a mask that is usual."""
    before = os.umask(0o022)
    inverse().save(tmp_path / "inverse.npz")
    yield tmp_path / "inverse.npz"
    os.umask(before)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# --- what a file takes the place of -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444, 0o777])
def test_a_save_keeps_the_mode_of_the_file_before(kept, path):
    os.chmod(path, kept)
    inverse(2.0).save(path)
    assert mode(path) == kept
    assert ml.load(path).damping == 2.0


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_mask_leaves(mask, path):
    os.umask(mask)
    inverse().save(path.with_name("new.npz"))
    assert mode(path.with_name("new.npz")) == 0o666 & ~mask


def test_what_takes_the_place_of_a_private_file_is_private_all_along(path, monkeypatch):
    os.chmod(path, 0o600)
    modes, write = [], _files.archive._write

    def watched(file, *rest):
        modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        write(file, *rest)

    monkeypatch.setattr(_files.archive, "_write", watched)
    inverse().save(path)
    assert modes == [0o600]


def test_a_save_keeps_the_owner_where_it_may(path, monkeypatch):
    given, status = [], os.stat(path)
    monkeypatch.setattr(os, "fchown", lambda _, *owner: given.append(owner))
    inverse(2.0).save(path)
    assert given == [(status.st_uid, status.st_gid)]


def test_a_group_that_cannot_be_kept_takes_no_rights_with_it(path, monkeypatch):
    before = os.stat(path)
    other = os.stat_result((0o100660, *before[1:4], before.st_uid, before.st_gid + 1, *before[6:]))
    monkeypatch.setattr(os, "fchown", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    monkeypatch.setattr(_files.atomic.check, "regular", lambda *_: other)
    inverse(2.0).save(path)
    assert mode(path) == 0o600


def pipe(path):
    os.mkfifo(path)


def listening_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


SPECIAL = {"folder": os.mkdir, "pipe": pipe, "socket": listening_socket}


@pytest.mark.parametrize("behind_a_link", [False, True], ids=["itself", "behind a link"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused(kind, behind_a_link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket has a short name
    SPECIAL[kind]("special")
    before = os.stat("special")
    if behind_a_link:
        os.symlink("special", "link")
    target = "link" if behind_a_link else "special"
    with pytest.raises(OSError, match=f"`path` must be a regular file; got a {kind}"):
        inverse().save(target)
    assert os.stat("special").st_mode == before.st_mode
    if kind != "folder":  # which may hold an inverse
        with pytest.raises(OSError, match=f"`path` must be a regular file; got a {kind}"):
            ml.load(target)


def test_a_device_is_refused():
    with pytest.raises(OSError, match="`path` must be a regular file; got a device"):
        inverse().save(os.devnull)
    with pytest.raises(OSError, match="`path` must be a regular file; got a device"):
        ml.load(os.devnull)


def test_links_stay_links_and_lead_to_the_new_file(path):
    (path.parent / "near").symlink_to("inverse.npz")
    (path.parent / "far").symlink_to("near")
    (path.parent / "dangling").symlink_to("later.npz")
    inverse(2.0).save(path.parent / "far")
    inverse(3.0).save(path.parent / "dangling")
    assert ml.load(path).damping == 2.0
    assert ml.load(path.with_name("later.npz")).damping == 3.0
    assert all((path.parent / name).is_symlink() for name in ("near", "far", "dangling"))


def test_a_circle_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="`path` must be a file that can be reached"):
        inverse().save(tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        (None, TypeError, "`path` must be a str or path-like"),
        (5, TypeError, "`path` must be a str or path-like"),
        (True, TypeError, "`path` must be a str or path-like"),
        (sys.stdout, TypeError, "`path` must be a str or path-like"),
        (["a"], TypeError, "`path` must be a str or path-like"),
        ("", ValueError, "`path` must be a name"),
        (b"", ValueError, "`path` must be a name"),
        ("a\0b", ValueError, "`path` must be a name"),
    ],
    ids=repr,
)
def test_what_is_no_path_is_refused_by_name(path, kind, words):
    for call in (inverse().save, ml.load, ml.WoodburyRankOneInverse.load):
        with pytest.raises(kind, match=words):
            call(path)


def test_a_missing_folder_is_an_error_that_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path`.*missing/x.npz"):
        inverse().save(tmp_path / "missing" / "x.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="`path`"):
        inverse().save(tmp_path / "file" / "x.npz")


def test_a_folder_that_is_read_only_is_an_error_that_names_the_path(path, monkeypatch):
    before = path.read_bytes()

    def refused(name, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match="`path` must be a file that can be written; Permission denied"):
        inverse().save(path)
    assert path.read_bytes() == before


# --- what a save leaves -----------------------------------------------------------------------------------------------


def parts(folder):
    return sorted(p.name for p in folder.glob(".*.part"))


SLOW = """
import platform, sys, numpy as np, mfac_linalg as ml
from mfac_linalg import _files
path, host = sys.argv[1:]
platform.node = (lambda: host) if host else platform.node
write = _files.archive._write
def slow(*arguments):
    print("writing", flush=True)
    sys.stdin.readline()
    write(*arguments)
_files.archive._write = slow
ml.WoodburyRankOneInverse(np.eye(2, 5), 7.0).save(path)
"""


def slow_save(path, host=""):
    """A process that is in the middle of a save, and ends it when it is told to."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(path), host], **pipes)
    assert process.stdout.readline() == "writing\n"
    return process


def killed_save(path, host=""):
    """Kill a save in the middle of its writing."""
    with slow_save(path, host) as process:
        process.kill()


def test_what_killed_saves_left_is_removed_by_the_next(path):
    killed_save(path)
    killed_save(path)  # which has removed the one before
    killed_save(path.with_name("other.npz"))
    assert len(parts(path.parent)) == 2
    inverse(2.0).save(path)
    assert len(parts(path.parent)) == 1  # of the other target
    inverse(2.0).save(path.with_name("other.npz"))
    assert not parts(path.parent)


def test_saves_of_one_target_at_once_leave_each_other_alone(path, monkeypatch):
    """In one process, whose number is the same: only the random half of their names tells them apart."""
    together, write, failures = threading.Barrier(4), _files.archive._write, []

    def at_once(*arguments):
        together.wait(20)
        write(*arguments)
        together.wait(20)

    def save(damping):
        try:
            inverse(damping).save(path)
        except BaseException as failure:
            failures.append(failure)
            raise

    monkeypatch.setattr(_files.archive, "_write", at_once)
    threads = [threading.Thread(target=save, args=(damping,)) for damping in (1.0, 2.0, 3.0, 4.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert not failures
    assert not parts(path.parent)
    assert ml.load(path).damping in (1.0, 2.0, 3.0, 4.0)


def test_a_name_is_new_each_time(path, monkeypatch):
    names, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(os.path.basename(a)), rename(a, b)))
    for _ in range(4):
        inverse().save(path)
    assert len(set(names)) == 4


def test_a_save_of_another_process_is_not_disturbed(path):
    """Which is in the middle of its writing while others save."""
    with slow_save(path) as other:
        assert len(parts(path.parent)) == 1
        for damping in (1.0, 2.0, 3.0):
            inverse(damping).save(path)
            assert ml.load(path).damping == damping
        other.stdin.write("\n")
        other.stdin.close()
    assert other.returncode == 0
    assert ml.load(path).damping == 7.0
    assert not parts(path.parent)


def test_a_file_that_is_removed_while_it_is_written_is_written_again(path, monkeypatch):
    write, count = _files.archive._write, []

    def removed(*arguments):
        write(*arguments)
        count.append(1)
        if len(count) < 3:
            for name in parts(path.parent):
                (path.parent / name).unlink()

    monkeypatch.setattr(_files.archive, "_write", removed)
    inverse(2.0).save(path)
    assert (len(count), ml.load(path).damping) == (3, 2.0)


def test_what_another_host_writes_is_left_for_a_day(path):
    killed_save(path, "elsewhere")
    inverse().save(path)
    (left,) = parts(path.parent)
    day_ago = time.time() - 1.1 * _files.atomic.PATIENCE
    os.utime(path.parent / left, (day_ago, day_ago))
    inverse().save(path)
    assert not parts(path.parent)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_without_locks_a_save_works_and_removes_nothing(number, path, monkeypatch):
    killed_save(path)

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    inverse(2.0).save(path)
    assert ml.load(path).damping == 2.0
    assert len(parts(path.parent)) == 1


def test_a_users_file_with_such_an_ending_is_left_alone(path):
    names = [".film.part", "x.part", ".1-2.part"]
    for name in names:
        (path.parent / name).write_text("mine")
    inverse().save(path)
    assert [(path.parent / name).read_text() for name in names] == ["mine"] * 3


# --- what fails -------------------------------------------------------------------------------------------------------


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
