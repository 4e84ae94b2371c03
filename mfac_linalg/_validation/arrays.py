"""Checks of arrays: kind, library, device, dtype, shape, finiteness."""

import numbers
from typing import Any

import numpy as np

from .. import _backend
from .._errors import refuse_nonfinite_values
from .words import describe

Array = Any
FLOATING = ("float16", "bfloat16", "float32", "float64")


def check_gradients(gradients: Any) -> Array:
    """Accept a non-empty (m, d) array of real floating numbers."""
    refuse_masked("gradients", gradients)
    if not _backend.is_array(gradients):
        msg = f"`gradients` must be an array of an array-API library; got {type(gradients).__name__}. "
        raise TypeError(msg + "Convert it first, for example with numpy.asarray.")
    if not _backend.is_supported(gradients):
        msg = f"`gradients` must be dense and in memory; got {type(gradients).__module__}.{type(gradients).__name__}. "
        msg += "Compute it first, and make it dense."
        raise TypeError(msg)
    return check_matrix(gradients)


def check_matrix(gradients: Array) -> Array:
    """Accept a non-empty matrix of real floating numbers."""
    if _backend.dtype_name(gradients.dtype) not in FLOATING:
        msg = f"`gradients` must be float16, bfloat16, float32 or float64; got {describe(gradients)}. Cast it."
        raise TypeError(msg)
    if gradients.ndim != 2 or 0 in gradients.shape:
        msg = (
            f"`gradients` must have shape (m, d) with m ≥ 1 and d ≥ 1; got {describe(gradients)}. "
            "Stack one flattened gradient per row."
        )
        raise ValueError(msg)
    return gradients


def check_streamed(gradients: Any) -> Any:
    """Accept a non-empty matrix of real floating numbers, in memory or with shape, dtype and slices."""
    if _backend.is_array(gradients) or not _backend.is_sliceable(gradients):
        check_gradients(gradients)
        if not _backend.is_concrete(gradients):
            msg = "`gradients` must have values now where they are read by panels; got a traced array. "
            raise TypeError(msg + "Leave `memory_limit`, `xp` and `device` out.")
        return gradients
    try:
        name = _backend.dtype_name(gradients.dtype)
    except TypeError:
        name = str(gradients.dtype)
    if name not in FLOATING:
        msg = f"`gradients` must be float16, bfloat16, float32 or float64; got {name}. Cast them."
        raise TypeError(msg)
    if not gradients.shape or len(gradients.shape) != 2 or 0 in gradients.shape:
        msg = f"`gradients` must have shape (m, d) with m ≥ 1 and d ≥ 1; got {gradients.shape}. "
        raise ValueError(msg + "Stack one flattened gradient per row.")
    return gradients


def check_chunked(gradients: Any) -> Any:
    """Accept a non-empty lazy (m, d) array of real floating numbers, in chunks of all rows."""
    check_matrix(gradients)
    if not _backend.has_plain_chunks(gradients):
        msg = f"`gradients` must have NumPy arrays of known sizes as chunks; got {gradients!r}. "
        raise TypeError(msg + "Convert them with map_blocks, or call compute_chunk_sizes().")
    if len(gradients.chunks[0]) > 1:
        msg = f"`gradients` must have all rows in each chunk; got chunks of {gradients.chunks[0]} rows. "
        raise ValueError(msg + 'Call gradients.rechunk({0: -1, 1: "auto"}), or cut along d where they are made.')
    return gradients


def check_no_place(place: Any) -> None:
    """Refuse `xp`, `device` and `memory_limit` for rows that are not read by panels."""
    for name in ("xp", "device", "memory_limit"):
        if getattr(place, name) is not None:
            got = describe(getattr(place, name))
            msg = f"`{name}` must be None for sparse and Dask's gradients and GradientRows; got {got}. "
            raise ValueError(msg + "Leave it out: they stay where they are.")


