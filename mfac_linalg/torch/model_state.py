"""What a call of a model may change beside its outputs, and the way back: attributes, containers, tensors."""

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

Apart = Mapping[int, Any]  # objects by identity that are not put back
IN_CLOSURES = (*CONTAINERS, Tensor, np.ndarray, nn.Module, FunctionType, MethodType, partial)  # what is looked into
ATOMS = (str, int, float, type(None))  # of which long lists may be kept, as vocabularies
MANY = 500  # entries of a container, beyond which none is looked into
NEAREST = 10_000  # objects that batches hold
LARGE = 2**22  # entries of a tensor or array, beyond which it is copied only where modules hold it themselves


@dataclass(frozen=True)
class ModelState:
    """What modules hold, down to the values of their tensors, so that it can be put back in place.

    A dense tensor is copied, a container or a module remembers the objects that it holds. That reaches what registered
    and unregistered submodules hold, through lists, dictionaries, sets and objects of the classes that are defined
    beside the modules' own (a cache, a counter), in attributes, slots and those classes themselves; what the objects
    hold that are hooks, or whose methods are; what functions have in their closures, and the modules that they name.

    Of a loss only modules: that which it is, or whose method, or those that it names. All else of it is its user's, and
    so is what batches reach. Containers of more than `MANY` entries (but those of modules) remember these entries, not
    what they hold, and beyond `COMPARED` notice only a change of their length or ends; tensors and arrays of more than
    `LARGE` entries are copied where they are parameters, buffers or attributes of modules. Global variables otherwise,
    other objects, caches of functools, random generators, and the values of sparse, nested and quantised tensors stay
    as the call leaves them.
    """

    containers: list["ContainerValues | AttributeValues"] = field(default_factory=list)
    empty: list[Any] = field(default_factory=list)  # plain containers, most of them for hooks that a module has not
    tensors: list["TensorValues"] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    large: list[Any] = field(default_factory=list)  # tensors and arrays found past their modules

    @classmethod
    def of(cls, model: nn.Module, loss_fn: Any = None, apart: Apart | None = None) -> "ModelState":
        """Of a model, and of the modules of a loss; of nothing that is `apart`, as `reached` finds it."""
        state, seen = cls(), dict[int, Any](apart or {})
        waiting = [model, *_modules_of_loss(loss_fn, seen)]
        modules = {id(part): part for owner in waiting for part in owner.modules()}
        packages = {"types", "collections"}  # namespaces, and containers that hold one of the above
        packages |= _packages(modules.values())
        with torch._C.DisableTorchFunctionSubclass():  # those of users may answer anything
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
        """Remember one object, and return those that it holds.

        Only its type says what it is: a proxy or a mock answers `isinstance` as what it stands for.
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
            held = vars(item)
            hooks = [x for name, x in held.items() if name.endswith("_hooks") and isinstance(x, dict)]
            called = [owner for each in hooks if each for owner in _owners(each.values())]
            if called:
                packages |= _packages(called)
            registered = [held, *(held[name] for name in ("_modules", "_parameters", "_buffers") if name in held)]
            long = [x for each in registered if len(each) > MANY for x in each.values()]
            return [held, *called, *long, *self._attributes(item, packages)]
        if issubclass(kind, FunctionType):
            beside = AttributeValues.in_closure(item)
            self.containers.extend([beside] if beside.before else [])
            return [*_held_by_function(item), *(x for x in beside.values if issubclass(type(x), IN_CLOSURES))]
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
        registered = [vars(item) for item in seen.values() if issubclass(type(item), nn.Module)]
        registered += [held[name] for held in registered for name in ("_parameters", "_buffers") if name in held]
        direct = {id(x) for held in registered for x in held.values()}
        for item in self.large:
            if id(item) in direct:
                self._copy(item)

    def _contents(self, container: Any) -> list[Any]:
        """Remember what a container holds, and return it where that is not too much."""
        if type(container) in CONTAINERS and not container:
            self.empty.append(container)
            return []
        self.containers.append(ContainerValues.of(container))
        values = self.containers[-1].values
        return [x for x in values if type(x) not in ATOMS] if len(values) <= MANY else []

    def _attributes(self, item: Any, packages: set[str]) -> list[Any]:
        """Remember the slots of an object of these packages, and return what it has there, its attributes and class."""
        if type(item) in CONTAINERS or _package(type(item)) not in packages:
            return []
        own = [cls for cls in type(item).__mro__ if _package(cls) in packages]
        slots = [slot for cls in own for slot in vars(cls).values() if type(slot) is MemberDescriptorType]
        held: list[Any] = [type(item), attributes_of(item)]
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

    def is_current(self) -> bool:
        """Whether all is as it is remembered. Values on a device are remembered anew, and not read.

        To be asked wherever others had their say: a loader that was asked for its next batch.
        """
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            same = all(container.is_same() for container in self.containers)
            same = same and not any(self.empty)
            same = same and all(tensor.is_current() for tensor in self.tensors)
            return same and all(np.array_equal(array, values) for array, values in self.arrays)

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
        for filled in filter(None, self.empty):
            filled.clear()
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for tensor in self.tensors:
                tensor.restore()
        for array, values in self.arrays:
            array[...] = values
        forget_cached_weights()


def unchanged(model: nn.Module) -> AbstractContextManager[ModelState]:
    """Give a model back as it is now, whatever is done with it inside."""
    return ModelState.of(model).kept()


def forget_cached_weights() -> None:
    """Have weights cast and parametrised anew, after they were written in place or stood in for.

    PyTorch keeps the casts of an autocast region, and the weights of `parametrize.cached()`, by the tensor they were
    computed from, and does not look at its values again.
    """
    torch.clear_autocast_cache()
    parametrize._cache.clear()


def reached(*sources: Any) -> dict[int, Any]:
    """What batches are and hold, by identity: loaders, datasets, samplers, variables of generators; but no modules.

    The nearest `NEAREST` objects: what lies farther away, and is changed between rows, stays as it is found there.
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
            waiting += AttributeValues.at([(item, slot) for slot in slots]).values
    return seen


def _entries(container: Any) -> list[Any]:
    """What a container holds, where that is not too much."""
    base: Any = next(base for base in (*CONTAINERS, tuple, frozenset) if issubclass(type(container), base))
    if base.__len__(container) > MANY:
        return []
    return list(base.values(container) if issubclass(base, dict) else base.__iter__(container))


def _owners(callables: Iterable[Any]) -> Iterator[Any]:
    """The modules that are called, or whose methods are; functions; other such objects, and their attributes."""
    for each in callables:
        if issubclass(type(each), partial):
            yield from _owners((each.func, *each.args, *each.keywords.values()))
            continue
        owner = each.__self__ if type(each) in (MethodType, BuiltinMethodType) else each
        yield owner
        if not issubclass(type(owner), nn.Module | FunctionType | ModuleType | type):
            yield attributes_of(owner)


def _held_by_function(function: FunctionType) -> Iterator[Any]:
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
    """That which a loss is, or whose method, and those that its functions name; the functions are seen."""
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
    """Those of the classes of objects, but PyTorch and what is built in."""
    return {_package(cls) for cls in set(map(type, items))} - {"torch", "builtins"}


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]
