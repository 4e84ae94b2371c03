"""Memory that is shared with others, and copies that are not."""

import math
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from .._typing import Array
from .kinds import is_traced, namespace, on_host
from .libraries import is_dask, is_jax, is_torch
from .modes import outside_transforms, plain_modes
from .sparse import arrays_of, is_sparse

ALIGNMENT = 64  # bytes


def copy_of(x: Array) -> Array:
    """Return a differentiable copy. JAX's arrays may share NumPy's memory, or be donated."""
    if is_traced(x):
        return x
    if is_jax(x):
        with plain_modes(sys.modules["jax"], like=x):
            return sys.modules["jax"].numpy.array(x, copy=True)
    return x.clone() if is_torch(x) else namespace(x).asarray(x, copy=True)


def host_array(values: np.ndarray, *, like: Array) -> Array:
    """Return host values as tensors where like is one, for `torch.load`; else unchanged."""
    return sys.modules["torch"].from_numpy(values) if is_torch(like) else values


def host_memory(x: Any) -> list[np.ndarray]:
    """Return NumPy arrays over the memory of x, bit for bit; none where that is not the host's, or read-only for all.

    Those of a sparse matrix are as many as it is made of.
    """
    if isinstance(x, np.ndarray):
        return [np.asarray(x)]  # of no subclass
    if is_sparse(x):
        return [part for part in arrays_of(x) if isinstance(part, np.ndarray)]
    if not compat.is_array_api_obj(x) or is_jax(x) or is_dask(x) or not on_host(x):
        return []
    if not is_torch(x):
        return [np.asarray(x)]
    torch = sys.modules["torch"]
    with outside_transforms():
        x = x.detach()
        return [(x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()]  # NumPy has no bfloat16


def resolved(x: Any) -> Any:
    """Return x, or a copy of what PyTorch holds as the negative of its memory: imaginary parts of conjugates."""
    return x.resolve_neg() if is_torch(x) else x


def address(x: Any) -> int | None:
    """Return where the memory of a PyTorch tensor begins, which may be exchanged; None for other arrays."""
    return x.data_ptr() if is_torch(x) else None


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory that JAX, once it is in use, takes as it is."""
    if "jax" not in sys.modules:
        return np.empty(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def as_aligned(values: np.ndarray) -> np.ndarray:
    """Return values in such memory, row by row, with no holes between them."""
    if values.flags.c_contiguous and values.__array_interface__["data"][0] % ALIGNMENT == 0:
        return values
    copy = aligned_empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def own_copy(block: Array, *, source: Any) -> Array:
    """Return the block, copied where writing over it could change the source (NumPy); None is no source."""
    if not isinstance(block, np.ndarray) or source is None:
        return block
    shared = np.may_share_memory(block, source) if isinstance(source, np.ndarray) else True
    return np.array(block) if shared else block
