"""What a check says: one result a check and problem, and the report of the failures."""

import html
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .._repr import as_list, as_table
from ._problems import Problem


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check on one problem.

    Parameters
    ----------
    check : str
        Its name, for example "stable: in span".
    status : str
        "passed", "failed", "expected failure" or "skipped".
    value, limit : float
        What was measured, and the largest value that passes; nan where nothing was measured.
    message : str
        What was found, or why the check was skipped.
    problem : Problem or None
        The problem; None for `check_rows`.
    options : str
        The other arguments of the call, as they are written there.
    is_offered : bool
        False where the inverse does not have what the check asks for: `diagonal`, `sample`, another damping.

    Examples
    --------
    >>> import mfac_linalg as ml
    >>> from mfac_linalg.testing import check_inverse, make_problem
    >>> def make(problem):
    ...     return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)
    >>> (result,) = check_inverse(make, make_problem(0), checks=["stable: in span"])
    >>> result.status, result.value < result.limit
    ('passed', True)
    """

    check: str
    status: str
    value: float = math.nan
    limit: float = math.nan
    message: str = ""
    problem: Problem | None = None
    options: str = ""
    is_offered: bool = True

    @property
    def reproduce(self) -> str:
        """The line that runs this check again."""
        if self.problem is None:
            return f"check_rows(rows, checks=[{self.check!r}]{self.options})"
        return f"check_inverse(make, {self.problem!r}, checks=[{self.check!r}]{self.options})"

    def __str__(self) -> str:
        figures = "" if math.isnan(self.value) else f": {self.value:.3g}, limit {self.limit:.3g}"
        lines = [f"{self.status.upper()} {self.check}{figures}"]
        if self.problem is not None:
            problem = self.problem
            m, d = problem.shape
            lines[0] += f" (m = {m}, d = {d}, κ = {problem.oracle.kappa:.3g}, {problem.dtype})"
        lines += [f"    {self.message}"] if self.message else []
        return "\n".join([*lines, f"    {self.reproduce}"])

    def _repr_html_(self) -> str:
        facts = {"status": self.status, **self._figures(), "found": self.message}
        if self.problem is not None:
            facts["problem"] = repr(self.problem)
        facts["to run it again"] = self.reproduce
        return as_table(self.check, {name: text for name, text in facts.items() if text})

    def _figures(self) -> dict[str, str]:
        figures = {"value": self.value, "limit": self.limit}
        return {name: f"{figure:.3g}" for name, figure in figures.items() if not math.isnan(figure)}


class CheckResults(list[CheckResult]):
    """The results of `check_inverse` or `check_rows`: a list, and in a notebook a table of the checks.

    Parameters
    ----------
    iterable : iterable of CheckResult
        As for a list.

    Examples
    --------
    >>> from mfac_linalg.testing import check_inverse, make_problem
    >>> problem, checks = make_problem(0), ["right formula: *"]
    >>> results = check_inverse(lambda problem: problem.oracle.solve, problem, checks=checks)
    >>> len(results), results[0].check, results[0].status
    (4, 'right formula: in span', 'passed')
    """

    def _repr_html_(self) -> str:
        by_check: dict[str, list[CheckResult]] = {}
        for result in self:
            by_check.setdefault(result.check, []).append(result)
        rows = []
        for check, results in by_check.items():
            worst = max(results, key=_badness)
            counts = Counter(result.status for result in results)
            outcome = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
            shown = worst.status != "passed"
            rows.append([check, outcome, *_of_two(worst._figures()), worst.message if shown else ""])
        table = as_list(_heading(self), ["check", "problems", "worst value", "limit", "found"], rows)
        lines = "\n".join(result.reproduce for result in worst_failures(self))
        again = f"<p>To run the worst failure of each check again:</p><pre>{html.escape(lines)}</pre>"
        return table + (again if lines else "")


STATUSES = ("failed", "expected failure", "passed", "skipped")


def _of_two(figures: dict[str, str]) -> list[str]:
    return [figures.get("value", ""), figures.get("limit", "")]


def _badness(result: CheckResult) -> tuple[int, float]:
    """How a result compares with others of its check: failures first, then by value."""
    return -STATUSES.index(result.status), excess(result)


def require_way_to_fail(on_fail: str | None) -> None:
    """Refuse any other `on_fail` than those there are."""
    if on_fail not in ("raise", "warn", None):
        msg = f"`on_fail` must be 'raise', 'warn' or None; got {on_fail!r}."
        raise ValueError(msg)


class CheckError(AssertionError):
    """Some checks failed; `results` has all of them.

    Parameters
    ----------
    results : CheckResults
        Every result, of checks that passed too.

    Examples
    --------
    >>> from mfac_linalg.testing import CheckError, check_inverse, make_problem
    >>> def make(problem):  # 1/λ in the place of F⁻¹
    ...     return lambda v: v / problem.damping
    >>> try:
    ...     check_inverse(make, make_problem(0), checks=["right formula: *"])
    ... except CheckError as error:
    ...     print([result.check for result in error.results if result.status == "passed"])
    ['right formula: orthogonal']
    """

    def __init__(self, results: Sequence[CheckResult]) -> None:
        self.results = CheckResults(results)
        super().__init__(report(self.results))

    def __reduce__(self) -> tuple[type, tuple[CheckResults]]:
        return type(self), (self.results,)


def deliver(results: list[CheckResult], on_fail: str | None) -> CheckResults:
    """Return the results, after an error or a warning where some failed."""
    if any(result.status == "failed" for result in results):
        if on_fail == "raise":
            raise CheckError(results)
        if on_fail == "warn":
            warnings.warn(report(results), stacklevel=3)
    return CheckResults(results)


def report(results: Sequence[CheckResult]) -> str:
    """The failures, the worst of each check, and how many passed."""
    return "\n\n".join([f"{_heading(results)}; the worst of each:", *map(str, worst_failures(results))])


def worst_failures(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The worst failure of each check that failed, in the order of the checks."""
    worst: dict[str, CheckResult] = {}
    for result in results:
        if result.status == "failed" and not excess(worst.get(result.check)) >= excess(result):
            worst[result.check] = result
    order = list(dict.fromkeys(result.check for result in results))
    return sorted(worst.values(), key=lambda result: order.index(result.check))


def _heading(results: Sequence[CheckResult]) -> str:
    failed = [result.check for result in results if result.status == "failed"]
    counts = Counter(result.status for result in results)
    if not results:
        return "no checks"
    if not failed:
        excused = counts["expected failure"]
        return f"{counts['passed']} checks passed" + f", {excused} failed as expected" * bool(excused)
    done = len(results) - counts["skipped"]
    return f"{len(failed)} of {done} checks failed, {len(set(failed))} of them different"


def excess(result: CheckResult | None) -> float:
    """How far beyond its limit a result is; a failure without a figure is infinitely far."""
    if result is None:
        return -1.0
    ratio = result.value / result.limit if result.limit else math.inf
    return math.inf if math.isnan(ratio) else ratio
