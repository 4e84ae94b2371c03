"""Snapshots of the contents of containers, attributes and tensors, which can be restored."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import is_
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor

CONTAINERS = (OrderedDict, dict, list, set, deque)  # called by their own methods, not by those of subclasses
COMPARED = 10_000  # entries of a container, beyond which only its length and ends are compared


@dataclass(frozen=True)
class ContainerValues:
    """A container, and the objects that it contains."""

    itself: Any
    base: Any
    keys: list[Any] | None  # of a dictionary
    values: list[Any]

    @classmethod
    def of(cls, itself: Any) -> "ContainerValues":
        """The current contents."""
        base = builtin_base(itself)
        if issubclass(base, dict):
            return cls(itself, base, list(base.keys(itself)), list(base.values(itself)))
        return cls(itself, base, None, list(base.__iter__(itself)))

    def restore(self) -> None:
        """Put the same objects back."""
        if self.is_same():
            return
        itself, base = self.itself, self.base
        base.clear(itself)
        if self.keys is not None:
            for key, value in zip(self.keys, self.values, strict=True):
                base.__setitem__(itself, key, value)
        elif base is set:
            base.update(itself, self.values)
        else:
            base.extend(itself, self.values)

    def is_same(self) -> bool:
        """Whether it contains the same objects; of more than `COMPARED` only their number and the ends are compared."""
        itself, base, count = self.itself, self.base, len(self.values)
        if base.__len__(itself) != count:
            return False
        if count > COMPARED:
            return base is set or self._has_same_ends()
        if self.keys is None:
            return all(map(is_, base.__iter__(itself), self.values))
        return all(map(is_, base.keys(itself), self.keys)) and all(map(is_, base.values(itself), self.values))

    def _has_same_ends(self) -> bool:
        itself, base = self.itself, self.base
        views = [itself] if self.keys is None else [base.keys(itself), base.values(itself)]
        before = [self.values] if self.keys is None else [self.keys, self.values]
        forward, back = (base.__iter__, base.__reversed__) if self.keys is None else (iter, reversed)
        same = (next(forward(x)) is y[0] and next(back(x)) is y[-1] for x, y in zip(views, before, strict=True))
        return all(same)


@dataclass(frozen=True)
class AttributeValues:
    """Attributes that are in no dictionary: their values by name or slot, and functions that write and delete one."""

    read: Callable[[], dict[Any, Any]]
    write: Callable[[Any, Any], None]
    delete: Callable[[Any], None]
    before: dict[Any, Any]

    @classmethod
    def of_slots(cls, places: list[tuple[Any, Any]]) -> "AttributeValues":
        """The slots of objects, read without calling their own methods; the cells of closures."""

        def read() -> dict[Any, Any]:
            return {index: slot.__get__(owner) for index, (owner, slot) in enumerate(places) if _is_filled(owner, slot)}

        def write(index: int, value: Any) -> None:
            places[index][1].__set__(places[index][0], value)

        return cls(read, write, lambda index: places[index][1].__delete__(places[index][0]), read())

    @classmethod
    def in_closure(cls, function: FunctionType) -> "AttributeValues":
        """The variables in the closure of a function."""
        return cls.of_slots([(cell, CellType.__dict__["cell_contents"]) for cell in function.__closure__ or ()])

    @classmethod
    def of_class(cls, owner: type) -> "AttributeValues":
        """The attributes of a class itself."""

        def read() -> dict[Any, Any]:
            return {name: x for name, x in vars(owner).items() if not name.startswith("__")}

        return cls(read, partial(type.__setattr__, owner), partial(type.__delattr__, owner), read())

    @property
    def values(self) -> list[Any]:
        """The values at the time of the snapshot."""
        return list(self.before.values())

    def is_same(self) -> bool:
        """Whether they are the same objects."""
        now = self.read()
        return now.keys() == self.before.keys() and all(now[name] is value for name, value in self.before.items())

    def restore(self) -> None:
        """Write the values that have changed, and delete those that are new."""
        now = self.read()
        for name in now.keys() - self.before.keys():
            self.delete(name)
        for name, value in self.before.items():
            if name not in now or now[name] is not value:
                self.write(name, value)


@dataclass(frozen=True)
class TensorValues:
    """A tensor, its memory, a copy of its values, and its state in autograd."""

    tensor: Tensor
    memory: Tensor | None
    values: Tensor | None
    requires_grad: bool
    grad_fn: Any
    grad: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorValues":
        """The current values."""
        memory = tensor.data if _has_values(tensor) else None
        values = None if memory is None else memory.clone()
        gradient = tensor.grad if tensor.is_leaf else None
        return cls(tensor, memory, values, tensor.requires_grad, tensor.grad_fn, gradient)

    def is_current(self) -> bool:
        """Whether it is unchanged; values on a device are not compared, but copied again."""
        tensor = self.tensor
        if (tensor.requires_grad, tensor.grad_fn) != (self.requires_grad, self.grad_fn):
            return False
        if tensor.is_leaf and tensor.grad is not self.grad:
            return False
        if self.memory is None or self.values is None:
            return True
        if not self._has_memory():
            return False
        if self.memory.device.type != "cpu":
            self.values.copy_(self.memory)
            return True
        return _is_equal(self.memory, self.values)

    def _has_memory(self) -> bool:
        tensor, memory = self.tensor, self.memory
        return memory is not None and tensor.data_ptr() == memory.data_ptr() and tensor.shape == memory.shape

    def hide_gradient(self) -> None:
        """Set `.grad` to None."""
        if self.tensor.is_leaf and self.tensor.grad is not None:
            self.tensor.grad = None

    def show_gradient(self) -> None:
        """Set `.grad` to its value at the time of the snapshot."""
        if self.grad is not None:
            self.tensor.grad = self.grad

    def restore(self) -> None:
        """Restore values, memory and history, but not the gradient."""
        tensor = self.tensor
        if self.memory is None or self.values is None:
            return
        if tensor.grad_fn is not self.grad_fn and not tensor._is_view():
            tensor.detach_()
        if not self._has_memory():
            tensor.data = self.memory
        if self.memory.device.type != "cpu" or not _is_equal(self.memory, self.values):  # no read from a device
            self.memory.copy_(self.values)
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        self.hide_gradient()


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor has entries in its own memory that can be copied and written."""
    is_plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ and tensor.layout == torch.strided
    is_writable = is_plain and not (tensor.is_quantized or tensor.is_inference() or tensor.is_meta or tensor.is_nested)
    return is_writable and not any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _is_equal(x: Tensor, y: Tensor) -> bool:
    """Whether tensors of one dtype are equal; by bytes for 8-bit floats, which PyTorch does not compare."""
    return torch.equal(x.view(torch.uint8), y.view(torch.uint8)) if x.dtype.itemsize == 1 else torch.equal(x, y)


def _is_filled(owner: Any, slot: Any) -> bool:
    try:
        slot.__get__(owner)
    except (AttributeError, ValueError):  # of an object, of a cell
        return False
    return True


def builtin_base(container: Any) -> Any:
    """The class in `CONTAINERS` whose methods read and write a container, whatever a subclass overrides."""
    kind = type(container)
    return kind if kind in CONTAINERS else next(base for base in CONTAINERS if issubclass(kind, base))


def attributes_of(item: Any) -> Any:
    """The dictionary of an object's attributes, read without calling its own methods; None without one."""
    try:
        return object.__getattribute__(item, "__dict__")
    except Exception:  # no attribute, or a property that raises
        return None
