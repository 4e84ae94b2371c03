"""A static State as facts and arrays for a file, and back."""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from .. import _backend
from .._capacitance.system import Capacitance, sum_loses_digits
from .._errors import InvalidFileError
from .._files.consistency import (
    BROKEN,
    SAME_STEPS,
    are_whitened_columns,
    factor_error,
    is_factor,
    is_gram_of,
    is_norm,
    is_whitened,
    whitened_roundings,
)
from .._files.matrix_file import verify_runs
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.state import State
from .._forms.sweeps import MAX_SWEEPS, sweeps_for
from .._rows.dense import DenseRows
from .._rows.kinds import ComputePlace, rows_of
from .._rows.protocol import GivenRows
from .._rows.scaled import ScaledRows, scaled_rows
from .._rows.streamed import StreamedRows
from .._rows.whitened import WhitenedRows, can_whiten, complement
from .._scaling.normalization import divisor_of
from .._typing import Array
from .options import Options
from .problem import Problem

CSR = ("data", "indices", "indptr")
FLOAT64_GRAM = "sharp"  # the key that files have had from the first version on


def arguments_as_arrays(gradients: Any, damping: Any, weights: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a constructor was given, as facts and arrays; a sparse matrix is three arrays."""
    facts: dict[str, Any] = {"damping": None, "sparse": None}
    arrays = {}
    if _backend.is_sparse(gradients):
        rows = gradients.tocsr()
        facts["sparse"] = list(rows.shape)
        arrays.update({f"gradients.{name}": getattr(rows, name) for name in CSR})
    elif _backend.is_array(gradients) and not _backend.is_lazy(gradients):
        arrays["gradients"] = gradients
    elif gradients is not None:
        msg = f"`gradients` must be in memory, dense or sparse, to be saved; got {type(gradients).__name__}. "
        raise TypeError(msg + "Save what they are made of.")
    if _backend.is_vector(damping):
        arrays["damping"] = damping
    else:
        facts["damping"] = float(damping)
    if weights is not None:
        arrays["weights"] = weights
    return facts, arrays


def arguments_of(facts: dict[str, Any], arrays: dict[str, Array]) -> tuple[Any, Any, Any]:
    """The gradients (None where they were not saved), damping and weights that `arguments_as_arrays` was given."""
    if facts["sparse"] is None:
        gradients = arrays.get("gradients")
    else:
        parts = (arrays[f"gradients.{name}"] for name in CSR)
        gradients = _backend.compressed_rows(*parts, shape=tuple(facts["sparse"]))
    return gradients, arrays.get("damping", facts["damping"]), arrays.get("weights")


def parts_of(state: State) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a static State is restored from, apart from the arguments of its constructor."""
    form, whitened = cast(DualForm | PrimalForm, state.form), state.whitened
    if whitened is not None and not _backend.is_array(whitened.rows):
        kind = type(whitened.rows).__name__
        msg = f"`out` must be a path or a mapped file for an inverse to be saved; got {kind}. Build it in a folder."
        raise TypeError(msg)
    facts = {
        "kappa": float(state.kappa),
        "norm": float(form.norm),
        "sweeps": form.sweeps,
        FLOAT64_GRAM: state.float64_gram,
        "wide": state.wide,
        "exponent": None if state.rows is None else state.rows.exponent,
        "dtype": _backend.dtype_name(state.dtype),
    }
    if isinstance(form, DualForm) and form.on_demand_dtype is not None:
        facts["on_demand"] = True
    arrays = {"gram": form.capacitance.scaled_gram, "factor": form.capacitance.cholesky}
    if whitened is not None:
        arrays["whitened"] = whitened.rows
        if whitened.exact_diagonal is not None:
            if whitened.is_streamed:
                facts["width"] = cast(StreamedRows, whitened.matrix).width
            arrays.update(zip(("small.index", "small.values"), whitened.exact_diagonal, strict=True))
    return facts, arrays


def state_of(gradients: Any, damping: Any, weights: Any, facts: dict[str, Any], arrays: dict[str, Array]) -> State:
    """The State that `parts_of` described, of gradients or, where these were not saved, of their whitened rows.

    Parts that do not belong together are refused, which no checksum can do.
    """
    given = _rows_of_whitened(facts, arrays) if gradients is None else rows_of(gradients)
    dtype = _backend.named_dtype(facts["dtype"], like=given.like)
    options = Options(dtype, facts["precision"], whiten=False, overwrite=False)
    options = replace(options, wide=facts.get("wide", False))
    divisor = divisor_of(facts["normalization"], given.shape[0])
    scaled = Problem(given, damping, weights, divisor).scaled(options)
    rows = scaled.rows(facts["exponent"])
    m, d = rows.shape
    from_rows = sum_loses_digits(facts["norm"]) and (m >= d or "whitened" in arrays)
    capacitance = _capacitance_of(facts, arrays, from_rows=from_rows)
    whitened = None
    if "whitened" in arrays:
        small = (arrays["small.index"], arrays["small.values"]) if "small.index" in arrays else None
        whitened = WhitenedRows(_rows_of_whitened(facts, arrays), capacitance, small)
        _require_whitened(whitened, facts)
    if gradients is not None:
        gram = _backend.read(capacitance.scaled_gram)
        _require(
            is_gram_of(rows, gram, facts["norm"], primal=m >= d), "gradients", "those of its Gram matrix, and finite"
        )
    form = _form_of(facts, rows, capacitance, whitened, options.dtype)
    referenced = cast(GivenRows, rows.rows) if form.rows is rows else None
    kappa, float64_gram = facts["kappa"], facts[FLOAT64_GRAM]
    return State(form, scaled.scaling, scaled.row_scale, referenced, kappa, dtype, float64_gram, wide=options.wide)


def _form_of(
    facts: dict[str, Any], rows: ScaledRows, capacitance: Capacitance, whitened: WhitenedRows | None, dtype: Any
) -> DualForm | PrimalForm:
    """The form of M, with the number of sweeps that was chosen for it."""
    m, d = rows.shape
    norm, sweeps, float64_gram = facts["norm"], facts["sweeps"], facts[FLOAT64_GRAM]
    computing = "float64" if m >= d else _backend.dtype_name(rows.dtype)
    least = 1 if m >= d else sweeps_for(facts["kappa"], computing, float64_gram=float64_gram)
    wanted = f"from {least}, which its kappa asks for, to {MAX_SWEEPS}"
    _require(least <= sweeps <= MAX_SWEEPS, "sweeps", wanted)
    if m >= d:
        return PrimalForm(rows, capacitance, norm)
    if whitened is not None and dtype == rows.dtype:
        return DualForm(whitened, whitened, capacitance, norm, sweeps)
    on_demand = dtype if facts.get("on_demand", False) and whitened is None and can_whiten(rows) else None
    return DualForm(rows, whitened, capacitance, norm, sweeps, float64_gram=float64_gram, on_demand_dtype=on_demand)


def _rows_of_whitened(facts: dict[str, Any], arrays: dict[str, Array]) -> Any:
    """W: in memory if it was, or streamed from its file to the device of the other arrays."""
    whitened = arrays["whitened"]
    if not _backend.is_on_disk(whitened):
        return replace(cast(DenseRows, rows_of(whitened)), fingerprint=None)  # its memory is not shared
    rows = rows_of(whitened, ComputePlace(facts["xp"], facts["device"]))
    # panels as wide as before, so that answers round alike
    return replace(cast(StreamedRows, rows), width=facts["width"], fingerprint=None)


def _capacitance_of(facts: dict[str, Any], arrays: dict[str, Array], *, from_rows: bool) -> Capacitance:
    """B and the factor of I + B, recomputed where the stored one came from eigenvalues."""
    gram, factor = (_backend.read(arrays[name]) for name in ("gram", "factor"))
    _require(is_norm(facts["norm"], gram, within=SAME_STEPS), "norm", "that of its Gram matrix")
    _require(factor_error(gram, factor) <= BROKEN, "factor", "that of its Gram matrix")
    capacitance = None if is_factor(gram, factor) else Capacitance.factor(arrays["gram"])
    return Capacitance(arrays["gram"], arrays["factor"], from_rows) if capacitance is None else capacitance


def _require_whitened(whitened: WhitenedRows, facts: dict[str, Any]) -> None:
    """Refuse rows that are not whitened by the factor, and a W whose file has changed by as little as one bit."""

    def multiply(probes: np.ndarray) -> np.ndarray:
        z = _backend.asarray(probes, like=whitened.capacitance.cholesky, dtype=whitened.capacitance.cholesky.dtype)
        return _backend.read(whitened.matrix.project(whitened.matrix.combine(z)))

    def multiply_file(probes: np.ndarray) -> np.ndarray:
        runs, product = verify_runs(whitened.rows, facts["runs"], probes)
        if runs != facts["runs"] or runs[-1][0] != whitened.shape[1]:
            msg = f"`path` must be a whole folder; {whitened.rows.filename} is not as it was written. Build again."
            raise InvalidFileError(msg)
        return product

    roundings = whitened_roundings(facts["kappa"], facts["dtype"], float64_gram=facts[FLOAT64_GRAM])
    is_fine = is_whitened(
        multiply_file if facts.get("runs") else multiply, whitened.capacitance, facts["norm"], roundings
    )
    _require(is_fine, "whitened", "whitened by its factor, and finite")
    if whitened.exact_diagonal is not None and len(whitened.exact_diagonal[0]):
        index = _backend.index_like(whitened.exact_diagonal[0], like=whitened.like)
        diagonal = _backend.read(complement([whitened.matrix.columns(index)]))
        is_near = np.all(np.abs(diagonal - whitened.exact_diagonal[1]) <= roundings + 1e-5)
        _require(bool(is_near), "small.values", "those of the diagonal")


def is_whitened_from(state: State, columns: np.ndarray) -> bool:
    """Whether some columns of W in a State are those of its gradients, whitened."""
    whitened, given = cast(WhitenedRows, state.whitened), cast(GivenRows, state.rows)
    rows = scaled_rows(given.unscaled(), given.exponent, state.row_scale, state.scaling.column_scale)
    index = _backend.index_like(columns, like=rows.like)
    w, s = (_backend.read(x.columns(index)) for x in (whitened.matrix, rows))
    return are_whitened_columns(w, whitened.capacitance, s)


def _require(is_fine: bool, name: str, wanted: str) -> None:
    if not is_fine:
        msg = f"`path` must hold parts of one inverse; its `{name}` must be {wanted}. Save again."
        raise InvalidFileError(msg)
