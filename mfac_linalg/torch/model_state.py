"""What a call of a model may change beside its outputs, and the way back: attributes, containers, tensors."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .previous_values import CONTAINERS, AttributeValues, ContainerValues, TensorValues, base_of

IN_CLOSURES = (*CONTAINERS, Tensor, np.ndarray, nn.Module, FunctionType, MethodType, partial)  # what is looked into
ATOMS = (str, int, float, type(None))  # of which long lists may be kept, as vocabularies


@dataclass(frozen=True)
class ModelState:
    """What modules hold, down to the values of their tensors, so that it can be put back in place.

    A dense tensor is copied, a container or a module remembers the objects that it holds. That reaches what registered
    and unregistered submodules hold, through lists, dictionaries, sets and objects of the classes that are defined
    beside the modules' own (a cache, a counter), in attributes, slots and those classes themselves; what the objects
    hold that are hooks, or whose methods are; what functions have in their closures, and the modules that they name.
    Of a function that is a root (a loss) only the modules: a list to which it appends is its user's. Global variables
    otherwise, other objects, caches of functools, random generators, and the values of sparse, nested and quantised
    tensors stay as the call leaves them.
    """

    containers: list["ContainerValues | AttributeValues"] = field(default_factory=list)
    empty: list[Any] = field(default_factory=list)  # containers, most of them for hooks that a module has not
    tensors: list["TensorValues"] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, *roots: Any) -> "ModelState":
        """Of modules, of functions, and of objects that are called or whose methods are."""
        state, seen, waiting = cls(), dict[int, Any](), list(_owners(roots))
        modules = [part for owner in waiting if isinstance(owner, nn.Module) for part in owner.modules()]
        packages = {"types", "collections"}  # namespaces, and containers that hold one of the above
        packages |= _packages([*waiting, *modules])
        waiting += _named_by_roots([owner for owner in waiting if isinstance(owner, FunctionType)], seen)
        with torch._C.DisableTorchFunctionSubclass():  # those of users may answer anything
            while waiting:
                item = waiting.pop()
                key = id(item)
                if key not in seen:
                    seen[key] = item
                    waiting += state._remember(item, packages)
        return state

    def _remember(self, item: Any, packages: set[str]) -> Iterable[Any]:
        """Remember one object, and return those that it holds."""
        if isinstance(item, CONTAINERS):
            return [*self._contents(item), *self._attributes(item, packages)]
        if isinstance(item, Tensor):
            self.tensors.append(TensorValues.of(item))
            return [vars(item), *self._attributes(item, packages)]
        if isinstance(item, np.ndarray) and item.flags.writeable and not isinstance(item, np.memmap):
            self.arrays.append((item, item.copy()))
        elif isinstance(item, nn.Module):
            hooks = [held for name, held in vars(item).items() if name.endswith("_hooks") and isinstance(held, dict)]
            called = [owner for held in hooks for owner in _owners(held.values())]
            packages |= _packages(called)
            return [vars(item), *called, *self._attributes(item, packages)]
        elif isinstance(item, FunctionType):
            beside = AttributeValues.in_closure(item)
            self.containers.extend([beside] if beside.before else [])
            return [*_held_by_function(item), *(x for x in beside.values if isinstance(x, IN_CLOSURES))]
        elif isinstance(item, staticmethod | classmethod):
            return [item.__func__]
        elif isinstance(item, MethodType | partial):
            return _owners([item])
        elif isinstance(item, type):
            return self._attributes_of_class(item, packages)
        elif isinstance(item, tuple | frozenset):
            return [*item, *self._attributes(item, packages)]
        return self._attributes(item, packages)

    def _contents(self, container: Any) -> list[Any]:
        """Remember what a container holds, and return it."""
        if not container:
            self.empty.append(container)
            return []
        self.containers.append(ContainerValues.of(container))
        return [x for x in self.containers[-1].values if not isinstance(x, ATOMS)]

    def _attributes(self, item: Any, packages: set[str]) -> list[Any]:
        """Remember the slots of an object of these packages, and return what it has there, its attributes and class."""
        if type(item) in CONTAINERS or _package(type(item)) not in packages:
            return []
        own = [cls for cls in type(item).__mro__ if _package(cls) in packages]
        slots = [slot for cls in own for slot in vars(cls).values() if isinstance(slot, MemberDescriptorType)]
        held: list[Any] = [type(item), *([vars(item)] if hasattr(item, "__dict__") else [])]
        if slots:
            self.containers.append(AttributeValues.at([(item, slot) for slot in slots]))
            held += self.containers[-1].values
        return held

    def _attributes_of_class(self, cls: type, packages: set[str]) -> list[Any]:
        """Remember the attributes of a class of these packages, and return them and the classes that it is made of."""
        if _package(cls) not in packages:
            return []
        self.containers.append(AttributeValues.of_class(cls))
        return [*self.containers[-1].values, *cls.__bases__]

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
            base_of(unfilled).clear(unfilled)
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
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


def _owners(callables: Iterable[Any]) -> Iterator[Any]:
    """The modules that are called, or whose methods are; functions; other such objects, and their attributes."""
    for each in callables:
        if isinstance(each, partial):
            yield from _owners((each.func, *each.args, *each.keywords.values()))
            continue
        owner = getattr(each, "__self__", each)
        yield owner
        if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module | FunctionType | ModuleType | type):
            yield vars(owner)


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    """Attributes and defaults of a function, and the modules that it names, global or in its closure."""
    yield from (vars(function), function.__defaults__, function.__kwdefaults__)
    codes = [function.__code__]
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        named = (function.__globals__.get(name) for name in code.co_names)
        yield from (each for each in named if isinstance(each, nn.Module))
    yield from (x for x in AttributeValues.in_closure(function).values if isinstance(x, nn.Module))


def _named_by_roots(functions: list[FunctionType], seen: dict[int, Any]) -> Iterator[Any]:
    """What functions of users hold, and those that are in their closures, whose other variables are the user's."""
    for function in functions:
        if id(function) not in seen:
            seen[id(function)] = function
            beside = AttributeValues.in_closure(function).values
            functions += [x for x in beside if isinstance(x, FunctionType)]
            owners = _owners(x for x in beside if isinstance(x, MethodType | partial))
            yield from (owner for owner in owners if isinstance(owner, nn.Module))
            yield from _held_by_function(function)


def _packages(items: Iterable[Any]) -> set[str]:
    """Those of the classes of objects, but PyTorch and what is built in."""
    return {_package(type(item)) for item in items} - {"torch", "builtins"}


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
