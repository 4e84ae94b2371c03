"""Arrays in the host's memory are computed by NumPy, whatever their library: by the same functions, called with views.

The *twin* of a `Part` is the same Part of NumPy's views of its arrays, in NumPy's dtypes. It is made once and kept in
the Part. Derivatives, transforms, traces, devices and 16-bit numbers have no twin: their library computes.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._typing import Array
from .libraries import is_jax, is_torch, library
from .modes import in_transforms, makes_plain_arrays, outside_transforms, plain_modes
from .pytree import CACHED, Part
from .results import FromNumpy
from .values import read
from .views import TWIN, NoViewError, Shared, Twin, Views, has_view, view_of

LIBRARY = CACHED + "library"


@dataclasses.dataclass
class InLibrary:
    """The Part of a library's arrays that stands for one of NumPy's where NumPy cannot compute: made on first use."""

    part: Part | None = None


def call_by_numpy(function: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether there is a Part among the arguments, and all of them have views; and the function of these."""
    if not ("torch" in sys.modules or "jax" in sys.modules) or not any(isinstance(x, Part) for x in arguments):
        return False, None
    if in_transforms():
        return False, None
    with plain_modes():
        views = Views()
        try:
            given = [views.argument(x) for x in arguments]
        except NoViewError:
            return False, None
        if not views.shared:  # all is NumPy's
            return True, function(*given)
        like, result = views.shared[0].array, function(*given)
        with _modes_of_jax(like, result):
            return True, FromNumpy(like, views.shared).convert(result)


def _modes_of_jax(like: Array, result: Any = None) -> contextlib.AbstractContextManager[Any]:
    """The modes in which a result becomes an array of JAX: few of them matter to one of float32."""
    if not is_jax(like):
        return contextlib.nullcontext()
    jax: Any = sys.modules["jax"]
    if type(result) is np.ndarray and result.dtype == np.float32 and makes_plain_arrays(jax, like):
        return jax.ensure_compile_time_eval()
    return plain_modes(jax, like=like)


def by_numpy(function: Any, *arguments: Any, like: Array) -> Any:
    """Return the function of the values of all arguments, without recording it for differentiation.

    Arrays are returned in the library and on the device of like; a Part stays NumPy's, as a twin for that library.
    """
    with plain_modes(), _modes_of_jax(like), outside_transforms():
        result = function(*map(_values, arguments))
        if isinstance(result, Part):
            vars(result).setdefault(TWIN, Twin(None, (Shared(like, np.empty(0)),)))
            vars(result).setdefault(LIBRARY, InLibrary())
            return result
        convert = FromNumpy(like, ()).of_arrays
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
    return view_of(x) if has_view(x) else read(x)


def in_library(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with Parts that are NumPy's for another library in that library: made once."""
    if not any(isinstance(x, Part) and LIBRARY in vars(x) for x in arguments):
        return arguments
    return tuple(_part_in_library(x) if isinstance(x, Part) and LIBRARY in vars(x) else x for x in arguments)


def _part_in_library(part: Part) -> Part:
    stored, like = vars(part)[LIBRARY], vars(part)[TWIN].shared[0].array
    if stored.part is None:
        with plain_modes(), _modes_of_jax(like), outside_transforms():
            stored.part = FromNumpy(like, (), is_written=True).convert(part)
    return stored.part


def is_in_library(part: Part) -> bool:
    """Return whether the library's arrays of a twin were made, for derivatives."""
    return LIBRARY in vars(part) and vars(part)[LIBRARY].part is not None


def count_changes(part: Part) -> None:
    """Tell PyTorch that the arrays of a twin change: derivatives that were recorded from them are then refused."""
    if is_in_library(part):
        for array in filter(is_torch, _arrays_of(vars(part)[LIBRARY].part)):
            sys.modules["torch"].autograd.graph.increment_version(array)


def _arrays_of(part: Part) -> Iterator[Array]:
    for value in vars(part).values():
        if isinstance(value, Part):
            yield from _arrays_of(value)
        elif library(value) is not None:
            yield value
