"""Pack a window into tensors and numbers whose shapes do not change as it fills, and unpack it.

Distributed checkpoints are read into the tensors of a new optimizer, whose windows are empty.
"""

import numbers
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import SlidingWindowInverse, TopK
from .. import _validation as check

HOST_AXES = {"slots": 1, "ages": 1, "exponents": 1, "direction": 1, "gram": 2, "factor": 2}  # of the window's length
FLOAT64 = ("direction", "gram", "factor")  # the other host arrays are int64
NUMBERS = ("version", "count", "placed", "damping", "norm", "sharp", "factorizations", "has_error")
COMPRESSION = ("density", "block_size", "dtype", "error_feedback")  # the arguments of a TopK
Options = dict[str, Any]
"""normalization, precision and compression: the options of all windows of an optimizer."""


def pack_window(window: SlidingWindowInverse, like: Tensor, options: Options) -> dict[str, Any]:
    """Return a copy of a window of gradients like an empty tensor: tensors padded to its capacity, ints and floats."""
    has_backend = window.dtype is not None
    state = (window if has_backend else _empty_window_like(window, like, options)).state_dict()
    compression = arguments_of_compression(options["compression"])
    rows = {name: state[name] for name in _row_names(compression)}
    small = {name: _on_device(state[name], like.device) for name in HOST_AXES}
    padded = {name: _pad(x, window.window, HOST_AXES.get(name, 1)) for name, x in (rows | small).items()}
    if _feeds_back(compression):
        error = state.get("error")
        padded["error"] = rows["values"].new_zeros(window.dim, dtype=_error_dtype(like)) if error is None else error
    return padded | {
        "version": int(state["version"]),
        "count": len(window),
        "placed": int(has_backend),
        "damping": float(window.damping),
        "norm": float(state["norm"]),
        "sharp": int(state["sharp"]),
        "factorizations": int(state["factorizations"]),
        "has_error": int(state.get("error") is not None),
    }


def unpack_window(entry: Any, like: Tensor, dim: int, options: Options) -> SlidingWindowInverse:
    """Return the window that `pack_window` was given; `like` is an empty tensor like its gradients.

    Raises
    ------
    TypeError, ValueError
        Entries that are missing or of another kind, shape or dtype.
    """
    compression = arguments_of_compression(options["compression"])
    count, capacity = _check_entries(entry, like, dim, compression)
    if not entry["placed"]:
        return SlidingWindowInverse(capacity, dim, float(entry["damping"]), **options)
    state: dict[str, Any] = {
        **{name: entry[name] for name in ("version", "norm", "factorizations")},
        **{name: options[name] for name in ("normalization", "precision")},
        "damping": float(entry["damping"]),
        "sharp": bool(entry["sharp"]),
        "window": capacity,
        "dim": dim,
        "decay": 1.0,
        "compression": compression,
        "gradient_dtype": str(like.dtype).removeprefix("torch."),
    }
    for name in _row_names(compression):
        state[name] = entry[name][:count].to(like.device)
    for name, axes in HOST_AXES.items():
        state[name] = entry[name][(slice(count),) * axes].cpu().numpy()
    if entry["has_error"]:
        require_entries(("error",), entry)
        state["error"] = entry["error"].to(like.device)
    return SlidingWindowInverse.from_state_dict(state)


def require_entries(names: tuple[str, ...], part: Any) -> None:
    """Refuse anything but a dictionary with these entries, such as the state of another optimizer."""
    given = ", ".join(map(str, part)) if isinstance(part, Mapping) else check.describe(part)
    if not (isinstance(part, Mapping) and part.keys() >= set(names)):
        msg = f"`state_dict` must have the entries {', '.join(names)}; got {given:.200}. "
        raise ValueError(msg + "Pass what MFAC.state_dict returned.")


def _check_entries(entry: Any, like: Tensor, dim: int, compression: Options | None) -> tuple[int, int]:
    """Accept the entries of a window; return its number of gradients and its capacity."""
    rows = _row_names(compression)
    error = ("error",) if _feeds_back(compression) else ()
    require_entries((*NUMBERS, *rows, *error, *HOST_AXES), entry)
    for name in NUMBERS:
        if not isinstance(entry[name], numbers.Real):
            msg = f"`state_dict` must have a number as {name} of a window; got {check.describe(entry[name])}. "
            raise TypeError(msg + "Pass what MFAC.state_dict returned.")
        if not abs(entry[name]) <= sys.float_info.max:
            msg = f"`state_dict` must have a finite {name} of a window; got {check.describe(entry[name])}. "
            raise ValueError(msg + "Pass what MFAC.state_dict returned.")
    gram = entry["gram"]
    capacity = len(gram) if has_values(gram) and gram.ndim else 0
    dtypes = dict.fromkeys(HOST_AXES, torch.int64) | dict.fromkeys(FLOAT64, torch.float64)
    expected: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
        name: ((capacity,) * HOST_AXES[name], dtypes[name]) for name in ("gram", *HOST_AXES)
    }
    if compression is None:
        expected["rows"] = ((capacity, dim), like.dtype)
    if error:
        expected["error"] = ((dim,), _error_dtype(like))
    for name, (shape, dtype) in expected.items():
        _check_tensor(name, entry[name], shape, dtype)
    for name in rows:
        _check_tensor(name, entry[name], (capacity, *entry[name].shape[1:]) if _is_matrix(entry[name]) else (), None)
    count = entry["count"]
    if not (isinstance(count, int) and 0 <= count <= capacity and capacity):
        msg = f"`state_dict` must have a count of gradients in [0, {capacity}]; got {check.describe(count)}. "
        raise ValueError(msg + "Pass what MFAC.state_dict returned.")
    return count, capacity


