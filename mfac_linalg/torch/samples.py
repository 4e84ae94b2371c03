"""Batches of samples: what a model is called with, how many they are, and parts of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .. import _validation as check

Batches = Iterable[tuple[Any, Any]]
CONSTANTS = (bool, str, type(None))  # that may stand among tensors, the same for all samples


@dataclass(frozen=True)
class Samples:
    """Inputs and targets as tensors of shape (count, …), nested as they came, beside what is the same for all."""

    inputs: Any
    targets: Any
    count: int

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> "Samples":
        """Of as many inputs as targets; a mapping of another kind is taken as a dictionary."""
        inputs, targets = (dict(x) if isinstance(x, Mapping) else x for x in (inputs, targets))
        leaves = [leaf for leaf in pytree.tree_leaves((inputs, targets)) if not isinstance(leaf, CONSTANTS)]
        odd = next((leaf for leaf in leaves if not (isinstance(leaf, Tensor) and leaf.ndim)), None)
        if odd is not None or not leaves:
            given = "none" if odd is None else check.describe(odd) if isinstance(odd, Tensor) else type(odd).__name__
            msg = f"`inputs` and `targets` must be tensors of shape (m, …); got {given}. Stack the samples, in "
            raise TypeError(msg + "tuples, lists or dictionaries where they have parts.")
        counts = [len(leaf) for leaf in leaves]
        if len(set(counts)) > 1:
            msg = f"`inputs` and `targets` must have as many samples; got {counts}. Pass one target for each input."
            raise ValueError(msg)
        return cls(inputs, targets, counts[0])

    @property
    def parts(self) -> tuple[Any, Any]:
        """Inputs and targets."""
        return self.inputs, self.targets

    def at(self, samples: slice) -> tuple[Any, Any]:
        """The inputs and targets of some samples."""
        return pytree.tree_map(lambda leaf: leaf[samples] if isinstance(leaf, Tensor) else leaf, self.parts)

    @property
    def axes(self) -> tuple[Any, Any]:
        """The axis of samples of each tensor, None of constants: `in_dims` of vmap."""
        return pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, self.parts)


def alone(x: Any) -> Any:
    """The inputs or targets of one sample as those of a batch of one."""
    return pytree.tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, x)


def each_batch(batches: Batches, name: str = "batches") -> Iterator[Samples]:
    """The batches of an argument, one after the other."""
    for batch in batches:
        yield Samples.of(*check.check_pair(name, batch))


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: a tuple is its positional, a dictionary its keyword arguments."""
    if isinstance(inputs, tuple):
        return inputs, {}
    return ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
