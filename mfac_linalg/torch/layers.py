"""Linear and convolutional layers, whose gradients are sums of outer products of what they see and send."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
METHODS = ("forward", "_conv_forward")


def factored_layers(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[nn.Module, str]:
    """The layers of a model with a chosen weight that PyTorch's own forward multiplies by, and the weight's name."""
    names = {parameter: name for name, parameter in chosen.items()}
    weights = {layer: layer._parameters.get("weight") for layer in model.modules() if _is_plain(layer)}
    return {layer: names[weight] for layer, weight in weights.items() if weight is not None and weight in names}


def _is_plain(module: nn.Module) -> bool:
    """Whether calls of a module are those of PyTorch's linear or convolutional layers."""
    base = next((layer for layer in LAYERS if isinstance(module, layer)), None)
    if base is None or any(name in vars(module) for name in METHODS):
        return False
    is_inherited = all(getattr(type(module), name, None) is getattr(base, name, None) for name in METHODS)
    is_compiled = vars(module).get("_compiled_call_impl") is not None
    has_old_hooks = bool(module._backward_hooks) and not module._is_full_backward_hook  # see what computed the output
    return is_inherited and not is_compiled and not has_old_hooks


@dataclass(frozen=True)
class Call:
    """A call of a layer for one sample, with any leading axes: the shapes of its input and its output."""

    weight: str
    layer: nn.Module
    inputs: torch.Size
    outputs: torch.Size
    dtype: torch.dtype  # of the output

    @property
    def groups(self) -> int:
        """Blocks of the weight with inputs and outputs of their own."""
        return self.layer.groups if isinstance(self.layer, _ConvNd) else 1

    @property
    def sizes(self) -> tuple[int, int]:
        """The number p of outputs of a group, and the number q of inputs that each of them is a combination of."""
        weight: Any = self.layer.weight
        return weight.shape[0] // self.groups, math.prod(weight.shape[1:])

    @property
    def positions(self) -> int:
        """How often the weight is used for a sample."""
        return math.prod(self.outputs) // max(1, self.groups * self.sizes[0])

    @property
    def _is_batch(self) -> bool:
        """Of a convolution, whether its input has an axis before that of the channels."""
        return len(self.inputs) == len(self.layer.weight.shape)  # type: ignore[arg-type]

    def as_factor(self, inputs: Tensor) -> Tensor:
        """Inputs of m samples, (m, …), as (groups, m, positions, q): of a convolution, each patch as a vector."""
        (_, q), m = self.sizes, len(inputs)
        if not isinstance(self.layer, _ConvNd):
            return inputs.reshape(1, m, self.positions, q)
        images = inputs.reshape(-1, *inputs.shape[2 if self._is_batch else 1 :])
        patches = _patches(self.layer, images)  # (images, channels, positions, kernel)
        patches = patches.reshape(m, -1, self.groups, q // patches.shape[3], *patches.shape[2:])
        return patches.permute(2, 0, 1, 4, 3, 5).reshape(self.groups, m, self.positions, q)

    def as_output_factor(self, gradients: Tensor) -> Tensor:
        """Gradients of the outputs of m samples, (m, …), as (groups, m, positions, p)."""
        (p, _), m = self.sizes, len(gradients)
        if not isinstance(self.layer, _ConvNd):
            return gradients.reshape(1, m, self.positions, p)
        images = gradients.shape[1] if self._is_batch else 1
        by_channel = gradients.reshape(m, images, self.groups, p, -1)
        return by_channel.permute(2, 0, 1, 4, 3).reshape(self.groups, m, self.positions, p)


def _patches(layer: _ConvNd, images: Tensor) -> Tensor:
    """The patches of images that a convolution multiplies by its kernel, (images, channels, positions, kernel)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = pad(images, _margins(layer), mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        patches = patches.unfold(axis + 2, dilation * (size - 1) + 1, stride)[..., ::dilation]
    count = len(layer.kernel_size)
    return patches.flatten(2, count + 1).flatten(3)


def _margins(layer: _ConvNd) -> list[int]:
    """What a convolution adds to each axis, from the last to the first, before and after."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return list(layer._reversed_padding_repeated_twice)
    return [size for size in reversed(layer.padding) for _ in range(2)]
