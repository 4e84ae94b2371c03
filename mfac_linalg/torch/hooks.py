"""The masks of `torch.nn.utils.prune` in a model: hooks that compute a module's weight before each of its calls."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod


def refresh(model: nn.Module) -> None:
    """Compute all masked weights anew from the parameters as they are, without a graph."""
    with torch.no_grad():
        for _, module, hook in _masked(model):
            hook(module, None)


def masked_parameters(model: nn.Module) -> set[str]:
    """The names of parameters that have a mask."""
    return {name for name, _, _ in _masked(model)}


def standing_weights(model: nn.Module, chosen: Collection[str]) -> dict[str, Tensor]:
    """The weights of chosen masked parameters, by their names, as modules hold them until they are called: leaves."""
    refresh(model)
    held = {name: getattr(module, hook._tensor_name) for name, module, hook in _masked(model) if name in chosen}
    return {name: weight.requires_grad_() for name, weight in held.items()}


def refuse_standing(gradients: Mapping[str, Tensor | None]) -> None:
    """Refuse a model that has used a standing weight, one that has a gradient: the parameter's own lacks that part."""
    for name, gradient in gradients.items():
        if gradient is not None:
            msg = f"`model` must call the modules of masked parameters; got {name!r}, used without such a call. "
            msg += (
                "A mask of torch.nn.utils.prune takes effect in calls alone. Call the module, or leave the parameter "
            )
            raise ValueError(msg + "out by `params`.")


@contextmanager
def calls_required(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Refuse parameters whose modules have not been called at the end: a mask there would never take effect."""
    owners = {name: place(model, name)[0] for name in names}
    called: set[nn.Module] = set()
    handles = [owner.register_forward_pre_hook(lambda module, _: called.add(module)) for owner in owners.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, owner in owners.items():
        if owner not in called:
            msg = f"`params` must choose parameters whose modules are called in a forward; got {name!r}, of a module "
            msg += "that is not. A mask of torch.nn.utils.prune would never take effect there. Leave the parameter out "
            raise ValueError(msg + "by `params`.")


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
