"""Moving values: between dtypes, to the host, and to the device of the small float64 system."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import array_api_compat as compat
import numpy as np

from .._typing import Array
from . import lazy
from .kinds import (
    dtype_name,
    index_dtype,
    is_numpy,
    is_traced,
    namespace,
    require_bfloat16,
    supports_float64,
)
from .libraries import is_cupy, is_jax, is_torch
from .modes import in_plain_modes, outside_transforms, plain_modes, transfers_allowed
from .sparse import is_sparse
from .threads import in_threads, thread_count

TRANSPOSED_COLUMNS = 2**13  # by a thread at a time


def read(x: Array) -> np.ndarray:
    """Copy a small array to the host: the one place that waits for a device."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if is_torch(x):
        with outside_transforms():
            x = x.detach().cpu().resolve_neg()
            return (x.float() if dtype_name(x.dtype) == "bfloat16" else x).numpy()  # NumPy has no bfloat16
    if is_cupy(x):
        return x.get()
    if is_jax(x) or lazy.is_lazy(x):
        return np.asarray(x)
    return np.asarray(compat.to_device(x, namespace(x).Device("CPU_DEVICE")))


def to_bits(x: Array) -> np.ndarray:
    """Copy x to the host as NumPy numbers; bfloat16, which NumPy lacks, as the uint16 of the same bits."""
    if dtype_name(x.dtype) != "bfloat16":
        return read(x)
    if is_torch(x):
        return x.detach().view(sys.modules["torch"].int16).cpu().numpy().view(np.uint16)
    return read(x).view(np.uint16)


def from_bits(values: np.ndarray, name: str, *, like: Array) -> Array:
    """Return what `raw` made of an array of dtype `name`, as an array of like's library, on its device."""
    if name != "bfloat16":
        return values if is_numpy(like) else asarray(values, like=like)
    if is_torch(like):
        return asarray(values.view(np.int16), like=like).view(sys.modules["torch"].bfloat16)
    values = values.view(require_bfloat16().bfloat16)
    return values if is_numpy(like) else asarray(values, like=like)


def asarray(values: Any, *, like: Array, dtype: Any = None) -> Array:
    """Return host values as an array of like's library, on its device."""
    xp = namespace(like)
    if is_traced(like):
        return xp.asarray(values, dtype=dtype)
    if is_jax(like) and isinstance(values, np.ndarray):
        # a cast on a named device cannot be batched in a branch of lax.cond
        jax: Any = sys.modules["jax"]
        with transfers_allowed(jax):
            return jax.device_put(values if dtype is None else values.astype(dtype), compat.device(like))
    return xp.asarray(values, dtype=dtype, device=compat.device(like))


def to_device_of(values: Array, *, like: Array) -> Array:
    """Return float64 values, of the host or of like's library, on the device of a float64 like."""
    return values if not isinstance(values, np.ndarray) else asarray(values, like=like, dtype=like.dtype)


def native(x: Array) -> Array:
    """Return x in the machine's byte order (for NumPy)."""
    return x.astype(x.dtype.newbyteorder("=")) if isinstance(x, np.ndarray) and not x.dtype.isnative else x


def cast(x: Array, dtype: Any) -> Array:
    """Return x in another dtype of its own library; x itself where nothing changes."""
    if isinstance(x, np.ndarray):
        return x if x.dtype == dtype and x.dtype.isnative else native(x).astype(dtype, copy=False)
    if is_sparse(x):
        return x.astype(dtype_name(dtype))
    if x.dtype == dtype:
        return x
    if is_jax(x):
        return sys.modules["jax"].lax.convert_element_type(x, dtype)  # astype names x's device: see `asarray`
    return namespace(x).astype(x, dtype)


def to_float64(x: Array) -> Array:
    """Return x in float64: on its own device where that has float64, else on the host."""
    if is_numpy(x):
        return x.astype(np.float64, copy=False)
    if supports_float64(x):
        return cast(x, namespace(x).float64)
    return read(x).astype(np.float64)


def like_small_system(index: Any) -> Any:
    """Transfer integers, or an int, to where `to_float64` transfers arrays."""
    return index if isinstance(index, int) or supports_float64(index) else read(index)


def from_float64(x: Any, *, like: Array, dtype: Any) -> Array:
    """Transfer float64 values of the small system to the device of like, in a dtype."""
    if lazy.is_lazy(like) and not lazy.is_lazy(x):
        return cast(x, dtype)  # what is small stays so
    if isinstance(x, np.ndarray | np.generic) and not is_numpy(like):
        return asarray(np.asarray(x, dtype=dtype_name(dtype)), like=like, dtype=dtype)
    return cast(x, dtype)


def index_like(index: Array, *, like: Array) -> Array:
    """Transfer an integer array to the library and device of like."""
    if is_numpy(like) or lazy.is_lazy(like):
        return read(index)
    if isinstance(index, np.ndarray):
        return asarray(index, like=like, dtype=index_dtype(like))
    return index


def empty(shape: tuple[int, ...], *, like: Array, dtype: Any) -> Array:
    """Return an uninitialised array on the device of like."""
    return namespace(like).empty(shape, dtype=dtype, device=compat.device(like))


