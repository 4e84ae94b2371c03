"""One small check per argument. Every refusal names the argument, what came, and the cure."""

import math
import numbers
from typing import Any

import numpy as np

from . import _backend
from ._errors import refuse_nonfinite_values

Array = Any
FLOATING = ("float16", "bfloat16", "float32", "float64")
DENSE_LIMIT = 16_384  # parameters; a (d, d) array of float64 is then 2 GB


def describe(x: Any) -> str:
    """Say what x is in a few words, without its values if it is an array."""
    if _backend.is_array(x):
        return f"an array of shape {tuple(x.shape)} and dtype {_backend.dtype_name(x.dtype)}"
    return f"{x!r:.60} ({type(x).__name__})"


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


def refuse_nonfinite() -> None:
    """Refuse gradients that were found to hold nan or infinity."""
    msg = "`gradients` must be finite; got nan or infinity. Drop the rows whose loss overflowed."
    raise ValueError(msg)


def check_dense(dim: int) -> None:
    """Refuse a d × d array that is larger than anyone means."""
    if dim > DENSE_LIMIT:
        msg = f"`to_dense` must have d ≤ {DENSE_LIMIT}; got d = {dim}. Use `columns`, `submatrix` or `matmat`."
        raise ValueError(msg)


def check_damping(damping: Any, like: Array, dtype: Any) -> Any:
    """Accept λ > 0 as a float (or a traced scalar, kept as an array), or a (d,) array."""
    is_number = isinstance(damping, numbers.Real) and not isinstance(damping, bool)
    if is_number or (_backend.is_array(damping) and damping.ndim == 0 and _backend.is_real(damping)):
        return _check_scalar_damping(damping, like)
    if not _backend.is_vector(damping):
        msg = f"`damping` must be a float > 0 or an array of shape ({like.shape[1]},); got {describe(damping)}. "
        raise TypeError(msg + "Pass λ itself, not its reciprocal.")
    damping = check_beside("damping", damping, like, dtype)
    check_shape("damping", damping, (like.shape[1],), "Give one λ per parameter, or one float for all.")
    check_positive_entries("damping", damping)
    return damping


def _check_scalar_damping(damping: Any, like: Array) -> Any:
    """Read the value where there is one; a scalar that is traced or differentiated stays an array."""
    if isinstance(damping, numbers.Real) or _backend.is_concrete(damping):
        try:
            value = float(damping if isinstance(damping, numbers.Real) else _backend.read(damping))
        except OverflowError:
            value = math.inf
        if not (math.isfinite(value) and value > 0):
            msg = f"`damping` must be finite and > 0; got {damping!r:.60}. Start from 1e-4 · mean(‖g‖²)/d if unsure."
            raise ValueError(msg)
        if isinstance(damping, numbers.Real) or not _backend.is_differentiated(damping):
            return value
    check_same_library("damping", damping, like)
    return damping


def check_dampings(dampings: Any) -> np.ndarray:
    """Accept a non-empty sequence of floats > 0, as a float64 host array."""
    refuse_masked("dampings", dampings)
    values = _backend.read(dampings) if _backend.is_array(dampings) else _as_numpy("dampings", dampings)
    if values.dtype.kind not in "fiu":
        msg = f"`dampings` must be a sequence of floats > 0; got {describe(dampings)}. Convert them."
        raise TypeError(msg)
    if values.ndim != 1 or values.size == 0:
        msg = f"`dampings` must be a non-empty sequence of floats > 0; got {describe(dampings)}. Pass [λ] for one."
        raise ValueError(msg)
    for value in values:
        if not (np.isfinite(value) and value > 0):
            msg = f"`dampings` must be finite and > 0; got {value!r} among them. Remove it."
            raise ValueError(msg)
    return values.astype(np.float64)


def check_weights(weights: Any, like: Array) -> Array | None:
    """Accept None or a (m,) array of finite weights > 0."""
    if weights is None:
        return None
    if not _backend.is_array(weights):
        msg = f"`weights` must be an array of shape ({like.shape[0]},); got {describe(weights)}. Convert it first."
        raise TypeError(msg)
    refuse_masked("weights", weights)
    check_same_library("weights", weights, like)
    if _backend.dtype_name(weights.dtype) not in FLOATING:
        msg = f"`weights` must be real floating; got {describe(weights)}. Cast it."
        raise TypeError(msg)
    check_shape("weights", weights, (like.shape[0],), "Give one weight per gradient.")
    check_positive_entries("weights", weights)
    return weights


