"""A snapshot of all that a call of a model may change (attributes, containers, tensors), which can be restored."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinMethodType, CodeType, FunctionType, GeneratorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .previous_values import CONTAINERS, AttributeValues, ContainerValues, TensorValues, attributes_of

Excluded = Mapping[int, Any]  # objects by identity that are not restored
IN_CLOSURES = (*CONTAINERS, Tensor, np.ndarray, nn.Module, FunctionType, MethodType, partial)  # are searched
ATOMS = (str, int, float, type(None))  # need not be remembered; vocabularies are long lists of them
MANY = 500  # entries of a container, beyond which they are not searched
NEAREST = 10_000  # objects that are searched from batches
LARGE = 2**22  # entries of a tensor or array, beyond which it is copied only as an attribute of a module


@dataclass(frozen=True)
class ModelState:
    """All that modules refer to, down to the values of their tensors, for a later restore in place.

    Dense tensors are copied. Of a container or a module the objects in it are remembered. The search follows

    - registered and unregistered submodules;
    - lists, dictionaries, sets, and objects of classes in the packages of the modules' classes (a cache, a counter):
      their attributes and slots, and those classes themselves;
    - hooks, and the objects whose methods are hooks;
    - closures of functions, and the global modules that functions name.

    Limits:

    - Of a loss only modules are remembered: the loss itself, the owner of the method, or those that it names. Its
      other objects belong to the user, and so do those that batches refer to.
    - Containers of more than `MANY` entries, other than those of modules, are restored, but not searched. Beyond
      `COMPARED` entries only a change of their length or ends is noticed.
    - Tensors and arrays of more than `LARGE` entries are copied only as parameters, buffers or attributes of modules.
    - Other global variables and objects, caches of functools, random generators, and the values of sparse, nested and
      quantised tensors are not restored.
    """

    containers: list["ContainerValues | AttributeValues"] = field(default_factory=list)
    empty: list[Any] = field(default_factory=list)  # plain containers without entries, such as those for hooks
    tensors: list["TensorValues"] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    large: list[Any] = field(default_factory=list)  # tensors and arrays of more than `LARGE` entries

    @classmethod
    def of(cls, model: nn.Module, loss_fn: Any = None, excluded: Excluded | None = None) -> "ModelState":
        """The state of a model and of the modules of a loss, without the objects in `excluded`."""
        state, seen = cls(), dict[int, Any](excluded or {})
        waiting = [model, *_modules_of_loss(loss_fn, seen)]
        modules = {id(part): part for owner in waiting for part in owner.modules()}
        packages = {"types", "collections"}  # namespaces and containers of the standard library
        packages |= _packages(modules.values())
        with torch._C.DisableTorchFunctionSubclass():  # tensor subclasses of users may return anything
            while waiting:
                item = waiting.pop()
                key = id(item)
                if key not in seen:
                    seen[key] = item
                    waiting += state._remember(item, packages)
            if state.large:
                state._remember_large(seen)
        return state

    def _remember(self, item: Any, packages: set[str]) -> Iterable[Any]:
        """Remember one object, and return those that it refers to.

        Only `type` is asked: a proxy or a mock answers `isinstance` as the object that it imitates.
        """
        kind = type(item)
        if issubclass(kind, CONTAINERS):
            return [*self._contents(item), *self._attributes(item, packages)]
        if issubclass(kind, Tensor | np.ndarray):
            if (item.numel() if issubclass(kind, Tensor) else item.size) > LARGE:
                self.large.append(item)
            else:
                self._copy(item)
            return self._attributes(item, packages) if issubclass(kind, np.ndarray) else [attributes_of(item)]
        if issubclass(kind, nn.Module):
            attributes = vars(item)
            hooks = [x for name, x in attributes.items() if name.endswith("_hooks") and isinstance(x, dict)]
            owners = [owner for each in hooks if each for owner in _owners(each.values())]
            if owners:
                packages |= _packages(owners)
            registries = (attributes[name] for name in ("_modules", "_parameters", "_buffers") if name in attributes)
            long = [x for each in (attributes, *registries) if len(each) > MANY for x in each.values()]
            return [attributes, *owners, *long, *self._attributes(item, packages)]
        if issubclass(kind, FunctionType):
            closure = AttributeValues.in_closure(item)
            self.containers.extend([closure] if closure.before else [])
            return [*_contents_of_function(item), *(x for x in closure.values if issubclass(type(x), IN_CLOSURES))]
        if issubclass(kind, staticmethod | classmethod):
            return [item.__func__]
        if issubclass(kind, MethodType | partial):
            return _owners([item])
        if issubclass(kind, type):
            return self._attributes_of_class(item, packages)
        if issubclass(kind, tuple | frozenset):
            return [*_entries(item), *self._attributes(item, packages)]
        return self._attributes(item, packages)

    def _copy(self, item: Any) -> None:
        """Remember the values of a tensor or array."""
        if issubclass(type(item), Tensor):
            self.tensors.append(TensorValues.of(item))
        elif item.flags.writeable and not issubclass(type(item), np.memmap):
            self.arrays.append((item, item.copy()))

    def _remember_large(self, seen: dict[int, Any]) -> None:
        """Copy those large tensors and arrays that are parameters, buffers or attributes of modules."""
        registries = [vars(item) for item in seen.values() if issubclass(type(item), nn.Module)]
        registries += [each[name] for each in registries for name in ("_parameters", "_buffers") if name in each]
        direct = {id(x) for each in registries for x in each.values()}
        for item in self.large:
            if id(item) in direct:
                self._copy(item)

    def _contents(self, container: Any) -> list[Any]:
        """Remember the entries of a container, and return them unless they are too many."""
        if type(container) in CONTAINERS and not container:
            self.empty.append(container)
            return []
        self.containers.append(ContainerValues.of(container))
        values = self.containers[-1].values
        return [x for x in values if type(x) not in ATOMS] if len(values) <= MANY else []

    def _attributes(self, item: Any, packages: set[str]) -> list[Any]:
        """Remember the slots of an object of these packages, and return their values, its attributes and its class."""
        if type(item) in CONTAINERS or _package(type(item)) not in packages:
            return []
        classes = [cls for cls in type(item).__mro__ if _package(cls) in packages]
        slots = [slot for cls in classes for slot in vars(cls).values() if type(slot) is MemberDescriptorType]
        contents: list[Any] = [type(item), attributes_of(item)]
        if slots:
            self.containers.append(AttributeValues.of_slots([(item, slot) for slot in slots]))
            contents += self.containers[-1].values
        return contents

    def _attributes_of_class(self, cls: type, packages: set[str]) -> list[Any]:
        """Remember the attributes of a class of these packages, and return them and its base classes."""
        if _package(cls) not in packages:
            return []
        self.containers.append(AttributeValues.of_class(cls))
        return [*self.containers[-1].values, *cls.__bases__]

    def is_current(self) -> bool:
        """Whether nothing has changed. Values on a device are not read: they are copied again.

        For use after code of others has run: a loader that returned its next batch.
        """
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            is_same = all(container.is_same() for container in self.containers)
            is_same = is_same and not any(self.empty)
            is_same = is_same and all(tensor.is_current() for tensor in self.tensors)
            return is_same and all(np.array_equal(array, values) for array, values in self.arrays)

    @contextmanager
    def restoring(self) -> Iterator["ModelState"]:
        """Restore everything at the end; inside, parameters have no `.grad`, so that nothing is added to it."""
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
        """Restore everything except the gradients."""
        for container in self.containers:
            container.restore()
        for container in filter(None, self.empty):
            container.clear()
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for tensor in self.tensors:
                tensor.restore()
        for array, values in self.arrays:
            array[...] = values
        forget_cached_weights()


def restoring_model(model: nn.Module) -> AbstractContextManager[ModelState]:
    """Restore a model at the end to its current state."""
    return ModelState.of(model).restoring()


def forget_cached_weights() -> None:
    """Clear PyTorch's caches of casts and parametrised weights, after parameters were written in place or replaced.

    PyTorch caches the casts of an autocast region, and the weights of `parametrize.cached()`, by the tensor that they
    were computed from, and does not notice new values in it.
    """
    torch.clear_autocast_cache()
    parametrize._cache.clear()


def reachable_objects(*sources: Any) -> dict[int, Any]:
    """Objects that batches refer to, by identity: loaders, datasets, samplers, variables of generators; no modules.

    The nearest `NEAREST` objects only. Others that the model refers to are restored after each row to what they were
    before it.
    """
    seen, waiting = dict[int, Any](), list(sources)
    for item in waiting:
        kind = type(item)
        if len(seen) == NEAREST:
            break
        if id(item) in seen or kind in ATOMS or issubclass(kind, nn.Module | Tensor | np.ndarray | type | ModuleType):
            continue
        seen[id(item)] = item
        if issubclass(kind, (*CONTAINERS, tuple, frozenset)):
            waiting += _entries(item)
        elif kind is GeneratorType:
            waiting += item.gi_frame.f_locals.values() if item.gi_frame else ()
        elif kind is MethodType:
            waiting.append(item.__self__)
        waiting.append(attributes_of(item))
        slots = [slot for cls in kind.__mro__ for slot in vars(cls).values() if type(slot) is MemberDescriptorType]
        if slots and kind.__module__ != "builtins":
            waiting += AttributeValues.of_slots([(item, slot) for slot in slots]).values
    return seen


def _entries(container: Any) -> list[Any]:
    """The entries of a container; none if they are too many."""
    base: Any = next(base for base in (*CONTAINERS, tuple, frozenset) if issubclass(type(container), base))
    if base.__len__(container) > MANY:
        return []
    return list(base.values(container) if issubclass(base, dict) else base.__iter__(container))


def _owners(callables: Iterable[Any]) -> Iterator[Any]:
    """The owners of callables: modules, functions, and other objects with their attributes."""
    for each in callables:
        if issubclass(type(each), partial):
            yield from _owners((each.func, *each.args, *each.keywords.values()))
            continue
        owner = each.__self__ if type(each) in (MethodType, BuiltinMethodType) else each
        yield owner
        if not issubclass(type(owner), nn.Module | FunctionType | ModuleType | type):
            yield attributes_of(owner)


def _contents_of_function(function: FunctionType) -> Iterator[Any]:
    """Attributes and defaults of a function, and the modules that it names, global or in its closure."""
    yield from (vars(function), function.__defaults__, function.__kwdefaults__)
    yield from _global_modules(function)
    yield from (x for x in AttributeValues.in_closure(function).values if issubclass(type(x), nn.Module))


def _global_modules(function: FunctionType) -> Iterator[Any]:
    """The global modules that a function names."""
    codes = [function.__code__]
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        named = (function.__globals__.get(name) for name in code.co_names)
        yield from (each for each in named if issubclass(type(each), nn.Module))


def _modules_of_loss(loss_fn: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """The modules of a loss: itself, the owner of its method, those that its functions name.

    The functions are added to `seen`.
    """
    waiting: list[Any] = [loss_fn]
    for each in waiting:
        kind: type = type(each)
        if issubclass(kind, nn.Module):
            yield each
        elif kind is MethodType:
            waiting.append(each.__self__)
        elif issubclass(kind, partial):
            waiting += (each.func, *each.args, *each.keywords.values())
        elif issubclass(kind, FunctionType) and id(each) not in seen:
            seen[id(each)] = each
            waiting += (*AttributeValues.in_closure(each).values, *(each.__defaults__ or ()), *_global_modules(each))
            waiting += (each.__kwdefaults__ or {}).values()


def _packages(items: Iterable[Any]) -> set[str]:
    """The packages of the classes of objects, without PyTorch and builtins."""
    return {_package(cls) for cls in set(map(type, items))} - {"torch", "builtins"}


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]
