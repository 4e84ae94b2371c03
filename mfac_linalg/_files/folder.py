"""The folder of an inverse whose whitened rows are on disk, written by a build that can be resumed.

    whitened.npy   W, column by column
    build.npz      during the build: its arguments, and the progress and results of each pass
    inverse.npz    written last: the rest of the inverse, and the SHA-256 of each run of columns of W

Without inverse.npz the folder is not an inverse. Both archives are files as `save` writes them.
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
from .._rows.protocol import Rows
from .._typing import Array
from . import archive, atomic, journal, matrix_file
from .journal import JOURNAL, MANIFEST, WHITENED, damaged, is_valid_journal, read_journal, require_own

RUN_BYTES = 2**26  # of W under one digest
SECONDS = 30.0  # between two entries of the journal


@dataclass(frozen=True)
class Target:
    """A matrix of the user to which W is written, without a journal."""

    matrix: Any
    is_shared = True
    is_resumed = False

    def write(self, columns: slice, block: Array) -> None:
        """Write columns of W."""
        _backend.write_columns(self.matrix, columns, block)


class Folder:
    """The folder of one build: the file of W, and the journal of its passes."""

    is_shared = False

    def __init__(self, path: Path, asked: dict[str, Any], *, resume: bool) -> None:
        self._path, self._identity, self._dtype = path, asked, np.dtype(asked["dtype"])
        self._stages: dict[str, int] = {}
        self._stage_arrays: dict[str, np.ndarray] = {}
        self._runs: list[list[Any]] = []  # [one past the last column, SHA-256]
        self._open_run = hashlib.sha256()
        self._written = time.monotonic()
        self.is_resumed = False
        require_own(path)
        self._lock, self._created_folders = None, atomic.make_folder(path)
        try:
            self._lock = _locked(path)
            require_own(path)  # another build may have ended in between
            if resume and self._journal.exists():
                self._read_journal()
            else:
                self._save_journal()  # before anything else: it marks the folder as that of a build
            self.matrix = self._open_matrix()
        except FolderInUseError:  # it belongs to another build
            raise
        except BaseException:
            self._release()
            raise

    @property
    def _journal(self) -> Path:
        return self._path / JOURNAL

    def _read_journal(self) -> None:
        self.is_resumed = True
        facts, arrays = read_journal(self._journal)
        require_same(self._identity, facts["asked"], self._path)
        self._stages, self._runs = facts["stages"], facts["runs"]
        self._stage_arrays = {name: values for name, (values, _) in arrays.items()}
        if not is_valid_journal(self._identity["shape"], self._stages, self._runs, self._stage_arrays):
            raise damaged(self._journal)

    def _save_journal(self) -> None:
        facts = {"asked": self._identity, "stages": self._stages, "runs": self._runs}
        archive.save(self._journal, "build", facts, self._stage_arrays, "out")

    def _open_matrix(self) -> np.memmap:
        """The file of W: that of an earlier build with its intact columns, or a new one."""
        file, found, m_by_d = self._path / WHITENED, None, self._identity["shape"]
        if self._stages.pop("whiten", 0):
            with contextlib.suppress(InvalidFileError):
                found = matrix_file.open_matrix(file, m_by_d, self._dtype.name, "r+")
        nothing = np.zeros((m_by_d[0], 0))
        self._runs = matrix_file.verify_runs(found, self._runs, nothing)[0] if found is not None else []
        if found is not None and self._runs:
            columns = self._stages["whiten"] = self._runs[-1][0]
            small = self._stage_arrays["whiten: small"]
            self._stage_arrays["whiten: small"] = small[small < columns]
            return found
        self._stage_arrays.pop("whiten: small", None)
        try:
            return matrix_file.create(file, tuple(m_by_d), self._dtype)
        except OSError:
            if not self._stages:  # no pass is lost
                self.discard()
            raise

    def product(self, probes: np.ndarray) -> np.ndarray:
        """W Wᵀ times the probes, read from the file."""
        self.matrix.flush()
        return matrix_file.verify_runs(self.matrix, self._runs, probes)[1]

    def mismatch_error(self) -> InvalidFileError:
        """The error of a resumed build whose W does not belong to these gradients."""
        return journal.mismatch_error(self._path)

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, columns: slice, block: Array) -> None:
        """Write the next columns of W."""
        _backend.write_columns(self.matrix, columns, block)
        columns_as_rows = np.ascontiguousarray(_backend.to_bits(block).T)
        self._open_run.update(columns_as_rows.data)

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """The number of columns that a pass of an earlier build has finished, and its arrays at that point."""
        prefix = f"{stage}: "
        found = {name.removeprefix(prefix): x for name, x in self._stage_arrays.items() if name.startswith(prefix)}
        return self._stages.get(stage, 0), found

    def save(self, stage: str, columns: int, found: Callable[[], dict[str, Array]]) -> None:
        """Write the progress of a pass to the journal: at its end, and every half minute."""
        is_last = columns == self._identity["shape"][1]
        since = self._runs[-1][0] if self._runs else 0
        is_run = (
            stage == "whiten" and (columns - since) * self._identity["shape"][0] * self._dtype.itemsize >= RUN_BYTES
        )
        if stage == "whiten" and (is_run or is_last):
            self._runs.append([columns, self._open_run.hexdigest()])
            self._open_run = hashlib.sha256()
        due = time.monotonic() >= self._written + SECONDS and (stage != "whiten" or is_run)
        if not (is_last or due):
            return
        self._stages[stage] = columns
        self._stage_arrays.update({f"{stage}: {name}": np.asarray(x) for name, x in found().items()})
        self.matrix.flush()  # columns are on the disk before the journal lists them
        self._save_journal()
        self._written = time.monotonic()

    def discard(self) -> None:
        """Remove the files of a build that cannot be finished."""
        for name in (WHITENED, JOURNAL):
            (self._path / name).unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        """Remove the empty folders that this build made, and unlock."""
        atomic.remove_empty(self._created_folders)
        self.close()

    def finish(self, kind: str, facts: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Complete the folder: sync W to the disk, then write the rest to one file."""
        self.matrix.flush()
        outside = {"runs": self._runs, "shape": self._identity["shape"], "dtype": self._dtype.name}
        archive.save(
            self._path / MANIFEST, kind, {**facts, "asked": self._identity, "whitened": outside}, arrays, "out"
        )
        with contextlib.suppress(OSError):
            self._journal.unlink()
        self.close()


