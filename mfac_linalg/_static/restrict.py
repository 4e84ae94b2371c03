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


def restrict(state: State, active: Array) -> State:
    """The State of F among the parameters where `active` (d,) is True: elsewhere the columns of S count as zero.

    For products alone: elements would ask for a Gram matrix in float64 where κ is large.
    """
    if state.form.shape[0] == 0:  # an empty window: F = Λ
        return state
    options = Options(state.dtype, "default", whiten=False, overwrite=False)
    if isinstance(state.form, BlockForm):
        rows = _mask_columns(state.form.rows, active)
        sizes = [run.size for run in state.form.runs for _ in range(run.count)]
        blocks, kappa = assemble_blocks(rows, read_norms(block_systems(rows, sizes)), options)
        return replace(state, form=blocks, kappa=kappa)
    (system,) = read_norms([System.of(_mask_columns(_scaled_rows_of(state), active))])
    return replace(state, form=assemble(system, options), kappa=kappa_of(system.norm))


def _mask_columns(rows: ScaledRows, active: Array) -> ScaledRows:
    """S with its columns zero where `active` (d,) is False."""
    mask = _backend.cast(active, rows.dtype)[:, None]
    return replace(rows, column_scale=mask if rows.column_scale is None else rows.column_scale * mask)


def _scaled_rows_of(state: State) -> ScaledRows:
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