def check_positive_entries(name: str, x: Array) -> None:
    """Refuse a host array with an entry that is not finite and > 0; a build reads the others, all at once."""
    if _backend.on_host(x) and _backend.read(has_bad_entry(x)):
        refuse_entries(name, x)


def has_bad_entry(x: Array) -> Array:
    """1.0 where an entry is not finite and > 0, else 0.0, as a 0-d array of x's library."""
    xp = _backend.namespace(x)
    return xp.max(xp.where((x > 0) & (x < xp.inf), xp.zeros_like(x), xp.ones_like(x)))


def refuse_entries(name: str, x: Array) -> None:
    """Refuse an array for its entries."""
    msg = f"`{name}` must be finite and > 0 in every entry; got {describe(x)} with entries that are not. "
    raise ValueError(msg + "Raise them to the smallest value you can defend.")


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
    x = _backend.native(x)
    if _backend.is_narrow(x):
        return _backend.cast(x, dtype)
    if x.dtype != dtype:
        wanted = _backend.dtype_name(dtype)
        msg = f"`{name}` must have dtype {wanted}; got {describe(x)}. Cast it to {wanted}."
        raise TypeError(msg)
    return x


def refuse_masked(name: str, x: Any) -> None:
    """Refuse a NumPy masked array, whose mask a product would drop."""
    if _backend.is_masked(x):
        msg = f"`{name}` must be a plain array; got {type(x).__name__}, whose mask would be lost. Fill it first."
        raise TypeError(msg)


def check_finite(name: str, x: Array) -> None:
    """Refuse nan and infinity where values can be read."""
    if _backend.on_host(x) and not bool(_backend.read(_backend.namespace(x).all(_backend.namespace(x).isfinite(x)))):
        refuse_nonfinite_values(name)


def _as_numpy(name: str, values: Any) -> np.ndarray:
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


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Accept one of a few words."""
    if not isinstance(value, str):
        msg = f"`{name}` must be one of {', '.join(map(repr, choices))}; got {describe(value)}. Pass the word."
        raise TypeError(msg)
    if value not in choices:
        msg = f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}. Check the spelling."
        raise ValueError(msg)
    return value


def check_flag(name: str, value: Any, *, optional: bool = False) -> None:
    """Accept True or False, and None where that means something."""
    if not (isinstance(value, bool) or (optional and value is None)):
        wanted = "True, False or None" if optional else "True or False"
        msg = f"`{name}` must be {wanted}; got {describe(value)}. Pass a bool."
        raise TypeError(msg)


def check_indices(name: str, j: Any, dim: int, *, like: Array) -> Array:
    """Accept an integer or integer array in [−d, d), as non-negative indices beside like."""
    if isinstance(j, bool) or (not isinstance(j, numbers.Integral | list | tuple) and not _backend.is_array(j)):
        msg = f"`{name}` must be an integer or an array of integers; got {describe(j)}. Round or cast it."
        raise TypeError(msg)
    refuse_masked(name, j)
    index = j if _backend.is_array(j) else _as_numpy(name, j)
    if index.shape == (0,) and not _backend.is_array(j):
        index = index.astype(np.int64)
    if isinstance(index, np.ndarray) and index.dtype == object and all(isinstance(x, int) for x in index.flat):
        msg = f"`{name}` must be in [{-dim}, {dim}); got {describe(j)}. Indices count parameters, from 0."
        raise IndexError(msg)
    if not _backend.is_integer(index):
        msg = f"`{name}` must be an integer or an array of integers; got {describe(j)}. Round or cast it."
        raise TypeError(msg)
    if _backend.on_host(index) and 0 not in index.shape:
        values = _backend.read(index)
        if values.min() < -dim or values.max() >= dim:
            worst = values.min() if values.min() < -dim else values.max()
            msg = f"`{name}` must be in [{-dim}, {dim}); got {worst}. Indices count parameters, from 0."
            raise IndexError(msg)
    index = _backend.index_like(index, like=like)
    xp = _backend.namespace(index)
    return xp.where(index < 0, index + dim, index)


def check_vector_of_indices(name: str, j: Any, dim: int, *, like: Array) -> Array:
    """Accept a (k,) list or array of indices."""
    index = check_indices(name, j, dim, like=like)
    if index.ndim != 1:
        msg = f"`{name}` must have shape (k,); got shape {tuple(index.shape)}. Pass [j] for one index."
        raise ValueError(msg)
    return index


def broadcast_indices(i: Array, j: Array) -> tuple[Array, Array]:
    """Broadcast two index arrays against each other."""
    try:
        shape = np.broadcast_shapes(tuple(i.shape), tuple(j.shape))
    except ValueError as mismatch:
        msg = f"`i` and `j` must broadcast; got shapes {tuple(i.shape)} and {tuple(j.shape)}. Add axes with [:, None]."
        raise ValueError(msg) from mismatch
    xp = _backend.namespace(i)
    return xp.broadcast_to(i, shape), xp.broadcast_to(j, shape)


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


def check_count(name: str, value: Any) -> int:
    """Accept a whole number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        msg = f"`{name}` must be a whole number; got {describe(value)}. Pass an int."
        raise TypeError(msg)
    if value < 0:
        msg = f"`{name}` must be ≥ 0; got {value}. Pass how many are wanted."
        raise ValueError(msg)
    return int(value)


