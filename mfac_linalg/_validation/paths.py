"""Checks of paths: valid names, folders and regular files."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

from .words import describe

KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def check_path(path: Any, name: str = "path") -> str:
    """Accept a str, bytes or path-like that names something."""
    try:
        text = os.fsdecode(path)
    except TypeError as refused:
        msg = f"`{name}` must be a str or path-like; got {describe(path)}. Pass the name of a file."
        raise TypeError(msg) from refused
    if not text or "\0" in text:
        msg = f"`{name}` must be a name without null characters, and not empty; got {describe(path)}. Correct it."
        raise ValueError(msg)
    return text


def as_out_path(out: Any) -> Any:
    """Return `out` as a path if it is a name; any other object unchanged."""
    return Path(check_path(out, "out")) if isinstance(out, str | bytes | os.PathLike) else out


def is_folder(path: Any, name: str = "path") -> bool:
    """Return whether a folder is there, perhaps behind a link."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as failed:
        raise path_error(failed, str(path), "reached", name) from failed


def check_regular(path: str, name: str = "path") -> os.stat_result | None:
    """Refuse a path, or link, to anything but a regular file; return its status, None if nothing is there."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as failed:
        raise path_error(failed, path, "reached", name) from failed
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for is_kind, word in KINDS if is_kind(status.st_mode)), "special file")
        number = errno.EISDIR if kind == "folder" else errno.EINVAL
        raise OSError(number, f"`{name}` must be a regular file; got a {kind}. Pass the name of a file", path)
    return status


def path_error(failed: OSError, path: str, action: str, name: str = "path") -> OSError:
    """An error of the same class, whose text names the argument."""
    words = failed.strerror or str(failed)
    words = os.strerror(failed.errno) if failed.errno and "`" in words else words
    msg = f"`{name}` must be a file that can be {action}; {words}. Check the disk, or pass another"
    return OSError(failed.errno or errno.EIO, msg, path)