def check_sparse(gradients: Any) -> Any:
    """Accept a non-empty sparse matrix of real floating numbers."""
    if gradients.ndim != 2 or 0 in gradients.shape:
        msg = f"`gradients` must have shape (m, d) with m ≥ 1 and d ≥ 1; got {tuple(gradients.shape)}. "
        raise ValueError(msg + "Stack one gradient per row.")
    if gradients.dtype.name not in ("float32", "float64"):
        msg = f"`gradients` must be float32 or float64 where they are sparse; got {gradients.dtype.name}. "
        raise TypeError(msg + "Cast them.")
    return gradients


def check_provided_shape(gradients: Any) -> tuple[int, int]:
    """Accept a pair of integers ≥ 1 as the shape of rows that a user brings."""
    shape = gradients.shape
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(_is_size(n) for n in shape)):
        msg = f"`gradients.shape` must be a tuple (m, d) of integers ≥ 1; got {shape!r}. Correct that attribute."
        raise ValueError(msg)
    return int(shape[0]), int(shape[1])


def _is_size(n: Any) -> bool:
    return isinstance(n, numbers.Integral) and not isinstance(n, bool) and int(n) > 0


def check_can_be_cut(gradients: Any) -> None:
    """Refuse gradients that cannot be cut into blocks of columns."""
    if _backend.is_lazy(gradients) or not (_backend.is_array(gradients) or _backend.is_sparse(gradients)):
        msg = f"`gradients` must be in memory, dense or sparse, for blocks; got {type(gradients).__name__}. "
        raise TypeError(msg + "Build one WoodburyRankOneInverse for each block.")


def check_kept(whiten: Any, overwrite: bool) -> None:
    """Refuse to make a dense array of gradients that are none."""
    for name, value in (("whiten", whiten), ("overwrite_gradients", overwrite)):
        if value:
            msg = f"`{name}` must not be True where the gradients are read by panels or no dense array; got True. "
            raise ValueError(msg + "Leave it out, or pass a dense array alone.")


def check_computes(name: str, precision: str, dtype: Any) -> None:
    """Refuse "high" for rows that a user brings and that compute in float32."""
    if precision == "high" and _backend.dtype_name(dtype) != "float64":
        msg = f"`{name}` must be 'default' for rows that compute in {_backend.dtype_name(dtype)}; got 'high'. "
        raise ValueError(msg + "Let their methods return float64.")


def check_computing(name: str, x: Array) -> Array:
    """Accept an array of float32 or float64, which can say where an inverse lives."""
    if not _backend.is_supported(x) or _backend.dtype_name(x.dtype) not in ("float32", "float64"):
        msg = f"`{name}` must be float32 or float64; got {describe(x)}. Cast it."
        raise TypeError(msg)
    return x


def refuse_nonfinite() -> None:
    """Refuse gradients that were found to hold nan or infinity."""
    msg = "`gradients` must be finite; got nan or infinity. Drop the rows whose loss overflowed."
    raise ValueError(msg)


def check_same_library(name: str, x: Array, like: Array) -> None:
    """Refuse an array of another library or on another device than the gradients."""
    if not _backend.same_library(x, like):
        msg = f"`{name}` must be of the gradients' library; got {type(x).__module__}.{type(x).__name__}. Convert it."
        raise TypeError(msg)
    ours, theirs = _backend.device(like), _backend.device(x)
    if ours is not None and theirs is not None and ours != theirs:
        msg = f"`{name}` must be on the gradients' device, {ours}; got one on {theirs}. Move it there."
        raise TypeError(msg)


def check_beside(name: str, x: Any, like: Array, dtype: Any) -> Array:
    """Accept an array of like's library and device in dtype; a 16-bit one is widened."""
    if not _backend.is_array(x):
        msg = f"`{name}` must be an array of the gradients' library; got {describe(x)}. Convert it first."
        raise TypeError(msg)
    refuse_masked(name, x)
    check_same_library(name, x, like)
    x = _backend.native(_backend.aligned(x, like=like))
    if _backend.is_narrow(x):
        return _backend.cast(x, dtype)
    if x.dtype != dtype:
        wanted = _backend.dtype_name(dtype)
        msg = f"`{name}` must have dtype {wanted}; got {describe(x)}. Cast it to {wanted}."
        raise TypeError(msg)
    return x


