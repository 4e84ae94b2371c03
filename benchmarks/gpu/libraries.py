"""Array libraries as the measurements need them: arrays drawn on the device, plain calls of its own, waiting for it.

No flag of a library is set. Products are in full float32: PyTorch's and CuPy's are unless their user asks for TF32,
JAX's where the call says so. The error of a product is measured beside its rate and shows TF32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.problems import MEAN_SHARE

Array = Any


class Library:
    """NumPy, which stands in for the others where there is no device.

    Parameters
    ----------
    on_gpu : bool
        Whether arrays are on the first GPU, or on the host for a dry run.
    """

    name = "numpy"
    module = "numpy"
    compiles = False
    runs_on_host = True

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    @cached_property
    def xp(self) -> Any:
        """The library."""
        return importlib.import_module(self.module)

    @property
    def backend(self) -> str:
        """Its name in the tests' list of backends."""
        return self.name

    def require_device(self) -> None:
        """Raise unless the library computes on the GPU that it is asked for."""
        if self.on_gpu and not self.has_gpu():
            msg = f"{self.module} must see a GPU; it sees none."
            raise RuntimeError(msg)

    def has_gpu(self) -> bool:
        """Whether the library sees a GPU."""
        return False

    def wait(self, result: Any) -> None:
        """Return when the device has computed a result."""

    def asarray(self, values: np.ndarray) -> Array:
        """An array on the device."""
        return self.xp.asarray(values)

    def to_numpy(self, array: Array) -> np.ndarray:
        """An array on the host."""
        return np.asarray(array)

    def normal(self, shape: tuple[int, ...], seed: int) -> Array:
        """Normally distributed float32 numbers, drawn on the device."""
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def rows(self, count: int, dim: int, seed: int) -> Array:
        """Gradients with the mean that all problems of a size share, beside noise of size one."""
        rows = self.normal((count, dim), seed)
        rows += MEAN_SHARE * self.normal((dim,), 0)
        return rows

    def product(self, a: Array, b: Array) -> Array:
        """A B in full float32."""
        return a @ b

    def copy(self, source: Array, target: Array) -> Array:
        """A copy of an array, in the memory of another where the library can."""
        self.xp.copyto(target, source)
        return target

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function as the library compiles it, if `compiles`."""
        return function


class Torch(Library):
    """PyTorch."""

    name = module = "torch"

    @property
    def device(self) -> str:
        """Where its arrays are."""
        return "cuda:0" if self.on_gpu else "cpu"

    @property
    def backend(self) -> str:
        """Its name in the tests' list of backends."""
        return f"torch:{self.device}"

    def has_gpu(self) -> bool:
        """Whether PyTorch sees a GPU."""
        return self.xp.cuda.is_available()

    def wait(self, result: Any) -> None:
        """Wait for the device."""
        if self.on_gpu:
            self.xp.cuda.synchronize()

    def asarray(self, values: np.ndarray) -> Array:
        """An array on the device."""
        return self.xp.asarray(values, device=self.device)

    def to_numpy(self, array: Array) -> np.ndarray:
        """An array on the host."""
        return array.cpu().numpy()

    def normal(self, shape: tuple[int, ...], seed: int) -> Array:
        """Normally distributed float32 numbers, drawn on the device."""
        generator = self.xp.Generator(device=self.device).manual_seed(seed)
        return self.xp.randn(shape, generator=generator, device=self.device, dtype=self.xp.float32)

    def copy(self, source: Array, target: Array) -> Array:
        """A copy in the memory of another array."""
        return target.copy_(source)


class Cupy(Library):
    """CuPy."""

    name = module = "cupy"
    runs_on_host = False

    def has_gpu(self) -> bool:
        """Whether CuPy sees a GPU."""
        return self.xp.cuda.is_available()

    def wait(self, result: Any) -> None:
        """Wait for the device."""
        self.xp.cuda.Device().synchronize()

    def to_numpy(self, array: Array) -> np.ndarray:
        """An array on the host."""
        return self.xp.asnumpy(array)

    def normal(self, shape: tuple[int, ...], seed: int) -> Array:
        """Normally distributed float32 numbers, drawn on the device."""
        return self.xp.random.default_rng(seed).standard_normal(shape, dtype=self.xp.float32)


class Jax(Library):
    """JAX."""

    name = "jax"
    module = "jax.numpy"
    compiles = True

    @cached_property
    def jax(self) -> Any:
        """The package around its arrays."""
        return importlib.import_module("jax")

    def has_gpu(self) -> bool:
        """Whether JAX computes on a GPU unless told otherwise."""
        return self.jax.default_backend() == "gpu"

    def wait(self, result: Any) -> None:
        """Wait for a result; for all arrays where it is an object that holds some."""
        for array in [result] if isinstance(result, self.jax.Array) else self.jax.live_arrays():
            array.block_until_ready()

    def normal(self, shape: tuple[int, ...], seed: int) -> Array:
        """Normally distributed float32 numbers, drawn on the device."""
        return self.jax.random.normal(self.jax.random.key(seed, impl="rbg"), shape, dtype="float32")

    def product(self, a: Array, b: Array) -> Array:
        """A B in full float32."""
        return self.xp.matmul(a, b, precision=self.jax.lax.Precision.HIGHEST)

    def copy(self, source: Array, target: Array) -> Array:
        """A copy in new memory: JAX has no other."""
        return self.xp.copy(source)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under `jax.jit`."""
        return self.jax.jit(function)


LIBRARIES: dict[str, type[Library]] = {library.name: library for library in (Torch, Cupy, Jax, Library)}
ON_A_GPU = ("torch", "cupy", "jax")


def at_hand(name: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(LIBRARIES[name].module.partition(".")[0]) is not None
