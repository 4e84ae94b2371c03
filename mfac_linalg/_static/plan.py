"""The decisions of a build, from a few numbers: scale, dtypes, form and sweeps. No arrays."""

import math
from dataclasses import dataclass

import numpy as np

from .._capacitance.system import float32_gram_serves_products, float32_gram_shows, whitens_in_float32
from .._condition import kappa_of
from .._errors import unresolved_rows
from .._forms.sweeps import sweeps_for
from .._scaling.powers_of_two import squares_in_safe_range
from .._scaling.sqrt_damping import NARROW_SPAN

LARGEST_ENTRY = "largest entry"
EPS = {name: float(np.finfo(name).eps) for name in ("float32", "float64")}
TINY = {name: float(np.finfo(name).tiny) for name in EPS}
UNDERFLOW_ERROR = 16.0  # eps that an element may be off by what underflows
LARGEST_NORM = {"float32": 2.0**30, "float64": math.inf}  # ‖S‖ in products
LARGEST_RATIO = 2.0**60  # of row scales whose products float32 sums


@dataclass(frozen=True)
class Facts:
    """What is known of S (m, d) and of its small matrix before any value is read."""

    m: int
    d: int
    dtype: str  # of products with S
    gram_dtype: str  # that the small matrix was computed in
    is_scalable: bool = True  # whether the rows can be divided by a power of two
    can_widen: bool = True  # whether the small matrix can be computed in float64
    has_row_squares: bool = True  # whether `largest_square` is the largest squared row of G itself


@dataclass(frozen=True)
class Measured:
    """The numbers that are read of S."""

    largest_square: float  # the largest squared row, or column for m ≥ d
    norm: float  # ‖S‖₂
    largest_row_scale: float
    smallest_row_scale: float
    damping_span: float = 0.0  # of a vector damping that only the device knows
    exponent: int | None = None  # of the power of two that G was divided by; None: G as given


@dataclass(frozen=True)
class SystemPlan:
    """What the small matrix is to be computed from."""

    exponent: int | str | None  # as in Measured; LARGEST_ENTRY: that of G's largest entry, and measure again
    widen: bool  # compute everything in float64, and measure again
    gram_dtype: str
    kappa: float


@dataclass(frozen=True)
class FormPlan:
    """The form of M, and what its arithmetic asks for."""

    is_primal: bool
    arithmetic: str  # dtype whose precision bounds κ
    sweeps: int  # of a product whose values cannot be read
    whitening_dtype: str  # that W is computed in


def plan_system(facts: Facts, measured: Measured, *, wide: bool, whitens: bool = False) -> SystemPlan:
    """Decide how G is scaled, and in what the small matrix is computed; refuse what float64 does not hold either.

    `wide` says whether everything is in float64 already, where there is one. `whitens` says whether W is to be made:
    it is as accurate as the small matrix. Products correct a float32 one as long as their sweeps contract, and queries
    of entries replace it.
    """
    power = _exponent(facts, measured)
    kappa = kappa_of(measured.norm)
    if power == LARGEST_ENTRY or not math.isfinite(kappa):
        return SystemPlan(power, False, facts.gram_dtype, kappa)
    widen = not _is_resolved(facts, measured, 0 if power is None else int(power), wide=wide)
    serves = float32_gram_serves_products(measured.norm) and not (whitens and float32_gram_shows(measured.norm))
    shows = facts.m < facts.d and facts.can_widen and facts.dtype != "float64" and not serves
    return SystemPlan(power, widen, "float64" if shows else facts.gram_dtype, kappa)


def plan_form(facts: Facts, kappa: float) -> FormPlan:
    """Decide on the form; κ is infinite where it cannot be read."""
    arithmetic = "float64" if facts.m >= facts.d else facts.dtype
    return FormPlan(
        is_primal=facts.m >= facts.d,
        arithmetic=arithmetic,
        sweeps=sweeps_for(kappa, arithmetic, float64_gram=facts.gram_dtype == "float64"),
        whitening_dtype=facts.dtype if whitens_in_float32(kappa) else facts.gram_dtype,
    )


def _exponent(facts: Facts, measured: Measured) -> int | str | None:
    """The exponent of the largest row where the squares of G or its small rows leave the range of their dtype."""
    holds = not facts.is_scalable or _underflow_is_negligible(facts, measured.largest_row_scale)
    fits = squares_in_safe_range(measured.largest_square, facts.dtype) and holds
    if measured.exponent is not None or fits:
        return measured.exponent
    is_known = facts.gram_dtype != facts.dtype and facts.has_row_squares
    if is_known and squares_in_safe_range(measured.largest_square, "float64"):
        return math.frexp(math.sqrt(measured.largest_square))[1]
    return LARGEST_ENTRY


def _underflow_is_negligible(facts: Facts, largest: float) -> bool:
    """Whether what underflows in products of rows is below the error of an element, for the largest row scale."""
    return max(1.0, largest) * largest * facts.d * TINY[facts.dtype] <= UNDERFLOW_ERROR * EPS[facts.dtype]


def _is_resolved(facts: Facts, measured: Measured, power: int, *, wide: bool) -> bool:
    """Whether products of G in their dtype hold all that S does; of what float64 does not hold either: an error.

    What underflows in them counts row_scale² times in S Sᵀ, and row_scale times in S u.
    """
    scales = (measured.largest_row_scale, measured.smallest_row_scale)
    largest, smallest = (scale if power == 0 else float(np.ldexp(scale, power)) for scale in scales)
    holds = _underflow_is_negligible(facts, largest)
    alike = facts.dtype == "float64" or largest <= LARGEST_RATIO * smallest
    if wide:
        if not (holds and alike):
            raise unresolved_rows(facts.dtype)
        return True
    narrow = measured.damping_span <= NARROW_SPAN[facts.dtype] and measured.norm <= LARGEST_NORM[facts.dtype]
    return holds and alike and narrow
