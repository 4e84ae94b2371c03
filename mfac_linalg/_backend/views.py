"""NumPy's views of arrays in the host's memory, and Parts of these views."""

import functools
import sys
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from .kinds import dtype_name, is_differentiated, is_narrow, is_traced
from .libraries import is_jax, is_torch, library
from .modes import outside_transforms
from .pytree import CACHED, Part, part_of

TWIN = CACHED + "twin"
PLAIN = (np.generic, bool, int, float, str, slice, type(None))
CONSTANTS = frozenset((bool, int, float, str, type(None)))


class Shared(NamedTuple):
    """An array and NumPy's view of its memory."""

    array: Array
    view: np.ndarray


class Twin(NamedTuple):
    """A Part of views, None where the Part has nothing but NumPy's, and the arrays behind these views."""

    part: Part | None
    shared: tuple[Shared, ...]
    tensors: tuple[Array, ...] = ()  # those of PyTorch among these arrays
    places: tuple[Any, ...] = ()  # of these tensors when the views were made

    @property
    def is_current(self) -> bool:
        """Whether tensors are where they were, `share_memory_` moves them, and no derivatives were asked for since."""
        for tensor, place in zip(self.tensors, self.places, strict=True):
            if tensor.requires_grad or place_of(tensor) != place:
                return False
        return True


class NoViewError(Exception):
    """There is something that NumPy cannot compute with."""


class Views:
    """Views of arrays, and which arrays they are of."""

    def __init__(self) -> None:
        self.shared: list[Shared] = []
        self._parts: dict[int, Part] = {}

    def argument(self, x: Any) -> Any:
        """A view for an argument: a twin for a Part, and nothing unknown, which may have arrays in it."""
        if isinstance(x, Part):
            twin = vars(x).get(TWIN)
            if twin is None or not twin.is_current:
                own = Views()
                part = own.value(x)
                tensors = tuple(one.array for one in own.shared if is_torch(one.array))
                places = tuple(map(place_of, tensors))
                twin = vars(x)[TWIN] = Twin(None if part is x else part, tuple(own.shared), tensors, places)  # no cycle
            self.shared += twin.shared
            return x if twin.part is None else twin.part
        if library(x) is not None:
            return self._view(x) if not isinstance(x, np.ndarray) else x
        if isinstance(x, PLAIN):
            return x
        if isinstance(x, tuple):
            return tuple(self.argument(part) for part in x)
        raise NoViewError

    def value(self, x: Any) -> Any:
        """The same for what a Part is made of."""
        if type(x) in CONSTANTS:
            return x
        if isinstance(x, Part):
            if id(x) not in self._parts:
                self._parts[id(x)] = self._twin(x)
            return self._parts[id(x)]
        if isinstance(x, tuple):
            return tuple(self.value(part) for part in x)
        if isinstance(x, FunctionType | partial):
            raise NoViewError
        if library(x) in (None, "numpy"):
            return np.dtype(dtype_name(x)) if _is_dtype_of_torch(x) else x
        return self._view(x)

    def _twin(self, x: Part) -> Part:
        if not x.has_twin:
            raise NoViewError
        fields = {name: value for name, value in vars(x).items() if not name.startswith(CACHED)}
        views = {name: self.value(value) for name, value in fields.items()}
        return x if all(views[name] is value for name, value in fields.items()) else part_of(type(x), views)

    def _view(self, x: Array) -> np.ndarray:
        if not has_view(x):
            raise NoViewError
        view = view_of(x)
        self.shared.append(Shared(x, view))
        return view


def _is_dtype_of_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.dtype)


def place_of(tensor: Array) -> tuple[Any, ...]:
    """Return where a tensor of PyTorch lies in memory, and in which shape and strides."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def view_of(x: Array) -> np.ndarray:
    """Return NumPy's view of an array that has one."""
    return x.detach().numpy() if is_torch(x) else np.asarray(x)  # detached, it stays with this memory


def host_view(x: Array) -> np.ndarray | None:
    """Return a NumPy array over x's own memory, None where there is none or derivatives flow through x."""
    if isinstance(x, np.ndarray):
        return x
    if not has_view(x):
        return None
    with outside_transforms():
        return view_of(x)


def has_view(x: Array) -> bool:
    """Whether x is a plain array of real numbers in the host's memory, without derivatives."""
    if type(x) in _plain_tensors():
        strided, without_view = _strided_and_dtypes_without_view()
        is_plain = x.is_cpu and x.layout is strided and x.dtype not in without_view
        return is_plain and not (x.requires_grad or x.is_neg() or is_differentiated(x))
    if not is_jax(x) or is_traced(x) or x.dtype.kind not in "biuf" or is_narrow(x):
        return False
    return len(x.sharding.device_set) == 1 and next(iter(x.sharding.device_set)).platform == "cpu"


def _plain_tensors() -> tuple[type, ...]:
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.Tensor, torch.nn.Parameter)


@functools.cache
def _strided_and_dtypes_without_view() -> tuple[Any, frozenset[Any]]:
    torch = sys.modules["torch"]
    narrow_or_complex = (torch.float16, torch.bfloat16, torch.complex32, torch.complex64, torch.complex128)
    return torch.strided, frozenset(narrow_or_complex)
