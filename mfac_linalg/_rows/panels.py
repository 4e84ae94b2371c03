"""Column panels of a wide matrix, and products that add them up accurately."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .. import _backend
from .._typing import Array

# terms of one sum in the computing dtype, before sums continue in float64: a limit set by rows of equal entries. With
# partial sums 912 gives R = 28 at worst, and OpenBLAS uses its threads from m = 506 on
PARTIAL_WIDTH = {"float32": 912, "float64": 256}
SERIAL_WIDTH = 128
WIDENED_ROWS, WIDENED_WIDTH = 32, 8192  # converted to float64 at a time, 2 MB
FEW_ROWS = 16  # for fewer BLAS uses a less accurate kernel: half as many terms
# terms of one sum over rows: a limit set by equal rows. BLAS adds four at a time for one column, else each by itself
MOST_ROWS_VECTOR, MOST_ROWS_MATRIX = 288, 96
GRAM_ROWS, GRAM_COLUMNS = 128, 2048  # of a Gram matrix in float64 of shorter rows, at a time
GROUP = 16  # panels whose results are added in one call
BATCH_SIZE = 2**20  # numbers in a batch of products with a vector
BATCH_PANELS = 8  # panels in a batch of products with a matrix
BLOCK_COLUMNS = 2048  # columns of the rows whose combinations are computed at a time
ROW_BYTES, PANEL_BYTES = 2**15, 2**26  # of panels in products of matrices
DEVICE_PANELS, TRACED_PANELS = 256, 64  # most kernel launches of a device, and most steps that a compiler unrolls


def slices(length: int, width: int) -> list[slice]:
    """Cut range(length) into runs of at most `width`; one run, empty, for length 0."""
    return [slice(start, min(start + width, length)) for start in range(0, max(1, length), width)]


def panel_width(num_rows: int, dtype: Any) -> int:
    """Return the number of columns of a panel: enough for BLAS, at most 64 MB or so."""
    itemsize = 8 if _backend.dtype_name(dtype) == "float64" else 4
    return max(1024, min(ROW_BYTES, PANEL_BYTES // max(1, num_rows)) // itemsize)


def column_slices(num_rows: int, num_columns: int, dtype: Any) -> list[slice]:
    """Slices of all columns, one per panel."""
    return slices(num_columns, panel_width(num_rows, dtype))


def weigh(columns: Array, column_scale: Array | None, dtype: Any) -> Array:
    """Return column_scale² ∘ columns (d, k) in dtype: G times it is G diag(column_scale)² columns."""
    columns = _backend.cast(columns, dtype)
    if column_scale is None:
        return columns
    column_scale = _backend.cast(column_scale, dtype)
    return column_scale * (column_scale * columns)  # column_scale² may overflow


def gram(panel: Array) -> Array:
    """The Gram matrix of a panel, panel panelᵀ, float64."""
    host = _backend.host_view(panel)
    if host is None or host is panel:
        return _backend.to_float64(_backend.matmul(panel, panel.T))
    return _backend.asarray(gram(host), like=panel, dtype=_backend.namespace(panel).float64)


def add_widened_gram(total: np.ndarray, panel: np.ndarray, convert: Callable[[Array], Array]) -> None:
    """Add the Gram matrix of convert(panel), float64, to `total` in blocks on and below its diagonal.

    Runs of rows are converted one by one, so that they are in a cache when they are multiplied.
    """
    wide = np.empty(panel.shape)
    for run in slices(len(panel), GRAM_ROWS):
        wide[run] = convert(panel[run])
        total[run, : run.stop] += wide[run] @ wide[: run.stop].T


def squares(panels: Iterable[Array]) -> Array:
    """Squared norms of the columns of all panels, concatenated, float64."""
    parts = [_backend.column_squares(_backend.to_float64(panel)) for panel in panels]
    return _backend.namespace(parts[0]).concat(parts)


def scaled_squares(blocks: Iterable[tuple[slice, Array]], row_scale: Array) -> Array:
    """Σ_i (row_scale_i g_ij)² for the columns g_j of all blocks, float64."""
    return squares(block * _backend.from_float64(row_scale, like=block, dtype=block.dtype) for _, block in blocks)


def long_product(rows: Array, v: Array, convert: Callable[[Array], Array] | None = None) -> Array:
    """Σ rows[:, c] @ v[c] over column slices c, float64: the product of a wide matrix with v (d, k).

    The rounding of one long sum in the computing dtype is √d to d units of its precision, which sweeps do not correct.
    `convert(block)` converts columns of the rows before they are multiplied.
    """
    v = _backend.as_blas_ready(v)
    if convert is None:
        host, vector = _backend.host_view(rows), _backend.host_view(v)
        if not (host is rows or host is None or vector is None):
            return _backend.asarray(long_product(host, vector), like=rows, dtype=_backend.namespace(rows).float64)
        if _backend.can_multiply_batches(rows):
            return _batched_product(rows, v)
        convert = _unchanged
        if _backend.may_be_cast(rows, v):
            return _backend.long_matmul(_sum_of_panels, rows, v)
    elif _is_widened(rows, v):
        return _widened_product(rows, v, convert)
    if _backend.is_traced(v) or _backend.is_traced(rows):
        return _looped_product(rows, v, convert, product_width(rows, v))
    return _sum_of_panels(rows, v, convert)


def _unchanged(block: Array) -> Array:
    return block


def _sum_of_panels(rows: Array, v: Array, convert: Callable[[Array], Array] = _unchanged) -> Array:
    """The same sum, over groups of panels."""
    xp = _backend.namespace(v)
    dim, k = v.shape
    cuts = slices(dim, product_width(rows, v))
    total = None
    group_size = GROUP if k <= 1 or not _backend.on_host(v) else max(1, GROUP // k)
    for group in slices(len(cuts), group_size):
        parts = [_backend.matmul(convert(rows[:, columns]), v[columns, :]) for columns in cuts[group]]
        part = _backend.to_float64(parts[0] if len(parts) == 1 else xp.stack(parts))
        if len(parts) > 1:
            part = _backend.namespace(part).sum(part, axis=0)
        total = part if total is None else total + part
    return total


def _is_widened(rows: Array, v: Array) -> bool:
    """Whether rows on the host are stored in a shorter dtype than the float64 of the product."""
    wide = _backend.dtype_name(v.dtype) == "float64" != _backend.dtype_name(rows.dtype)
    return wide and _backend.on_host(v) and _backend.on_host(rows)


def _widened_product(rows: Array, v: Array, convert: Callable[[Array], Array]) -> Array:
    """The same sum, by runs of rows, so that converted blocks stay in a cache."""
    columns = slices(v.shape[0], WIDENED_WIDTH)
    runs = slices(rows.shape[0], WIDENED_ROWS)
    parts = [sum(convert(rows[run, c]) @ v[c, :] for c in columns) for run in runs]
    return _backend.namespace(v).concat(parts, axis=0)


def _looped_product(rows: Array, v: Array, convert: Callable[[Array], Array], width: int) -> Array:
    """The same sum as a loop, so that a compiler sees one panel; the remaining columns come first."""
    whole = v.shape[0] // width * width
    rest = _backend.to_float64(convert(rows[:, whole:]) @ v[whole:, :])

    def part(start: Array) -> Array:
        block, piece = (
            _backend.dynamic_slice(rows, start, width, axis=1),
            _backend.dynamic_slice(v, start, width, axis=0),
        )
        return _backend.to_float64(convert(block) @ piece)

    return _backend.scan_sum(part, rest, range(0, whole, width)) if whole else rest


def _batched_product(rows: Array, v: Array) -> Array:
    """The same sum over the same panels for row-major NumPy rows, as batched products."""
    (m, dim), k = rows.shape, v.shape[1]
    width = product_width(rows, v)
    count = dim // width
    whole = count * width
    total = _backend.to_float64(rows[:, whole:] @ v[whole:, :])
    if count <= 1:
        return total + rows[:, :whole] @ v[:whole, :] if count else total
    panels = rows[:, :whole].reshape(m, count, width).transpose(1, 0, 2)
    pieces = v[:whole, :].reshape(count, width, k)
    # for k > 1 a batch stays in a cache, and its few panels are added in their dtype
    most, dtype = (BATCH_SIZE // max(1, m), "float64") if k == 1 else (BATCH_PANELS, None)
    for group in slices(count, max(1, most)):
        total += (panels[group] @ pieces[group]).sum(axis=0, dtype=dtype)
    return total


def product_width(rows: Array, v: Array) -> int:
    """Return the number of terms of a product of `rows` with v that are added in their dtype; float64 follows."""
    (m, dim), k = rows.shape, v.shape[1]
    partial_sums = k == 1 and _backend.can_multiply_batches(rows)
    width = PARTIAL_WIDTH[_backend.dtype_name(v.dtype)] if partial_sums else SERIAL_WIDTH
    if _backend.on_host(v):
        return width if m >= FEW_ROWS else width // 2
    return max(width, -(-dim // (DEVICE_PANELS if _backend.is_concrete(v) else TRACED_PANELS)))


def scale_columns(blocks: Iterable[tuple[slice, Array]], column_scale: Array | None) -> Iterator[tuple[slice, Array]]:
    """Blocks of G diag(column_scale), from blocks of G."""
    for columns, block in blocks:
        yield columns, block if column_scale is None else block * column_scale[columns, 0]


def descend(
    blocks: Iterable[tuple[slice, Array]], r: Array, a: Array, column_scale: Array | None
) -> tuple[Array, Array]:
    """Return r − diag(column_scale) Ĝᵀ a and, in float64, Ĝ diag(column_scale) times that; blocks are used once."""
    parts, total = [], None
    for columns, block in blocks:
        step = combination(block, a)
        scale = None if column_scale is None else column_scale[columns, :]
        after = _backend.subtract_over(r[columns, :], step if scale is None else scale * step)
        product = long_product(block, after if scale is None else scale * after)
        total = product if total is None else total + product
        parts.append(after)
    return _backend.namespace(r).concat(parts, axis=0), total


def combination(rows: Array, a: Array) -> Array:
    """Σ_i a_i rows_i for a (m, k) in the dtype of rows, shape (d, k), by runs of rows."""
    host, weights = _backend.host_view(rows), _backend.host_view(a)
    if not (host is rows or host is None or weights is None):
        return _backend.asarray(combination(host, weights), like=rows, dtype=rows.dtype)
    runs = row_runs(rows.shape[0], a.shape[1]) if _backend.on_host(rows) else [slice(0, rows.shape[0])]
    return _backend.matmul_by_blocks(rows.T, a, BLOCK_COLUMNS, runs)


def row_runs(m: int, k: int) -> list[slice]:
    """Runs of rows of about equal length, for sums over m rows with k columns of coefficients."""
    count = max(1, -(-m // (MOST_ROWS_VECTOR if k == 1 else MOST_ROWS_MATRIX)))
    return slices(m, max(1, -(-m // count)))
