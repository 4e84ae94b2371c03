"""From a problem to a State of blocks: runs of small equal blocks are built in one call each."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from .. import _backend
from .._condition import kappa_of
from .._errors import breakdown
from .._forms.blocks import BlockForm, Run
from .._forms.state import State
from .._rows.batched import BatchedRows
from .._rows.dense import DenseRows
from .._rows.panels import slices
from .._rows.protocol import GivenRows
from .._rows.scaled import ScaledRows
from .assemble import assemble
from .measure import System, measure, measure_rescaled
from .options import Options
from .plan import LARGEST_ENTRY, Measured, SystemPlan, plan_system
from .problem import Problem, ScaledProblem

BATCH_NUMBERS, BATCH_NUMBERS_ON_DEVICE = 2**19, 2**26  # numbers that blocks of one call have: what fits into a cache


def build_blocks(problem: Problem, sizes: Sequence[int], options: Options) -> State:
    """Build the State of the inverse of Λ + the blocks on the diagonal of Σ c_i g_i g_iᵀ."""
    damping = _for_each_column(problem.damping, sizes)
    options = options.for_span(damping, problem.gradients.like)
    scaled = replace(problem, damping=damping).scaled(options)
    if scaled.is_traced:
        rows = scaled.rows(scaled.traced_exponent())
        systems = block_systems(rows, sizes)
    else:
        rows, systems, plans = _measured_systems(problem, scaled, sizes, options)
        if any(plan.widen for plan in plans):
            return build_blocks(problem, sizes, options.widened())
        for system, plan in zip(systems, plans, strict=True):
            if not math.isfinite(plan.kappa):
                raise breakdown(size=system.scaled_gram.shape[-1], kappa=math.inf, dtype="float64")
    form, kappa = assemble_blocks(rows, systems, options)
    given = cast(GivenRows, rows.rows)
    return State(form, scaled.scaling, scaled.row_scale, given, kappa, options.dtype, float64_gram=True)


def assemble_blocks(rows: ScaledRows, systems: Sequence[System], options: Options) -> tuple[BlockForm, Any]:
    """The form of all blocks, in the order of the columns, and the largest κ."""
    runs, start = [], 0
    for system in systems:
        size = system.rows.shape[1]
        runs.append(Run(assemble(system, options), start, system.count, size))
        start = runs[-1].stop
    return BlockForm(rows, tuple(runs)), kappa_of(_largest([system.norm for system in systems]))


def block_systems(rows: ScaledRows, sizes: Sequence[int]) -> list[System]:
    """The small matrices of all blocks: those of small equal neighbours together."""
    m, start, systems = rows.shape[0], 0, []
    numbers = BATCH_NUMBERS if _backend.on_host(rows.like) else BATCH_NUMBERS_ON_DEVICE
    for size, run in itertools.groupby(sizes):
        most = max(1, numbers // (m * size)) if rows.can_change_dtype else 1
        for blocks in slices(len(list(run)), most):
            count = blocks.stop - blocks.start
            part = rows.select_columns(slice(start, start + count * size))
            systems.append(System.of(part) if count == 1 else System.of_batch(_batch(part, count, size)))
            start += count * size
    return systems


def _measured_systems(
    problem: Problem, scaled: ScaledProblem, sizes: Sequence[int], options: Options
) -> tuple[ScaledRows, list[System], list[SystemPlan]]:
    """S and the small matrices of its blocks; the plans say whether all has to be wider."""
    rows = scaled.rows()
    systems, measured = measure(block_systems(rows, sizes), problem, scaled)
    plans = _plans(systems, measured, options)
    if any(plan.exponent == LARGEST_ENTRY for plan in plans):
        power = scaled.largest_exponent()
        rows = scaled.rows(power)
        systems, measured = measure_rescaled(block_systems(rows, sizes), measured[0], power)
        plans = _plans(systems, measured, options)
    pairs = zip(systems, plans, strict=True)
    return rows, [s.with_float64_gram() if p.gram_dtype != s.gram_dtype else s for s, p in pairs], plans


def _plans(systems: list[System], measured: list[Measured], options: Options) -> list[SystemPlan]:
    return [plan_system(s.facts, numbers, wide=options.wide) for s, numbers in zip(systems, measured, strict=True)]


def _for_each_column(damping: Any, sizes: Sequence[int]) -> Any:
    """One λ per column, of one per block."""
    if not _backend.is_vector(damping) or damping.shape[0] == sum(sizes):
        return damping
    block = _backend.index_like(np.repeat(np.arange(len(sizes)), sizes), like=damping)
    return _backend.namespace(damping).take(damping, block)


def _batch(rows: ScaledRows, count: int, size: int) -> BatchedRows:
    """The same columns as `count` blocks."""
    scale = rows.column_scale
    if scale is not None:
        scale = _backend.namespace(scale).reshape(scale, (count, size, 1))
    return BatchedRows(cast(DenseRows, rows.rows), rows.row_scale, scale, size)


def _largest(norms: Sequence[Any]) -> Any:
    """The largest of numbers and (count, 1) arrays; traced where these are."""
    if all(isinstance(norm, float | np.ndarray) for norm in norms):
        return max(float(np.max(norm)) for norm in norms)
    xp = _backend.namespace(norms[0])
    return xp.max(xp.concat([xp.reshape(norm, (-1,)) for norm in norms]))
