"""A folder for an inverse whose whitened rows do not fit into memory, written by passes that can be taken up again.

    whitened.npy   W, column by column
    build.npz      until all is there: what the build was asked, how far each pass has come, and what it has found
    inverse.npz    put in place last: all else of the inverse, and the SHA-256 of each run of columns of W

Without the last one the folder is not an inverse. Both archives are files as `save` writes them.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._errors import FolderInUseError, InvalidFileError
from .._typing import Array
from . import archive, atomic, journal, matrix_file
from .journal import JOURNAL, MANIFEST, WHITENED, damaged, is_sound, read_journal, require_own

RUN_BYTES = 2**26  # of W under one digest
SECONDS = 30.0  # between two entries of the journal


@dataclass(frozen=True)
class Target:
    """A matrix of the user's that W is written to, with no journal."""

    matrix: Any
    is_shared = True
    is_resumed = False

    def write(self, columns: slice, block: Array) -> None:
        """Write columns of W."""
        _backend.write_columns(self.matrix, columns, block)


class Folder:
    """The folder of one build: the matrix that W is written to, and the journal of its passes."""

    is_shared = False

    def __init__(self, path: Path, asked: dict[str, Any], *, resume: bool) -> None:
        self._path, self._asked, self._dtype = path, asked, np.dtype(asked["dtype"])
        self._stages: dict[str, int] = {}
        self._found: dict[str, np.ndarray] = {}
        self._runs: list[list[Any]] = []  # [one past the last column, SHA-256]
        self._open_run = hashlib.sha256()
        self._written = time.monotonic()
        self.is_resumed = False
        require_own(path)
        self._lock, self._made = None, atomic.make_folder(path)
        try:
            self._lock = _locked(path)
            require_own(path)  # another build may have ended in between
            if resume and self._journal.exists():
                self._remember()
            else:
                self._save_journal()  # before anything else: it tells whose the folder is
            self.matrix = self._opened()
        except FolderInUseError:  # whose it is
            raise
        except BaseException:
            self._leave()
            raise

    @property
    def _journal(self) -> Path:
        return self._path / JOURNAL

    def _remember(self) -> None:
        self.is_resumed = True
        facts, arrays = read_journal(self._journal)
        require_same(self._asked, facts["asked"], self._path)
        self._stages, self._runs = facts["stages"], facts["runs"]
        self._found = {name: values for name, (values, _) in arrays.items()}
        if not is_sound(self._asked["shape"], self._stages, self._runs, self._found):
            raise damaged(self._journal)

    def _save_journal(self) -> None:
        facts = {"asked": self._asked, "stages": self._stages, "runs": self._runs}
        archive.save(self._journal, "build", facts, self._found, "out")

    def _opened(self) -> np.memmap:
        """W's file: that of an earlier build with the columns that are as they were written, or a new one."""
        file, found, m_by_d = self._path / WHITENED, None, self._asked["shape"]
        if self._stages.pop("whiten", 0):
            with contextlib.suppress(InvalidFileError):
                found = matrix_file.opened(file, m_by_d, self._dtype.name, "r+")
        nothing = np.zeros((m_by_d[0], 0))
        self._runs = matrix_file.intact(found, self._runs, nothing)[0] if found is not None else []
        if found is not None and self._runs:
            columns = self._stages["whiten"] = self._runs[-1][0]
            small = self._found["whiten: small"]
            self._found["whiten: small"] = small[small < columns]
            return found
        self._found.pop("whiten: small", None)
        try:
            return matrix_file.created(file, tuple(m_by_d), self._dtype)
        except OSError:
            if not self._stages:  # no pass is lost
                self.discard()
            raise

    def product(self, probes: np.ndarray) -> np.ndarray:
        """W Wᵀ times the probes, read from the file."""
        self.matrix.flush()
        return matrix_file.intact(self.matrix, self._runs, probes)[1]

    def refused(self) -> InvalidFileError:
        """The error of a resumed build that ends with a W which is none of these gradients."""
        return journal.of_others(self._path)

    def close(self) -> None:
        """Let another build have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, columns: slice, block: Array) -> None:
        """Write columns of W, which follow those written last."""
        _backend.write_columns(self.matrix, columns, block)
        columns_as_rows = np.ascontiguousarray(_backend.to_bits(block).T)
        self._open_run.update(columns_as_rows.data)

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """Columns that a pass of an earlier build has behind it, and the arrays that it had found by then."""
        prefix = f"{stage}: "
        found = {name.removeprefix(prefix): x for name, x in self._found.items() if name.startswith(prefix)}
        return self._stages.get(stage, 0), found

    def save(self, stage: str, columns: int, found: Callable[[], dict[str, Array]]) -> None:
        """Take down where a pass stands: at its end, and every half minute."""
        is_last = columns == self._asked["shape"][1]
        since = self._runs[-1][0] if self._runs else 0
        is_run = stage == "whiten" and (columns - since) * self._asked["shape"][0] * self._dtype.itemsize >= RUN_BYTES
        if stage == "whiten" and (is_run or is_last):
            self._runs.append([columns, self._open_run.hexdigest()])
            self._open_run = hashlib.sha256()
        due = time.monotonic() >= self._written + SECONDS and (stage != "whiten" or is_run)
        if not (is_last or due):
            return
        self._stages[stage] = columns
        self._found.update({f"{stage}: {name}": np.asarray(x) for name, x in found().items()})
        self.matrix.flush()  # what the journal says to be there is on the disk before it is
        self._save_journal()
        self._written = time.monotonic()

    def discard(self) -> None:
        """Leave nothing of a build that cannot be finished."""
        for name in (WHITENED, JOURNAL):
            (self._path / name).unlink(missing_ok=True)
        self._leave()

    def _leave(self) -> None:
        """Remove the folders that were made for this build, where nothing is in them, before others can have them."""
        atomic.remove_empty(self._made)
        self.close()

    def finish(self, kind: str, facts: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Make the folder an inverse: W to the disk, then the rest in one file, renamed into its place."""
        self.matrix.flush()
        outside = {"runs": self._runs, "shape": self._asked["shape"], "dtype": self._dtype.name}
        archive.save(self._path / MANIFEST, kind, {**facts, "asked": self._asked, "whitened": outside}, arrays, "out")
        with contextlib.suppress(OSError):
            self._journal.unlink()
        self.close()


