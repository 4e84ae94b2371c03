"""Arrays in the host's memory are computed by NumPy, whatever their library: by the same functions, called with views.

The *twin* of a `Part` is the same Part of NumPy's views of its arrays, in NumPy's dtypes. It is made once and kept in
the Part. Derivatives, transforms, traces, devices and 16-bit numbers have no twin: their library computes.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from .kinds import dtype_name, is_concrete, is_differentiated, is_narrow, on_host
from .libraries import is_jax, is_torch, library
from .modes import in_transforms, outside_transforms, plain_modes
from .pytree import CACHED, ESTIMATE, ON_HOST, Part
from .values import read

TWIN, LIBRARY = CACHED + "twin", CACHED + "library"
PLAIN = (np.ndarray, np.generic, bool, int, float, str, slice, type(None))


class Shared(NamedTuple):
    """An array, NumPy's view of its memory, and where that lies: what is in it goes back as the array, or a part."""

    array: Array
    view: np.ndarray
    start: int
    stop: int


class Twin(NamedTuple):
    """A Part of views, None where the Part has nothing but NumPy's, and the arrays behind these views."""

    part: Part | None
    shared: tuple[Shared, ...]

    @property
    def is_current(self) -> bool:
        """Whether no derivatives were asked for since the views were made."""
        return not any(getattr(one.array, "requires_grad", False) for one in self.shared)


@dataclasses.dataclass
class Library:
    """The Part of a library's arrays that stands for one of NumPy's where NumPy cannot compute: made on first use."""

    part: Part | None = None


class _NoViewError(Exception):
    """There is something that NumPy cannot compute with."""


