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

from . import _backend, _storage
from . import _validation as check
from ._errors import InvalidFileError

Array = Any
MANIFEST, JOURNAL, WHITENED = "inverse.npz", "build.npz", "whitened.npy"
RUN_BYTES = 2**26  # of W under one digest
SECONDS = 30.0  # between two entries of the journal


@dataclass(frozen=True)
class Target:
    """A matrix of the user's that W is written to, with no journal."""

    matrix: Any

    def write(self, columns: slice, block: Array) -> None:
        """Write columns of W."""
        _backend.put(self.matrix, columns, block)


class Folder:
    """The folder of one build: the matrix that W is written to, and the journal of its passes."""

    def __init__(self, path: Path, asked: dict[str, Any], *, resume: bool) -> None:
        self._path, self._asked, self._dtype = path, asked, np.dtype(asked["dtype"])
        self._stages: dict[str, int] = {}
        self._found: dict[str, np.ndarray] = {}
        self._runs: list[list[Any]] = []  # [one past the last column, SHA-256]
        self._open_run = hashlib.sha256()
        self._written = time.monotonic()
        _require_own(path)
        self._is_ours = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            for remains in path.glob(".*.part"):  # of a journal that was killed while it was written
                remains.unlink()
            if not resume:
                self._journal.unlink(missing_ok=True)
            elif self._journal.exists():
                self._remember()
            self.matrix = self._opened()
        except BaseException:
            self.close()
            raise

    @property
    def _journal(self) -> Path:
        return self._path / JOURNAL

    def _remember(self) -> None:
        try:
            _, facts, arrays = _storage.load(self._journal)
        except InvalidFileError as damaged:
            msg = f"`out` must hold a whole journal to be resumed; {self._journal} is damaged. "
            raise InvalidFileError(msg + "Leave `resume` out, to start again.") from damaged
        require_same(self._asked, facts["asked"], self._path)
        self._stages, self._runs = facts["stages"], facts["runs"]
        self._found = {name: values for name, (values, _) in arrays.items()}

    def _opened(self) -> np.memmap:
        """W's file: that of an earlier build with the columns that are as they were written, or a new one."""
        file, found = self._path / WHITENED, None
        if self._stages.pop("whiten", 0):
            with contextlib.suppress(InvalidFileError):
                found = _mapped(file, self._asked["shape"], self._dtype.name, "r+")
        self._runs = _intact(found, self._runs) if found is not None else []
        if found is not None and self._runs:
            columns = self._stages["whiten"] = self._runs[-1][0]
            small = self._found["whiten: small"]
            self._found["whiten: small"] = small[small < columns]
            return found
        self._found.pop("whiten: small", None)
        return self._created(file)

    def _created(self, file: Path) -> np.memmap:
        """With all of its room on the disk taken: a mapped file that finds none ends the process."""
        shape = tuple(self._asked["shape"])
        matrix = np.lib.format.open_memmap(file, mode="w+", dtype=self._dtype, shape=shape, fortran_order=True)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        return matrix

    def close(self) -> None:
        """Let another build have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, columns: slice, block: Array) -> None:
        """Write columns of W, which follow those written last."""
        _backend.put(self.matrix, columns, block)
        self._open_run.update(np.ascontiguousarray(_backend.raw(block).T).data)

    def recalled(self, stage: str) -> tuple[int, dict[str, Array]]:
        """Columns that a pass of an earlier build has behind it, and the arrays that it had found by then."""
        prefix = f"{stage}: "
        found = {name.removeprefix(prefix): x for name, x in self._found.items() if name.startswith(prefix)}
        return self._stages.get(stage, 0), found

    def note(self, stage: str, columns: int, found: Callable[[], dict[str, Array]]) -> None:
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
        self.matrix.flush()
        facts = {"asked": self._asked, "stages": self._stages, "runs": self._runs}
        _storage.save(self._journal, "build", facts, self._found)
        self._written = time.monotonic()

    def discard(self) -> None:
        """Leave nothing of a build that cannot be finished."""
        for name in (WHITENED, JOURNAL):
            (self._path / name).unlink(missing_ok=True)
        self.close()
        if self._is_ours:
            with contextlib.suppress(OSError):
                self._path.rmdir()

    def finish(self, kind: str, facts: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Make the folder an inverse: W to the disk, then the rest in one file, renamed into its place."""
        self.matrix.flush()
        outside = {"runs": self._runs, "shape": self._asked["shape"], "dtype": self._dtype.name}
        _storage.save(self._path / MANIFEST, kind, {**facts, "asked": self._asked, "whitened": outside}, arrays)
        with contextlib.suppress(OSError):
            self._journal.unlink()
        self.close()


def _locked(path: Path) -> int | None:
    """A handle of a folder that only one build has at a time, and that nobody has once its process is gone."""
    try:
        import fcntl
    except ImportError:  # Windows, which does not let two processes write to one file
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as taken:
        os.close(handle)
        msg = f"`out` must be a folder that no other build writes to; {path} is in use. Wait for that, or pass another."
        raise ValueError(msg) from taken
    return handle


