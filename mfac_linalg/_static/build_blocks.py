"""From checked arguments to a State of blocks: runs of small equal blocks are built in one call each."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from .. import _backend
from .._capacitance.system import largest_eigenvalue
from .._errors import breakdown
from .._forms.blocks import BlockForm, Run
from .._forms.state import State
from .._rows.batched import BatchedRows
from .._rows.dense import DenseRows
from .._rows.panels import slices
from .._rows.protocol import GivenRows
from .._rows.scaled import ScaledRows, scaled_rows
from .._typing import Array
from .build import choose_form, measures, read_checked, scaled_gram_of, wants_float64
from .extent import exponent_of_finite, extent_of, fits_unscaled, is_resolved, traced_exponent
from .options import Options

TOGETHER, TOGETHER_ON_DEVICE = 2**19, 2**26  # numbers that blocks of one call have: what fits into a cache


def build_blocks(
    gradient_rows: Any, damping: Any, weights: Array | None, divisor: int, sizes: Sequence[int], options: Options
) -> State:
    """Build the State of the inverse of Λ + the blocks on the diagonal of Σ c_i g_i g_iᵀ with c = weights / divisor."""
    spread = _for_each_column(damping, sizes)
    options = options.for_span(spread, gradient_rows.like)
    unscaled, scaling, row_scale = measures(gradient_rows, spread, weights, divisor, options)
    traced = not (_backend.is_concrete(unscaled.like) and _backend.is_concrete(row_scale))
    power = traced_exponent(unscaled, scaling.column_scale) if traced else None
    rows = scaled_rows(unscaled, power, row_scale, scaling.column_scale)
    systems = list(_systems(rows, sizes, options))
    numbers = None
    if not traced:
        extent, numbers = _read(systems, extent_of(row_scale, spread), {"damping": damping, "weights": weights})
        power = 0
        if not all(fits_unscaled(rows, heaviest, extent) for heaviest, _ in numbers):
            power = exponent_of_finite(rows, scaling)
            rows = scaled_rows(unscaled, power, row_scale, scaling.column_scale)
            systems = list(_systems(rows, sizes, options))
            _, numbers = _read(systems, [], {})
        largest = [max(norms) for _, norms in numbers]
        if math.isfinite(max(largest) ** 2) and not is_resolved(rows, extent + largest, power, wide=options.wide):
            return build_blocks(gradient_rows, damping, weights, divisor, sizes, options.widened())
    form, kappa = _factored(rows, systems, numbers, options)
    return State(form, scaling, row_scale, cast(GivenRows, rows.rows), kappa, options.dtype, float64_gram=True)


def block_form(rows: ScaledRows, sizes: Sequence[int], options: Options) -> tuple[BlockForm, Any]:
    """The blocks of S as it stands, factored, and κ."""
    systems = list(_systems(rows, sizes, options))
    numbers = _read(systems, [], {})[1] if _backend.is_concrete(systems[0].heaviest) else None
    return _factored(rows, systems, numbers, options)


def _factored(
    rows: ScaledRows, systems: list["_System"], numbers: list[tuple[float, list[float]]] | None, options: Options
) -> tuple[BlockForm, Any]:
    """The form of all blocks, and κ; `numbers` are None where they are traced."""
    if numbers is None:
        norm = _traced_norm(systems)
    else:
        systems = [system.with_norm(norm, options) for system, (_, norm) in zip(systems, numbers, strict=True)]
        norm = max(float(np.max(system.norm)) for system in systems)
    return BlockForm(rows, tuple(system.run(options, numbers is None) for system in systems)), 1 + norm * norm


def _for_each_column(damping: Any, sizes: Sequence[int]) -> Any:
    """One λ per column, of one per block."""
    if not _backend.is_vector(damping) or damping.shape[0] == sum(sizes):
        return damping
    block = _backend.index_like(np.repeat(np.arange(len(sizes)), sizes), like=damping)
    return _backend.namespace(damping).take(damping, block)


def _traced_norm(systems: list["_System"]) -> Array:
    xp = _backend.namespace(systems[0].scaled_gram)
    return xp.max(xp.concat([xp.reshape(system.norm, (-1,)) for system in systems]))


def _systems(rows: ScaledRows, sizes: Sequence[int], options: Options) -> Iterator["_System"]:
    """The small matrices of all blocks: those of small equal neighbours together."""
    m = rows.shape[0]
    numbers = TOGETHER if _backend.on_host(rows.like) else TOGETHER_ON_DEVICE
    start = 0
    for size, run in itertools.groupby(sizes):
        most = max(1, numbers // (m * size)) if rows.can_change_dtype else 1
        for blocks in slices(len(list(run)), most):
            count = blocks.stop - blocks.start
            part = rows.select_columns(slice(start, start + count * size))
            yield _single(part, start, options) if count == 1 else _batch(part, start, count, size)
            start += count * size


def _single(rows: ScaledRows, start: int, options: Options) -> "_System":
    return _System(rows, *scaled_gram_of(rows, None, options), start, 1, rows.shape[1])


def _batch(part: ScaledRows, start: int, count: int, size: int) -> "_System":
    column_scale = (
        part.column_scale
        if part.column_scale is None
        else _backend.namespace(part.column_scale).reshape(part.column_scale, (count, size, 1))
    )
    rows = BatchedRows(cast(DenseRows, part.rows), part.row_scale, column_scale, size)
    scaled_gram = rows.scaled_gram()
    xp = _backend.namespace(scaled_gram)
    norm = xp.sqrt(largest_eigenvalue(scaled_gram))[:, None]
    return _System(rows, scaled_gram, xp.max(xp.linalg.diagonal(scaled_gram)), norm, start, count, size)


def _read(
    systems: list["_System"], others: list[Array], entries: dict[str, Any]
) -> tuple[list[float], list[tuple[float, list[float]]]]:
    """Other numbers, and the heaviest row and the norms of every system: one read of a device."""
    asked = others + [x for system in systems for x in (system.heaviest, system.norm)]
    numbers = iter(read_checked(asked, entries))
    extent = list(itertools.islice(numbers, len(others)))
    return extent, [(next(numbers), list(itertools.islice(numbers, system.count))) for system in systems]


@dataclass(frozen=True)
class _System:
    """What `count` blocks of `size` columns are factored from."""

    rows: ScaledRows | BatchedRows
    scaled_gram: Array  # S_bᵀS_b or S_b S_bᵀ, with a leading axis for batched rows
    heaviest: Any  # largest squared row, or largest diagonal entry
    norm: Any  # ‖S_b‖₂, (count, 1) for batched rows
    start: int
    count: int
    size: int

    def with_norm(self, norm: list[float], options: Options) -> "_System":
        """The same with ‖S_b‖₂ as the numbers that were read; a float32 Gram matrix that they ask more of made anew."""
        if not math.isfinite(max(norm) ** 2):
            raise breakdown(size=self.scaled_gram.shape[-1], kappa=math.inf, dtype="float64")
        if isinstance(self.rows, BatchedRows):
            return replace(self, norm=np.array(norm)[:, None])
        if not wants_float64(self.rows, norm[0]):
            return replace(self, norm=norm[0])
        return replace(self, norm=norm[0], scaled_gram=scaled_gram_of(self.rows.astype_float64(), None, options)[0])

    def run(self, options: Options, traced: bool) -> Run:
        """Factor the small matrices, and hold them in the form that fits their shape."""
        kappa = math.inf if traced else 1 + float(np.max(self.norm)) ** 2
        float64_gram = isinstance(self.rows, BatchedRows) or (not traced and wants_float64(self.rows, self.norm))
        accurate = (
            self.rows.astype_float64() if float64_gram and _backend.supports_float64(self.rows.like) else self.rows
        )
        form = choose_form(self.rows, accurate, self.scaled_gram, self.norm, kappa, options)
        return Run(form, self.start, self.count, self.size)
