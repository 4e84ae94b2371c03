"""Checks of arrays: kind, library, device, dtype, shape, finiteness."""

from typing import Any

import numpy as np

from .. import _backend
from .._errors import refuse_nonfinite_values
from .._typing import Array
from .words import describe

FLOATING = ("float16", "bfloat16", "float32", "float64")
FLAT = "Pass a flat vector here, a matrix of columns to `matmat`."


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


def check_computing(name: str, x: Array) -> Array:
    """Accept an array of float32 or float64, which determines library and device of an inverse."""
    refuse_masked(name, x)
    if not (_backend.is_array(x) and _backend.is_supported(x)) or _backend.dtype_name(x.dtype) not in (
        "float32",
        "float64",
    ):
        msg = f"`{name}` must be float32 or float64; got {describe(x)}. Cast it."
        raise TypeError(msg)
    return x


def refuse_nonfinite() -> None:
    """Raise the error for gradients with nan or infinity."""
    msg = "`gradients` must be finite; got nan or infinity. Drop the rows whose loss overflowed."
    raise ValueError(msg)


def check_same_library(name: str, x: Array, like: Array) -> None:
    """Refuse an array of another library or on another device than the gradients."""
    if not _backend.same_library(x, like):
        msg = f"`{name}` must be of the gradients' library; got {type(x).__module__}.{type(x).__name__}. Convert it."
        raise TypeError(msg)
    expected, given = _backend.device(like), _backend.device(x)
    if expected is not None and given is not None and expected != given:
        msg = f"`{name}` must be on the gradients' device, {expected}; got one on {given}. Move it there."
        raise TypeError(msg)


def check_compatible(name: str, x: Any, like: Array, dtype: Any) -> Array:
    """Accept an array of like's library and device in dtype; a 16-bit one is widened."""
    if _backend.is_plain_like(x, like, dtype):
        return x
    if not _backend.is_array(x):
        msg = f"`{name}` must be an array of the gradients' library; got {describe(x)}. Convert it first."
        raise TypeError(msg)
    refuse_masked(name, x)
    check_same_library(name, x, like)
    x = _backend.native(_backend.align_chunks(_backend.of_declared_dtype(x, name), like=like))
    if _backend.is_narrow(x):
        return _backend.cast(x, dtype)
    if x.dtype != dtype:
        wanted = _backend.dtype_name(dtype)
        cure = "Pass its real and its imaginary part." if _backend.is_complex(x) else f"Cast it to {wanted}."
        msg = f"`{name}` must have dtype {wanted}; got {describe(x)}. {cure}"
        raise TypeError(msg)
    return x


def check_complex(name: str, z: Array, like: Array, dtype: Any) -> None:
    """Accept a complex array of like's library and device, of the precision of dtype."""
    refuse_masked(name, z)
    check_same_library(name, z, like)
    real, wanted = _backend.dtype_name(dtype), "complex128" if _backend.dtype_name(dtype) == "float64" else "complex64"
    if _backend.dtype_name(z.dtype) != wanted:
        msg = f"`{name}` must have dtype {real} or {wanted}; got {describe(z)}. Cast it to {wanted}."
        raise TypeError(msg)


def check_vector(name: str, v: Any, like: Array, dtype: Any, length: int, *, column: bool = False) -> Array:
    """Accept a vector of that length on like's device, in dtype; with `column` also as one column."""
    v = check_compatible(name, v, like, dtype)
    if column:
        check_vector_shape(name, v, length)
    else:
        check_shape(name, v, (length,), FLAT)
    return v


def check_vector_shape(name: str, v: Array, length: int) -> None:
    """Accept shape (length,) or (length, 1)."""
    if tuple(v.shape) != (length, 1):
        check_shape(name, v, (length,), FLAT)


def check_mask(name: str, mask: Any, like: Array, length: int) -> Array:
    """Accept a boolean vector of that length on like's device."""
    refuse_masked(name, mask)
    if not _backend.is_array(mask) or not _backend.is_boolean(mask):
        msg = f"`{name}` must be an array of bool, True where a weight stays; got {describe(mask)}. Compare it with 0."
        raise TypeError(msg)
    check_same_library(name, mask, like)
    check_shape(name, mask, (length,), "Pass a flat mask of all weights.")
    return _backend.align_chunks(_backend.of_declared_dtype(mask, name), like=like)


def check_columns(name: str, v: Any, like: Array, dtype: Any, length: int) -> Array:
    """Accept a matrix of columns of that length on like's device, in dtype."""
    v = check_compatible(name, v, like, dtype)
    check_shape(name, v, (length, "k"), "Pass one vector per column.")
    return v


