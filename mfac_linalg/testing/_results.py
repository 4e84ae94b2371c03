"""What a check says: one result a check and problem, and the report of the failures."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

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


def require_way_to_fail(on_fail: str | None) -> None:
    """Refuse any other `on_fail` than those there are."""
    if on_fail not in ("raise", "warn", None):
        msg = f"`on_fail` must be 'raise', 'warn' or None; got {on_fail!r}."
        raise ValueError(msg)


class CheckError(AssertionError):
    """Some checks failed; `results` has all of them.

    Parameters
    ----------
    results : sequence of CheckResult
        Every result, of checks that passed too; a list as an attribute.

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
        self.results = list(results)
        super().__init__(report(self.results))

    def __reduce__(self) -> tuple[type, tuple[list[CheckResult]]]:
        return type(self), (self.results,)


def deliver(results: list[CheckResult], on_fail: str | None) -> list[CheckResult]:
    """Return the results, after an error or a warning where some failed."""
    if any(result.status == "failed" for result in results):
        if on_fail == "raise":
            raise CheckError(results)
        if on_fail == "warn":
            warnings.warn(report(results), stacklevel=3)
    return results


def report(results: Sequence[CheckResult]) -> str:
    """The failures, the worst of each check, and how many passed."""
    worst: dict[str, CheckResult] = {}
    for result in results:
        if result.status == "failed" and not _excess(worst.get(result.check)) >= _excess(result):
            worst[result.check] = result
    failed = sum(result.status == "failed" for result in results)
    done = sum(result.status != "skipped" for result in results)
    order = list(dict.fromkeys(result.check for result in results))
    listed = sorted(worst.values(), key=lambda result: order.index(result.check))
    heading = f"{failed} of {done} checks failed, {len(worst)} of them different; the worst of each:"
    return "\n\n".join([heading, *map(str, listed)])


def _excess(result: CheckResult | None) -> float:
    """How far beyond its limit a result is; a failure without a figure is infinitely far."""
    if result is None:
        return -1.0
    ratio = result.value / result.limit if result.limit else math.inf
    return math.inf if math.isnan(ratio) else ratio
