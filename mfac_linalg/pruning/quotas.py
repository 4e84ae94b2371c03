"""Masks that may be exchanged for one another: as many weights of each group."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Quotas:
    """The masks with as many weights of each group as one of them; weights of no group stay as they are."""

    mask: np.ndarray  # (d,), one of these masks
    labels: np.ndarray  # (d,), the group of each weight, −1 for none

    @cached_property
    def inside(self) -> np.ndarray:
        """The weights that are in a group."""
        return np.flatnonzero(self.labels >= 0)

    @cached_property
    def is_one_group(self) -> bool:
        """Whether all of them are in the same."""
        inside = self.labels[self.inside]
        return len(inside) == 0 or bool(inside.min() == inside.max())

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of weights of each group that stay."""
        return np.bincount(self.labels[self.mask & (self.labels >= 0)], minlength=int(self.labels.max(initial=-1)) + 1)

    def largest(self, sizes: np.ndarray) -> np.ndarray:
        """The mask of the largest sizes (d,)."""
        mask = self.mask & (self.labels < 0)
        if self.is_one_group:
            count = int(self.counts.sum())
            if count:
                mask[self.inside[np.argpartition(-sizes[self.inside], count - 1)[:count]]] = True
            return mask
        index, rank = ranked(np.ones_like(mask), -sizes, self.labels)
        mask[index[rank < self.counts[self.labels[index]]]] = True
        return mask

    def thresholds(self, mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Between the least size that stays and the largest of the rest, in the group of each weight; else infinite."""
        least, largest = (np.full(len(self.counts) + 1, x) for x in (np.inf, -np.inf))
        stays, goes = (chosen[self.labels[chosen] >= 0] for chosen in (np.flatnonzero(mask), np.flatnonzero(~mask)))
        np.minimum.at(least, self.labels[stays], sizes[stays])
        np.maximum.at(largest, self.labels[goes], sizes[goes])
        is_cut = np.isfinite(least) & np.isfinite(largest) & (least > 0)
        middle = np.full(len(least), np.inf)
        middle[is_cut] = (least[is_cut] + largest[is_cut]) / 2
        return middle[self.labels]


def ranked(chosen: np.ndarray, order: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some of the weights that are in groups, group by group and in an order, and their ranks in the groups."""
    index = np.flatnonzero(chosen & (labels >= 0))
    index = index[np.lexsort((order[index], labels[index]))]
    return index, np.arange(len(index)) - np.searchsorted(labels[index], labels[index])