# --- of a window ------------------------------------------------------------------------------------------------


def check_size(name: str, value: Any) -> int:
    """Accept an integer ≥ 1."""
    count = check_count(name, value)
    if count < 1:
        msg = f"`{name}` must be at least 1; got {describe(value)}. Pass how many there are."
        raise ValueError(msg)
    return count


def check_decay(decay: Any) -> float:
    """Accept a float in (0, 1]."""
    if not isinstance(decay, numbers.Real) or isinstance(decay, bool | np.bool_):
        msg = f"`decay` must be a float in (0, 1]; got {describe(decay)}. Pass 1.0 for no forgetting."
        raise TypeError(msg)
    if not 0 < float(decay) <= 1:
        msg = f"`decay` must be in (0, 1]; got {describe(decay)}. Pass 1.0 for no forgetting."
        raise ValueError(msg)
    return float(decay)


def check_scalar_damping(damping: Any) -> float:
    """Accept λ > 0 as a float, where there is no array yet to compare a vector with."""
    return check_damping(damping, np.zeros((1, 1)), np.dtype(float))


def check_place(xp: Any, dtype: Any, device: Any) -> Array:
    """Return an empty array of the library, dtype and device that a window is asked for."""
    library = np if xp is None else xp
    if not hasattr(library, "zeros"):
        msg = f"`xp` must be the module of an array library; got {describe(xp)}. Pass, for example, numpy or torch."
        raise TypeError(msg)
    try:
        like = _backend.empty_vector(library, dtype, device)
    except Exception as refused:  # every library has its own words for a dtype or a device that it does not have
        msg = f"`dtype` and `device` must be of `xp`; got {dtype!r} and {device!r} ({refused}). Pass its own objects."
        raise TypeError(msg) from refused
    if _backend.dtype_name(like.dtype) not in FLOATING:
        msg = f"`dtype` must be float16, bfloat16, float32 or float64; got {dtype!r}. Pass one of these."
        raise TypeError(msg)
    return like


def check_age(age: Any, count: int) -> int:
    """Accept the age of a gradient held, from 0 for the oldest; negative ones count from the newest."""
    if isinstance(age, bool | np.bool_) or not isinstance(age, numbers.Integral):
        msg = f"`age` must be an integer; got {describe(age)}. Pass 0 for the oldest gradient, -1 for the newest."
        raise TypeError(msg)
    if not -count <= int(age) < count:
        msg = f"`age` must be in [-{count}, {count}); got {age}. The window holds {count} gradients."
        raise IndexError(msg)
    return int(age) % count


def check_gradient_values(name: str, g: Any) -> None:
    """Accept an array of real floating numbers that has values now."""
    if not _backend.is_array(g) or _backend.is_masked(g) or not _backend.is_supported(g):
        msg = f"`{name}` must be an array in memory, of an array-API library; got {type(g).__name__}. Convert it first."
        raise TypeError(msg)
    if _backend.dtype_name(g.dtype) not in FLOATING:
        msg = f"`{name}` must be float16, bfloat16, float32 or float64; got {describe(g)}. Cast it."
        raise TypeError(msg)
    if not _backend.is_concrete(g):
        msg = f"`{name}` must have values now; got a traced {describe(g)}. Use mfac_linalg.jax under jit."
        raise TypeError(msg)


def check_stored(name: str, g: Array, like: Array) -> Array:
    """Accept an array of like's library, device and dtype; a window of 16-bit rows takes no other dtype."""
    if not _backend.is_narrow(like):
        return check_beside(name, g, like, like.dtype)
    check_same_library(name, g, like)
    if g.dtype != like.dtype:
        wanted = _backend.dtype_name(like.dtype)
        msg = f"`{name}` must have dtype {wanted}; got {describe(g)}. Cast it to {wanted}."
        raise TypeError(msg)
    return g
