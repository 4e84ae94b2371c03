"""The masks of `torch.nn.utils.prune` in a model: hooks that compute a module's weight before each call."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks
from torch.nn.utils.prune import BasePruningMethod

from .model_state import forget_cached_weights
from .previous_values import ContainerValues, TensorValues


def put_mask(model: nn.Module, name: str, mask: Tensor | None = None) -> str:
    """Give a parameter a mask, of ones unless given, and return its new name.

    The hook runs before the other hooks of the module, which may read the weight, as weight normalisation does.
    """
    module, tensor = locate(model, name)
    masks.custom_from_mask(module, tensor, torch.ones_like(getattr(module, tensor)) if mask is None else mask)
    hooks: Any = module._forward_pre_hooks  # an OrderedDict
    hooks.move_to_end(next(key for key, hook in hooks.items() if _is_mask_of(hook, tensor)), last=False)
    return name if name.endswith("_orig") and tensor != name.rpartition(".")[2] else f"{name}_orig"


def refresh(model: nn.Module) -> None:
    """Compute all masked weights again from the current parameters, without a graph."""
    with torch.no_grad():
        for _, module, hook in _masked(model):
            hook(module, None)


def masked_parameters(model: nn.Module) -> set[str]:
    """The names of parameters with a mask."""
    return {name for name, _, _ in _masked(model)}


def stale_masked_weights(model: nn.Module, chosen: Collection[str]) -> dict[str, Tensor]:
    """The weights of chosen masked parameters, by name, as modules have them before a call, made leaves."""
    refresh(model)
    stale = {name: getattr(module, hook._tensor_name) for name, module, hook in _masked(model) if name in chosen}
    return {name: weight.requires_grad_() for name, weight in stale.items()}


class UsedPastMaskError(ValueError):
    """A masked parameter that a model uses where its mask has no effect."""

    def __init__(self, name: str) -> None:
        msg = f"`model` must call the modules of masked parameters; got {name!r}, used without such a call, or "
        msg += "before it. A mask of torch.nn.utils.prune takes effect in calls only. Call the module first, or "
        super().__init__(msg + "leave the parameter out by `params`.")
        self.name = name


def check_not_used_stale(gradients: Mapping[str, Tensor | None]) -> None:
    """Refuse a model that used a weight without its mask: such a weight has a gradient, which its parameter lacks."""
    for name, gradient in gradients.items():
        if gradient is not None:
            raise UsedPastMaskError(name)


@contextmanager
def calls_required(model: nn.Module, names: Mapping[str, str]) -> Iterator[None]:
    """Refuse parameters that calls of their modules do not use; `names` is {name with mask: name without}."""
    owners = {name: locate(model, name)[0] for name in names}
    called: WeakSet[nn.Module] = WeakSet()  # not restored after each row, as a set in a closure is
    handles = [owner.register_forward_pre_hook(lambda module, _: called.add(module)) for owner in owners.values()]
    try:
        yield
    except UsedPastMaskError as error:
        msg = "`params` must choose parameters that are used in calls of their modules; got "
        msg += f"{names.get(error.name, error.name)!r}, which is used without such a call, or before it. A mask of "
        msg += "torch.nn.utils.prune would have no effect there. Leave the parameter out by `params`."
        raise ValueError(msg) from error
    finally:
        for handle in handles:
            handle.remove()
    for name, owner in owners.items():
        if owner not in called:
            msg = f"`params` must choose parameters of modules that the model calls; got {names[name]!r}, of a module "
            msg += "that none of the batches calls. Its gradients are all zero, without information on its weights. "
            raise ValueError(msg + "Leave the parameter out by `params`, or add `batches` that need it.")


@contextmanager
def restoring_masks(model: nn.Module, chosen: Mapping[str, Tensor]) -> Iterator[None]:
    """Restore the current values and masks of chosen parameters at the end, and change nothing else."""
    places = [locate(model, name) for name in {*chosen, *masked_parameters(model)}]
    with torch._C.DisableTorchFunctionSubclass():
        tensors = [TensorValues.of(parameter) for parameter in chosen.values()]
    containers = [ContainerValues.of(module._parameters) for module, _ in places]
    weights = [vars(module).get(tensor) for module, tensor in places]
    for module, tensor in places:  # recurrent layers list their weights
        weight, lists = getattr(module, tensor), [x for x in vars(module).values() if type(x) is list]
        containers += [ContainerValues.of(x) for x in lists if any(each is weight for each in x)]
    unmasked = [(module, tensor) for module, tensor in places if not has_mask(module, tensor)]
    try:
        yield
    finally:
        for module, tensor in unmasked:
            module._buffers.pop(f"{tensor}_mask", None)
            for key in [key for key, hook in module._forward_pre_hooks.items() if _is_mask_of(hook, tensor)]:
                del module._forward_pre_hooks[key]
        for container in containers:
            container.restore()
        for (module, tensor), weight in zip(places, weights, strict=True):
            vars(module).pop(tensor, None) if weight is None else vars(module).update({tensor: weight})
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for values in tensors:
                values.restore()
                values.show_gradient()
        forget_cached_weights()


def locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of a parameter, and the name of its tensor there without the suffix "_orig" of a mask."""
    path, _, tensor = name.rpartition(".")
    module = model.get_submodule(path)
    plain = tensor.removesuffix("_orig")
    return module, plain if has_mask(module, plain) else tensor


def has_mask(module: nn.Module, tensor: str) -> bool:
    """Whether a tensor of a module has a mask of torch.nn.utils.prune, by its hook, not by names of attributes."""
    return any(_is_mask_of(hook, tensor) for hook in module._forward_pre_hooks.values())


def masks_of(model: nn.Module) -> dict[Tensor, Tensor]:
    """The masks of a model's parameters."""
    pairs = [(module, hook._tensor_name) for _, module, hook in _masked(model)]
    return {getattr(module, f"{tensor}_orig"): getattr(module, f"{tensor}_mask") for module, tensor in pairs}


def refuse_own_names(model: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse parameters whose masks would overwrite attributes of their modules."""
    for name in chosen:
        module, tensor = locate(model, name)
        names = [] if has_mask(module, tensor) else [f"{tensor}_mask", f"{tensor}_orig"]
        for own in (attribute for attribute in names if hasattr(module, attribute)):
            msg = f"`params` must choose parameters whose modules have no {own!r} of their own; got {name!r} of a "
            msg += f"{type(module).__name__} that has. A mask of torch.nn.utils.prune would overwrite it. Rename it, "
            raise ValueError(msg + "or leave the parameter out by `params`.")


def _masked(model: nn.Module) -> Iterator[tuple[str, nn.Module, BasePruningMethod]]:
    """The parameters with a mask: name, module, and the hook of the mask."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                yield f"{path}.{hook._tensor_name}_orig".removeprefix("."), module, hook


def _is_mask_of(hook: object, tensor: str) -> bool:
    return isinstance(hook, BasePruningMethod) and hook._tensor_name == tensor
