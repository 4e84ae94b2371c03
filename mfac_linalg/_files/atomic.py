"""Atomic writes: a temporary file is written, synced to the disk, and renamed to its target.

Its name is `.PID-RANDOM-HOST-TARGET.part`, in the folder of the target. It has a lock (flock) that ends with its
process. The next write of the same target removes such files without a lock: their writers were killed.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .. import _validation as check
from .._errors import warn_unsynced

try:
    import fcntl
except ImportError:  # Windows, where a file that is open can be neither renamed nor removed
    fcntl = None  # type: ignore[assignment]

PART = re.compile(r"\.\d+-[0-9a-f]{16}(?:-([0-9a-f]{8})-([0-9a-f]{8}))?\.part")  # the first version's had no more
HAS_LOCKS = fcntl is not None
PATIENCE = 86_400.0  # seconds after which another host's file is old: not every lock is seen from there
ATTEMPTS = 3
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF)
"""What file systems say that cannot lock a file, or bring a folder to the disk."""
PRIVATE, PUBLIC = 0o600, 0o666  # of a file that takes the place of another until it has its mode, and of a new one


def replace(path: Any, write: Callable[[IO[bytes]], None], argument: str = "path") -> None:
    """Call `write` with a new file, sync it to the disk, and rename it to `path`.

    It gets the mode and, where allowed, the owner of the file that it replaces; a link stays a link. After an OSError
    the old file is unchanged. `write` is called again if another process removed the new file.
    """
    name = check.path(path, argument)
    before = check.regular(name, argument)
    target = Path(os.path.realpath(name))
    _remove_stale(target)
    try:
        if not any(_is_replaced(target, write, before) for _ in range(ATTEMPTS)):
            raise FileNotFoundError(errno.ENOENT, "temporary files next to it are removed by others")
    except OSError as failed:
        raise check.path_error(failed, name, "written", argument) from failed
    sync_folder(target.parent)


def _is_replaced(target: Path, write: Callable[[IO[bytes]], None], before: os.stat_result | None) -> bool:
    """Whether the file was written and renamed; False if another process removed it."""
    handle, aside = _created(target, PUBLIC if before is None else PRIVATE)
    file = os.fdopen(handle, "w+b")
    try:
        write(file)
        file.flush()
        if before is not None:
            _adopt(file.fileno(), before)
        os.fsync(file.fileno())
        if not HAS_LOCKS:
            file.close()
        return _is_renamed(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    finally:
        with contextlib.suppress(OSError):  # all of it is on the disk
            file.close()


def _is_renamed(aside: Path, target: Path) -> bool:
    try:
        os.replace(aside, target)
    except FileNotFoundError:
        if os.path.lexists(aside):
            raise
        return False
    return True


def _created(target: Path, mode: int) -> tuple[int, Path]:
    """A new, locked file and its name; another one if it was removed as stale before it was locked."""
    for attempt in range(1, ATTEMPTS + 1):
        aside = target.with_name(f".{os.getpid()}-{secrets.token_hex(8)}-{_host()}-{_digest(target.name)}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(aside, flags, mode)
        try:
            if lock(handle) is not False and (attempt == ATTEMPTS or os.path.lexists(aside)):
                return handle, aside
        except OSError:
            _discard(handle, aside)
            raise
        _discard(handle, aside)
    raise BlockingIOError(errno.EAGAIN, "temporary files next to it are locked by others")


def _discard(handle: int, aside: Path) -> None:
    os.close(handle)
    with contextlib.suppress(OSError):
        aside.unlink()


def _adopt(handle: int, before: os.stat_result) -> None:
    """Give a file the owner and the mode of the old one, without group rights if the group cannot be set."""
    if not hasattr(os, "fchown"):
        return
    for owner in ((before.st_uid, before.st_gid), (-1, before.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(handle, *owner)
            break
    mode, now = stat.S_IMODE(before.st_mode), os.fstat(handle)
    if now.st_gid != before.st_gid:
        mode &= ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        mode &= 0o777
    with contextlib.suppress(OSError):  # a file system without modes
        os.fchmod(handle, mode)


def lock(handle: int) -> bool | None:
    """Lock an open file or folder: False if another process has it, None if the file system has no locks."""
    if not HAS_LOCKS:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as failed:
        if failed.errno == errno.EACCES:
            return False
        if failed.errno not in UNSUPPORTED:
            raise
        return None
    return True


def is_part(name: str) -> bool:
    """Whether a name is that of a temporary file of this module."""
    return PART.fullmatch(name) is not None


def _remove_stale(target: Path) -> None:
    """Remove the files of writers of this target that were killed."""
    host, name = _host(), _digest(target.name)
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            match = PART.fullmatch(entry.name)
            if match and match[2] == name:
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry, is_own=match[1] == host)


def _remove_unlocked(entry: os.DirEntry[str], *, is_own: bool) -> None:
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode) or (not is_own and time.time() - status.st_mtime < PATIENCE):
        return
    if not HAS_LOCKS:
        os.unlink(entry.path)  # refused while it is open
        return
    handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        if lock(handle):
            os.unlink(entry.path)
    finally:
        os.close(handle)


def _host() -> str:
    return _digest(platform.node())


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents, synced to the disk.

    Return the new folders, lowest first; they are removed if anything is raised.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.parent)
    except BaseException as failed:
        remove_empty(missing)
        if isinstance(failed, OSError):
            raise check.path_error(failed, str(path), "written", "out") from failed
        raise
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove the empty ones of these folders, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, and warn if that fails: the file has been renamed already.

    No warning if the file system does not support this, or if the folder may be written to and not read.
    """
    if not HAS_LOCKS:
        return  # a folder cannot be opened there, and a rename is in its journal
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as failed:
        if failed.errno in (*UNSUPPORTED, errno.EACCES, errno.EPERM):
            return
        warn_unsynced(folder, failed)
