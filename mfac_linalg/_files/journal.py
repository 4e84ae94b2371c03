"""The contents of a folder before a build: none, or an unfinished build with a valid journal."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import _validation as check
from .._errors import InvalidFileError
from . import archive, atomic, matrix_file

MANIFEST, JOURNAL, WHITENED = "inverse.npz", "build.npz", "whitened.npy"
SAMPLE, SAMPLED = "sampled gradients", 16  # compared columns of G, and their number


def _foreign(path: Path) -> list[str]:
    """The names in a folder, or of a file, that no build wrote; W belongs to a build if there is a journal."""
    if not check.is_folder(path, "out"):
        return [path.name] if os.path.lexists(path) else []
    try:
        found = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(path)}
    except OSError as failed:
        raise check.path_error(failed, str(path), "read", "out") from failed
    own = (JOURNAL, WHITENED) if found.get(JOURNAL) else ()
    return sorted(name for name, is_file in found.items() if not is_file or not (name in own or atomic.is_part(name)))


def require_own(path: Path) -> None:
    """Refuse a folder with anything but an unfinished build."""
    if others := _foreign(path):
        got = f"holds {others[:3]}" if path.is_dir() else "is no folder"
        msg = f"`out` must be a new or empty folder, or hold a build that was not finished; {path} {got}. "
        raise ValueError(msg + "Pass another, or `mfac_linalg.load` what is there.")
    if (path / JOURNAL).exists():
        read_journal(path / JOURNAL)


def read_journal(file: Path) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    """The facts and arrays of a journal."""
    try:
        kind, facts, arrays = archive.load(file)
    except InvalidFileError as broken:
        raise damaged(file) from broken
    parts = {"asked": dict, "stages": dict, "runs": list}
    if kind != "build" or not all(isinstance(facts.get(name), part) for name, part in parts.items()):
        raise damaged(file)
    return facts, arrays


def damaged(file: Path) -> InvalidFileError:
    msg = f"`out` must hold a whole journal to be resumed or written over; {file} is damaged or another's. "
    return InvalidFileError(msg + "Remove what is there yourself, or pass another folder.")


def mismatch_error(path: Path) -> InvalidFileError:
    """The error of a resumed build whose W does not belong to its gradients."""
    msg = f"`out` must hold a build of these gradients to be resumed; what {path} had of them was of others, and is "
    return InvalidFileError(msg + "removed. Build again.")


@contextlib.contextmanager
def naming_out(path: Path) -> Iterator[None]:
    """Raise errors of `load` with `out` as their argument."""
    try:
        yield
    except InvalidFileError as broken:
        msg = f"`out` must hold a whole inverse, or a build that was not finished, to be resumed; {path} is damaged. "
        raise InvalidFileError(msg + "Remove it yourself, or pass another folder.") from broken
    except OSError as failed:
        raise check.path_error(failed, str(failed.filename or path), "read", "out") from failed


def is_valid_journal(shape: list[int], stages: dict[str, Any], runs: Any, found: dict[str, np.ndarray]) -> bool:
    """Whether a journal is valid for this shape: a partial sum for each pass, and the runs of W."""
    m, d = shape
    if not (matrix_file.are_runs(runs, d) and all(type(n) is int and 0 <= n <= d for n in stages.values())):
        return False
    if set(found) != {f"{stage}: {'small' if stage == 'whiten' else 'gram'}" for stage in stages}:
        return False
    small = found.get("whiten: small", np.zeros(0, np.int64))
    sums = [x for name, x in found.items() if name != "whiten: small"]
    is_valid = all(x.shape == (m, m) and x.dtype == np.float64 and np.all(np.isfinite(x)) for x in sums)
    return is_valid and check.are_increasing(small, d) and len(small) <= 2 * m  # hardly more than m can be small


def compared_columns(dim: int) -> dict[str, np.ndarray]:
    """The columns of G that are compared, by name; the first and the last ones are often zero."""
    sample = np.unique(np.random.default_rng(2).integers(0, dim, SAMPLED))
    return {"gradients": np.array(sorted({0, dim // 2, dim - 1})), SAMPLE: sample}
