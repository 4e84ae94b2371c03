"""The pieces that an inverse is made of: pytrees for JAX, and picklable with any library."""

import sys
from collections.abc import Callable
from typing import Any

import array_api_compat as compat
import numpy as np

from .._typing import Array
from .kinds import is_concrete, is_differentiated
from .libraries import is_jax, is_torch
from .modes import outside_transforms, plain_modes

CACHED = "_cached_"  # prefix of attributes that are computed on demand
ESTIMATE = {"is_estimate": True}  # metadata of a field: a float that jit must not compile in
ON_HOST = {"is_on_host": True}  # metadata of a field: a NumPy array for any library

_registered: dict[type, set[str]] = {}  # the names of their estimates


class Part:
    """An immutable piece of state; its subclasses are frozen dataclasses of arrays, Parts and constants."""

    has_twin = True  # whether all its arrays are in its fields, so that NumPy's views can take their place

    def __getstate__(self) -> dict[str, Any]:
        return {name: picklable(value) for name, value in vars(self).items() if not name.startswith(CACHED)}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Compute something once where values are concrete; it is no field, so that no pytree and no pickle has it."""
        name = CACHED + name
        if name in vars(self):
            return vars(self)[name]
        value = make()
        if _is_lasting(value) and _is_lasting(self):  # unrecorded values of differentiated arrays look constant
            vars(self)[name] = value
        return value


def part_of(cls: type, fields: dict[str, Any]) -> Part:
    """Return a Part of a class with these fields."""
    part: Any = object.__new__(cls)
    vars(part).update(fields)
    return part


def _is_lasting(value: Any) -> bool:
    """Whether all arrays of a value have values of their own: none is traced, batched or differentiated."""
    if value is None or isinstance(value, np.ndarray | int | float):
        return True
    if isinstance(value, tuple):
        return all(map(_is_lasting, value))
    if isinstance(value, Part):
        return all(_is_lasting(part) for name, part in vars(value).items() if not name.startswith(CACHED))
    return is_concrete(value) and not is_differentiated(value)


def register(like: Any, *public: type) -> None:
    """Make public classes and the pieces known to JAX, where `like` is a JAX array."""
    _register_pytrees(like, *public, *Part.__subclasses__())


def _register_pytrees(like: Array, *classes: type) -> None:
    """Make the classes known to JAX as pytrees, on the first use of a JAX array."""
    if not is_jax(like):
        return
    tree_util = sys.modules["jax"].tree_util
    for cls in classes:
        if cls not in _registered:
            tree_util.register_pytree_node(cls, _flatten, _unflatten(cls))
            _registered[cls] = _estimates_of(cls)


def _flatten(instance: Any) -> tuple[tuple[Any, ...], Any]:
    fields = {name: value for name, value in vars(instance).items() if not name.startswith(CACHED)}
    estimates = _registered[type(instance)]
    arrays = {name: value for name, value in fields.items() if name in estimates or _is_child(value)}
    constants = tuple((n, v) for n, v in fields.items() if n not in arrays)
    return tuple(arrays.values()), (tuple(arrays), constants)


def _estimates_of(cls: type) -> set[str]:
    fields = getattr(cls, "__dataclass_fields__", {})
    return {name for name, field in fields.items() if ESTIMATE.items() <= field.metadata.items()}


def _is_child(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(type(part) in _registered for part in value)
    return compat.is_jax_array(value) or type(value) in _registered  # JAX's float0, of NumPy's class, too


def _unflatten(cls: type) -> Any:
    def unflatten(auxiliary: Any, arrays: Any) -> Any:
        names, constants = auxiliary
        instance: Any = object.__new__(cls)
        vars(instance).update(constants)
        vars(instance).update(zip(names, arrays, strict=True))
        return instance

    return unflatten


def picklable(x: Any) -> Any:
    """Return what to pickle for x: JAX would bring float64 back as float32, PyTorch uint16 not at all."""
    if is_torch(x) and x.dtype == sys.modules["torch"].uint16:
        with outside_transforms():
            return _Unsigned(x.view(sys.modules["torch"].int16))
    return _Float64(np.asarray(x)) if is_jax(x) and x.dtype == np.float64 else x


class _Float64:
    """The values of a float64 JAX array, unpickled as one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, tuple[np.ndarray]]:
        return _restore_float64, (self.values,)


def _restore_float64(values: np.ndarray) -> Array:
    import jax

    with plain_modes(jax):
        return jax.numpy.asarray(values)


class _Unsigned:
    """The bits of a PyTorch tensor of uint16, unpickled as one."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _restore_unsigned, (self.bits,)


def _restore_unsigned(bits: Array) -> Array:
    return bits.view(sys.modules["torch"].uint16)
