"""Where a file is written: what it may replace; the files left after killed, failed and concurrent saves."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mfac_linalg as ml
from mfac_linalg import _files
from tests import atomic_saves
from tests.atomic_saves import inverse

path = atomic_saves.path
ROOT = Path(__file__).parents[1]


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
    if kind != "folder":  # which may be an inverse
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
    """A process in the middle of a save, which it completes after a line of input."""
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
