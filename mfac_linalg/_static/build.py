"""From checked arguments to a State: one Gram matrix, one factorisation, and the choice of form."""

import math
from typing import Any, cast

import numpy as np

from .. import _backend
from .. import _validation as check
from .._capacitance.system import Capacitance, float32_gram_shows, largest_eigenvalue, sum_loses_digits
from .._errors import breakdown, warn_if_unresolved
from .._files.consistency import is_whitened, whitened_roundings
from .._forms.diagonal import exact_entries
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.state import State
from .._forms.sweeps import sweeps_for
from .._rows.batched import BatchedRows
from .._rows.fingerprint import Fingerprint
from .._rows.protocol import GivenRows, PanelRows
from .._rows.scaled import ScaledRows, scaled_rows
from .._rows.streamed import StreamedRows
from .._rows.whitened import WhitenedRows, whiten, whiten_into
from .._scaling.damping import DampingScaling, refuse_span
from .._scaling.powers import ldexp, squares_in_safe_range
from .._typing import Array
from .extent import exponent_of_finite, extent_of, fits_unscaled, is_resolved, traced_exponent
from .options import Options

AnyRows = ScaledRows | BatchedRows

WHITENING_RESOLVED = 1e-3  # ... with rows whitened in that ε
GUESS_COLUMNS = 512  # enough for the size of κ


def build(
    gradient_rows: Any,
    damping: Any,
    weights: Array | None,
    divisor: int,
    options: Options,
    gram: Array | None = None,
    float64_gram: bool = False,
) -> State:
    """Build the State of (Λ + Σ c_i g_i g_iᵀ)⁻¹ with c = weights / divisor and the g_i behind the protocol of rows.

    `gram` is G Gᵀ where it is known, `float64_gram` if it was computed in float64.
    """
    options = options.for_span(damping, gradient_rows.like)
    unscaled, scaling, row_scale = measures(gradient_rows, damping, weights, divisor, options)
    traced = not (_backend.is_concrete(unscaled.like) and _backend.is_concrete(row_scale))
    if traced:
        power = traced_exponent(unscaled, scaling.column_scale)
        gram = None if gram is None else ldexp(gram, -2 * _backend.like_small_system(power))  # that of 2^−e G
        accurate = rows = scaled_rows(unscaled, power, row_scale, scaling.column_scale)
        scaled_gram, _, norm = scaled_gram_of(rows, gram, options)
    else:
        entries = {"damping": damping, "weights": weights}
        found = _known_system(unscaled, row_scale, scaling, gram if float64_gram else None, gram, options, entries)
        if found is None:
            return build(
                gradient_rows,
                damping,
                weights,
                divisor,
                options.widened(),
                gram if float64_gram else None,
                float64_gram,
            )
        rows, accurate, scaled_gram, norm = found
    kappa = 1 + norm * norm  # not norm**2, which a float refuses to overflow
    if not traced and not math.isfinite(kappa):
        raise breakdown(size=min(rows.shape), kappa=math.inf, dtype="float64")
    form = choose_form(rows, accurate, scaled_gram, norm, math.inf if traced else kappa, options)
    float64_gram = _backend.dtype_name(accurate.dtype) == "float64"
    kept = cast(GivenRows, rows.rows) if form.rows is rows or options.out is not None else None
    return State(form, scaling, row_scale, kept, kappa, options.dtype, float64_gram, wide=options.wide)


