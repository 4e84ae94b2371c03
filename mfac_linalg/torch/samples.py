"""Batches of samples: the arguments of a model, their number, and slices of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import _validation as check

Batches = Iterable[tuple[Any, Any]]
ONE_BY_ONE = "Use mean_gradients with batch_size=1, which gives the same rows one after the other."
CONSTANTS = (bool, str, type(None))  # allowed among tensors, the same for all samples


@dataclass(frozen=True)
class Samples:
    """Inputs and targets: nested tensors of shape (count, …), and constants of all samples."""

    inputs: Any
    targets: Any
    count: int

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> "Samples":
        """From as many inputs as targets; a mapping of another kind is converted to a dictionary."""
        inputs, targets = (dict(x) if isinstance(x, Mapping) else x for x in (inputs, targets))
        leaves = [leaf for leaf in pytree.tree_leaves((inputs, targets)) if not isinstance(leaf, CONSTANTS)]
        refused = next((leaf for leaf in leaves if not _has_samples(leaf)), None)
        if refused is not None or not leaves:
            given = "none" if refused is None else _description(refused)
            msg = f"`inputs` and `targets` must be dense tensors of shape (m, …); got {given}. Stack the samples, in "
            raise TypeError(msg + "tuples, lists or dictionaries where they have several parts.")
        counts = [len(leaf) for leaf in leaves]
        if len(set(counts)) > 1:
            msg = f"`inputs` and `targets` must have as many samples; got {counts}. Pass one target for each input."
            raise ValueError(msg)
        if counts[0] == 0:
            msg = "`inputs` and `targets` must have at least one sample; got none, which have no gradient. "
            raise ValueError(msg + "Leave the batch out.")
        return cls(inputs, targets, counts[0])

    def at(self, samples: slice) -> tuple[Any, Any]:
        """Copies of the inputs and targets of some samples, without a graph: a model may write to its inputs."""
        return pytree.tree_map(
            lambda leaf: leaf[samples].detach().clone() if isinstance(leaf, Tensor) else leaf,
            (self.inputs, self.targets),
        )

    @property
    def whole(self) -> tuple[Any, Any]:
        """Copies of all inputs and targets."""
        return self.at(slice(None))

    @property
    def axes(self) -> tuple[Any, Any]:
        """The axis of samples of each tensor, None for constants: `in_dims` of vmap."""
        return pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, (self.inputs, self.targets))


class NotBatchedError(RuntimeError):
    """A model that cannot be called on several samples at a time."""


def _has_samples(leaf: Any) -> bool:
    """Whether the first axis of a leaf is that of samples."""
    return isinstance(leaf, Tensor) and not leaf.is_nested and leaf.layout == torch.strided and leaf.ndim > 0


def _description(leaf: Any) -> str:
    if not isinstance(leaf, Tensor) or (leaf.layout == torch.strided and not leaf.is_nested):
        return check.describe(leaf) if isinstance(leaf, Tensor) else type(leaf).__name__
    return "a nested tensor" if leaf.is_nested else f"a tensor in {leaf.layout}"


def batch_of_one(x: Any) -> Any:
    """The inputs or targets of one sample as a batch of one."""
    return pytree.tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, x)


def each_batch(batches: Batches, name: str = "batches") -> Iterator[Samples]:
    """The batches of an argument, checked one by one."""
    check_batches(name, batches)
    for batch in batches:
        yield Samples.of(*check.pair(name, batch))


def check_batches(name: str, batches: Any, passes: int = 1) -> None:
    """Accept an iterable of batches that can be iterated over `passes` times."""
    if not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")) or isinstance(batches, str | Mapping):
        msg = f"`{name}` must be an iterable of (inputs, targets); got {check.describe(batches)}. Pass a DataLoader or "
        raise TypeError(msg + "a list.")
    if passes > 1 and isinstance(batches, Iterator):
        msg = f"`{name}` must have batches in each of {passes} passes; got "
        msg += f"{type(batches).__name__}, an iterator, which is exhausted after one. Pass a list or a DataLoader."
        raise ValueError(msg)


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a model: a tuple or list is positional ones, a dictionary keyword arguments."""
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
