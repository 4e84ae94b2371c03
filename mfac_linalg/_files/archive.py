"""The file of an inverse: an .npz without compression or pickle, written atomically, with checksums of all bits.

Members are `header.json` and one .npy file for each array. The header has the schema, the library's version, the
facts that JSON can represent, and for every array its shape, its dtype and the SHA-256 of its .npy file. The comment
of the archive is the SHA-256 of all other bytes, so that every bit of the file is covered.
"""

import errno
import hashlib
import io
import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._errors import InvalidFileError
from .._typing import Array
from .._version import __version__
from . import atomic

SCHEMA = 1
HEADER = "header.json"
CHUNK = 2**24  # bytes written, read and hashed at a time
LARGEST_HEADER, MOST_LISTS = 2**24, 2**18  # bytes, and lists and dictionaries in it: each takes memory and time
DIGEST_LENGTH = 64  # hexadecimal digits of the comment
EPOCH = (1980, 1, 1, 0, 0, 0)  # files of equal content are equal
DTYPES = {"bfloat16": "uint16"}  # stored as numbers of another dtype, which NumPy has
STORED = ("float16", "bfloat16", "float32", "float64", "uint16", "int32", "int64")
LARGEST_SIZE = 2**62
MAGIC, LARGEST_LAYOUT = b"\x93NUMPY\x02\x00", 10_000  # of a .npy file: how it begins, and bytes before its values


def save(path: Any, kind: str, facts: dict[str, Any], arrays: dict[str, Array], argument: str = "path") -> None:
    """Write a temporary file, sync it to the disk, and rename it to `path`: the old or the new file is always complete.

    `facts` must be valid in JSON; `arrays` may be of any library.
    """
    header = {"schema": SCHEMA, "version": __version__, "kind": kind, "facts": facts}
    atomic.replace(path, lambda file: _write(file, header, arrays), argument)


def _write(file: IO[bytes], header: dict[str, Any], arrays: dict[str, Array]) -> None:
    described = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, x in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
                described[name] = _write_array(member, x)
        text = json.dumps({**header, "arrays": described}, ensure_ascii=False, allow_nan=False).encode()
        if len(text) > LARGEST_HEADER:
            msg = f"An inverse must be described in {LARGEST_HEADER:,} bytes to be saved; got {len(text):,}. "
            raise ValueError(msg + "Use fewer blocks: the size of each is in them.")
        archive.writestr(zipfile.ZipInfo(HEADER, EPOCH), text)
        archive.comment = b" " * DIGEST_LENGTH
        members = archive.infolist()
    digest = _digest_around(file, members)
    file.seek(-DIGEST_LENGTH, os.SEEK_END)
    file.write(digest)


def _write_array(member: IO[bytes], x: Array) -> dict[str, Any]:
    """Write an array as a .npy file, by blocks of rows, and return its description."""
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
        part = np.ascontiguousarray(_backend.to_bits(x[rows, ...] if x.ndim else x), dtype=dtype)
        put(part.reshape(-1).view(np.uint8).data)
    return {"shape": shape, "dtype": name, "sha256": digest.hexdigest()}


