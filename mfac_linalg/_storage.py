"""One file for one inverse: an .npz without compression or pickle, checked to the last bit, put in place when whole.

Members are `header.json` and one .npy file for each array. The header holds the schema, the library's version, the
facts that are no arrays, and of every array its shape, its dtype and the SHA-256 of its .npy file. The archive's
comment is the SHA-256 of all other bytes, so that no bit of the file is without a check.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import _backend
from ._errors import InvalidFileError
from ._version import __version__

Array = Any
SCHEMA = 1
HEADER = "header.json"
CHUNK = 2**24  # bytes written, read and hashed at a time
LARGEST_HEADER = 2**24
DIGEST = 64  # hexadecimal digits of the comment
EPOCH = (1980, 1, 1, 0, 0, 0)  # files of equal content are equal
DTYPES = {"bfloat16": "uint16"}  # stored as numbers of another dtype, which NumPy has


def save(path: Any, kind: str, facts: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a file beside `path`, bring it to the disk, and rename it: at any moment the old or the new one is whole.

    `facts` is what JSON can hold; `arrays` are of any library.
    """
    path = Path(os.path.realpath(os.fsdecode(path)))  # behind a link: the link stays one
    aside = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.part")
    try:
        with open(aside, "x+b") as file:
            _write(file, {"schema": SCHEMA, "version": __version__, "kind": kind, "facts": facts}, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and a rename is in its journal
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(file: IO[bytes], header: dict[str, Any], arrays: dict[str, Array]) -> None:
    described = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, x in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
                described[name] = _write_array(member, x)
        text = json.dumps({**header, "arrays": described}, ensure_ascii=False, allow_nan=False)
        archive.writestr(zipfile.ZipInfo(HEADER, EPOCH), text.encode())
        archive.comment = b" " * DIGEST
        members = archive.infolist()
    digest = _digest_around(file, members)
    file.seek(-DIGEST, os.SEEK_END)
    file.write(digest)


def _write_array(member: IO[bytes], x: Array) -> dict[str, Any]:
    """Write an array as a .npy file, some rows at a time, and describe it."""
    name = _backend.dtype_name(x.dtype)
    dtype = np.dtype(DTYPES.get(name, name)).newbyteorder("<")
    digest = hashlib.sha256()

    def put(data: Any) -> None:
        digest.update(data)
        member.write(data)

    head = io.BytesIO()
    by_columns = x.ndim == 2 and not _backend.is_row_major(x) and _backend.is_row_major(x.T)
    layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": by_columns, "shape": tuple(x.shape)}
    np.lib.format.write_array_header_2_0(head, layout)
    put(head.getvalue())
    shape = list(x.shape)
    x = x.T if by_columns else x
    for rows in _chunks(tuple(x.shape), dtype.itemsize):
        part = np.ascontiguousarray(_backend.raw(x[rows, ...] if x.ndim else x), dtype=dtype)
        put(part.reshape(-1).view(np.uint8).data)
    return {"shape": shape, "dtype": name, "sha256": digest.hexdigest()}


def _chunks(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    rows = max(1, CHUNK // max(1, itemsize * math.prod(shape[1:])))
    length = shape[0] if shape else 1
    for start in range(0, length, rows):
        yield slice(start, min(length, start + rows))


def _digest_around(file: IO[bytes], members: list[zipfile.ZipInfo]) -> bytes:
    """The SHA-256 of all that is neither the content of an array, which has its own, nor this digest."""
    arrays = sorted((m.header_offset, m.compress_size) for m in members if m.filename != HEADER)
    size = file.seek(0, os.SEEK_END) - DIGEST
    digest, at = hashlib.sha256(), 0
    for offset, length in arrays:
        file.seek(offset + 26)  # of a local header: the lengths of its name and of its extra field
        name, extra = struct.unpack("<HH", file.read(4))
        start = offset + 30 + name + extra
        if not at <= start <= start + length <= size:
            raise zipfile.BadZipFile
        _update(digest, file, at, start)
        at = start + length
    _update(digest, file, at, size)
    return digest.hexdigest().encode()


def _update(digest: Any, file: IO[bytes], start: int, stop: int) -> None:
    file.seek(start)
    while start < stop:
        data = file.read(min(CHUNK, stop - start))
        if not data:
            raise zipfile.BadZipFile
        digest.update(data)
        start += len(data)


def load(path: Any) -> tuple[str, dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    """Read a file that `save` wrote: the kind of object, its facts, and of every array the values and the dtype's name.

    Every size is checked before memory is taken for it.
    """
    with open(path, "rb") as file:
        try:
            return _read(file)
        except (InvalidFileError, MemoryError):
            raise
        except Exception as broken:  # a changed bit makes zipfile, json and NumPy raise whatever they like
            msg = f"`path` must be a whole file that `save` wrote; {path!s} is damaged or none ({broken}). Save again."
            raise InvalidFileError(msg) from broken


def _read(file: IO[bytes]) -> tuple[str, dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _require(archive.comment == _digest_around(file, members), "its checksum is another")
        _require(archive.getinfo(HEADER).file_size <= LARGEST_HEADER, "its header is too long")
        header = json.loads(archive.read(HEADER))
        if header["schema"] > SCHEMA:
            msg = f"`path` must have schema {SCHEMA} or older; got schema {header['schema']}, written by mfac_linalg "
            raise InvalidFileError(msg + f"{header['version']}. Update mfac_linalg.")
        arrays = {name: (_read_array(archive, name, facts), facts["dtype"]) for name, facts in header["arrays"].items()}
    return header["kind"], header["facts"], arrays


def _read_array(archive: zipfile.ZipFile, name: str, facts: dict[str, Any]) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    shape, dtype = tuple(facts["shape"]), np.dtype(DTYPES.get(facts["dtype"], facts["dtype"])).newbyteorder("<")
    digest = hashlib.sha256()
    with archive.open(member) as file:
        head = _Noting(file, digest)
        np.lib.format.read_magic(head)
        found, by_columns, kind = np.lib.format.read_array_header_2_0(head)
        size = head.count + math.prod(shape) * dtype.itemsize
        _require((found, kind) == (shape, dtype), f"{name} is not what the header says")
        _require(member.compress_size == member.file_size == size, f"{name} is not as long as the header says")
        values = np.empty(shape[::-1] if by_columns else shape, dtype)
        _fill(file, values.reshape(-1).view(np.uint8), digest)
    _require(digest.hexdigest() == facts["sha256"], f"the checksum of {name} is another")
    return (values.T if by_columns else values).astype(dtype.newbyteorder("="), copy=False)


def _require(fine: bool, else_because: str) -> None:
    if not fine:
        raise zipfile.BadZipFile(else_because)


def _fill(file: IO[bytes], out: np.ndarray, digest: Any) -> None:
    for start in range(0, len(out), CHUNK):
        part = out[start : start + CHUNK]
        data = file.read(len(part))
        if len(data) != len(part):
            raise EOFError
        part[:] = np.frombuffer(data, np.uint8)
        digest.update(data)


class _Noting:
    """A file that counts and hashes what is read from it."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self.file, self.digest, self.count = file, digest, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self.file.read(size)
        self.digest.update(data)
        self.count += len(data)
        return data
