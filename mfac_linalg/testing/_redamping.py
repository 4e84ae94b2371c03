"""The check of another damping."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _answers
from ._answers import Measured
from ._arrays import to_numpy
from ._exam import Exam, NoAnswerError, NotApplicableError, NotOfferedError, described
from ._explain import explain_error
from ._oracle import LIMIT
from ._problems import Problem


def damping(exam: Exam) -> Measured:
    """Another damping gives the answers of an inverse that is built with it; `with_damping` changes only the new one.

    The damping is changed after a product, `diagonal` and `sample`, and each is asked again.
    """
    v, (problem, words) = exam.questions["combination"], _another_damping(exam.problem)
    original = exam.of(exam.problem)  # the exam's own inverse stays as it is
    before, entries = original.answer(v), right_diagonal(original)  # what they keep is kept now
    can_draw = _wrong_draws(original) is None
    changed = exam.of(problem, lambda _: _redamped(original, problem))
    found = _solves(changed, v, words)
    if found.value <= LIMIT and entries is not None and hasattr(changed.inverse, "diagonal"):
        value, _, message = _answers.diagonal(changed)
        found = max(found, Measured(value, LIMIT, f"for {words}. `diagonal`: {message}"))
    if found.value <= LIMIT and can_draw and (wrong := _wrong_draws(changed)):
        return wrong._replace(message=f"for {words}. `sample`: {wrong.message}")
    if found.value > LIMIT or exam.redamp is not None or not hasattr(original.inverse, "with_damping"):
        return found
    after = original.error(v, original.answer(v), before)
    if entries is not None:
        gap = float(np.max(np.abs(original.diagonal() - entries) * exam.roots**2))
        after = max(after, gap / (exam.unit * exam.problem.oracle.kappa))
    return Measured(after, LIMIT, "`with_damping` changed the inverse that it was called on")


def _another_damping(problem: Problem) -> tuple[Problem, str]:
    """Seven times λ; for a damping per parameter another multiple of each."""
    if np.ndim(problem.damping) == 0:
        return problem.with_damping(problem.damping * 7), "7 λ"
    multiples = np.linspace(7, 14, len(problem.damping)).astype(problem.damping.dtype)
    return problem.with_damping(problem.damping * multiples), "7 to 14 times Λ"


def _solves(exam: Exam, v: np.ndarray, words: str) -> Measured:
    expected, x = exam.problem.oracle.solve(v), exam.answer(v)
    return Measured(exam.error(v, x, expected), LIMIT, f"for {words}. {explain_error(exam, v, x, expected)}")


def right_diagonal(exam: Exam) -> np.ndarray | None:
    """The diagonal; None where there is none, or it is wrong already."""
    try:
        value, limit, _ = _answers.diagonal(exam)
        return exam.diagonal() if value <= limit else None
    except (NoAnswerError, NotApplicableError):
        return None


def _wrong_draws(exam: Exam) -> Measured | None:
    """What the variances of draws fail by; None where they pass, or there is no `sample`."""
    try:
        found = _answers.sampled_variance(exam)
    except NotApplicableError:
        return None
    except NoAnswerError as error:
        return Measured(np.inf, 0.0, str(error))
    except Exception as error:
        return Measured(np.inf, 0.0, f"raised {described(error)}")
    return found if found.value > found.limit else None


def _redamped(other: Exam, problem: Problem) -> Any:
    """The inverse under the damping of a problem; the call may not write to an array that it is given."""
    value = problem.damping if np.ndim(problem.damping) == 0 else other.asarray(problem.damping.copy())
    sent = None if np.ndim(problem.damping) == 0 else to_numpy(value)
    call, change = _way_to_redamp(other)
    try:
        changed = change(value)
    except Exception as error:
        msg = f"{call} raised {described(error)}"
        raise NoAnswerError(msg) from error
    if sent is not None and not np.array_equal(to_numpy(value), sent):
        msg = f"{call} wrote to the damping that it was given"
        raise NoAnswerError(msg)
    return changed


def _way_to_redamp(other: Exam) -> tuple[str, Callable[[Any], Any]]:
    """What changes the damping of an inverse, in words and as a function."""
    inverse, redamp = other.inverse, other.redamp
    if redamp is not None:
        return "`redamp`", lambda value: redamp(inverse, value)
    if hasattr(inverse, "with_damping"):
        return "`with_damping`", inverse.with_damping
    if not has_setter(inverse, "damping"):
        msg = "there is no `with_damping`, `damping` is no property that can be set, and no `redamp` was given"
        raise NotOfferedError(msg)

    def change(value: Any) -> Any:
        inverse.damping = value
        return inverse

    return "setting `damping`", change


def has_setter(x: Any, name: str) -> bool:
    """Whether a class has a property that can be set: an attribute that is only kept may mean anything."""
    found = getattr(type(x), name, None)
    return isinstance(found, property) and found.fset is not None
