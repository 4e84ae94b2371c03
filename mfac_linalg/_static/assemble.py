"""From a measured system to a form of M: factor the small matrix, and whiten the rows on request."""

import math
from dataclasses import replace
from typing import cast

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance, sum_loses_digits
from .._condition import kappa_of
from .._errors import breakdown, warn_if_unresolved
from .._files.consistency import is_whitened, whitened_roundings
from .._forms.diagonal import exact_entries
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._rows.fingerprint import Fingerprint
from .._rows.scaled import ScaledRows
from .._rows.streamed import StreamedRows
from .._rows.whitened import WhitenedRows, can_whiten, whiten, whiten_into
from .measure import System
from .options import Options
from .plan import plan_form


def assemble(system: System, options: Options) -> DualForm | PrimalForm:
    """Factor the small matrix and put it in the form that fits its shape; warn where κ is beyond its arithmetic."""
    facts, is_read = system.facts, isinstance(system.norm, float | np.ndarray)
    kappa = kappa_of(float(np.max(system.norm))) if is_read else math.inf
    plan = plan_form(facts, kappa)
    capacitance = _factor(system, options)
    if capacitance is None:
        raise breakdown(size=min(facts.m, facts.d), kappa=kappa, dtype=plan.arithmetic)
    if not math.isinf(kappa):
        warn_if_unresolved(kappa, plan.arithmetic)
    if plan.is_primal:
        return PrimalForm(system.rows, capacitance, system.norm)
    float64_gram = system.gram_dtype == "float64"
    form = DualForm(system.rows, None, capacitance, system.norm, plan.sweeps, float64_gram=float64_gram)
    if options.whiten is None and can_whiten(system.rows):
        return replace(form, on_demand_dtype=options.dtype)
    if not options.whiten:
        return form
    return _whitened(form, system, plan.whitening_dtype, options)


def _factor(system: System, options: Options) -> Capacitance | None:
    """The factor of the small matrix; rows are whitened with one that is good enough for elements."""
    if system.facts.m >= system.facts.d:
        return Capacitance.primal(system.scaled_gram, system.norm, system.rows.row_blocks)
    if options.whiten and sum_loses_digits(system.norm):
        return Capacitance.of_rows(system.scaled_gram, system.rows.column_blocks())
    return Capacitance.factor(system.scaled_gram)


def _whitened(form: DualForm, system: System, whitening_dtype: str, options: Options) -> DualForm:
    """The form with W, through which products go where W is in their dtype."""
    rows = cast(ScaledRows, system.rows)
    source = rows if whitening_dtype == _backend.dtype_name(rows.dtype) else cast(ScaledRows, system.gram_rows)
    if options.out is not None:
        whitened = _whiten_into_out(replace(form, rows=system.gram_rows), source, options)
        return replace(form, rows=whitened, whitened=whitened, float64_gram=False)
    overwrite, progress = options.overwrite, options.progress
    whitened = whiten(source, form.capacitance, dtype=options.dtype, overwrite=overwrite, progress=progress)
    products = whitened if options.dtype == rows.dtype else rows
    return replace(form, rows=products, whitened=whitened, float64_gram=False)


def _whiten_into_out(exact: DualForm, rows: ScaledRows, options: Options) -> WhitenedRows:
    """W in a matrix outside memory, and those entries of the diagonal that need the rows of `exact`."""
    out, streamed = options.out, cast(StreamedRows, rows.rows)
    columns = whiten_into(out.write, rows, exact.capacitance, dtype=options.dtype, progress=options.progress)
    if out.is_resumed:
        kappa, dtype = kappa_of(exact.norm), _backend.dtype_name(options.dtype)
        roundings = whitened_roundings(kappa, dtype, float64_gram=exact.float64_gram)
        if not is_whitened(out.product, exact.capacitance, exact.norm, roundings):
            raise out.mismatch_error()
    values = np.zeros(0)
    if len(columns):
        index = _backend.index_like(columns, like=rows.like)
        values = _backend.read(exact_entries(exact, index, like=rows.like, norm=exact.norm))
    like = _backend.zeros((0, rows.shape[1]), like=rows.like, dtype=options.dtype)
    fingerprint = Fingerprint.of(out.matrix, "out") if out.is_shared else None
    matrix = StreamedRows(out.matrix, like, None, options.dtype, streamed.width, streamed.shows_progress, fingerprint)
    return WhitenedRows(matrix, exact.capacitance, (columns, values))