def _check_tensor(name: str, x: Any, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """Accept a tensor of this shape, and of this dtype where one is given."""
    if not isinstance(x, Tensor) or (dtype is not None and x.dtype != dtype):
        msg = f"`state_dict` must have a tensor{'' if dtype is None else f' of {dtype}'} as {name} of a window; got "
        raise TypeError(msg + f"{check.describe(x)}. Keep it out of casts.")
    require_values(f"{name} of a window", x)
    if tuple(x.shape) != shape or not shape:
        msg = f"`state_dict` must have {name} of a window in shape {shape or '(window, entries)'}; got "
        raise ValueError(msg + f"{check.describe(x)}. Pass what MFAC.state_dict returned.")


def has_values(x: Any) -> bool:
    """Whether x is a tensor that is one dense array in memory."""
    return isinstance(x, Tensor) and not (x.is_meta or x.is_nested) and x.layout == torch.strided


def require_values(name: str, x: Any) -> None:
    """Accept a dense tensor with values."""
    if not has_values(x):
        kind = "of the device meta" if isinstance(x, Tensor) and x.is_meta else "sparse or nested"
        given = f"a tensor that is {kind}" if isinstance(x, Tensor) else check.describe(x)
        msg = f"`state_dict` must have {name} as a dense tensor with values; got {given}. Load it whole."
        raise TypeError(msg)


def number_in(x: Any) -> Any:
    """The number in a tensor of one; anything else as it is."""
    return x.item() if has_values(x) and x.numel() == 1 else x


def _is_matrix(x: Any) -> bool:
    return has_values(x) and x.ndim == 2


def _row_names(compression: Options | None) -> tuple[str, ...]:
    return ("rows",) if compression is None else ("values", "indices")


def _feeds_back(compression: Options | None) -> bool:
    return compression is not None and compression["error_feedback"]


def _error_dtype(like: Tensor) -> torch.dtype:
    """The dtype of F⁻¹g."""
    return torch.promote_types(like.dtype, torch.float32)


def _empty_window_like(window: SlidingWindowInverse, like: Tensor, options: Options) -> SlidingWindowInverse:
    """An empty window on the device of the gradients; only the shapes of its rows are used."""
    place: dict[str, Any] = {"dtype": like.dtype, "device": like.device, "xp": torch}
    return SlidingWindowInverse(1, window.dim, window.damping, **options, **place)


def _on_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device of the gradients, as distributed checkpoints need it; on the host for MPS."""
    x = x.contiguous()
    return x if device.type == "mps" else x.to(device)


def _pad(x: Tensor, count: int, axes: int) -> Tensor:
    """A tensor padded with zeros to a length along its first axes; itself where it has that length."""
    if len(x) == count:
        return x
    padded = x.new_zeros((*(count,) * axes, *x.shape[axes:]))
    padded[tuple(slice(n) for n in x.shape[:axes])] = x
    return padded


# --- before version 2 -------------------------------------------------------------------------------------------------


def unpack_version_1(entry: Any, like: Tensor) -> SlidingWindowInverse:
    """Return the window of an entry in ``state_dict["windows"]`` of version 1: whole, with its options."""
    require_entries(("shapes", "dtypes", "kept", "host", "window"), entry)
    if not isinstance(entry["window"], Mapping):
        msg = f"`state_dict` must have windows that are dictionaries; got {check.describe(entry['window'])}. "
        raise TypeError(msg + "Pass what MFAC.state_dict returned.")
    for name, value in entry["window"].items():
        if isinstance(value, Tensor):
            require_values(f"{name} of a window", value)
    state: dict[str, Any] = {
        name: value.to(like.device) if isinstance(value, Tensor) else value for name, value in entry["window"].items()
    }
    rows = _row_names(state.get("compression")) if "slots" in state else ()
    require_entries((*rows, *entry["host"]), state)
    for name in entry["host"]:
        require_values(f"{name} of a window", state[name])
        state[name] = entry["window"][name].cpu().numpy()
    return SlidingWindowInverse.from_state_dict(state)


def options_of_version_1(entry: Any) -> Options:
    """The options of the window in such an entry, which `unpack_version_1` has accepted."""
    compression = check.compression_of(entry["window"])
    options = {name: entry["window"][name] for name in ("normalization", "precision")}
    return options | {"compression": TopK(**compression) if compression else None}


# --- compression ------------------------------------------------------------------------------------------------------


def arguments_of_compression(compression: TopK | None) -> dict[str, Any] | None:
    """The arguments of a TopK by name."""
    return None if compression is None else {name: getattr(compression, name) for name in COMPRESSION}


def compression_of(description: Any) -> Any:
    """A TopK from its arguments, as a state dictionary has them; anything else unchanged."""
    complete = isinstance(description, Mapping) and description.keys() == set(COMPRESSION)
    return TopK(**description) if complete else description
