"""F among some of the parameters: the same rows, whose other columns count as zero."""

import math
from dataclasses import replace

from .. import _backend
from .._forms.blocks import BlockForm
from .._forms.state import State
from .._progress import reporter
from .._rows.dense import DenseRows
from .._rows.scaled import ScaledRows, scaled_rows
from .._typing import Array
from .build import choose_form, scaled_gram_of
from .build_blocks import block_form
from .options import Options


def restrict(state: State, kept: Array) -> State:
    """The State of F among the parameters where `kept` (d,) is True: elsewhere the columns of S count as zero.

    For products alone: elements would ask for a Gram matrix in float64 where κ is large.
    """
    if state.form.shape[0] == 0:  # an empty window: F = Λ
        return state
    options = Options(state.dtype, "default", whiten=False, overwrite=False, progress=reporter(False))
    if isinstance(state.form, BlockForm):
        sizes = [run.size for run in state.form.runs for _ in range(run.count)]
        blocks, kappa = block_form(_mask_columns(state.form.rows, kept), sizes, options)
        return replace(state, form=blocks, kappa=kappa)
    rows = _mask_columns(_scaled_rows_of(state), kept)
    scaled_gram, _, norm = scaled_gram_of(rows, None, options)
    traced = not _backend.is_concrete(norm)
    norm = norm if traced else float(_backend.read(norm))
    kappa = 1 + norm * norm
    form = choose_form(rows, rows, scaled_gram, norm, math.inf if traced else kappa, options)
    return replace(state, form=form, kappa=kappa)


def _mask_columns(rows: ScaledRows, kept: Array) -> ScaledRows:
    """S with its columns zero where `kept` (d,) is False."""
    chosen = _backend.cast(kept, rows.dtype)[:, None]
    return replace(rows, column_scale=chosen if rows.column_scale is None else rows.column_scale * chosen)


def _scaled_rows_of(state: State) -> ScaledRows:
    """S, made again where only W is held."""
    rows = state.form.rows
    if isinstance(rows, ScaledRows):
        return rows
    if state.rows is not None:
        return scaled_rows(state.rows.unscaled(), state.rows.exponent, state.row_scale, state.scaling.column_scale)
    if rows.is_streamed:
        msg = "`gradients` must be at hand for this; got whitened rows in a file. Build anew from the gradients."
        raise ValueError(msg)
    ones = _backend.namespace(state.row_scale).ones_like(state.row_scale)
    return ScaledRows(DenseRows(rows.unwhiten(), None, rows.dtype), ones, None)
