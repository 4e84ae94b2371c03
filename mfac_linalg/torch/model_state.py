"""What a call of a model may change beside its outputs, and the way back: attributes, containers, tensors."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

PLAIN = (Tensor, nn.Parameter)
ATOMS = (str, int, float, type(None))  # of which long lists may be kept, as vocabularies


@dataclass(frozen=True)
class ModelState:
    """What modules hold, down to the values of their tensors, so that it can be put back in place.

    A tensor is copied, a container or a module remembers the objects that it holds. That reaches what registered and
    unregistered submodules hold, through lists, dictionaries, sets and objects of the classes that are defined beside
    the modules' own (a cache, a counter), and what the objects hold that are hooks, or whose methods are. Other
    objects, random generators and what functions write elsewhere stay as the call leaves them.
    """

    containers: list["_Container"] = field(default_factory=list)
    empty: list[Any] = field(default_factory=list)  # containers, most of them for hooks that a module has not
    tensors: list["_TensorValue"] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, *roots: Any) -> "ModelState":
        """Of modules, and of objects that are called or whose methods are; functions hold nothing."""
        state, seen, waiting = cls(), dict[int, Any](), list(_owners(roots))
        modules = [owner for owner in waiting if isinstance(owner, nn.Module)]
        packages = {_package(part) for module in modules for part in module.modules()} - {"torch", "builtins"}
        packages |= {"types", "collections"}  # namespaces, and containers that hold one of the above
        while waiting:
            item = waiting.pop()
            key = id(item)
            if key not in seen:
                seen[key] = item
                waiting += state._remember(item, packages)
        return state

    def _remember(self, item: Any, packages: set[str]) -> Iterable[Any]:
        """Remember one object, and return those that it holds."""
        if isinstance(item, dict | list | set | deque):
            if not item:
                self.empty.append(item)
                return []
            self.containers.append(_Container.of(item))
            return [x for x in (item.values() if isinstance(item, dict) else item) if not isinstance(x, ATOMS)]
        if isinstance(item, Tensor):
            self.tensors.append(_TensorValue.of(item))
            return [vars(item)]
        if isinstance(item, np.ndarray) and item.flags.writeable and not isinstance(item, np.memmap):
            self.arrays.append((item, item.copy()))
        elif isinstance(item, tuple | frozenset):
            return item
        elif isinstance(item, nn.Module):
            hooks = [held for name, held in vars(item).items() if name.endswith("_hooks") and isinstance(held, dict)]
            return [vars(item), *(owner for held in hooks for owner in _owners(held.values()))]
        elif isinstance(item, MethodType | functools.partial):
            return _owners([item])
        elif hasattr(item, "__dict__") and _package(item) in packages:
            return [vars(item)]
        return []

    @contextmanager
    def kept(self) -> Iterator["ModelState"]:
        """Put everything back at the end; in between parameters have no `.grad`, so that nothing is added to it."""
        forget_cached_weights()
        try:
            for tensor in self.tensors:
                tensor.hide_gradient()
            yield self
        finally:
            self.restore()
            for tensor in self.tensors:
                tensor.show_gradient()

    def restore(self) -> None:
        """Put everything back but the gradients."""
        for container in self.containers:
            container.restore()
        for unfilled in filter(None, self.empty):
            unfilled.clear()
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.restore()
        for array, values in self.arrays:
            array[...] = values
        forget_cached_weights()


def unchanged(*modules: Any) -> AbstractContextManager[ModelState]:
    """Give modules back as they are now, whatever is done with them inside."""
    return ModelState.of(*modules).kept()


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
        if self.tensor.is_leaf and self.tensor.grad is not None:
            self.tensor.grad = None

    def show_gradient(self) -> None:
        if self.grad is not None:
            self.tensor.grad = self.grad

    def restore(self) -> None:
        tensor = self.tensor
        if self.memory is None or self.values is None:
            return
        if tensor.grad_fn is not self.grad_fn and not tensor._is_view():
            tensor.detach_()
        if tensor.data_ptr() != self.memory.data_ptr() or tensor.shape != self.memory.shape:
            tensor.data = self.memory
        if self.memory.device.type != "cpu" or not _is_equal(self.memory, self.values):  # no read from a device
            self.memory.copy_(self.values)
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        self.hide_gradient()


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor has entries of its own that may be copied and written."""
    plain = type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_quantized
    written = plain and not (tensor.is_inference() or tensor.is_meta or tensor.is_nested)
    return written and not any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _is_equal(x: Tensor, y: Tensor) -> bool:
    """Whether tensors of one dtype are equal, by bytes where PyTorch compares no such floats."""
    return torch.equal(x.view(torch.uint8), y.view(torch.uint8)) if x.dtype.itemsize == 1 else torch.equal(x, y)


def _owners(callables: Iterable[Any]) -> Iterator[Any]:
    """The modules that are called, or whose methods are, and the attributes of other such objects."""
    for each in callables:
        if isinstance(each, functools.partial):
            yield from _owners((each.func, *each.args, *each.keywords.values()))
            continue
        owner = getattr(each, "__self__", each)
        if isinstance(owner, nn.Module):
            yield owner
        elif hasattr(owner, "__dict__") and not isinstance(owner, FunctionType | ModuleType | type):
            yield vars(owner)


def _package(item: Any) -> str:
    return type(item).__module__.partition(".")[0]
