"""Results of NumPy as arrays of the library that their arguments are of, and Parts of such arrays."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from .._typing import Array
from .libraries import is_torch
from .memory import as_aligned
from .pytree import CACHED, ESTIMATE, ON_HOST, Part, part_of
from .views import CONSTANTS, Shared

LARGE = 2**17  # bytes


class FromNumpy:
    """The way back: results as arrays of the library and on the device of the arguments, without a copy by PyTorch."""

    def __init__(self, like: Array, shared: Sequence[Shared], *, is_written: bool = False) -> None:
        self._like, self._shared = like, shared
        self._is_written = is_written  # the memory of what is converted, later, in place: JAX then has a copy
        self._parts: dict[int, Part] = {}

    def of_arrays(self, x: Any) -> Any:
        """An array of the library for one of NumPy; anything else unchanged."""
        return self._array(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x

    def convert(self, x: Any) -> Any:
        """A result, or a part of it."""
        if type(x) in CONSTANTS:
            return x
        if isinstance(x, np.ndarray | np.generic):
            return self.of_arrays(x)
        if isinstance(x, Part):
            if id(x) not in self._parts:
                self._parts[id(x)] = part_of(type(x), self._fields(x))
            return self._parts[id(x)]
        if isinstance(x, tuple):
            return tuple(self.convert(part) for part in x)
        if isinstance(x, FunctionType):
            return partial(_converted, self._like, x)  # without self, whose Parts would be in a cycle
        if isinstance(x, np.dtype):
            return getattr(sys.modules["torch"], x.name) if is_torch(self._like) else x
        if isinstance(x, type) and issubclass(x, np.generic):
            return self.convert(np.dtype(x)) if is_torch(self._like) else x
        return x.map_arrays(self.convert) if hasattr(x, "map_arrays") else x

    def _fields(self, x: Part) -> dict[str, Any]:
        """Converted, but for numbers and arrays that belong on the host."""
        cls: Any = type(x)
        keep = _fields_on_host(cls)
        fields = {name: value for name, value in vars(x).items() if not name.startswith(CACHED)}
        return {name: value if name in keep else self.convert(value) for name, value in fields.items()}

    def _array(self, values: np.ndarray) -> Array:
        known = None if _is_new(values) else self._in_shared(values)
        if known is not None:
            return known
        if is_torch(self._like):
            if not values.flags.writeable or any(stride < 0 for stride in values.strides):
                values = values.copy()
            return sys.modules["torch"].from_numpy(values)
        jax: Any = sys.modules["jax"]
        if self._is_written or values.nbytes >= LARGE:
            values = values.copy() if self._is_written else as_aligned(values)
        if self._like.committed:
            return jax.device_put(values, _sharding_of(self._like))
        return jax.device_put(values) if values.nbytes >= LARGE else jax.numpy.array(values, copy=True)

    def _in_shared(self, values: np.ndarray) -> Array | None:
        """The array in whose memory values are, or a view of it by PyTorch; None where they are in new memory."""
        place = byte_bounds(values)[0]
        for array, view in self._shared:
            start, stop = byte_bounds(view)
            if start <= place < stop and values.dtype == view.dtype:
                if values.shape == view.shape and values.strides == view.strides and place == start:
                    return array
                if is_torch(array) and min(values.strides, default=0) >= 0:
                    strides = [stride // values.itemsize for stride in values.strides]
                    offset = array.storage_offset() + (place - start) // values.itemsize
                    return array.detach().as_strided(values.shape, strides, offset)
        return None


def _converted(like: Array, function: Callable[[], np.ndarray]) -> Array:
    return FromNumpy(like, ()).of_arrays(function())


def _sharding_of(like: Array) -> Any:
    """Where a JAX array on one device is, for arrays of any shape."""
    sharding: Any = sys.modules["jax"].sharding
    given = like.sharding
    on_mesh = isinstance(given, sharding.NamedSharding)
    return sharding.NamedSharding(given.mesh, sharding.PartitionSpec()) if on_mesh else given


@functools.cache
def _fields_on_host(cls: Any) -> set[str]:
    fields = dataclasses.fields(cls)
    return {field.name for field in fields if field.metadata in (ESTIMATE, ON_HOST)}


def _is_new(values: np.ndarray) -> bool:
    """Whether values are in memory that NumPy allocated, and not in that of a view."""
    base: Any = values
    while isinstance(base, np.ndarray):
        values, base = base, base.base
    return values.flags.owndata
