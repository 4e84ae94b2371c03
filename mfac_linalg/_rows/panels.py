"""How a wide matrix is cut into column panels, and the product that needs it for its accuracy."""

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import _backend

Array = Any
# terms of one sum in the computing dtype, before float64 takes over: BLAS keeps more partial sums for some shapes. 912
# is what rows of equal entries allow (R = 28 at worst), and enough for OpenBLAS to use its threads from m = 506 on
VECTOR_WIDTH = {"float32": 912, "float64": 256}
MATRIX_WIDTH = 128
GROUP = 16  # panels whose results are added together, to call a library less often
BATCH_SIZE = 2**20  # numbers that a batch of products may take
ROW_BYTES, PANEL_BYTES = 2**15, 2**26  # of panels that are read for products of matrices
DEVICE_PANELS, TRACED_PANELS = 256, 64  # what a device is asked to launch, and a compiler to unroll


def slices(length: int, width: int) -> list[slice]:
    """Cut range(length) into runs of at most `width`."""
    return [slice(start, min(start + width, length)) for start in range(0, length, width)]


def panel_width(num_rows: int, dtype: Any) -> int:
    """Return the number of columns read at a time: enough for BLAS, in panels of no more than 64 MB or so."""
    itemsize = 8 if _backend.dtype_name(dtype) == "float64" else 4
    return max(1024, min(ROW_BYTES, PANEL_BYTES // max(1, num_rows)) // itemsize)


def column_slices(num_rows: int, num_columns: int, dtype: Any) -> list[slice]:
    """Slices of all columns, one per panel."""
    return slices(num_columns, panel_width(num_rows, dtype))


def long_product(rows: Array, v: Array, panel: Callable[[slice], Array] | None = None) -> Array:
    """Σ rows[:, c] @ v[c] over column slices c, float64: the product of a wide matrix with v (d, k).

    One long sum in the computing dtype errs by √d to d units of its precision, and no sweep can see that. `panel(c)`
    makes a panel where the rows are not multiplied as they stand.
    """
    if panel is None:
        if _backend.multiplies_batches(rows):
            return _batched_product(rows, v)
        panel = partial(_column_panel, rows)
    xp = _backend.namespace(v)
    dim, k = v.shape
    cuts = slices(dim, _product_width(dim, k, v))
    total = None
    group_size = GROUP if k <= 1 or not _backend.on_host(v) else max(1, GROUP // k)
    for group in slices(len(cuts), group_size):
        parts = [panel(columns) @ v[columns, :] for columns in cuts[group]]
        part = _backend.to_float64(parts[0] if len(parts) == 1 else xp.stack(parts))
        if len(parts) > 1:
            part = _backend.namespace(part).sum(part, axis=0)
        total = part if total is None else total + part
    return total


def _column_panel(rows: Array, columns: slice) -> Array:
    return rows[:, columns]


def _batched_product(rows: Array, v: Array) -> Array:
    """The same sum over the same panels, of row-major NumPy rows, which loops over them in one call."""
    xp = _backend.namespace(rows)
    (m, dim), k = rows.shape, v.shape[1]
    width = _product_width(dim, k, v)
    count = dim // width
    panels = xp.permute_dims(xp.reshape(rows[:, : count * width], (m, count, width)), (1, 0, 2))
    pieces = xp.reshape(v[: count * width, :], (count, width, k))
    total = _backend.to_float64(rows[:, count * width :] @ v[count * width :, :])
    for group in slices(count, max(1, BATCH_SIZE // max(1, m * k))):
        total = total + xp.sum(panels[group] @ pieces[group], axis=0, dtype=xp.float64)
    return total


def _product_width(dim: int, k: int, like: Array) -> int:
    width = VECTOR_WIDTH[_backend.dtype_name(like.dtype)] if k == 1 else MATRIX_WIDTH
    if _backend.on_host(like):
        return width
    return max(width, -(-dim // (DEVICE_PANELS if _backend.is_concrete(like) else TRACED_PANELS)))