def call_by_numpy(function: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether there is a Part among the arguments, and all of them have views; and the result of the function of these."""
    if not ("torch" in sys.modules or "jax" in sys.modules) or not any(isinstance(x, Part) for x in arguments):
        return False, None
    if in_transforms() or _is_dispatching():
        return False, None
    views = _Views()
    try:
        given = [views.argument(x) for x in arguments]
    except _NoViewError:
        return False, None
    if not views.shared:  # all is NumPy's
        with plain_modes():
            return True, function(*arguments)
    like = views.shared[0].array
    with _modes(like):
        return True, _Library(like, views.shared).convert(function(*given))


def _modes(like: Array) -> contextlib.AbstractContextManager[Any]:
    return plain_modes(sys.modules["jax"], like=like) if is_jax(like) else plain_modes()


def by_numpy(function: Any, *arguments: Any, like: Array) -> Any:
    """Return the function of the values of all arguments, without recording it for differentiation.

    Arrays are returned in the library and on the device of like; a Part stays NumPy's, as a twin for that library.
    """
    with _modes(like), outside_transforms():
        given = [_values(x) for x in arguments]
        result = function(*given)
        if isinstance(result, Part):
            vars(result).setdefault(TWIN, Twin(None, (Shared(like, np.empty(0), 0, 0),)))
            vars(result).setdefault(LIBRARY, Library())
            return result
        convert = _Library(like, ()).of_arrays
        return tuple(map(convert, result)) if type(result) is tuple else convert(result)


def from_numpy(values: np.ndarray, *, like: Array) -> Array:
    """Return values that nothing else refers to in the library and on the device of like."""
    return by_numpy(lambda: values, like=like)


def _values(x: Any) -> Any:
    """Views of arrays, copies of those that have none."""
    if isinstance(x, dict):
        return {name: _values(value) for name, value in x.items()}
    if library(x) in (None, "numpy"):
        return x
    return _view_of(x) if has_view(x) else read(x)


def in_library(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with Parts that are NumPy's for another library in that library: made once, for PyTorch of views."""
    if not any(isinstance(x, Part) and LIBRARY in vars(x) for x in arguments):
        return arguments
    return tuple(_part_in_library(x) if isinstance(x, Part) and LIBRARY in vars(x) else x for x in arguments)


def _part_in_library(part: Part) -> Part:
    stored, like = vars(part)[LIBRARY], vars(part)[TWIN].shared[0].array
    if stored.part is None:
        with _modes(like), outside_transforms():
            stored.part = _Library(like, ()).convert(part)
    return stored.part


def count_changes(part: Part) -> None:
    """Tell PyTorch that the arrays of a twin change: derivatives that were recorded from them are then refused."""
    stored = vars(part).get(LIBRARY)
    if stored is not None and stored.part is not None:
        arrays = [array for array in _arrays_of(stored.part) if is_torch(array)]
        sys.modules["torch"].autograd.graph.increment_version(arrays)


def _arrays_of(part: Part) -> Iterator[Array]:
    for value in vars(part).values():
        if isinstance(value, Part):
            yield from _arrays_of(value)
        elif library(value) is not None:
            yield value


def _is_dispatching() -> bool:
    """Whether a mode of PyTorch sees, and may replace, all that is computed with tensors."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch._C._len_torch_dispatch_stack() > 0


class _Views:
    """Views of arrays, and which arrays they are of."""

    def __init__(self) -> None:
        self.shared: list[Shared] = []
        self._parts: dict[int, Part] = {}

    def argument(self, x: Any) -> Any:
        """A view for an argument: a twin for a Part, and nothing unknown, which may have arrays in it."""
        if isinstance(x, Part):
            twin = vars(x).get(TWIN)
            if twin is None or not twin.is_current:
                own = _Views()
                part = own.value(x)
                twin = vars(x)[TWIN] = Twin(None if part is x else part, tuple(own.shared))  # None: no cycle
            self.shared += twin.shared
            return x if twin.part is None else twin.part
        if isinstance(x, PLAIN):
            return x
        if isinstance(x, tuple):
            return tuple(self.argument(part) for part in x)
        if library(x) is None:
            raise _NoViewError
        return self.value(x)

    def value(self, x: Any) -> Any:
        """The same for what a Part is made of."""
        if isinstance(x, Part):
            if id(x) not in self._parts:
                self._parts[id(x)] = self._twin(x)
            return self._parts[id(x)]
        if isinstance(x, tuple):
            return tuple(self.value(part) for part in x)
        if isinstance(x, FunctionType):
            raise _NoViewError
        if library(x) in (None, "numpy"):
            return np.dtype(dtype_name(x)) if _is_dtype_of_torch(x) else x
        return self._view(x)

    def _twin(self, x: Part) -> Part:
        if not x.has_twin:
            raise _NoViewError
        fields = {name: value for name, value in vars(x).items() if not name.startswith(CACHED)}
        views = {name: self.value(value) for name, value in fields.items()}
        return x if all(views[name] is value for name, value in fields.items()) else _part(type(x), views)

    def _view(self, x: Array) -> np.ndarray:
        if not has_view(x):
            raise _NoViewError
        view = _view_of(x)
        start = view.__array_interface__["data"][0]
        extent = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + view.itemsize
        self.shared.append(Shared(x, view, start, start + (extent if view.size else 0)))
        return view


def _part(cls: type, fields: dict[str, Any]) -> Part:
    part: Any = object.__new__(cls)
    vars(part).update(fields)
    return part


def _is_dtype_of_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.dtype)


def _view_of(x: Array) -> np.ndarray:
    return x.detach().numpy() if is_torch(x) else np.asarray(x)  # detached, it stays with this memory


def has_view(x: Array) -> bool:
    """Whether x is a plain array of real numbers in the host's memory, without derivatives."""
    if is_torch(x):
        torch = sys.modules["torch"]
        if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
            return False
        if x.requires_grad or x.device.type != "cpu" or x.dtype in _dtypes_without_view(torch) or x.is_neg():
            return False
        return x.layout is torch.strided and is_concrete(x) and not is_differentiated(x)
    if not (is_jax(x) and is_concrete(x) and x.dtype.kind in "biuf") or is_narrow(x):
        return False
    return len(x.sharding.device_set) == 1 and on_host(x)


def _dtypes_without_view(torch: Any) -> tuple[Any, ...]:
    return (torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


class _Library:
    """The way back: results as arrays of the library and on the device of the arguments, without a copy by PyTorch."""

    def __init__(self, like: Array, shared: Sequence[Shared]) -> None:
        self._like, self._shared = like, shared
        self._parts: dict[int, Part] = {}

    def of_arrays(self, x: Any) -> Any:
        """An array of the library for one of NumPy; anything else unchanged."""
        return self._array(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x

    def convert(self, x: Any) -> Any:
        """A result, or a part of it."""
        if isinstance(x, np.ndarray | np.generic):
            return self.of_arrays(x)
        if isinstance(x, Part):
            if id(x) not in self._parts:
                self._parts[id(x)] = _part(type(x), self._fields(x))
            return self._parts[id(x)]
        if isinstance(x, tuple):
            return tuple(self.convert(part) for part in x)
        if isinstance(x, FunctionType):
            return lambda: self.convert(x())
        if isinstance(x, np.dtype):
            return getattr(sys.modules["torch"], x.name) if is_torch(self._like) else x
        if isinstance(x, type) and issubclass(x, np.generic):
            return self.convert(np.dtype(x)) if is_torch(self._like) else x
        return x.map_arrays(self.convert) if hasattr(x, "map_arrays") else x

    def _fields(self, x: Part) -> dict[str, Any]:
        """Converted, but for numbers and arrays that belong on the host."""
        facts = {field.name: field.metadata for field in dataclasses.fields(x)}  # type: ignore[arg-type]
        keep = {name for name, given in facts.items() if given in (ESTIMATE, ON_HOST)}
        fields = {name: value for name, value in vars(x).items() if not name.startswith(CACHED)}
        return {name: value if name in keep else self.convert(value) for name, value in fields.items()}

    def _array(self, values: np.ndarray) -> Array:
        known = None if values.flags.owndata or not values.size else self._in_shared(values)
        if known is not None:
            return known
        if is_torch(self._like):
            if not values.flags.writeable or any(stride < 0 for stride in values.strides):
                values = values.copy()
            return sys.modules["torch"].from_numpy(values)
        jax: Any = sys.modules["jax"]
        if self._like.committed:
            return jax.device_put(np.array(values), self._like.sharding)
        return jax.numpy.array(values, copy=True)

    def _in_shared(self, values: np.ndarray) -> Array | None:
        """The array in whose memory values are, or a view of it by PyTorch; None where they are in new memory."""
        place = values.__array_interface__["data"][0]
        for array, view, start, stop in self._shared:
            if start <= place < stop and values.dtype == view.dtype:
                if values.shape == view.shape and values.strides == view.strides and place == start:
                    return array
                if is_torch(array) and min(values.strides, default=0) >= 0:
                    strides = [stride // values.itemsize for stride in values.strides]
                    offset = array.storage_offset() + (place - start) // values.itemsize
                    return array.detach().as_strided(values.shape, strides, offset)
        return None
