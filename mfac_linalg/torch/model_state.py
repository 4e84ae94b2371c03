"""What a call of a model may change beside its outputs, and the way back: attributes, containers, tensors."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class ModelState:
    """What modules hold, down to the values of their tensors, so that it can be put back in place.

    A tensor is copied, a container or a module remembers the objects that it holds. That reaches what registered and
    unregistered submodules hold, through lists, dictionaries, sets and objects of the classes that are defined beside
    the modules' own (a cache, a counter). Other objects, random generators and what hooks write elsewhere stay as the
    call leaves them.
    """

    containers: list["_Container"] = field(default_factory=list)
    tensors: list["_TensorValue"] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, *roots: Any) -> "ModelState":
        """Of modules; what is no module is passed over."""
        state, seen = cls(), dict[int, Any]()
        modules = [root for root in roots if isinstance(root, nn.Module)]
        packages = {_package(module) for root in modules for module in root.modules()} - {"torch", "builtins"}
        waiting: list[Any] = list(modules)
        while waiting:
            item = waiting.pop()
            if id(item) not in seen:
                seen[id(item)] = item
                waiting += state._remember(item, packages)
        return state

    def _remember(self, item: Any, packages: set[str]) -> Iterable[Any]:
        """Remember one object, and return those that it holds."""
        if isinstance(item, Tensor):
            self.tensors.append(_TensorValue.of(item))
        elif isinstance(item, np.ndarray) and item.flags.writeable and not isinstance(item, np.memmap):
            self.arrays.append((item, item.copy()))
        elif isinstance(item, dict | list | set | deque):
            self.containers.append(_Container.of(item))
            return item.values() if isinstance(item, dict) else item
        elif isinstance(item, tuple | frozenset):
            return item
        elif hasattr(item, "__dict__") and (isinstance(item, nn.Module) or _package(item) in packages):
            return [vars(item)]
        return []

    def restore(self) -> None:
        """Put everything back."""
        for container in self.containers:
            container.restore()
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.restore()
        for array, values in self.arrays:
            array[...] = values
        forget_cached_weights()

    def hide_gradients(self) -> None:
        """Take `.grad` off the parameters until they are put back, so that nothing is added to it."""
        for tensor in self.tensors:
            tensor.hide_gradient()


@contextmanager
def unchanged(*modules: Any) -> Iterator[ModelState]:
    """Give modules back as they were, whatever is done with them inside."""
    forget_cached_weights()
    state = ModelState.of(*modules)
    state.hide_gradients()
    try:
        yield state
    finally:
        state.restore()


def forget_cached_weights() -> None:
    """Have weights cast and parametrised anew, after they were written in place or stood in for.

    PyTorch keeps the casts of an autocast region, and the weights of `parametrize.cached()`, by the tensor they were
    computed from, and does not look at its values again.
    """
    torch.clear_autocast_cache()
    parametrize._cache.clear()


@dataclass(frozen=True)
class _Container:
    """A container, and the objects in it."""

    itself: Any
    keys: list[Any] | None  # of a dictionary
    values: list[Any]

    @classmethod
    def of(cls, itself: Any) -> "_Container":
        if isinstance(itself, dict):
            return cls(itself, list(itself.keys()), list(itself.values()))
        return cls(itself, None, list(itself))

    def restore(self) -> None:
        if self._is_same():
            return
        self.itself.clear()
        if self.keys is not None:
            self.itself.update(zip(self.keys, self.values, strict=True))
        elif isinstance(self.itself, set):
            self.itself.update(self.values)
        else:
            self.itself.extend(self.values)

    def _is_same(self) -> bool:
        if len(self.itself) != len(self.values):
            return False
        if self.keys is None:
            return all(map(is_, self.itself, self.values))
        return all(map(is_, self.itself.keys(), self.keys)) and all(map(is_, self.itself.values(), self.values))


@dataclass(frozen=True)
class _TensorValue:
    """A tensor, its memory, a copy of its values, and what autograd knows of it."""

    tensor: Tensor
    memory: Tensor | None
    values: Tensor | None
    requires_grad: bool
    grad_fn: Any
    grad: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_TensorValue":
        memory = tensor.data if _has_values(tensor) else None
        values = None if memory is None else memory.clone()
        gradient = tensor.grad if tensor.is_leaf else None
        return cls(tensor, memory, values, tensor.requires_grad, tensor.grad_fn, gradient)

    def hide_gradient(self) -> None:
        if self.grad is not None:
            self.tensor.grad = None

    def restore(self) -> None:
        tensor = self.tensor
        if self.memory is None or self.values is None:
            return
        if tensor.grad_fn is not self.grad_fn and not tensor._is_view():
            tensor.detach_()
        if tensor.data_ptr() != self.memory.data_ptr() or tensor.shape != self.memory.shape:
            tensor.data = self.memory
        if self.memory.device.type != "cpu" or not torch.equal(self.memory, self.values):  # no read from a device
            self.memory.copy_(self.values)
        if tensor.is_leaf:
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor has entries of its own that may be copied and written."""
    plain = type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_quantized
    written = plain and not (tensor.is_inference() or tensor.is_meta or tensor.is_nested)
    return written and not any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _package(item: Any) -> str:
    return type(item).__module__.partition(".")[0]
