"""The weights of a sparse model that the optimizer may change, by masks."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _validation as check
from .hooks import masks_of

Masks = Mapping[Tensor, Tensor] | nn.Module | None


class ActiveWeights:
    """The weights that may change: of a parameter with a mask, the flat indices of its ones; of others all."""

    def __init__(self, masks: Masks) -> None:
        self.indices = {} if masks is None else _indices(masks)

    def check_all_optimized(self, parameters: Iterable[Tensor]) -> None:
        """Refuse a mask of a parameter that is not optimised: it would have no effect."""
        known = set(parameters)
        for parameter in self.indices:
            if parameter not in known:
                msg = f"`masks` must be for parameters of the optimizer; got one of shape {tuple(parameter.shape)} "
                raise ValueError(msg + "that is not. Add it to `params`, or leave out its mask.")

    def size(self, p: Tensor) -> int:
        """The number of active weights of a parameter."""
        return len(self.indices[p]) if p in self.indices else p.numel()

    def shape(self, p: Tensor) -> torch.Size:
        """The shape of the result of `of`."""
        return torch.Size([self.size(p)]) if p in self.indices else p.shape

    def of(self, p: Tensor, values: Tensor) -> Tensor:
        """The values at the active weights of p: themselves, or a copy, (size(p),)."""
        return torch.take(values, self.indices[p].to(p.device)) if p in self.indices else values

    def write(self, p: Tensor, values: Tensor) -> None:
        """Write values that `of` has copied back to a parameter."""
        if p in self.indices:
            # put_ is refused under torch.use_deterministic_algorithms, and there is no flat view of every layout
            p.copy_(p.reshape(-1).index_copy(0, self.indices[p].to(p.device), values).reshape(p.shape))


def _indices(masks: Any) -> dict[Tensor, Tensor]:
    if isinstance(masks, nn.Module):
        masks = _masks_of_pruned(masks)
    if not isinstance(masks, Mapping):
        msg = f"`masks` must be a mapping of parameters to masks, or a pruned module; got {check.describe(masks)}. "
        raise TypeError(msg + "Pass {parameter: mask}.")
    return {parameter: _check_mask(parameter, mask).reshape(-1).nonzero()[:, 0] for parameter, mask in masks.items()}


def _masks_of_pruned(model: nn.Module) -> dict[Tensor, Tensor]:
    """The masks of `torch.nn.utils.prune` in a module."""
    masks = masks_of(model)
    if not masks:
        msg = f"`masks` must be a module that torch.nn.utils.prune has pruned; got {type(model).__name__} without a "
        raise ValueError(msg + "mask. Prune it first, or pass {parameter: mask}.")
    return masks


def _check_mask(parameter: Any, mask: Any) -> Tensor:
    """Accept a mask of zeros and ones of a parameter's shape; return it on the same device."""
    if not (isinstance(parameter, Tensor) and isinstance(mask, Tensor)):
        msg = f"`masks` must map parameters to tensors; got {check.describe(parameter)} to {check.describe(mask)}. "
        raise TypeError(msg + "Take the parameters themselves, not their names.")
    if mask.shape != parameter.shape:
        msg = f"`masks` must have their parameters' shapes; got {tuple(mask.shape)} for {tuple(parameter.shape)}. "
        raise ValueError(msg + "Pass one entry for each weight.")
    if not bool(torch.all((mask == 0) | (mask == 1))):
        msg = f"`masks` must be True where a weight may move and False elsewhere; got other values in {mask.dtype}. "
        raise ValueError(msg + "Compare your scores with a threshold.")
    return mask.to(parameter.device)