@in_plain_modes
def empty_vector(xp: Any, dtype: Any, device: Any) -> Array:
    """Return an array of shape (0,) of a library, in one of its dtypes (None: its default), on one of its devices."""
    plain = xp.zeros(0)
    if isinstance(dtype, str):
        dtype = getattr(compat.array_namespace(plain), dtype)
    return compat.array_namespace(plain).zeros((0,), dtype=plain.dtype if dtype is None else dtype, device=device)


def zeros(shape: tuple[int, ...], *, like: Array, dtype: Any) -> Array:
    """Return zeros on the device of like."""
    if lazy.is_lazy(like):
        return lazy.zeros(shape, like=like, dtype=dtype)
    return namespace(like).zeros(shape, dtype=dtype, device=compat.device(like))


def writable_zeros(shape: tuple[int, int], *, like: Array) -> Array:
    """Return writable zeros on the device of like, in its dtype in native byte order."""
    with no_grad_constants(like):
        return zeros(shape, like=like, dtype=like.dtype.newbyteorder("=") if is_numpy(like) else like.dtype)


@contextlib.contextmanager
def no_grad_constants(like: Array) -> Iterator[None]:
    """Create arrays for later use: constants, bound to no mode or transform of PyTorch and no trace of JAX."""
    if is_jax(like) and not is_traced(like):
        jax = sys.modules["jax"]
        with jax.ensure_compile_time_eval(), plain_modes(jax, like=like, products=dtype_name(like.dtype) == "float64"):
            yield
        return
    if not is_torch(like):
        yield
        return
    torch = sys.modules["torch"]
    with torch.inference_mode(False), torch.no_grad(), outside_transforms():
        yield


def zeros_like(x: Array, *, rows: int) -> Array:
    """Return `rows` rows of zeros of x's width, on its device and in its dtype."""
    return namespace(x).zeros((rows, x.shape[1]), dtype=x.dtype, device=compat.device(x))


def write_row(x: Array, index: int, row: Array) -> Array:
    """Return x with x[index, :] = row: x itself, written to, where it can be."""
    if is_jax(x):
        return x.at[index].set(row)
    if is_torch(x) and x.is_inference():
        x = x.clone()  # of a copy that was made in inference mode, and may not be written to outside of it
    x[index, :] = row
    return x


def times_power(x: Array, power: Array, reach: int) -> Array:
    """Return x · 2^power in two steps of at most `reach` each: the array API has no ldexp, and NumPy's is slow on x."""
    if isinstance(power, np.ndarray | np.generic):
        power = np.minimum(np.maximum(power, -2 * reach), 2 * reach)
        half, one = power // 2, x.dtype.type(1)
        return x * np.ldexp(one, half) * np.ldexp(one, power - half)
    if lazy.is_lazy(power):
        return lazy.times_power(x, power.clip(-2 * reach, 2 * reach))
    xp = namespace(power)
    table = asarray(np.ldexp(1.0, np.arange(-reach, reach + 1)), like=x, dtype=x.dtype)
    power = xp.clip(power, -2 * reach, 2 * reach)
    half = power // 2
    for part in (half, power - half):
        x = x * xp.reshape(xp.take(table, xp.reshape(part + reach, (-1,))), part.shape)
    return x


def transposed_copy(x: Array) -> Array:
    """Return xᵀ as a row-major array of its own (NumPy, PyTorch)."""
    if not isinstance(x, np.ndarray):
        return x.T.contiguous()
    transposed = np.empty(x.shape[::-1], x.dtype)

    def copy(start: int) -> None:
        transposed[start : start + TRANSPOSED_COLUMNS] = x[:, start : start + TRANSPOSED_COLUMNS].T

    starts = range(0, x.shape[1], TRANSPOSED_COLUMNS)
    list((in_threads if thread_count() > 1 else map)(copy, starts))
    return transposed


def take_rows(x: Array, i: Array) -> Array:
    """Return x[i, :] of a row-major x."""
    if isinstance(x, np.ndarray) and not x.flags.c_contiguous:
        return x[i]  # take would copy all of x
    return x.take(i, axis=0) if isinstance(x, np.ndarray) else namespace(x).take(x, i, axis=0)


def take_columns(x: Array, j: Array) -> Array:
    """Return x[:, j], reading no other column: numpy.take copies the whole of an x that is not row-major."""
    if isinstance(x, np.ndarray):
        return x.T[j].T
    return namespace(x).take(x, j, axis=1)


def entries(x: Array, j: Array) -> Array:
    """Return x[j] of a vector."""
    return lazy.entries(x, j) if lazy.is_lazy(x) else namespace(x).take(x, j)


def unit_columns(j: Array, size: int, *, like: Array, dtype: Any) -> Array:
    """Return the unit vectors e_j as columns, shape (size, len(j))."""
    if lazy.is_lazy(like):
        return lazy.unit_columns(j, like=like, dtype=dtype)
    xp = namespace(like)
    positions = asarray(np.arange(size), like=like, dtype=j.dtype)
    return xp.astype(positions[:, None] == j[None, :], dtype)


def weights_column(weights: Array | None, size: int, *, like: Array) -> Array:
    """Return weights, or ones, as a (size, 1) float64 array of the small system."""
    if weights is not None:
        return to_float64(weights)[:, None]
    ones = np.ones((size, 1))
    like = lazy.like_evaluated(like)
    return asarray(ones, like=like, dtype=namespace(like).float64) if supports_float64(like) else ones
