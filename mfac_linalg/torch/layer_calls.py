"""What goes into and out of the calls of layers, while a model computes a loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backend
from .layers import Call, factored_layers
from .rows import ModelRows, without_graph
from .samples import Samples

Layers = Mapping[nn.Module, str]  # the name of each layer's weight
Weights = Mapping[str, Tensor]
Intercept = Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor], Tensor]


@contextmanager
def intercepted(layers: Layers, intercept: Intercept) -> Iterator[None]:
    """Replace layer(x) by intercept(layer, its own forward, x), within all hooks of the layer."""
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer, intercept)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Module, intercept: Intercept, *arguments: Any, **options: Any) -> Tensor:
    own = partial(type(layer).forward, layer)
    given = (*arguments, *options.values())
    if len(given) != 1 or not isinstance(given[0], Tensor) or options.keys() - {"input"}:
        return own(*arguments, **options)  # raises
    return intercept(layer, own, given[0])


def _name_of_weight(layer: nn.Module, weights: Weights) -> str | None:
    """The name of a layer's current weight; None for another one, which a model may have put in its place."""
    current = layer._parameters.get("weight")
    return next((name for name, weight in weights.items() if weight is current), None)


def _with_constant_weight(layer: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The output of a layer, of which derivatives with respect to the weight are zero."""
    weight: Any = layer._parameters["weight"]
    layer._parameters["weight"] = weight.detach()
    try:
        return own(x)
    finally:
        layer._parameters["weight"] = weight


def calls_of(rows: ModelRows, samples: Samples) -> dict[str, list[Call]]:
    """The calls for one sample of layers whose chosen weight is used in these calls alone, by the weight's name.

    The first sample is passed through the model once, and no random numbers are drawn. Left out is a weight that

    - is used without a call of its layer too: by a function, another layer or a penalty;
    - is used within a transform of torch.func, or whose outputs are differentiated while the loss is computed.
    """
    layers = factored_layers(rows.model, rows.chosen)
    values = {name: without_graph(value).requires_grad_() for name, value in rows.chosen.items()}
    probe = _Probe({name: values[name] for name in layers.values()})
    with rows.state.restoring(), torch.enable_grad(), _same_random_numbers(rows), intercepted(layers, probe.intercept):
        used = rows.loss(values, *samples.at(slice(1)), then=probe.used_otherwise) if layers else []
    calls: dict[str, list[Call]] = {}
    for call in probe.calls:
        calls.setdefault(call.weight, []).append(call)
    return {name: of_weight for name, of_weight in calls.items() if name not in {*used, *probe.refused}}


class _Probe:
    """Records calls, in which weights are constants: a gradient with respect to one shows another use of it."""

    def __init__(self, leaves: dict[str, Tensor]) -> None:
        self.leaves = leaves
        self.calls: list[Call] = []
        self.refused: set[str] = set()
        self._is_over = False

    def intercept(self, layer: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The output of the layer for a constant weight."""
        name = _name_of_weight(layer, self.leaves)
        if name is None:
            return own(x)
        output = _with_constant_weight(layer, own, x)
        output = output + torch.zeros_like(output, requires_grad=True)  # which can be differentiated, as of other calls
        if not self._is_over:
            self.calls.append(Call(name, layer, x.shape, output.shape, output.dtype))
        if _backend.in_transforms():
            self.refused.add(name)
        elif output.requires_grad:
            output.register_hook(partial(self._refuse, name))
        return output

    def _refuse(self, name: str, _: Tensor) -> None:
        if not self._is_over:
            self.refused.add(name)

    def used_otherwise(self, loss: Tensor) -> list[str]:
        """The weights that a loss depends on in other ways than by calls of their layers."""
        self._is_over = True
        if not loss.requires_grad:
            return []
        gradients = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        return [name for name, gradient in zip(self.leaves, gradients, strict=True) if gradient is not None]


@contextmanager
def _same_random_numbers(rows: ModelRows) -> Iterator[None]:
    """Restore PyTorch's generators of random numbers at the end."""
    device = next(iter(rows.chosen.values())).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class CallsDifferError(ValueError):
    """A model whose calls of layers are not those of its first sample."""

    def __init__(self, name: str, given: str) -> None:
        msg = f"`model` must call its layers in the same way each time; got {given} of the layer of {name!r}. Use "
        super().__init__(msg + "per_sample_gradients, or leave the parameter out by `params`.")


class Recorder:
    """Records the inputs of calls, and adds to each output a tensor of zeros, whose gradient is that of the output."""

    def __init__(self, calls: Mapping[str, list[Call]], shifts: Mapping[str, list[Tensor]], weights: Weights) -> None:
        self._calls, self._shifts, self._weights = calls, shifts, weights
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in calls}

    def intercept(self, layer: nn.Module, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The output of the layer, plus zeros."""
        name = _name_of_weight(layer, self._weights)
        if name is None:
            return own(x)
        output = _with_constant_weight(layer, own, x)
        index = len(self.inputs[name])
        call = self._calls[name][index] if index < len(self._calls[name]) else None
        if call is None or call.layer is not layer or call.outputs != output.shape:
            raise CallsDifferError(name, "another call")
        self.inputs[name].append(x.detach().to(output.dtype).clone())  # the model may write to x
        return output + self._shifts[name][index]

    def check_complete(self) -> None:
        """Refuse a model that made fewer calls."""
        for name, calls in self._calls.items():
            if len(self.inputs[name]) < len(calls):
                raise CallsDifferError(name, f"{len(self.inputs[name])} instead of {len(calls)} calls")
