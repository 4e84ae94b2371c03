"""Whether products of G in their dtype hold all that S does, whatever rows, weights and dampings span."""

import math
from typing import Any, cast

import numpy as np

from .. import _backend
from .. import _validation as check
from .._errors import unresolved_rows
from .._rows.protocol import GivenRows, Rows
from .._rows.scaled import ScaledRows
from .._scaling.damping import NARROW_SPAN, DampingScaling, span
from .._scaling.powers import exponent, squares_in_safe_range
from .._typing import Array

LOST = 16.0  # eps that an element may miss of what underflows
LARGEST_NORM = {"float32": 2.0**30, "float64": math.inf}  # ‖S‖ in products
LARGEST_RATIO = 2.0**60  # of row scales whose products float32 holds side by side


def extent_of(row_scale: Array, damping: Any) -> list[Array]:
    """What says whether float32 suffices: the largest and the smallest row scale, and the span of a damping (or 0)."""
    xp = _backend.namespace(row_scale)
    unknown = _backend.is_vector(damping) and not _backend.on_host(damping)
    largest = xp.max(row_scale)
    return [
        largest,
        xp.min(row_scale),
        _backend.to_device_of(span(damping), like=row_scale) if unknown else 0 * largest,
    ]


def fits_unscaled(rows: ScaledRows, heaviest: float, extent: list[float]) -> bool:
    """Whether G can stay as it stands: its squares are within the dtype, and small rows do not need their last ones."""
    can_be_scaled = rows.can_change_dtype or rows.multiplies_by_entries
    return squares_in_safe_range(heaviest, rows.dtype) and not (can_be_scaled and not _holds(rows, extent[0]))


def _holds(rows: ScaledRows, largest: float) -> bool:
    """Whether what underflows in products of rows is below the error of an element, for the largest row scale."""
    limits = np.finfo(_backend.dtype_name(rows.dtype))
    return max(1.0, largest) * largest * rows.shape[1] * float(limits.tiny) <= LOST * float(limits.eps)


def is_resolved(rows: ScaledRows, extent: list[float], power: int, *, wide: bool) -> bool:
    """Whether products of G in their dtype hold all that S does; of what float64 does not hold either: an error.

    What underflows in them counts row_scale² times in S Sᵀ, and row_scale times in S u.
    """
    name = _backend.dtype_name(rows.dtype)
    largest, smallest = (float(np.ldexp(scale, power)) for scale in extent[:2])
    held = _holds(rows, largest)
    alike = name == "float64" or largest <= LARGEST_RATIO * smallest
    if not wide:
        return held and alike and extent[2] <= NARROW_SPAN[name] and max(extent[3:]) <= LARGEST_NORM[name]
    if not (held and alike):
        raise unresolved_rows(name)
    return True


def exponent_of_finite(rows: ScaledRows, scaling: DampingScaling) -> int:
    """The exponent of the largest entry of G, or of G diag(column_scale) where that spans much; refuse nan and inf."""
    largest = cast(GivenRows, rows.rows).largest()
    if not math.isfinite(largest):
        check.refuse_nonfinite()
    if not scaling.wide or largest == 0:
        return math.frexp(largest)[1]
    found = rows.exponents()
    return int(_backend.read(_backend.namespace(found).max(found)))


def traced_exponent(rows: Rows, column_scale: Array | None) -> Array:
    """The same for rows that are traced."""
    if column_scale is None:
        return exponent(rows.like)
    largest = _backend.stop_gradient(ScaledRows(rows, rows.like, column_scale).exponents())
    xp = _backend.namespace(largest)
    return xp.astype(xp.max(xp.where(xp.isfinite(largest), largest, 1.0)), _backend.index_dtype(rows.like))
