"""Random numbers by each library's own generator, from a seed alone: global generators are neither read nor set."""

import sys
from typing import Any

import numpy as np

from .._typing import Array
from . import lazy
from .kinds import dtype_name
from .libraries import is_cupy, is_jax, is_torch
from .modes import outside_transforms
from .values import asarray


def standard_normal(shape: tuple[int, ...], *, seed: int, like: Array, dtype: Any) -> Array:
    """Draw standard normal numbers by like's own generator, on its device."""
    if lazy.is_lazy(like):
        return lazy.standard_normal((shape[0], shape[1]), seed=seed, like=like, dtype=dtype)
    if is_torch(like):
        torch = sys.modules["torch"]
        generator = torch.Generator(device=like.device).manual_seed(seed)
        with outside_transforms():  # where `vmap` draws for each of its vectors, or refuses to
            return torch.randn(shape, generator=generator, dtype=dtype, device=like.device)
    if is_jax(like):
        random = sys.modules["jax"].random
        words = np.asarray([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
        key = random.wrap_key_data(words, impl="threefry2x32")  # `key` depends on settings
        return random.normal(key, shape, dtype=dtype)
    if is_cupy(like):
        return sys.modules["cupy"].random.default_rng(seed).standard_normal(shape, dtype=dtype)
    wide = dtype_name(dtype) == "float64"
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float64 if wide else np.float32)
    return asarray(values, like=like, dtype=dtype)
