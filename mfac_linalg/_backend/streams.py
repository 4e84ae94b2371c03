"""Matrices that are read in parts: files that NumPy maps, datasets of h5py and zarr, arrays in another memory."""

import mmap
from typing import Any

import numpy as np

from .kinds import device, is_array, same_library
from .sparse import is_sparse
from .values import asarray, raw, to_device

Array = Any


def is_sliceable(x: object) -> bool:
    """Return whether x has shape, dtype and slices, as datasets of h5py and zarr have, and is no array."""
    wanted = ("shape", "dtype", "__getitem__")
    return not (is_array(x) or is_sparse(x)) and all(hasattr(x, name) for name in wanted)


def is_on_disk(x: object) -> bool:
    """Return whether x is an array over a file."""
    return isinstance(x, np.memmap)


def fetched(source: Any, part: tuple[slice, slice], *, like: Array) -> Array:
    """Return source[part] as an array of like's library, on its device; a copy where the source is a file."""
    block = source[part]
    if is_on_disk(source):
        block = np.array(block)
        _forget(source)
    if is_array(block) and same_library(block, like):
        return block if device(block) == device(like) else to_device(block, device(like))
    return asarray(raw(block) if is_array(block) else np.asarray(block), like=like)


def _forget(mapped: np.memmap) -> None:
    """Give the pages of a mapped file back, which count as this process's memory; they are read again if needed."""
    base: Any = mapped
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and mapped.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):  # "c": own changes
        base.madvise(mmap.MADV_DONTNEED)
