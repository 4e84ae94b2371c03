"""Whether memory of the user's that an inverse reads anew still has the values that it had when that was built."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from .. import _backend

COUNT, COUNT_IN_FILE = 32, 8  # entries of an array; in a mapped file each of them is a page that has to be read
CANDIDATES = 1024  # looked at in a build, for enough of them that are not zero


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The bits of some entries of an array in the host's memory: another filling of it has others.

    The entries are the corners, and others by a fixed seed, of which those that are not zero come first: what most
    rows have no number at would tell little. A change of few entries is not seen.
    """

    source: Any  # the user's array or sparse matrix
    name: str  # of the argument
    positions: tuple[np.ndarray, ...]  # in each array that `source` is made of, counted row by row
    bits: bytes

    @classmethod
    def of(cls, source: Any, name: str = "gradients") -> "Fingerprint | None":
        """None for what is not in the host's memory, or cannot be written to."""
        arrays = _backend.host_memory(source)
        if not arrays:
            return None
        in_file = _backend.is_on_disk(source)
        positions = tuple(_positions(x, COUNT_IN_FILE if in_file else COUNT, in_file=in_file) for x in arrays)
        return cls(source, name, positions, _bits([_reader(*pair) for pair in zip(arrays, positions, strict=True)]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_read"}

    @cached_property
    def _read(self) -> Callable[[], bytes]:
        """What reads the entries. No circle, which would keep the array for longer."""
        source, positions = self.source, self.positions
        if _backend.is_sparse(source):  # whose arrays its user can exchange
            return partial(_bits_anew, source, positions)
        memory = _backend.host_memory(source)
        if not memory:  # a copy that was made in a transform, of which nothing can be read there
            return partial(bytes, self.bits)
        read = partial(_bits, [_reader(*memory, *positions)])
        address = _backend.address(source)
        return read if address is None else partial(_bits_at, address, read, source, positions)

    def require_same(self) -> None:
        """Refuse to answer for values that are no longer there."""
        try:
            same = self._read() == self.bits
        except (IndexError, ValueError):  # a sparse matrix, or a tensor, that has fewer entries now
            same = False
        if not same:
            msg = f"`{self.name}` must not change while an inverse stands on its values; got others in its memory than "
            raise ValueError(msg + "when the inverse was built. Build it again, or pass a copy.")


def require_unchanged(*holders: Any) -> None:
    """Refuse rows, where there are any, whose memory has been filled anew."""
    for holder in holders:
        if holder is not None and holder.fingerprint is not None:
            holder.fingerprint.require_same()


def _bits(readers: list[Callable[[], np.ndarray]]) -> bytes:
    return b"".join([_backend.native(read()).tobytes() for read in readers])  # a pickle changes the order of bytes


def _bits_anew(source: Any, positions: tuple[np.ndarray, ...]) -> bytes:
    return _bits([_reader(*pair) for pair in zip(_backend.host_memory(source), positions, strict=True)])


def _bits_at(address: int, read: Callable[[], bytes], source: Any, positions: tuple[np.ndarray, ...]) -> bytes:
    return read() if _backend.address(source) == address else _bits_anew(source, positions)


def _reader(array: np.ndarray, positions: np.ndarray) -> Callable[[], np.ndarray]:
    """What reads the entries of an array at positions, and touches no others: `take` would copy a view whole."""
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