def asked_of(rows: Any, facts: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """What tells two builds apart: their facts, and the SHA-256 of their arrays and of three columns of G."""
    m, d = rows.shape
    arrays = {"gradients": rows.columns(np.array(sorted({0, d // 2, d - 1}))), **arrays}
    digests = {name: _digest(_backend.read(x)) for name, x in arrays.items()}
    return {"shape": [m, d], "dtype": _backend.dtype_name(rows.dtype), **facts, **digests}


def _require_own(path: Path) -> None:
    """Refuse a place that holds anything but a build that was begun."""
    found = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name] if path.exists() else []
    others = [n for n in found if n not in (JOURNAL, WHITENED) and not (n.startswith(".") and n.endswith(".part"))]
    if others:
        msg = f"`out` must be a new or empty folder, or hold a build that was not finished; {path} holds {others[:3]}. "
        raise ValueError(msg + "Pass another, or `mfac_linalg.load` what is there.")


def require_same(asked: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    """Refuse to go on with a build that was asked something else."""
    if changed := sorted(name for name in {*asked, *before} if asked.get(name) != before.get(name)):
        msg = f"`out` must be the folder of the same build to resume it; {path} was asked for other {changed}. "
        raise ValueError(msg + "Pass what was passed then, or another folder.")


def _digest(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data).hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a folder holds an inverse."""
    return (path / MANIFEST).exists()


def asked_before(path: Path) -> dict[str, Any]:
    """What the build of a whole folder was asked."""
    return _storage.load(path / MANIFEST)[1]["asked"]


def load(path: Path) -> tuple[str, dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    """What `_storage.load` gives, of a file or of a folder, whose W is mapped once each bit of it is checked."""
    if not path.is_dir():
        kind, facts, arrays = _storage.load(path)
        if "whitened" in facts:
            msg = f"`path` must be the folder; got {path}, which is a part of it. Pass {path.parent}."
            raise InvalidFileError(msg)
        return kind, facts, arrays
    if not is_whole(path):
        msg = f"`path` must be a finished folder; {path} has no {MANIFEST}. Build with `resume=True` to finish it."
        raise InvalidFileError(msg)
    kind, facts, arrays = _storage.load(path / MANIFEST)
    outside = facts.get("whitened")
    if outside is None:
        msg = f"`path` must be a folder as `out` makes them; {path / MANIFEST} was written over. Pass that file."
        raise InvalidFileError(msg)
    matrix = _mapped(path / WHITENED, outside["shape"], outside["dtype"], "r")
    runs = _intact(matrix, outside["runs"])
    if runs != outside["runs"] or runs[-1][0] != matrix.shape[1]:
        msg = f"`path` must be a whole folder; {path / WHITENED} is not what was written there. Build again."
        raise InvalidFileError(msg)
    return kind, facts, {**arrays, "whitened": (matrix, outside["dtype"])}


def _mapped(file: Path, shape: list[int], dtype: str, mode: Any) -> np.memmap:
    """W's file, if it is as long as it has to be: NumPy would make it longer."""
    try:
        matrix = np.lib.format.open_memmap(file, mode="r")
        size = matrix.offset + matrix.nbytes
        whole = list(matrix.shape) == shape and matrix.dtype.name == dtype and file.stat().st_size == size
        if whole:
            return matrix if mode == "r" else np.lib.format.open_memmap(file, mode=mode)
        broken: Any = "it has another size"
    except (OSError, ValueError) as refused:
        broken = refused
    msg = f"`path` must be a whole folder; {file} is damaged or gone ({broken}). Build again."
    raise InvalidFileError(msg)


def _intact(matrix: np.ndarray, runs: list[list[Any]]) -> list[list[Any]]:
    """The runs of columns up to the first that has not the digest that was taken when it was written."""
    start = 0
    for count, (stop, digest) in enumerate(runs):
        found = hashlib.sha256(np.ascontiguousarray(matrix[:, start:stop].T).data).hexdigest()
        _backend.forget(matrix)
        if found != digest:
            return runs[:count]
        start = stop
    return runs


def restore(path: Any, kinds: dict[str, Any], *, xp: Any, device: Any) -> Any:
    """Return the object in a file or a folder, of one of the classes `kinds`, its arrays of a library on a device."""
    kind, facts, arrays = load(Path(os.fsdecode(path)))
    facts = {**facts, "xp": xp, "device": device}
    if kind not in kinds:
        msg = f"`path` must hold {' or '.join(kinds)}; got {kind}. Load it by mfac_linalg.load, or update mfac_linalg."
        raise InvalidFileError(msg)
    like = check.check_place(xp, "float32", device)
    check.check_loadable(arrays, like)
    return _backend.in_float64(lambda _: kinds[kind]._restored(facts, check.check_loaded(arrays, like)), like)