def _known_system(
    unscaled: Any,
    row_scale: Array,
    scaling: DampingScaling,
    float64_gram: Array | None,
    gram: Array | None,
    options: Options,
    entries: dict[str, Any],
) -> tuple[ScaledRows, ScaledRows, Array, float] | None:
    """S as it is multiplied, S as its Gram matrix was made, that matrix, and ‖S‖₂; None where float64 has to do it.

    All that is read of a device is read here.
    """
    rows = scaled_rows(unscaled, None, row_scale, scaling.column_scale)
    accurate = rows.astype_float64() if gram is None and _expects_float64(rows) else rows
    scaled_gram, largest, norm = scaled_gram_of(accurate, gram, options)
    heaviest, norm, *extent = read_checked([largest, norm, *extent_of(row_scale, entries["damping"])], entries)
    power = 0
    if not fits_unscaled(rows, heaviest, extent):
        float64_gram = None  # that of G as it stands, not of 2^−e G
        known = _known_exponent(rows, accurate, heaviest)
        if known is not None:  # S Sᵀ is there, and is the same for any e
            power, rows = known, scaled_rows(unscaled, known, row_scale, None)
            accurate = rows.astype_float64()
        else:
            power = exponent_of_finite(rows, scaling)
            accurate = rows = scaled_rows(unscaled, power, row_scale, scaling.column_scale)
            scaled_gram, _, norm = scaled_gram_of(rows, None, options)
            norm = float(_backend.read(norm))
    if math.isfinite(norm * norm) and not is_resolved(rows, [*extent, norm], power, wide=options.wide):
        return None
    if accurate is rows and wants_float64(rows, norm):
        accurate = rows.astype_float64()
        scaled_gram, *_ = scaled_gram_of(accurate, float64_gram, options)
    return rows, accurate, scaled_gram, norm


def measures(
    gradient_rows: Any, damping: Any, weights: Array | None, divisor: int, options: Options
) -> tuple[Any, DampingScaling, Array]:
    """The rows in the computing dtype, Λ as a metric, and √(c_i / λ₀), (m, 1)."""
    rows = gradient_rows.with_dtype(options.computing_dtype(gradient_rows.like))
    if options.wide and _backend.is_vector(damping) and _backend.dtype_name(rows.dtype) == "float32":
        refuse_span(damping)
    scaling = DampingScaling.of(damping, rows.dtype, wide=options.wide)
    roots = _backend.weights_column(weights, rows.shape[0], like=rows.like) ** 0.5
    return rows, scaling, roots / float(divisor) ** 0.5 / scaling.scale**0.5


def scaled_gram_of(rows: ScaledRows, gram: Array | None, options: Options) -> tuple[Array, Array, Array]:
    """S Sᵀ (or SᵀS for m ≥ d), the largest squared row (or column), and ‖S‖₂."""
    xp = _backend.namespace(rows.row_scale)
    m, d = rows.shape
    if m >= d:
        scaled_gram = rows.normal_matrix()
        gram = scaled_gram
    else:
        gram = rows.rows.gram(rows.column_scale, options.progress) if gram is None else gram
        scaled_gram = rows.row_scale * gram * rows.row_scale.T
    return scaled_gram, xp.max(xp.linalg.diagonal(gram)), xp.sqrt(largest_eigenvalue(scaled_gram))


def read_checked(values: list[Array], entries: dict[str, Any]) -> list[float]:
    """The numbers that a build asks for, and whether array arguments that only a device knows are legal: one read."""
    unread = {name: x for name, x in entries.items() if _backend.is_vector(x) and not _backend.on_host(x)}
    flags = [_backend.to_float64(check.has_bad_entry(x)) for x in unread.values()]
    xp = _backend.namespace(values[0])
    numbers = _backend.read(xp.concat([xp.reshape(x, (-1,)) for x in flags + values])).tolist()
    for (name, x), bad in zip(unread.items(), numbers[: len(flags)], strict=True):
        if bad:
            check.refuse_entries(name, x)
    return numbers[len(flags) :]


def wants_float64(rows: ScaledRows, norm: float) -> bool:
    """Whether the rounding of a float32 Gram matrix, κ ε of A, would show in the elements of F⁻¹."""
    m, d = rows.shape
    if m >= d or not (rows.can_change_dtype and _backend.supports_float64(rows.like)):
        return False
    if _backend.dtype_name(rows.dtype) == "float64":
        return False
    return float32_gram_shows(norm)