def _locked(path: Path) -> int | None:
    """A handle of a folder with a lock, which ends with the process.

    None if the file system has no locks.
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


def build_identity(rows: Rows, facts: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """The identity of a build: its facts, and the SHA-256 of its arrays and of some columns of G."""
    m, d = rows.shape
    arrays = {**{name: rows.columns(j) for name, j in journal.compared_columns(d).items()}, **arrays}
    digests = {name: _digest(_backend.read(x)) for name, x in arrays.items()}
    return {"shape": [m, d], "dtype": _backend.dtype_name(rows.dtype), **facts, **digests}


def require_same(asked: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    """Refuse to resume a build with other arguments."""
    names = {*asked, *before} - ({journal.SAMPLE} - {*before})  # which earlier versions did not write
    if changed := sorted(name for name in names if asked.get(name) != before.get(name)):
        msg = f"`out` must be the folder of the same build to resume it; {path} was asked for other {changed}. "
        raise ValueError(msg + "Pass what was passed then, or another folder.")


def _digest(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()


def is_finished(path: Path, argument: str = "path") -> bool:
    """Whether there is a folder with a finished inverse."""
    return check.is_folder(path, argument) and os.path.lexists(path / MANIFEST)


def recorded_identity(path: Path) -> dict[str, Any]:
    """The arguments of the build of a finished folder."""
    asked = archive.load(path / MANIFEST)[1].get("asked")
    if not isinstance(asked, dict):
        msg = f"`out` must hold what a build wrote; {path / MANIFEST} is another's. Pass another folder."
        raise InvalidFileError(msg)
    return asked
