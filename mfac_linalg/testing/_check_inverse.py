"""`check_inverse`: every check on every problem."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ._arrays import to_numpy
from ._checks import CHECKS
from ._exam import Exam, NoAnswerError, NotApplicableError, NotOfferedError
from ._problems import Problem, float_name, make_problem
from ._results import CheckResult, CheckResults, deliver, require_way_to_fail


def check_inverse(
    make: Callable[[Problem], Any],
    problem: Problem | Iterable[Problem] | None = None,
    *,
    checks: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    callback: Callable[[CheckResult], None] | None = None,
    asarray: Callable[[np.ndarray], Any] | None = None,
    redamp: Callable[[Any, Any], Any] | None = None,
    eps: float | None = None,
) -> CheckResults:
    """Check anybody's F⁻¹ against a dense inverse in extended precision.

    Two kinds of checks are told apart. "right formula" allows what Woodbury's formula loses to rounding if its m × m
    system is solved: an inverse that fails it has a bug, or rounds worse, as one that multiplies by an explicit inverse
    of this system does. "stable" allows R = ‖v − Fx‖/(‖F‖‖x‖ε) ≤ 30, as LAPACK does for its solvers: the textbook
    Woodbury formula is right and fails it, because it cancels where v lies in the span of the gradients.

    Parameters
    ----------
    make : callable
        ``make(problem)`` returns the inverse for a `Problem`: an object with `matvec` or `@`, or a function of v. It
        is called several times, also with permuted, scaled and invalid problems.
    problem : Problem or iterable of Problem, optional
        By default `default_problems("float32")`, which have one λ and no weights; ``default_problems(general=True)``
        have a damping per parameter, weights and both normalizations.
    checks : sequence of str, optional
        Names or patterns (``"stable: *"``) of the checks to make; by default all of `CHECKS`. A check of what the
        inverse does not offer (`diagonal`, `sample`) is skipped.
    expected_failures : mapping of str to str, optional
        Names or patterns of checks that may fail, with the reason.
    on_fail : {"raise", "warn", None}
        What happens after the last check if some failed.
    callback : callable, optional
        Called with every `CheckResult` as soon as it is there.
    asarray : callable, optional
        From NumPy arrays to those that the inverse takes: ``torch.asarray``, ``jax.numpy.asarray``, or a function that
        moves to a device. By default NumPy's are passed.
    redamp : callable, optional
        ``redamp(inverse, damping)`` returns the inverse under another damping. By default `with_damping` or a settable
        `damping` is used where there is one.
    eps : float, optional
        The error of one operation, in place of that of the problem's dtype: the tolerance of an iterative solver.

    Returns
    -------
    CheckResults
        A list of `CheckResult`, one a check and problem; in a notebook, a table.

    Raises
    ------
    ValueError
        If nothing would be checked, `eps` is not above 0, or `asarray` has fewer digits than the problem and `eps`.
    TypeError
        If `expected_failures` is no mapping to strings, or `problem` holds something else than a Problem.
    CheckError
        If a check failed that was not expected to; an AssertionError with the worst failure of each check, each with
        the line that makes it again.

    Notes
    -----
    Cost: O(d³) per problem, in longdouble; the default ones take about a second. `make` is given copies of the arrays.

    docs/testing.md says what each check requires. "refusal" is about invalid arguments, which a class that checks none
    fails: ``expected_failures={"refusal": "no checks"}``.

    Examples
    --------
    >>> import mfac_linalg as ml
    >>> from mfac_linalg.testing import check_inverse
    >>> def make(problem):
    ...     return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)
    >>> results = check_inverse(make)
    >>> {result.status for result in results} <= {"passed", "skipped"}
    True
    """
    require_way_to_fail(on_fail)
    names = None if checks is None else [checks] if isinstance(checks, str) else list(checks)
    expected = _reasons(expected_failures or {})
    if eps is not None and not (isinstance(eps, int | float | np.floating) and 0 < eps < np.inf):
        msg = f"`eps` must be a finite number above 0; got {eps!r}."
        raise ValueError(msg)
    _require_known("checks", names)
    _require_known("expected_failures", expected)
    results: list[CheckResult] = []
    options = "".join(f", {name}={name}" for name, x in (("asarray", asarray), ("redamp", redamp)) if x is not None)
    options += "" if eps is None else f", eps={eps}"
    for exam in _exams(make, problem, asarray, redamp, eps):
        for name, check in CHECKS.items():
            if names is None or _matches(name, names):
                result = replace(_run(name, check, exam, expected), options=options)
                results.append(result)
                if callback is not None:
                    callback(result)
    if not results:
        msg = "`problem` and `checks` must not be empty; nothing was checked. Leave them out to check everything."
        raise ValueError(msg)
    return deliver(results, on_fail)


def default_problems(dtype: str = "float32", *, general: bool = False) -> list[Problem]:
    """Return a dozen problems that find most mistakes: one λ, no weights, F = λI + (1/m) Σ g_i g_iᵀ.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    general : bool
        Whether to give each problem a damping per parameter and a weight per gradient, and every second one the sum in
        place of the mean: for an inverse that takes `problem.damping` (d,), `problem.weights` and
        `problem.normalization`.

    Returns
    -------
    list of Problem
        At small κ, where a wrong formula shows, and at large κ, where rounding does: 1e4 and 1e5 in float32, 1e8 and
        1e9 in float64.

    Examples
    --------
    >>> from mfac_linalg.testing import default_problems
    >>> len(default_problems("float64"))
    12
    >>> default_problems(general=True)[1]  # doctest: +ELLIPSIS
    make_problem(1, kind='gaussian', shape=(6, 40), ..., vector=True, weighted=True, normalization='sum')
    """
    dtype = float_name(dtype)
    large, larger = (1e4, 1e5) if dtype == "float32" else (1e8, 1e9)
    cases: list[tuple[str, tuple[int, int], float]] = [
        ("gaussian", (1, 9), 5.0),
        ("gaussian", (6, 40), 10.0),
        ("common mean", (8, 30), 100.0),
        ("duplicates", (6, 20), 30.0),
        ("scaled rows", (5, 25), 50.0),
        ("zero rows", (5, 12), 20.0),
        ("gaussian", (12, 7), 20.0),
        ("gaussian", (9, 9), 20.0),
        ("common mean", (16, 100), large),
        ("decay", (10, 60), large),
        ("nearly dependent", (10, 50), larger),
        ("duplicates", (10, 50), larger),
    ]
    return [
        make_problem(
            seed,
            kind=kind,
            shape=shape,
            kappa=kappa,
            dtype=dtype,
            vector=general,
            weighted=general,
            normalization="sum" if general and seed % 2 else "mean",
        )
        for seed, (kind, shape, kappa) in enumerate(cases)
    ]


def _exams(
    make: Callable[[Problem], Any],
    problem: Problem | Iterable[Problem] | None,
    asarray: Callable[[np.ndarray], Any] | None,
    redamp: Callable[[Any, Any], Any] | None,
    eps: float | None,
) -> Iterator[Exam]:
    if problem is None:
        problem = default_problems()
    for each in [problem] if isinstance(problem, Problem | str) else problem:
        if not isinstance(each, Problem):
            msg = f"`problem` must be a Problem, or several; got {type(each).__name__}. make_problem makes one."
            raise TypeError(msg)
        exam = Exam(make, each, asarray or (lambda x: x), redamp, each.eps if eps is None else eps)
        _require_digits(exam)
        yield exam


def _require_digits(exam: Exam) -> None:
    """Refuse an `asarray` that rounds what it takes: a right formula would look wrong."""
    try:
        given = to_numpy(exam.asarray(np.ones(exam.problem.shape[1], exam.problem.dtype))).dtype
        unit = float(np.finfo(given).eps)
    except Exception:
        return  # each check says so
    if unit > max(exam.unit, exam.problem.eps):
        msg = (
            f"`asarray` makes {given} of {exam.problem.dtype}, in which answers are judged. Take problems in {given}, "
            f'such as default_problems("{given}"), or an `asarray` that keeps the dtype: JAX does with jax_enable_x64.'
        )
        raise ValueError(msg)


def _run(name: str, check: Callable[[Exam], Any], exam: Exam, expected: Mapping[str, str]) -> CheckResult:
    try:
        value, limit, message = check(exam)
    except NotApplicableError as skipped:
        is_offered = not isinstance(skipped, NotOfferedError)
        return CheckResult(name, "skipped", message=str(skipped), problem=exam.problem, is_offered=is_offered)
    except NoAnswerError as failed:
        value, limit, message = np.nan, np.nan, str(failed)
    except Exception as error:  # of the inverse, in a call that only this check makes
        value, limit, message = np.nan, np.nan, f"raised {type(error).__name__}: {error}"
    if value <= limit:
        return CheckResult(name, "passed", value, limit, problem=exam.problem)
    reasons = [reason for pattern, reason in expected.items() if _matches(name, [pattern])]
    status = "expected failure" if reasons else "failed"
    return CheckResult(name, status, value, limit, "; ".join([message, *reasons]), exam.problem)


def _reasons(expected: Any) -> dict[str, str]:
    if not isinstance(expected, Mapping) or not all(isinstance(reason, str) for reason in expected.values()):
        msg = f"`expected_failures` must map names of checks to reasons, both strings; got {expected!r}."
        raise TypeError(msg)
    return dict(expected)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require_known(argument: str, patterns: Iterable[str] | None) -> None:
    for pattern in patterns or ():
        if not fnmatch.filter(CHECKS, pattern):
            msg = f"`{argument}` must name checks; got {pattern!r}. There are {list(CHECKS)}."
            raise ValueError(msg)
