"""`check_rows`: whether the five methods of `GradientRows` are those of one matrix."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ._arrays import to_numpy
from ._oracle import LIMIT
from ._results import CheckResult, CheckResults, deliver, require_way_to_fail


def check_rows(
    rows: Any,
    *,
    checks: Sequence[str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    asarray: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
) -> CheckResults:
    """Check that an object with the methods of `mfac_linalg.GradientRows` is one matrix G.

    Parameters
    ----------
    rows : GradientRows
        Small enough for G (m, d) in memory: its columns are asked for, all of them.
    checks : sequence of str, optional
        Of "columns", "panels", "project", "combine", "gram", "adjoint" and "dtype", those to make; by default all.
    on_fail : {"raise", "warn", None}
        What happens after the last check if some failed.
    asarray : callable, optional
        From NumPy arrays to those that the rows take; by default NumPy's are passed.
    seed : int
        Of the vectors.

    Returns
    -------
    CheckResults
        A list of `CheckResult`, one a check; in a notebook, a table. Values are errors in units of
        the rounding of a sum over d, or m, terms of its dtype.

    Raises
    ------
    CheckError
        If a check failed.

    Notes
    -----
    Cost: O(dm) numbers of memory, O(dm²) operations.

    Examples
    --------
    >>> import numpy as np
    >>> import mfac_linalg as ml
    >>> from mfac_linalg.testing import check_rows
    >>> class Rows(ml.GradientRows):
    ...     def __init__(self, array):
    ...         self.array, self.shape = array, array.shape
    ...     def gram(self):
    ...         return self.array @ self.array.T
    ...     def project(self, v):
    ...         return self.array @ v
    ...     def combine(self, coefficients):
    ...         return self.array.T @ coefficients
    ...     def columns(self, j):
    ...         return self.array[:, j]
    >>> [result.status for result in check_rows(Rows(np.ones((2, 5))))]
    ['passed', 'passed', 'passed', 'passed', 'passed', 'passed', 'passed']
    """
    require_way_to_fail(on_fail)
    checks = None if checks is None else [checks] if isinstance(checks, str) else list(checks)
    unknown = [name for name in checks or () if name not in ROW_CHECKS]
    if unknown:
        msg = f"`checks` must be names of checks; got {unknown}. There are {list(ROW_CHECKS)}."
        raise ValueError(msg)
    if checks is not None and not checks:
        msg = "`checks` must not be empty; nothing was checked. Leave it out to check everything."
        raise ValueError(msg)
    options = "" if asarray is None else ", asarray=asarray"
    options += f", seed={seed}" if seed else ""
    chosen = {name: check for name, check in ROW_CHECKS.items() if checks is None or name in checks}
    try:
        exam = _RowsExam(rows, asarray or (lambda x: x), np.random.default_rng(seed))
    except Exception as error:
        msg = f"nothing can be compared: `columns` of all of `shape` raised {type(error).__name__}: {error}"
        results = [CheckResult(name, "failed", message=msg) for name in chosen]
    else:
        results = [_run(name, check, exam) for name, check in chosen.items()]
    return deliver([replace(result, options=options) for result in results], on_fail)


class _RowsExam:
    """Rows, the matrix that their columns say, and vectors for them."""

    def __init__(self, rows: Any, asarray: Callable[[np.ndarray], Any], rng: np.random.Generator) -> None:
        self.rows, self.asarray = rows, asarray
        self.m, self.d = rows.shape
        self.columns = rows.columns(np.arange(self.d))
        given = to_numpy(self.columns)
        self.dtype, self.matrix = given.dtype, given.astype(np.float64)
        self.eps = float(np.finfo(given.dtype).eps)
        self.v = rng.standard_normal((self.d, 2)).astype(given.dtype)
        self.c = rng.standard_normal((self.m, 2)).astype(given.dtype)
        some = rng.permutation(self.d)[: max(1, self.d // 2)]
        self.some = np.append(some, some[:1])

    def asked(self, x: Any, expected: np.ndarray, scale: np.ndarray) -> tuple[float, str]:
        """The largest error of an answer, in units of ε times `scale`, and where it is."""
        answer = to_numpy(x)
        if np.iscomplexobj(answer):
            return np.inf, f"complex, {answer.dtype}"
        if answer.shape != expected.shape:
            return np.inf, f"shape {answer.shape} instead of {expected.shape}"
        error = np.nan_to_num(np.abs(answer.astype(np.float64) - expected), nan=np.inf)
        ratio = np.where(error > 0, error / np.where(scale > 0, scale * self.eps, np.finfo(np.float64).tiny), 0.0)
        if not ratio.size:
            return 0.0, ""
        place = np.unravel_index(np.argmax(ratio), ratio.shape)
        worst = float(ratio[place])
        return worst, f"entry {tuple(map(int, place))} is {answer[place]:.6g} instead of {expected[place]:.6g}"


def _columns(exam: _RowsExam) -> tuple[float, str]:
    return exam.asked(exam.rows.columns(exam.some), exam.matrix[:, exam.some], np.zeros((exam.m, len(exam.some))))


def _panels(exam: _RowsExam) -> tuple[float, str]:
    panels = [to_numpy(panel) for panel in exam.rows.panels()]
    together = np.concatenate(panels, axis=1) if panels else np.zeros((exam.m, 0))
    return exam.asked(together, exam.matrix, np.zeros_like(exam.matrix))


def _project(exam: _RowsExam) -> tuple[float, str]:
    return _multiplied(exam, exam.rows.project, exam.matrix, exam.v)


def _combine(exam: _RowsExam) -> tuple[float, str]:
    return _multiplied(exam, exam.rows.combine, exam.matrix.T, exam.c)


def _multiplied(exam: _RowsExam, method: Callable[[Any], Any], matrix: np.ndarray, x: np.ndarray) -> tuple[float, str]:
    """The error of a product with two columns, of which nothing may be written to.

    A product with one of them may be computed in another way: half of its digits are compared.
    """
    exact, scale = matrix @ x.astype(np.float64), np.abs(matrix) @ np.abs(x.astype(np.float64))
    largest = np.max(scale, axis=0, initial=0.0) / exam.eps**0.5
    results = []
    for count, allowed in ((1, 0 * scale + largest), (2, scale)):
        asked = exam.asarray(x[:, :count].copy())
        results.append(exam.asked(method(asked), exact[:, :count], allowed[:, :count]))
        if not np.array_equal(to_numpy(asked), x[:, :count]):
            return np.inf, "it writes to its argument"
    return max(results, key=lambda result: result[0])


def _gram(exam: _RowsExam) -> tuple[float, str]:
    norms = np.linalg.norm(exam.matrix, axis=1)
    return exam.asked(exam.rows.gram(), exam.matrix @ exam.matrix.T, np.outer(norms, norms))


def _adjoint(exam: _RowsExam) -> tuple[float, str]:
    """⟨Gv, c⟩ = ⟨v, Gᵀc⟩, of the methods' own answers."""
    projected = to_numpy(exam.rows.project(exam.asarray(exam.v.copy()))).astype(np.float64)
    combined = to_numpy(exam.rows.combine(exam.asarray(exam.c.copy()))).astype(np.float64)
    if projected.shape != exam.c.shape or combined.shape != exam.v.shape:
        return np.inf, f"shapes {projected.shape} and {combined.shape} instead of {exam.c.shape} and {exam.v.shape}"
    c, v = exam.c.astype(np.float64), exam.v.astype(np.float64)
    left, right = np.sum(projected * c, axis=0), np.sum(v * combined, axis=0)
    scale = np.sum(np.abs(c) * (np.abs(exam.matrix) @ np.abs(v)), axis=0)
    worst, place = exam.asked(left, right, scale)
    return worst, place.replace("entry", "⟨Gv, c⟩ of column").replace("instead of", "and ⟨v, Gᵀc⟩ is")


