"""An inverse from a file or a folder, whose contents are all checked before it is built."""

from pathlib import Path
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._errors import InvalidFileError
from . import archive, matrix_file
from .folder import is_finished
from .journal import MANIFEST, WHITENED


def read_parts(path: Path) -> tuple[str, dict[str, Any], dict[str, tuple[np.ndarray, str]], list[list[Any]] | None]:
    """The result of `archive.load` for a file or a folder, whose W is mapped, and the runs of that W."""
    if not check.is_folder(path):
        kind, facts, arrays = archive.load(path)
        if "whitened" in facts:
            msg = f"`path` must be the folder; got {path}, which is a part of it. Pass {path.parent}."
            raise InvalidFileError(msg)
        return kind, facts, arrays, None
    if not is_finished(path):
        msg = f"`path` must be a finished folder; {path} has no {MANIFEST}. Build with `resume=True` to finish it."
        raise InvalidFileError(msg)
    kind, facts, arrays = archive.load(path / MANIFEST)
    outside = facts.pop("whitened", None)
    if outside is None:
        msg = f"`path` must be a folder as `out` makes them; {path / MANIFEST} was written over. Pass that file."
        raise InvalidFileError(msg)
    _require_described(outside, path)
    matrix = matrix_file.open_matrix(path / WHITENED, outside["shape"], outside["dtype"], "r")
    return kind, facts, {**arrays, "whitened": (matrix, outside["dtype"])}, outside["runs"]


def _require_described(outside: Any, path: Path) -> None:
    """Refuse a description of W that `Folder.finish` would not write."""
    fine = isinstance(outside, dict) and set(outside) == {"runs", "shape", "dtype"}
    fine = fine and outside["dtype"] in ("float32", "float64") and isinstance(outside["shape"], list)
    fine = fine and len(outside["shape"]) == 2 and all(type(n) is int and 0 < n < 2**62 for n in outside["shape"])
    if not (fine and outside["runs"] and matrix_file.are_runs(outside["runs"], outside["shape"][1])):
        msg = f"`path` must be a whole folder; {path / MANIFEST} says nothing of {WHITENED} that could be. Build again."
        raise InvalidFileError(msg)


def restore(path: Any, kinds: dict[str, Any], *, xp: Any, device: Any) -> Any:
    """Return the object in a file or a folder, of one of the classes `kinds`, its arrays of a library on a device."""
    kind, facts, arrays, runs = read_parts(Path(check.path(path)))
    if kind not in kinds:
        msg = f"`path` must hold {' or '.join(kinds)}; got {kind}. Load it by mfac_linalg.load, or update mfac_linalg."
        raise InvalidFileError(msg)
    check.contents(kind, facts, arrays)
    like = check.as_empty_array(xp, "float32", device)
    check.loadable(facts, arrays, like)
    facts = {**facts, "runs": runs, "xp": xp, "device": device}
    try:
        return _backend.with_x64(
            lambda: kinds[kind]._from_parts(facts, check.as_library_arrays(arrays, like)), like=like
        )
    except InvalidFileError:
        raise
    except (ValueError, TypeError, OverflowError) as refused:  # what the constructor says of it
        msg = f"`path` must hold what `save` wrote; {path!r:.200} holds no inverse ({refused}). Save again."
        raise InvalidFileError(msg) from refused
