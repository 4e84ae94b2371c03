"""F restricted to some of the parameters: the other columns of its rows count as zero."""

from dataclasses import replace
from typing import cast

from .. import _backend
from .._condition import kappa_of
from .._forms.blocks import BlockForm
from .._forms.state import State
from .._rows.dense import DenseRows
from .._rows.scaled import ScaledRows, scaled_rows
from .._rows.whitened import WhitenedRows
from .._typing import Array
from .assemble import assemble
from .build_blocks import assemble_blocks, block_systems
from .measure import System, read_norms
from .options import Options


def restrict(state: State, active: Array, rest: float = 0.0) -> State:
    """The State of F among the parameters where `active` (d,) is True: elsewhere the columns of S count as zero.

    With `rest` in [0, 1], they count √rest times. For products alone: elements would ask for a Gram matrix in float64
    where κ is large.
    """
    if state.form.shape[0] == 0:  # an empty window: F = Λ
        return state
    options = Options(state.dtype, "default", whiten=False, overwrite=False)
    if isinstance(state.form, BlockForm):
        rows = _weigh_columns(state.form.rows, active, rest)
        sizes = [run.size for run in state.form.runs for _ in range(run.count)]
        blocks, kappa = assemble_blocks(rows, read_norms(block_systems(rows, sizes)), options)
        return replace(state, form=blocks, kappa=kappa)
    (system,) = read_norms([System.of(_weigh_columns(scaled_rows_of(state), active, rest))])
    return replace(state, form=assemble(system, options), kappa=kappa_of(system.norm))


def _weigh_columns(rows: ScaledRows, active: Array, rest: float) -> ScaledRows:
    """S with its columns times √rest where `active` (d,) is False."""
    weight = _backend.cast(active, rows.dtype)
    weight = (weight + (1 - weight) * rest**0.5)[:, None]
    return replace(rows, column_scale=weight if rows.column_scale is None else rows.column_scale * weight)


def scaled_rows_of(state: State) -> ScaledRows:
    """S, recomputed where only W is stored."""
    rows = state.form.rows
    if isinstance(rows, ScaledRows):
        return rows
    if state.rows is not None:
        return scaled_rows(state.rows.unscaled(), state.rows.exponent, state.row_scale, state.scaling.column_scale)
    if rows.is_streamed:
        msg = "`gradients` must be available for this; got whitened rows in a file. Build from the gradients again."
        raise ValueError(msg)
    ones = _backend.namespace(state.row_scale).ones_like(state.row_scale)
    return ScaledRows(DenseRows(cast(WhitenedRows, rows).unwhiten(), None, rows.dtype), ones, None)
