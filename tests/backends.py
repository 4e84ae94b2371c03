"""The one list of array libraries and devices that the tests run on.

A backend turns NumPy data into arrays of its library and back, and says which dtypes it has. One that is not
installed, or that needs a GPU where there is none, is left out of every parametrisation and skips once, by name, in
``test_backends.py``.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOATS = ("float32", "float64")


def eps(dtype: str) -> float:
    """Machine epsilon of a dtype named in `FLOATS`."""
    return float(np.finfo(dtype).eps)


@dataclass(frozen=True)
class Backend:
    """One library on one device."""

    name: str
    library: str
    dtypes: tuple[str, ...]
    convert: Callable[[Any, np.ndarray], Any]
    restore: Callable[[Any, Any], np.ndarray] = lambda _, array: np.asarray(array)
    needs_gpu: bool = False
    is_lazy: bool = False  # d-sized answers are graphs, small ones NumPy's
    has_float64: bool = True  # on the device, whatever dtype its user asks for: precision="high" needs it

    def __repr__(self) -> str:
        return self.name

    @property
    def namespace(self) -> Any:
        """The library itself, imported quietly."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns about a missing CUDA when it is imported
            return importlib.import_module(self.library)

    @functools.cached_property
    def missing(self) -> str | None:
        """Why this backend cannot run here; None where it can."""
        try:
            self.namespace  # noqa: B018
        except ImportError:
            return "needs a GPU" if self.needs_gpu else f"needs {self.library.partition('.')[0]}"
        if not self.needs_gpu:
            return None
        try:
            self.asarray(np.zeros(1, "float32"))
        except Exception:  # every library has its own word for "no GPU"
            return "needs a GPU"
        return None

    def asarray(self, array: Any, dtype: str | None = None) -> Any:
        """A fresh array of this library, on this device; floats only in `dtypes`, integers and booleans as they are."""
        array = np.array(array, dtype=dtype)
        if array.dtype.kind == "f" and array.dtype.name not in (*self.dtypes, "float16"):
            msg = f"{self.name} holds {self.dtypes}, not {array.dtype}"
            raise TypeError(msg)
        return self.convert(self.namespace, array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """The same values as a NumPy array. Python and NumPy scalars pass through."""
        if isinstance(array, (int, float, np.generic)):
            return np.asarray(array)
        return self.restore(self.namespace, array)

    def dtype(self, name: str) -> Any:
        """The library's own dtype object."""
        return np.dtype(name) if self.library in ("numpy", "jax.numpy") else getattr(self.namespace, name)

    def is_own(self, array: Any, dtype: str) -> bool:
        """Whether an array is of this library, on this device and of this dtype."""
        like = self.asarray(np.zeros(1, dtype))
        if self.is_lazy:
            return isinstance(array, type(like) | np.ndarray | np.generic) and array.dtype == like.dtype
        return type(array) is type(like) and array.dtype == like.dtype and array.device == like.device


def _read_only(xp: Any, array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _strict(device: str, dtypes: tuple[str, ...]) -> Backend:
    def convert(xp: Any, array: np.ndarray) -> Any:
        if device == "no_x64" and array.dtype == np.int64:
            array = array.astype(np.int32)
        return xp.asarray(array, device=xp.Device(device))

    def restore(xp: Any, array: Any) -> np.ndarray:
        return np.asarray(array.to_device(xp.Device("CPU_DEVICE")))

    return Backend(f"strict:{device}", "array_api_strict", dtypes, convert, restore, has_float64="float64" in dtypes)


def _torch(device: str, needs_gpu: bool) -> Backend:
    def convert(xp: Any, array: np.ndarray) -> Any:
        return xp.asarray(array, device=device)

    def restore(xp: Any, array: Any) -> np.ndarray:
        return array.detach().cpu().numpy()

    return Backend(f"torch:{device}", "torch", FLOATS, convert, restore, needs_gpu)


def _in_chunks(xp: Any, array: np.ndarray) -> Any:
    """A matrix as gradients are cut, along its last axis; anything is taken in other chunks as well."""
    return xp.from_array(array, chunks=(-1,) * (array.ndim - 1) + (5,) * (array.ndim > 0))


BACKENDS = (
    Backend("numpy", "numpy", FLOATS, lambda _, array: array),
    Backend("numpy:readonly", "numpy", FLOATS, _read_only),
    _strict("CPU_DEVICE", FLOATS),
    _strict("device1", FLOATS),
    _strict("no_float64", ("float32",)),
    _strict("no_x64", ("float32",)),
    _torch("cpu", needs_gpu=False),
    _torch("cuda:0", needs_gpu=True),
    Backend("jax", "jax.numpy", ("float32",), lambda xp, array: xp.asarray(array)),
    Backend("cupy", "cupy", FLOATS, lambda xp, array: xp.asarray(array), lambda xp, array: xp.asnumpy(array), True),
    Backend("dask", "dask.array", FLOATS, _in_chunks, is_lazy=True),
)

PRESENT = tuple(backend for backend in BACKENDS if backend.missing is None)
AVAILABLE = tuple(backend for backend in PRESENT if not backend.is_lazy)
"""Those whose arrays have values: windows and blocks take no others."""
NUMPY = BACKENDS[0]
FLAVOURS = tuple((backend, dtype) for backend in AVAILABLE for dtype in backend.dtypes)
STATIC_FLAVOURS = tuple((backend, dtype) for backend in PRESENT for dtype in backend.dtypes)
"""The static class takes all."""


def flavour_name(flavour: tuple[Backend, str]) -> str:
    """The pytest id of a (backend, dtype) pair."""
    return f"{flavour[0].name}-{flavour[1]}"
