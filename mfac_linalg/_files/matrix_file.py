"""A matrix in a .npy file by columns: create and open it, and verify the digests of its runs of columns."""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .. import _validation as check
from .._errors import InvalidFileError
from . import atomic

Runs = list[list[Any]]
"""[one past its last column, SHA-256] of each run of columns, in order."""
CHUNK = 2**24  # bytes read and hashed at a time
DIGEST_PATTERN = re.compile("[0-9a-f]{64}")


def create(file: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.memmap:
    """A new file of zeros with its space on the disk allocated: a mapped file on a full disk ends the process.

    An old file is unlinked, and stays under its other names.
    """
    file.unlink(missing_ok=True)
    try:
        with open(file, "xb"):
            pass
        matrix = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape, fortran_order=True)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as handle:
                _reserve(handle.fileno(), os.fstat(handle.fileno()).st_size)
    except OSError as failed:
        with contextlib.suppress(OSError):
            file.unlink()
        raise check.path_error(failed, str(file), "written", "out") from failed
    return matrix


def _reserve(handle: int, size: int) -> None:
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as failed:
        if failed.errno not in atomic.UNSUPPORTED:
            raise


def open_matrix(file: Path, shape: list[int], dtype: str, mode: Any) -> np.memmap:
    """The matrix in a file, whose length is checked: NumPy would extend it."""
    is_there = check.regular(str(file)) is not None
    try:
        if not is_there:
            broken: Any = "it is not there"
        else:
            matrix = np.lib.format.open_memmap(file, mode="r")
            size = matrix.offset + matrix.nbytes
            whole = list(matrix.shape) == shape and matrix.dtype == np.dtype(dtype) and os.path.getsize(file) == size
            if whole and matrix.flags.f_contiguous:
                return matrix if mode == "r" else np.lib.format.open_memmap(file, mode=mode)
            broken = "it has another size or order"
    except OSError as failed:
        raise check.path_error(failed, str(file), "read") from failed
    except Exception as refused:  # a crafted header makes NumPy raise whatever it likes
        broken = refused
    msg = f"`path` must be a whole folder; {file} is damaged or gone ({broken}). Build again."
    raise InvalidFileError(msg)


def are_runs(runs: Any, columns: int) -> bool:
    """Whether these are valid runs for a number of columns."""
    if not isinstance(runs, list) or not all(isinstance(run, list) and len(run) == 2 for run in runs):
        return False
    stops = [stop for stop, _ in runs]
    if not all(type(stop) is int for stop in stops):
        return False
    fine = all(a < b for a, b in zip([0, *stops], [*stops, columns + 1], strict=True))
    return fine and all(isinstance(digest, str) and DIGEST_PATTERN.fullmatch(digest) for _, digest in runs)


def verify_runs(matrix: np.memmap, runs: Runs, probes: np.ndarray) -> tuple[Runs, np.ndarray]:
    """The runs before the first whose digest differs, and W Wᵀ times the probes for their columns.

    The file is read and not mapped: in a map an error of the disk would end the process.
    """
    rows, itemsize = matrix.shape[0], matrix.dtype.itemsize
    name, column_bytes = str(matrix.filename), rows * itemsize
    z, product = probes.astype(matrix.dtype), np.zeros(probes.shape)
    count = start = 0
    try:
        with open(name, "rb", buffering=0) as file:
            file.seek(matrix.offset)
            for stop, expected in runs:
                digest, left, part = hashlib.sha256(), (stop - start) * column_bytes, np.zeros_like(product)
                while left:
                    data = _read(file, min(left, max(1, CHUNK // column_bytes) * column_bytes))
                    digest.update(data)
                    left -= len(data)
                    block = np.frombuffer(data, matrix.dtype).reshape(-1, rows)
                    with np.errstate(all="ignore"):
                        part += block.T @ (block @ z)
                if digest.hexdigest() != expected:
                    break
                product += part
                start, count = stop, count + 1
    except OSError as failed:
        raise check.path_error(failed, name, "read") from failed
    except EOFError:
        pass
    return runs[:count], product


def _read(file: Any, size: int) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = file.readinto(view[at:])
        if not count:
            raise EOFError
        at += count
    return data


def signs(count: int) -> np.ndarray:
    """A fixed vector of random ±1, (count, 1), to test stored matrices with."""
    return np.random.default_rng(1).choice([-1.0, 1.0], (count, 1))