def _chunks(shape: tuple[int, ...], itemsize: int) -> Iterator[slice]:
    rows = max(1, CHUNK // max(1, itemsize * math.prod(shape[1:])))
    length = shape[0] if shape else 1
    for start in range(0, length, rows):
        yield slice(start, min(length, start + rows))


def _digest_around(file: IO[bytes], members: list[zipfile.ZipInfo]) -> bytes:
    """The SHA-256 of all bytes but the contents of arrays, which have their own, and this digest."""
    arrays = sorted((m.header_offset, m.compress_size) for m in members if m.filename != HEADER)
    size = file.seek(0, os.SEEK_END) - DIGEST_LENGTH
    digest, at = hashlib.sha256(), 0
    for offset, length in arrays:
        start = _content_of(file, offset)
        if not at <= start <= start + length <= size:
            raise zipfile.BadZipFile
        _update(digest, file, at, start)
        at = start + length
    _update(digest, file, at, size)
    return digest.hexdigest().encode()


def _content_of(file: IO[bytes], offset: int) -> int:
    """The offset of the content of a member, from that of its local header."""
    file.seek(offset + 26)  # of the header: the lengths of its name and of its extra field
    name, extra = struct.unpack("<HH", file.read(4))
    return offset + 30 + name + extra


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

    Every size is checked before memory is allocated. The meaning of facts and arrays is not checked here.
    """
    name = check.path(path)
    check.regular(name)
    handled = sys.exception()  # by the caller, and no cause of what is raised here
    try:
        with open(name, "rb") as file:
            return _read(file)
    except (InvalidFileError, MemoryError):
        raise
    except Exception as broken:  # a changed bit makes zipfile, json and NumPy raise whatever they like
        if failed := _failed_reading(broken, handled):
            raise check.path_error(failed, name, "read") from broken
        msg = f"`path` must be a whole file that `save` wrote; {name} is damaged or none ({broken}). Save again."
        raise InvalidFileError(msg) from broken


def _failed_reading(broken: BaseException | None, handled: BaseException | None) -> OSError | None:
    """The OSError behind an exception, unless it is of a seek to where no file can be (EINVAL), which damage causes."""
    while broken is not None and broken is not handled:
        if isinstance(broken, OSError) and broken.errno not in (None, errno.EINVAL):
            return broken
        broken = broken.__cause__ or broken.__context__
    return None


def _read(file: IO[bytes]) -> tuple[str, dict[str, Any], dict[str, tuple[np.ndarray, str]]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _require(archive.comment == _digest_around(file, members), "its checksum is another")
        header = _read_header(archive)
        listed = {HEADER, *(f"{name}.npy" for name in header["arrays"])}
        names = [member.filename for member in members]
        _require(sorted(names) == sorted(listed), "its members are not those that its header lists")
        _require_dense(file, members, archive.start_dir)
        arrays = {name: (_read_array(archive, name, facts), facts["dtype"]) for name, facts in header["arrays"].items()}
    return header["kind"], header["facts"], arrays


def _read_header(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The header, checked for the types of its parts."""
    member = archive.getinfo(HEADER)
    _require(member.compress_type == zipfile.ZIP_STORED, "its header is compressed")
    _require(member.file_size <= LARGEST_HEADER, "its header is too long")
    text = archive.read(member)
    _require(text.count(b"[") + text.count(b"{") <= MOST_LISTS, "its header holds too many lists")
    header = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    _require(isinstance(header, dict) and {"schema", "version", "kind", "facts", "arrays"} <= set(header), "no header")
    _require(type(header["schema"]) is int, "its schema is no number")
    if header["schema"] > SCHEMA:
        msg = f"`path` must have schema {SCHEMA} or older; got schema {header['schema']}, written by mfac_linalg "
        raise InvalidFileError(msg + f"{header['version']}. Update mfac_linalg.")
    kinds = {"version": str, "kind": str, "facts": dict, "arrays": dict}
    for name, kind in kinds.items():
        _require(isinstance(header[name], kind), f"{name} in its header is no {kind.__name__}")
    for name, facts in header["arrays"].items():
        _require(isinstance(facts, dict) and set(facts) == {"shape", "dtype", "sha256"}, f"{name} is not described")
        _require(facts["dtype"] in STORED, f"{name} is of dtype {facts['dtype']!r:.40}")
        shape = facts["shape"]
        _require(isinstance(shape, list) and len(shape) <= 2, f"{name} has shape {shape!r:.40}")
        _require(all(type(n) is int and 0 <= n < LARGEST_SIZE for n in shape), f"{name} has shape {shape!r:.40}")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _require(len(found) == len(pairs), "a name in its header is there twice")
    return found


def _no_number(word: str) -> Any:
    _require(False, f"{word} is in its header")


def _require_dense(file: IO[bytes], members: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse an archive with anything between its members."""
    at = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        _require(member.header_offset == at, "there is something between its members")
        at = _content_of(file, member.header_offset) + member.compress_size
    _require(at == end, "there is something after its members")


def _read_array(archive: zipfile.ZipFile, name: str, facts: dict[str, Any]) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    shape, dtype = tuple(facts["shape"]), np.dtype(DTYPES.get(facts["dtype"], facts["dtype"])).newbyteorder("<")
    digest = hashlib.sha256()
    with archive.open(member) as file:
        head = _layout(file)
        digest.update(head)
        found, by_columns, kind = np.lib.format.read_array_header_2_0(io.BytesIO(head[len(MAGIC) :]))
        size = len(head) + math.prod(shape) * dtype.itemsize
        _require((found, kind) == (shape, dtype), f"{name} is not what the header says")
        _require(member.compress_size == member.file_size == size, f"{name} is not as long as the header says")
        values = np.empty(shape[::-1] if by_columns else shape, dtype)
        _fill(file, values.reshape(-1).view(np.uint8), digest)
    _require(digest.hexdigest() == facts["sha256"], f"the checksum of {name} is another")
    return (values.T if by_columns else values).astype(dtype.newbyteorder("="), copy=False)


def _layout(file: IO[bytes]) -> bytes:
    """The start of a .npy file, up to its values."""
    start = file.read(len(MAGIC) + 4)
    _require(start[: len(MAGIC)] == MAGIC, "an array has another format")
    length = int.from_bytes(start[len(MAGIC) :], "little")
    _require(length <= LARGEST_LAYOUT, "an array has a long header")
    return start + file.read(length)


def _require(is_valid: bool, reason: str) -> None:
    if not is_valid:
        raise zipfile.BadZipFile(reason)


def _fill(file: IO[bytes], out: np.ndarray, digest: Any) -> None:
    for start in range(0, len(out), CHUNK):
        part = out[start : start + CHUNK]
        data = file.read(len(part))
        if len(data) != len(part):
            raise EOFError
        part[:] = np.frombuffer(data, np.uint8)
        digest.update(data)