def check_vector(name: str, v: Any, like: Array, dtype: Any, length: int) -> Array:
    """Accept a vector of that length beside like, in dtype."""
    v = check_beside(name, v, like, dtype)
    check_shape(name, v, (length,), "Pass a flat vector here, a matrix of columns to `matmat`.")
    return v


def check_columns(name: str, v: Any, like: Array, dtype: Any, length: int) -> Array:
    """Accept a matrix of columns of that length beside like, in dtype."""
    v = check_beside(name, v, like, dtype)
    check_shape(name, v, (length, "k"), "Pass one vector per column.")
    return v


def refuse_masked(name: str, x: Any) -> None:
    """Refuse a NumPy masked array, whose mask a product would drop."""
    if _backend.is_masked(x):
        msg = f"`{name}` must be a plain array; got {type(x).__name__}, whose mask would be lost. Fill it first."
        raise TypeError(msg)


def check_finite(name: str, x: Array) -> None:
    """Refuse nan and infinity where values can be read."""
    if _backend.on_host(x) and not bool(_backend.read(_backend.namespace(x).all(_backend.namespace(x).isfinite(x)))):
        refuse_nonfinite_values(name)


def as_numpy(name: str, values: Any) -> np.ndarray:
    """Accept a sequence that makes an array."""
    try:
        return np.asarray(values)
    except ValueError as ragged:
        msg = f"`{name}` must be a flat sequence; got {describe(values)}. Give every row the same length."
        raise ValueError(msg) from ragged


def check_result_dtype(dtype: Any, like: Array) -> Any:
    """Accept float32 or float64, by name or as a dtype of any library, where arrays like `like` can have it."""
    name = _backend.dtype_name(dtype)
    if name not in ("float32", "float64") or not _backend.offers_dtype(like, name):
        offered = [choice for choice in ("float32", "float64") if _backend.offers_dtype(like, choice)]
        msg = f"`dtype` must be {' or '.join(offered)} here; got {dtype!r}. Pass one of these."
        raise TypeError(msg)
    return _backend.named_dtype(name, like=like)


def check_moved(x: Array, device: Any) -> Array:
    """Return x on another device of its library."""
    try:
        return _backend.to_device(x, device)
    except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError) as refused:  # each library has its own
        msg = f"`device` must be a device of the gradients' library; got {device!r} ({refused}). Pass its own object."
        raise TypeError(msg) from refused


def check_shape(name: str, x: Array, shape: tuple[int | str, ...], cure: str) -> None:
    """Refuse an array whose shape differs; a letter in `shape` stands for any length."""
    given = tuple(x.shape)
    fits = len(given) == len(shape)
    if not fits or any(isinstance(w, int) and w != g for w, g in zip(shape, given, strict=True)):
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        msg = f"`{name}` must have shape {wanted}; got {describe(x)}. {cure}"
        raise ValueError(msg)


def check_overwritable(gradients: Array, dtype: Any, whiten: Any, precision: str) -> None:
    """Refuse to overwrite what cannot be overwritten, or is needed as it is."""
    reason = None
    if whiten is False:
        reason = "there is nothing to write with whiten=False"
    elif gradients.dtype != dtype:
        reason = f"{describe(gradients)} cannot hold results in {_backend.dtype_name(dtype)}"
    elif precision == "high" and _backend.dtype_name(dtype) != "float64":
        reason = 'precision="high" needs the gradients themselves'
    elif not _backend.is_overwritable(gradients):
        reason = "the array is read-only, not contiguous, or of a library without writing"
    if reason:
        msg = f"`overwrite_gradients` must be False here; got True, but {reason}. Leave it out."
        raise ValueError(msg)


def check_precision_available(precision: str, gradients: Array) -> None:
    """Refuse "high" on a device without float64."""
    if precision == "high" and not _backend.supports_float64(gradients):
        msg = f"`precision` must be 'default' on {_backend.device(gradients)}, which has no float64; got 'high'. "
        raise ValueError(msg + "Leave it out, or move the gradients to the host.")