def refuse_masked(name: str, x: Any) -> None:
    """Refuse arrays that are not plain.

    These are masked arrays of NumPy, whose mask a product would drop, its matrices, whose * is a matrix product, and
    sparse, nested, quantized and masked tensors of PyTorch.
    """
    if _backend.is_masked(x):
        msg = f"`{name}` must be a plain array; got masked {type(x).__name__}, whose mask would be lost. Fill it first."
        raise TypeError(msg)
    if _backend.is_matrix(x):
        msg = f"`{name}` must be a plain array; got a numpy.matrix ({type(x).__name__}). Pass numpy.asarray of it."
        raise TypeError(msg)
    kind = _backend.kind_of_tensor(x)
    if kind is not None:
        cures = {"nested": "Pad or stack it.", "quantized": "Pass its dequantize().", "masked": "Fill it first."}
        msg = f"`{name}` must be a plain tensor; got a {kind} one of dtype {_backend.dtype_name(x.dtype)}. "
        raise TypeError(msg + cures.get(kind, "Pass its to_dense(), or sparse gradients as SciPy's matrices."))


def refuse_sparse(name: str, x: Any) -> None:
    """Refuse a sparse matrix as a factor of a product: the result would be dense."""
    if _backend.is_sparse(x):
        msg = f"`{name}` must be dense; got {type(x).__name__} of shape {x.shape}. Pass its toarray()."
        raise TypeError(msg)


def check_values(name: str, x: Any) -> None:
    """Refuse an array whose values cannot be read."""
    refuse_masked(name, x)
    if _backend.is_array(x) and not _backend.is_concrete(x):
        msg = f"`{name}` must have values now; got {describe(x)}, traced or on a device that keeps none. "
        raise TypeError(msg + "Ask outside of jit, grad and vmap.")


def check_finite(name: str, x: Array) -> None:
    """Refuse nan and infinity where values can be read."""
    if not _backend.on_host(x):
        return
    with _backend.no_grad_constants(x):  # of a trace that it is a constant of
        xp = _backend.namespace(x)
        is_finite = bool(_backend.read(xp.all(xp.isfinite(x))))
    if not is_finite:
        refuse_nonfinite_values(name)


def as_numpy(name: str, values: Any) -> np.ndarray:
    """Return a sequence as a NumPy array."""
    try:
        return np.asarray(values)
    except ValueError as ragged:
        msg = f"`{name}` must be a flat sequence; got {describe(values)}. Give every row the same length."
        raise ValueError(msg) from ragged
    except Exception as refused:  # of arrays that are traced, differentiated or elsewhere, by each library's own
        msg = f"`{name}` must be numbers that have values now; got {describe(values)}. Pass plain numbers."
        raise TypeError(msg) from refused


def name_of_dtype(dtype: Any) -> str:
    """The name of a dtype of any library; for other objects that of their class."""
    try:
        return "an array" if _backend.is_array(dtype) else _backend.dtype_name(dtype)
    except (TypeError, ValueError):  # what NumPy cannot read as a dtype
        return type(dtype).__name__


def as_result_dtype(dtype: Any, like: Array) -> Any:
    """Return float32 or float64, given by name or as a dtype of any library, as a dtype of like's library."""
    name = name_of_dtype(dtype)
    if name not in ("float32", "float64") or not _backend.offers_dtype(like, name):
        offered = [choice for choice in ("float32", "float64") if _backend.offers_dtype(like, choice)]
        msg = f"`dtype` must be {' or '.join(offered)} here; got {describe(dtype)}. Pass one of these."
        raise TypeError(msg)
    return _backend.named_dtype(name, like=like)


def as_device(x: Array, device: Any) -> Array:
    """Return x on another device of its library."""
    try:
        if device is None:
            msg = "which names none"
            raise TypeError(msg)
        copy = _backend.to_device(x, device)
        if _backend.is_array(x) and _backend.is_concrete(x) and not _backend.is_concrete(copy):
            msg = "whose arrays have no values"
            raise TypeError(msg)
    except Exception as refused:  # each library has its own
        msg = f"`device` must be a device of the gradients' library; got {device!r:.60} ({refused}). "
        raise TypeError(msg + "Pass its own object.") from refused
    return copy


def check_shape(name: str, x: Array, shape: tuple[int | str, ...], cure: str) -> None:
    """Refuse an array whose shape differs; a letter in `shape` stands for any length."""
    given = tuple(x.shape)
    fits = len(given) == len(shape)
    if not fits or any(isinstance(w, int) and w != g for w, g in zip(shape, given, strict=True)):
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        msg = f"`{name}` must have shape {wanted}; got {describe(x)}. {cure}"
        raise ValueError(msg)


def check_not_empty(name: str, x: Array) -> None:
    """Refuse an array without entries."""
    if 0 in x.shape:
        msg = f"`{name}` must have an entry at least; got {describe(x)}. Leave out what is empty."
        raise ValueError(msg)


def check_overwritable(gradients: Array, dtype: Any, whiten: Any, precision: str) -> None:
    """Refuse to overwrite gradients that cannot be overwritten, or are needed later."""
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
