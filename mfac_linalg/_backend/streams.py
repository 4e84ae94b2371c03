"""Matrices that are read in parts: mapped files, datasets of h5py and zarr, arrays in another memory."""

import mmap
import os
from typing import Any

import numpy as np

from .._errors import UnreadableRowsError, naming
from .._typing import Array
from .devices import to_device
from .kinds import device, dtype_name, is_array, is_masked, is_matrix, is_numpy, on_host, same_library
from .sparse import is_sparse
from .values import from_bits, native, to_bits

OVERLAP_STEPS: Any = 10**5  # steps by which it is found out whether arrays have an entry in common
ADDRESS_OFFSET = 2**48  # an address that keeps those with negative strides positive


def is_sliceable(x: object) -> bool:
    """Return whether x has shape, dtype and slices, as datasets of h5py and zarr have, and is no array."""
    wanted = ("shape", "dtype", "__getitem__")
    return not (is_array(x) or is_sparse(x) or isinstance(x, type)) and all(hasattr(x, name) for name in wanted)


def is_on_disk(x: object) -> bool:
    """Return whether x is mapped from a file: a copy in memory has the class, but no mode."""
    return isinstance(x, np.memmap) and x.mode is not None


def read_block(source: Any, part: tuple[slice, slice], *, like: Array) -> Array:
    """Return source[part] as an array of like's library, on its device; a copy where the source is a file."""
    block = source[part] if is_array(source) else _checked_slice(source, part)
    if is_masked(block) or is_matrix(block):
        msg = (
            f"`gradients` must have plain arrays as slices; got a {type(block).__name__}, whose mask would be lost, or "
        )
        raise TypeError(msg + "whose products are others. Fill them first, and pass numpy.asarray of them.")
    if is_on_disk(source):
        block = np.array(block)
        drop_pages(source)
    elif not is_array(source) and isinstance(block, np.ndarray) and not block.flags.owndata:
        block = np.array(block)  # a view of what is the source's, over which W would be written
    if not is_array(block):
        block = np.asarray(block)
    given, wanted = dtype_name(block.dtype), dtype_name(source.dtype)
    if given != wanted:
        msg = f"`gradients` must have slices of their dtype, {wanted}; got {given}. Cast what a slice returns."
        raise TypeError(msg)
    if same_library(block, like):
        return block if is_numpy(block) or device(block) == device(like) else to_device(block, device(like))
    values = to_bits(native(block))
    plain = values.flags.c_contiguous and values.flags.writeable  # others are not taken by every library
    return from_bits(values if plain else np.array(values, order="C"), dtype_name(block.dtype), like=like)


def _checked_slice(source: Any, part: tuple[slice, slice]) -> Any:
    """source[part], its shape checked."""
    with naming("gradients"):
        block = source[part]
        wanted = tuple(len(range(*cut.indices(size))) for cut, size in zip(part, source.shape, strict=True))
    found = tuple(getattr(block, "shape", None) or np.shape(block))
    if found != wanted:
        asked = ", ".join(f"{cut.start or 0}:{'' if cut.stop is None else cut.stop}" for cut in part)
        msg = f"`gradients` must have slices of the shape asked for, {wanted} for [{asked}]; got {found} "
        raise UnreadableRowsError(msg + f"({type(block).__name__}). Correct what a slice returns.")
    return block


def write_columns(target: Any, columns: slice, block: Array) -> None:
    """Write columns of a matrix that is not in memory, or is NumPy's."""
    values = to_bits(block)
    with naming("out"):
        target[:, columns] = values
    if is_on_disk(target):
        drop_pages(target)


def overlap(x: Any, y: Any) -> bool:
    """Return whether writing to x may change y: one object, one memory, one mapped file, or one dataset."""
    if x is y:
        return True
    if isinstance(x, np.ndarray) and is_array(y) and on_host(y):
        y = to_bits(y)  # a view, whatever the library
        return _overlap(x, y) or _overlap_in_file(x, y)
    if type(x) is not type(y) or is_array(x):
        return False
    return (x == y) is True or (_folder_of(x) is not None and _folder_of(x) == _folder_of(y))


def is_mapped_from(x: Any, path: Any) -> bool:
    """Return whether x is an array of any library over that file, or a view of one."""
    if not (is_array(x) and on_host(x) and os.path.exists(path)):
        return False
    file, _ = _mapped(to_bits(x))
    return file is not None and os.path.exists(file) and os.path.samefile(file, path)


def _overlap(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have an entry in common, or might have."""
    try:
        return np.shares_memory(x, y, max_work=OVERLAP_STEPS)
    except np.exceptions.TooHardError:
        return True


def _overlap_in_file(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays over files have an entry of one file in common, however often that is mapped."""
    (file, x_in_file), (other, y_in_file) = _mapped(x), _mapped(y)
    if file is None or other is None:
        return False
    if file != other and not (os.path.exists(file) and os.path.exists(other) and os.path.samefile(file, other)):
        return False
    return x_in_file is None or y_in_file is None or _overlap(x_in_file, y_in_file)


class _ArrayAtAddress:
    """An array at another address, which is never read."""

    def __init__(self, x: np.ndarray, address: int) -> None:
        described = {name: x.__array_interface__[name] for name in ("shape", "typestr", "version")}
        self.__array_interface__ = {**described, "strides": x.strides, "data": (address, True)}


def _mapped(x: np.ndarray) -> tuple[Any, np.ndarray | None]:
    """The file that an array is mapped from, and the array as if addresses were places in that file; None for unknown.

    Linux tells of any memory what is mapped there; elsewhere only NumPy's own maps are known.
    """
    address = x.__array_interface__["data"][0]
    try:
        with open("/proc/self/maps") as lines:
            for line in lines:
                span, _, start, _, inode, *name = line.rstrip("\n").split(maxsplit=5)
                first, last = (int(place, 16) for place in span.split("-"))
                if first <= address < last:
                    place = address - first + int(start, 16)
                    return (
                        (name[0], np.asarray(_ArrayAtAddress(x, ADDRESS_OFFSET + place)))
                        if name and inode != "0"
                        else (None, None)
                    )
    except OSError:
        pass
    base: Any = x
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and is_on_disk(base):
            return base.filename, None
        base = base.base
    return None, None


def _folder_of(x: Any) -> str | None:
    """The folder of a zarr array, for any kind of store; None where it has none."""
    root = getattr(getattr(x, "store", None), "root", None)
    return None if root is None else os.path.realpath(os.path.join(root, getattr(x, "path", "")))


def drop_pages(map_blocks: Any) -> None:
    """Release the pages of a mapped file, which count as this process's memory; they are read again if needed."""
    base: Any = map_blocks
    while isinstance(base, np.ndarray):
        base = base.base
    shared = map_blocks.mode in ("r", "r+", "w+")  # under "c" pages hold changes of their own
    if shared and isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
