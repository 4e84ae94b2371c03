"""How many weights remain after each step, and which."""

import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._typing import Array


@dataclass(frozen=True)
class Budget:
    """The sizes of parts of the weights, layers or all together, and the sparsity of each."""

    sizes: tuple[int, ...]
    sparsities: tuple[float, ...]

    @classmethod
    def checked(cls, sparsity: Any, layer_sizes: Any, dim: int) -> "Budget":
        """One sparsity for all weights together, or for each layer of these sizes, or one for each."""
        sizes = (dim,) if layer_sizes is None else check.block_sizes(layer_sizes, dim, "layer_sizes")
        sparsity = sparsity.tolist() if isinstance(sparsity, np.ndarray) else sparsity
        if isinstance(sparsity, numbers.Real):
            return cls(sizes, (check_sparsity(sparsity),) * len(sizes))
        if not isinstance(sparsity, Sequence) or isinstance(sparsity, str):
            msg = f"`sparsity` must be a float in [0, 1), or one for each layer; got {check.describe(sparsity)}. "
            raise TypeError(msg + "Pass 0.8 to remove 80 %.")
        if len(sparsity) != len(sizes):
            msg = f"`sparsity` must be one float, or one for each of {len(sizes)} layers; got {len(sparsity)}. "
            raise ValueError(msg + "Give the layers by `layer_sizes`.")
        return cls(sizes, tuple(check_sparsity(value) for value in sparsity))

    def _parts(self) -> Iterator[tuple[slice, float]]:
        start = 0
        for size, sparsity in zip(self.sizes, self.sparsities, strict=True):
            yield slice(start, start + size), sparsity
            start += size

    def part_of_each(self) -> np.ndarray:
        """The index of the part of each weight, (d,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def ends(self, mask: Array) -> Iterator[tuple[int, float, int, int]]:
        """Of each part: the weights that are left, those that remain at the end, exactly and rounded, and its size.

        Raises
        ------
        ValueError
            A mask that is sparser than the budget already, or leaves nothing.
        """
        for part, sparsity in self._parts():
            present, last = count_active(mask[part]), _count_at(sparsity, part)
            if present == 0:
                msg = f"`mask` must leave a weight of each layer at least; got none of {part.start}:{part.stop}. "
                raise ValueError(msg + "Leave these weights out.")
            if present < last:
                msg = f"`sparsity` must be at least that of `mask`; got {sparsity:g} of weights "
                msg += f"{part.start}:{part.stop}, of which {present} are left. Raise it."
                raise ValueError(msg)
            size = part.stop - part.start
            yield present, (1 - sparsity) * size, last, size

    def cut(self, mask: Array, scores: Array, counts: tuple[int, ...]) -> Array:
        """The mask that keeps the largest scores of each part, in these numbers."""
        parts = zip(self._parts(), counts, strict=True)
        masks = [keep_largest(scores[part], mask[part], number) for (part, _), number in parts]
        return masks[0] if len(masks) == 1 else _backend.namespace(mask).concat(masks)


def check_sparsity(value: Any, name: str = "sparsity") -> float:
    """Accept a float in [0, 1)."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        msg = f"`{name}` must be a float in [0, 1); got {check.describe(value)}. Pass 0.8 to remove 80 %."
        raise TypeError(msg)
    if not 0 <= float(value) < 1:
        msg = f"`{name}` must be in [0, 1); got {value!r}. Pass 0.8 to remove 80 %."
        raise ValueError(msg)
    return float(value)


@_backend.in_plain_modes
def count_active(mask: Array) -> int:
    """The number of weights where the mask is True."""
    xp = _backend.namespace(mask)
    return int(_backend.read(xp.sum(xp.astype(mask, _integer_dtype(mask)), dtype=_integer_dtype(mask))))


@_backend.in_plain_modes
def keep_largest(scores: Array, mask: Array, number: int) -> Array:
    """The mask of the `number` largest scores among those in the mask; of equal ones the first."""
    xp = _backend.namespace(scores)
    if number == 0:
        return mask & ~mask
    ranked = xp.where(mask, scores, xp.full_like(scores, -xp.inf))
    least = xp.sort(ranked)[ranked.shape[0] - number]
    above, equal = ranked > least, ranked == least
    order = xp.cumulative_sum(xp.astype(equal, _integer_dtype(mask)), dtype=_integer_dtype(mask))
    return above | (equal & (order <= number - count_active(above)))


def _integer_dtype(x: Array) -> Any:
    xp = _backend.namespace(x)
    return xp.int64 if _backend.has_int64(x) else xp.int32


def _count_at(sparsity: float, part: slice) -> int:
    """How many weights of a part remain, at least one: without any a layer passes nothing on."""
    size = part.stop - part.start
    return max(1, size - round(sparsity * size))
