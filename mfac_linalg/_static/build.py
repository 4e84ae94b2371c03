"""From a problem to a State: measure, plan, assemble."""

import math
from typing import cast

import numpy as np

from .. import _backend
from .._capacitance.system import float32_gram_shows
from .._condition import kappa_of
from .._errors import breakdown
from .._forms.state import State
from .._rows.dense import DenseRows
from .._rows.protocol import GivenRows
from .._rows.scaled import ScaledRows
from .._scaling.powers_of_two import ldexp
from .._typing import Array
from .assemble import assemble
from .measure import System, measure, measure_rescaled
from .options import Options
from .plan import LARGEST_ENTRY, SystemPlan, plan_system
from .problem import Problem, ScaledProblem

MANY_COLUMNS, SEEN_SHARE = 2**14, 32  # so many columns are enough for a look at a 32nd of them
POWER_STEPS = 3


def build(problem: Problem, options: Options, gram: Array | None = None, *, float64_gram: bool = False) -> State:
    """Build the State of F⁻¹; `gram` is G Gᵀ where it is known, `float64_gram` if it was computed in float64."""
    options = options.for_span(problem.damping, problem.gradients.like)
    scaled = problem.scaled(options)
    if scaled.is_traced:
        return _state_of(_traced_system(scaled, gram, options), scaled, options)
    system, plan = _measured_system(problem, scaled, options, gram, float64_gram=float64_gram)
    if plan.widen:
        return build(problem, options.widened(), gram if float64_gram else None, float64_gram=float64_gram)
    if not math.isfinite(plan.kappa):
        raise breakdown(size=min(system.rows.shape), kappa=math.inf, dtype="float64")
    return _state_of(system, scaled, options)


def _traced_system(scaled: ScaledProblem, gram: Array | None, options: Options) -> System:
    """S, rescaled in any case, and its small matrix: nothing is read."""
    power = scaled.traced_exponent()
    gram = None if gram is None else ldexp(gram, -2 * _backend.like_small_system(power))  # that of 2^−e G
    return System.of(scaled.rows(power), options.progress, gram=gram)


def _measured_system(
    problem: Problem, scaled: ScaledProblem, options: Options, gram: Array | None, *, float64_gram: bool
) -> tuple[System, SystemPlan]:
    """S and its small matrix; the plan says whether all has to be wider."""
    rows, progress = scaled.rows(), options.progress
    whitens = options.whiten is True
    if whitens and gram is None and (rows.is_streamed or _shows_in_some_columns(rows)):
        float64_gram = _backend.dtype_name(rows.dtype) != "float64" and _backend.supports_float64(rows.like)
    system = System.of(rows, progress, gram=gram, float64_gram=float64_gram)
    (system,), (measured,) = measure([system], problem, scaled)
    plan = plan_system(system.facts, measured, wide=options.wide, whitens=whitens)
    if plan.exponent == LARGEST_ENTRY:
        power = scaled.largest_exponent()
        system = System.of(scaled.rows(power), progress)
        (system,), (measured,) = measure_rescaled([system], measured, power)
        plan = plan_system(system.facts, measured, wide=options.wide, whitens=whitens)
    elif plan.exponent is not None:
        system = system.with_rows(scaled.rows(plan.exponent))
    if plan.gram_dtype != system.gram_dtype and not plan.widen:
        system = system.with_float64_gram(progress)
    return system, plan


def _shows_in_some_columns(rows: ScaledRows) -> bool:
    """Whether some columns of an array in memory show that W needs a float64 Gram matrix: ‖S‖ is larger than theirs.

    For streamed rows, a second pass costs more than float64 does.
    """
    m, d = rows.shape
    if m >= d or d < MANY_COLUMNS or not (isinstance(rows.rows, DenseRows) and _backend.is_numpy(rows.like)):
        return False
    some, norm = rows.select_columns(slice(0, d // SEEN_SHARE)), 0.0
    x = np.random.default_rng(0).standard_normal((m, 1))
    for _ in range(POWER_STEPS):  # each norm is one from below
        size = float(np.linalg.norm(x))
        if not 0 < size < math.inf:
            return False
        y = some.combine(x / size)
        x, norm = some.project(y), float(np.linalg.norm(y))
    return math.isfinite(norm) and float32_gram_shows(norm)


def _state_of(system: System, scaled: ScaledProblem, options: Options) -> State:
    """The State of a system, with the caller's G where answers are read from it."""
    form, rows = assemble(system, options), cast(ScaledRows, system.rows)
    referenced = cast(GivenRows, rows.rows) if form.rows is rows or options.out is not None else None
    kappa, float64_gram = kappa_of(system.norm), system.gram_dtype == "float64"
    return State(
        form, scaled.scaling, scaled.row_scale, referenced, kappa, options.dtype, float64_gram, wide=options.wide
    )
