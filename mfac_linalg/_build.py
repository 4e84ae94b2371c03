"""From checked arguments to a State: one Gram matrix, one factorisation, and the choice of form."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _backend
from ._dual import SmallSystem, largest_eigenvalue
from ._errors import IllConditionedWarning, beyond_arithmetic, breakdown
from ._forms.basis import basis_form
from ._forms.dual import DualForm
from ._forms.primal import PrimalForm
from ._metric import Metric
from ._rows.dense import DenseRows
from ._rows.scaled import ScaledRows
from ._rows.whitened import whiten
from ._scaling import exponent, ldexp
from ._state import State
from ._sweeps import sweeps_for
from ._validation import refuse_nonfinite

Array = Any

WHITENED_LIMIT = 1e-2  # κ ε up to which W and L alone keep R ≤ 30
DUAL_LIMIT = 0.1  # κ ε up to which sweeps on G do, ε the precision of the Gram matrix
FLOAT64_LIMIT = 1e11  # the same in float64, where cond(A) meets its own factorisation


@dataclass(frozen=True)
class Options:
    """How to build: what the caller chose, and the progress bar."""

    dtype: Any
    precision: str
    whiten: bool
    overwrite: bool
    progress: Callable[[Iterable[Any], str], Iterable[Any]]

    def computing_dtype(self, xp: Any) -> Any:
        """float64 for precision "high", else the dtype of the results."""
        return xp.float64 if self.precision == "high" else self.dtype


def build(gradients: Array, damping: Any, coefficients: Array, options: Options, gram: Array | None = None) -> State:
    """Build the State of (Λ + Σ c_i g_i g_iᵀ)⁻¹; coefficients c are (m, 1) float64, gram a known G Gᵀ."""
    computing = options.computing_dtype(_backend.namespace(gradients))
    metric = Metric.of(damping, computing)
    row_scale = (coefficients / metric.level) ** 0.5
    traced = not (_backend.is_concrete(gradients) and _backend.is_concrete(row_scale))
    power = exponent(gradients) if traced else None
    rows = _scaled_rows(DenseRows(gradients, power, computing), row_scale, metric)
    small, largest, norm = _small_matrix(rows, gram)
    if not traced:
        heaviest, norm = _read_together(largest, norm)
        if not _comfortable(heaviest, computing):
            power = _exponent_of_finite(gradients)
            rows = _scaled_rows(DenseRows(gradients, power, computing), row_scale, metric)
            small, _, norm = _small_matrix(rows, None)
            norm = float(_backend.read(norm))
    kappa = 1 + norm**2
    form = _choose_form(rows, small, norm, kappa, options, traced)
    kept = None if getattr(form, "rows", None) is not rows else rows.rows
    return State(form, metric, row_scale, kept, kappa, options.dtype)


def _scaled_rows(rows: DenseRows, row_scale: Array, metric: Metric) -> ScaledRows:
    if rows.exponent is None:
        return ScaledRows(rows, row_scale, metric.root)
    return ScaledRows(rows, ldexp(row_scale, _backend.beside_float64(rows.exponent)), metric.root)


def _small_matrix(rows: ScaledRows, gram: Array | None) -> tuple[Array, Array, Array]:
    """S Sᵀ (or SᵀS for m ≥ d), the largest squared row (or column), and ‖S‖₂."""
    xp = _backend.namespace(rows.row_scale)
    m, d = rows.shape
    if m >= d:
        small = rows.normal()
        raw = small
    else:
        raw = rows.rows.gram(rows.root) if gram is None else gram
        small = rows.row_scale * raw * rows.row_scale.T
    return small, xp.max(xp.linalg.diagonal(raw)), xp.sqrt(largest_eigenvalue(small))


def _read_together(*values: Array) -> list[float]:
    """Small results of a build in one host read."""
    stacked = _backend.namespace(values[0]).stack(values)
    return [float(x) for x in _backend.read(stacked)]


def _comfortable(squared: float, dtype: Any) -> bool:
    """Whether squares of this size neither overflowed nor lost their small parts in the computing dtype."""
    reach = 2.0 ** (80 if _backend.dtype_name(dtype) == "float32" else 600)
    return 1 / reach < squared < reach


def _exponent_of_finite(gradients: Array) -> int:
    xp = _backend.namespace(gradients)
    largest = float(_backend.read(xp.max(xp.abs(gradients))))
    if not math.isfinite(largest):
        refuse_nonfinite()
    return math.frexp(largest)[1]


def _choose_form(rows: ScaledRows, small: Array, norm: Any, kappa: Any, options: Options, traced: bool) -> Any:
    m, d = rows.shape
    known = math.inf if traced else kappa
    if m < d and options.precision == "high" and known > FLOAT64_LIMIT and not traced:
        _warn_beyond(kappa, 0.1 / np.finfo(np.float64).eps, options)
        return basis_form(rows, norm)
    system = SmallSystem.factor(small)
    if system is None:
        damping = f"{1 / float(_backend.read(rows.row_scale[0, 0])) ** 2:.3g} n"
        raise breakdown(size=min(m, d), damping=damping, kappa=float(kappa), dtype=rows.dtype)
    if m >= d:
        if not traced:
            _warn_beyond(kappa, 0.1 / np.finfo(np.float64).eps, options)
        return PrimalForm(rows, system, norm)
    return _dual_form(rows, system, norm, known, options)


def _dual_form(rows: ScaledRows, system: SmallSystem, norm: Any, kappa: float, options: Options) -> DualForm:
    """Whiten, or not, and say which rows the products may trust."""
    name = _backend.dtype_name(rows.dtype)
    epsilon = float(np.finfo(np.dtype(name)).eps)
    limit = min(DUAL_LIMIT / epsilon, FLOAT64_LIMIT)
    sweeps = sweeps_for(min(kappa, limit), epsilon)
    if math.isfinite(kappa):
        _warn_beyond(kappa, limit, options)
    if not options.whiten:
        return DualForm(rows, None, system, norm, sweeps)
    whitened = whiten(rows, system, dtype=options.dtype, overwrite=options.overwrite, progress=options.progress)
    trusted = options.dtype == rows.dtype and kappa <= WHITENED_LIMIT / epsilon
    if options.overwrite and not trusted:
        msg = (
            f"kappa = {kappa:.3g} is beyond {WHITENED_LIMIT / epsilon:.1g}: the whitened gradients that "
            "overwrite_gradients=True leaves keep fewer digits than the gradients themselves. Pass "
            "overwrite_gradients=False, or raise `damping`."
        )
        warnings.warn(msg, IllConditionedWarning, stacklevel=5)
    return DualForm(whitened if trusted or options.overwrite else rows, whitened, system, norm, sweeps)


def _warn_beyond(kappa: float, limit: float, options: Options) -> None:
    if kappa > limit or math.isnan(kappa):
        dtype = _backend.dtype_name(options.dtype)
        text = beyond_arithmetic(kappa=kappa, limit=limit, dtype=dtype, precision=options.precision)
        warnings.warn(text, IllConditionedWarning, stacklevel=6)