def _locked(path: Path) -> int | None:
    """A handle of a folder that only one build has at a time, and that nobody has once its process is gone.

    None where the file system has no locks: nobody else can be told then.
    """
    if not atomic.HAS_LOCKS:
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as failed:
        raise check.path_error(failed, str(path), "read", "out") from failed
    try:
        locked = atomic.lock(handle)
    except BaseException:
        os.close(handle)
        raise
    if locked:
        return handle
    os.close(handle)
    if locked is None:
        return None
    msg = f"`out` must be a folder that no other build writes to; {path} is in use. Wait for that, or pass another."
    raise FolderInUseError(msg)


def asked_of(rows: Any, facts: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """What tells two builds apart: their facts, and the SHA-256 of their arrays and of some columns of G."""
    m, d = rows.shape
    arrays = {**{name: rows.columns(j) for name, j in journal.compared_columns(d).items()}, **arrays}
    digests = {name: _digest(_backend.read(x)) for name, x in arrays.items()}
    return {"shape": [m, d], "dtype": _backend.dtype_name(rows.dtype), **facts, **digests}


def require_same(asked: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    """Refuse to go on with a build that was asked something else."""
    names = {*asked, *before} - ({journal.SAMPLE} - {*before})  # which earlier versions did not write
    if changed := sorted(name for name in names if asked.get(name) != before.get(name)):
        msg = f"`out` must be the folder of the same build to resume it; {path} was asked for other {changed}. "
        raise ValueError(msg + "Pass what was passed then, or another folder.")


def _digest(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()


def is_whole(path: Path, argument: str = "path") -> bool:
    """Whether there is a folder that holds an inverse."""
    return check.is_folder(path, argument) and os.path.lexists(path / MANIFEST)


def asked_before(path: Path) -> dict[str, Any]:
    """What the build of a whole folder was asked."""
    asked = archive.load(path / MANIFEST)[1].get("asked")
    if not isinstance(asked, dict):
        msg = f"`out` must hold what a build wrote; {path / MANIFEST} is another's. Pass another folder."
        raise InvalidFileError(msg)
    return asked