def _expects_float64(rows: ScaledRows) -> bool:
    """Guess `wants_float64` from the first panel, to save a float32 Gram matrix that would be thrown away.

    Rows that are streamed are not read once more for a guess that was wrong.
    """
    if rows.is_streamed:
        return _backend.supports_float64(rows.like) and _backend.dtype_name(rows.dtype) != "float64"
    if not (rows.can_change_dtype and _backend.on_host(rows.like)) or _backend.dtype_name(rows.dtype) == "float64":
        return False
    first, *rest = cast(PanelRows, rows.rows).column_slices()
    if not rest:
        return False
    sample = np.arange(0, first.stop, max(1, first.stop // GUESS_COLUMNS))
    columns = rows.columns(_backend.index_like(sample, like=rows.like))
    norm = float(_backend.read(largest_eigenvalue(columns @ columns.T))) * rows.shape[1] / len(sample)
    return wants_float64(rows, norm**0.5)


def _known_exponent(rows: ScaledRows, accurate: ScaledRows, heaviest: float) -> int | None:
    """The exponent of the largest row, from a Gram matrix in float64 that has it; None where G is to be read for it."""
    m, d = rows.shape
    known = accurate is not rows and rows.column_scale is None and m < d and squares_in_safe_range(heaviest, np.float64)
    return math.frexp(math.sqrt(heaviest))[1] if known else None


def choose_form(
    rows: AnyRows, accurate: AnyRows, scaled_gram: Array, norm: Any, kappa: float, options: Options
) -> DualForm | PrimalForm:
    """Factor the small matrix and hold it in the form that fits its shape; warn where κ is beyond its arithmetic."""
    m, d = rows.shape
    dtype = "float64" if m >= d else _backend.dtype_name(rows.dtype)
    capacitance = _factored(rows, scaled_gram, norm, options)
    if capacitance is None:
        raise breakdown(size=min(m, d), kappa=kappa, dtype=dtype)
    if not math.isinf(kappa):
        warn_if_unresolved(kappa, dtype)
    if m >= d:
        return PrimalForm(rows, capacitance, norm)
    float64_gram = _backend.dtype_name(accurate.dtype) == "float64"
    sweeps = sweeps_for(kappa, dtype, float64_gram=float64_gram)
    if not options.whiten:
        return DualForm(rows, None, capacitance, norm, sweeps, float64_gram=float64_gram)
    sharpest = accurate
    if math.isfinite(kappa) and kappa * float(np.finfo(np.float32).eps) <= WHITENING_RESOLVED:
        accurate = rows
    if options.out is not None:
        exact = DualForm(cast(ScaledRows, sharpest), None, capacitance, norm, sweeps, float64_gram=float64_gram)
        whitened = _whitened_outside(exact, cast(ScaledRows, accurate), options)
        return DualForm(whitened, whitened, capacitance, norm, sweeps)
    whitened = whiten(
        cast(ScaledRows, accurate),
        capacitance,
        dtype=options.dtype,
        overwrite=options.overwrite,
        progress=options.progress,
    )
    return DualForm(whitened if options.dtype == rows.dtype else rows, whitened, capacitance, norm, sweeps)


def _factored(rows: AnyRows, scaled_gram: Array, norm: Any, options: Options) -> Capacitance | None:
    """The factor of the small matrix; rows are whitened with one as good as entries need, for they carry it on."""
    m, d = rows.shape
    if m >= d:
        return Capacitance.primal(rows, scaled_gram, norm)
    if options.whiten and sum_loses_digits(norm):
        return Capacitance.of_rows(scaled_gram, rows.column_blocks())
    return Capacitance.factor(scaled_gram)


def _whitened_outside(exact: DualForm, rows: ScaledRows, options: Options) -> WhitenedRows:
    """W in a matrix outside memory, with the entries of the diagonal that `exact` has to give beside it."""
    columns = whiten_into(options.out.write, rows, exact.capacitance, dtype=options.dtype, progress=options.progress)
    if options.out.is_resumed:
        kappa = 1 + exact.norm * exact.norm
        roundings = whitened_roundings(kappa, _backend.dtype_name(options.dtype), float64_gram=exact.float64_gram)
        if not is_whitened(options.out.product, exact.capacitance, exact.norm, roundings):
            raise options.out.refused()
    values = np.zeros(0)
    if len(columns):
        index = _backend.index_like(columns, like=rows.like)
        values = _backend.read(exact_entries(exact, index, like=rows.like, norm=exact.norm))
    like = _backend.zeros((0, rows.shape[1]), like=rows.like, dtype=options.dtype)
    out, streamed = options.out, cast(StreamedRows, rows.rows)
    fingerprint = Fingerprint.of(out.matrix, "out") if out.is_shared else None
    held = StreamedRows(out.matrix, like, None, options.dtype, streamed.width, streamed.shows_progress, fingerprint)
    return WhitenedRows(held, exact.capacitance, (columns, values))
