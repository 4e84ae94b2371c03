"""The masks of `torch.nn.utils.prune` in a model: hooks that compute a module's weight before each of its calls."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod


def refresh(model: nn.Module) -> None:
    """Compute all masked weights anew from the parameters as they are, without a graph."""
    with torch.no_grad():
        for _, module, hook in _masked(model):
            hook(module, None)


def place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of a parameter and the name of its tensor there, without the "_orig" that a mask has added."""
    path, _, tensor = name.rpartition(".")
    module = model.get_submodule(path)
    plain = tensor.removesuffix("_orig")
    return module, plain if hasattr(module, f"{plain}_mask") else tensor


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, BasePruningMethod]]:
    """The parameters that have a mask, by name, each with its module and the hook there."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                yield f"{path}.{hook._tensor_name}_orig".removeprefix("."), module, hook
