"""Checks of gradients that are not an array in memory, and of the arguments for streaming them."""

import numbers
from pathlib import Path
from typing import Any

import numpy as np

from .. import _backend
from .._errors import naming
from .arrays import FLOATING, check_gradients, check_matrix, refuse_masked
from .words import describe


def check_described(x: Any, name: str = "gradients") -> None:
    """Refuse an object whose shape or dtype cannot be read: a dataset of a file that is closed."""
    if not _backend.is_array(x):
        with naming(name):
            for part in ("shape", "dtype"):
                getattr(x, part, None)


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
    shape = gradients.shape
    if not (isinstance(shape, tuple | list) and len(shape) == 2 and all(_is_size(n) for n in shape)):
        msg = f"`gradients` must have shape (m, d) with m ≥ 1 and d ≥ 1; got {shape!r:.60}. "
        raise ValueError(msg + "Stack one flattened gradient per row.")
    if int(shape[0]) * int(shape[1]) >= 2**60:
        msg = f"`gradients` must have fewer than 2^60 entries; got {shape!r:.60}. Correct that attribute."
        raise ValueError(msg)
    return gradients


def check_chunked(gradients: Any) -> Any:
    """Accept a non-empty lazy (m, d) array of real floating numbers, in chunks of all rows."""
    refuse_masked("gradients", gradients)
    check_matrix(gradients)
    if not _backend.has_plain_chunks(gradients):
        msg = f"`gradients` must have NumPy arrays of known sizes as chunks; got {gradients!r}. "
        raise TypeError(msg + "Convert them with map_blocks, or call compute_chunk_sizes().")
    if sum(size > 0 for size in gradients.chunks[0]) > 1:
        msg = f"`gradients` must have all rows in each chunk; got chunks of {gradients.chunks[0]} rows. "
        raise ValueError(msg + 'Call gradients.rechunk({0: -1, 1: "auto"}), or cut along d where they are made.')
    return gradients


def check_no_place(place: Any) -> None:
    """Refuse `xp`, `device`, `memory_limit` and `out` for rows that are not read by panels."""
    for name in ("xp", "device", "memory_limit", "out"):
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
    _check_indices(gradients)
    return gradients


def _check_indices(gradients: Any) -> None:
    """Refuse indices outside a sparse matrix of SciPy's, whose products would read and write there."""
    try:
        if hasattr(gradients, "check_format"):
            gradients.check_format(full_check=True)
        elif hasattr(gradients, "row"):
            (m, d), i, j = gradients.shape, gradients.row, gradients.col
            if len(i) and not (i.min() >= 0 and i.max() < m and j.min() >= 0 and j.max() < d):
                msg = "an index is outside of it"
                raise ValueError(msg)
    except ValueError as broken:
        msg = f"`gradients` must be a sparse matrix whose indices are within it; got one that is not ({broken}). "
        raise ValueError(msg + "Build it again from its entries.") from broken


def check_provided_shape(gradients: Any) -> tuple[int, int]:
    """Accept a pair of integers ≥ 1 as the shape of a user's rows."""
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


def check_no_dense_copy(whiten: Any, overwrite: bool) -> None:
    """Refuse arguments that need a dense array in memory, for gradients that are none."""
    for name, value in (("whiten", whiten), ("overwrite_gradients", overwrite)):
        if value:
            msg = f"`{name}` must not be True where the gradients are read by panels or no dense array; got True. "
            raise ValueError(msg + "Leave it out, or pass a dense array alone.")


def check_out(out: Any, resume: bool, gradients: Any, dtype: Any, *, whiten: bool | None, precision: str) -> None:
    """Refuse a target that W cannot be written to, and arguments under which W is not used."""
    if not isinstance(out, Path):
        if resume:
            msg = f"`resume` must be False where `out` is no folder; got True with {describe(out)}. Pass a path."
            raise ValueError(msg)
        if out is None:
            return
    reason = None
    if whiten is False:
        reason = "there is nothing to write with whiten=False"
    elif precision == "high" and _backend.dtype_name(dtype) != "float64":
        reason = 'precision="high" needs the gradients themselves'
    elif gradients.shape[0] >= gradients.shape[1]:
        reason = "for m ≥ d a small d × d factor is all there is"
    if reason:
        msg = f"`out` must be None here; got {describe(out)}, but {reason}. Leave it out."
        raise ValueError(msg)
    if not isinstance(out, Path):
        _check_target(out, gradients, _backend.dtype_name(dtype))


def _check_target(out: Any, gradients: Any, dtype: str) -> None:
    """Accept a matrix that can be written; the last check, since it writes a first column."""
    refuse_masked("out", out)
    check_described(out, "out")
    if not (_backend.is_numpy(out) or _backend.is_sliceable(out)) or not hasattr(out, "__setitem__"):
        msg = f"`out` must be a path, a NumPy array or a dataset that can be written; got {describe(out)}. "
        raise TypeError(msg + "Pass a folder's path if unsure.")
    shape = tuple(gradients.shape)
    if tuple(out.shape) != shape or _backend.dtype_name(out.dtype) != dtype:
        msg = f"`out` must have shape {shape} and dtype {dtype}; got {tuple(out.shape)} and {out.dtype}. Make it so."
        raise ValueError(msg)
    if _backend.overlap(out, gradients):
        msg = f"`out` must not be the gradients themselves; got {describe(out)} that overlaps them. Pass another, "
        raise ValueError(msg + "or `overwrite_gradients=True` for an array in memory.")
    try:
        _backend.write_columns(out, slice(0, 1), np.zeros((shape[0], 1), dtype))
    except Exception as refused:  # each library has its own exception for a target that is read-only
        msg = f"`out` must be writable; got a {type(out).__name__} that is not ({refused}). Open it with mode 'r+'."
        raise ValueError(msg) from refused


def check_computes(name: str, precision: str, dtype: Any) -> None:
    """Refuse "high" for rows of a user that compute in float32."""
    if precision == "high" and _backend.dtype_name(dtype) != "float64":
        msg = f"`{name}` must be 'default' for rows that compute in {_backend.dtype_name(dtype)}; got 'high'. "
        raise ValueError(msg + "Let their methods return float64.")