def _dtype(exam: _RowsExam) -> tuple[float, str]:
    answers = {
        "project": exam.rows.project(exam.asarray(exam.v.copy())),
        "combine": exam.rows.combine(exam.asarray(exam.c.copy())),
        "gram": exam.rows.gram(),
    }
    allowed = {"combine": {exam.dtype}}
    found = {name: to_numpy(x).dtype for name, x in answers.items()}
    wrong = [] if exam.dtype in (np.float32, np.float64) else [f"rows of {exam.dtype}, neither float32 nor float64"]
    wrong += [
        f"{name} answers {dtype} for rows of {exam.dtype}"
        for name, dtype in found.items()
        if dtype not in allowed.get(name, {exam.dtype, np.dtype(np.float64)})
    ]
    return float(len(wrong)), "; ".join(wrong)


ROW_CHECKS: dict[str, tuple[Callable[[_RowsExam], tuple[float, str]], float]] = {
    "columns": (_columns, 0.0),
    "panels": (_panels, 0.0),
    "project": (_project, LIMIT),
    "combine": (_combine, LIMIT),
    "gram": (_gram, LIMIT),
    "adjoint": (_adjoint, LIMIT),
    "dtype": (_dtype, 0.0),
}


def _run(name: str, check: tuple[Callable[[_RowsExam], tuple[float, str]], float], exam: _RowsExam) -> CheckResult:
    function, limit = check
    try:
        value, message = function(exam)
    except Exception as error:
        return CheckResult(name, "failed", message=f"raised {type(error).__name__}: {error}")
    return CheckResult(name, "passed" if value <= limit else "failed", value, limit, "" if value <= limit else message)
