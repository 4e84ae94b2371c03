"""Files split into their parts and written again with other contents and valid checksums."""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np

from mfac_linalg import _files

BFLOAT16 = "bfloat16"


def read_parts(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header of a file, and its arrays as they are stored."""
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read(_files.archive.HEADER))
        arrays = {name: np.load(io.BytesIO(archive.read(f"{name}.npy"))) for name in header["arrays"]}
    return header, arrays


def as_npy(x: np.ndarray) -> bytes:
    """The .npy file of an array, of a format that `save` writes."""
    file = io.BytesIO()
    layout = {"descr": x.dtype.str, "fortran_order": False, "shape": x.shape}
    np.lib.format.write_array_header_2_0(file, layout)
    return file.getvalue() + x.tobytes()


def describe_array(x: np.ndarray, content: bytes, dtype: str | None = None) -> dict[str, Any]:
    """What a header says of an array."""
    return {"shape": list(x.shape), "dtype": dtype or x.dtype.name, "sha256": hashlib.sha256(content).hexdigest()}


def write_parts(
    path: Any,
    header: dict[str, Any],
    arrays: dict[str, np.ndarray],
    *,
    describe: bool = True,
    text: str | None = None,
    members: tuple[tuple[str, bytes], ...] = (),
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """A file of this header, or of this text in its place, of these arrays, and of more members."""
    contents = {name: as_npy(x) for name, x in arrays.items()}
    if describe:
        before = header["arrays"]
        kept = {n: BFLOAT16 for n, x in arrays.items() if before.get(n, {}).get("dtype") == BFLOAT16}
        found = {n: describe_array(x, contents[n], kept.get(n)) for n, x in arrays.items()}
        header = {**header, "arrays": found}
    with open(path, "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (*((f"{n}.npy", c) for n, c in contents.items()), *members):
                with archive.open(zipfile.ZipInfo(name, _files.archive.EPOCH), "w", force_zip64=True) as member:
                    member.write(content)
            info = zipfile.ZipInfo(_files.archive.HEADER, _files.archive.EPOCH)
            archive.writestr(info, json.dumps(header) if text is None else text, compress_type=compression)
            archive.comment = b" " * _files.archive.DIGEST_LENGTH
            infos = archive.infolist()
        digest = _files.archive._digest_around(file, infos)
        file.seek(-_files.archive.DIGEST_LENGTH, 2)
        file.write(digest)
