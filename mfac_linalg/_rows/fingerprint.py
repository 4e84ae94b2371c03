"""A test whether an array of the user has changed since an inverse was built from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from .. import _backend

COUNT, COUNT_IN_FILE = 32, 8  # entries of an array, and of a mapped file, where each needs a page to be read
CANDIDATES = 1024  # read in a build to find enough non-zeros


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The bits of some entries of an array in the host's memory, which differ when the array is filled again.

    The entries are the corners and others by a fixed seed, non-zeros first: zeros are likely to stay zero. A change of
    few entries is not detected.
    """

    source: Any  # the user's array or sparse matrix
    name: str  # of the argument
    positions: tuple[np.ndarray, ...]  # in each array of `source`, counted row by row
    bits: bytes

    @classmethod
    def of(cls, source: Any, name: str = "gradients") -> "Fingerprint | None":
        """The fingerprint of an array; None if it is not in the host's memory or cannot be written to."""
        arrays = _backend.host_memory(source)
        if not arrays:
            return None
        in_file = _backend.is_on_disk(source)
        positions = tuple(_positions(x, COUNT_IN_FILE if in_file else COUNT, in_file=in_file) for x in arrays)
        return cls(source, name, positions, _bits([_reader(*pair) for pair in zip(arrays, positions, strict=True)]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_read"}

    def map_arrays(self, convert: Callable[[Any], Any]) -> "Fingerprint":
        """The same of a source as another library's array over the same memory."""
        source = convert(self.source)
        return self if source is self.source else replace(self, source=source)

    @cached_property
    def _read(self) -> Callable[[], bytes]:
        """A function that reads the entries; it has no reference to self, which would keep the array alive."""
        source, positions = self.source, self.positions
        if _backend.is_sparse(source):  # whose arrays its user can replace
            return partial(_current_bits, source, positions)
        memory = _backend.host_memory(source)
        if not memory:  # a copy that was made in a transform, where it cannot be read
            return partial(bytes, self.bits)
        read = partial(_bits, [_reader(*memory, *positions)])
        address = _backend.address(source)
        return read if address is None else partial(_bits_at, address, read, source, positions)

    def require_same(self) -> None:
        """Raise if the values have changed."""
        try:
            same = self._read() == self.bits
        except (IndexError, ValueError):  # a sparse matrix, or a tensor, that has fewer entries now
            same = False
        if not same:
            msg = f"`{self.name}` must not change while an inverse uses its memory; got other values than when "
            raise ValueError(msg + "the inverse was built. Build it again, or pass a copy.")


def require_unchanged(*holders: Any) -> None:
    """Refuse rows whose memory has been filled again; None is accepted."""
    for holder in holders:
        if holder is not None and holder.fingerprint is not None:
            holder.fingerprint.require_same()


def _bits(readers: list[Callable[[], np.ndarray]]) -> bytes:
    return b"".join([_backend.native(read()).tobytes() for read in readers])  # a pickle changes the byte order


def _current_bits(source: Any, positions: tuple[np.ndarray, ...]) -> bytes:
    return _bits([_reader(*pair) for pair in zip(_backend.host_memory(source), positions, strict=True)])


def _bits_at(address: int, read: Callable[[], bytes], source: Any, positions: tuple[np.ndarray, ...]) -> bytes:
    return read() if _backend.address(source) == address else _current_bits(source, positions)


def _reader(array: np.ndarray, positions: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that reads the entries at positions and no others: `take` would copy a whole view."""
    if array.flags.c_contiguous and array.flags.aligned:
        return partial(array.reshape(-1).take, positions)
    return partial(array.__getitem__, np.unravel_index(positions, array.shape))


def _positions(array: np.ndarray, count: int, *, in_file: bool) -> np.ndarray:
    size = array.size
    if not size:
        return np.zeros(0, np.int64)
    corners = [0, array.shape[-1] - 1, size - array.shape[-1], size - 1]
    candidates = (_fractions()[: count if in_file else None] * size).astype(np.int64)
    is_zero = _reader(array, candidates)() == 0
    return np.unique([*corners, *candidates[np.argsort(is_zero, kind="stable")][: count - len(corners)]])


@lru_cache(maxsize=1)
def _fractions() -> np.ndarray:
    return np.random.default_rng(0).random(CANDIDATES)
