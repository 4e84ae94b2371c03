"""Checks of how an inverse behaves: towards other problems, its arguments, and invalid ones."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import _answers
from ._answers import Measured
from ._arrays import overwrite, to_numpy
from ._exam import Exam, NoAnswerError, NotApplicableError, NotOfferedError, changed_traits, described
from ._explain import explain_error
from ._oracle import LIMIT
from ._problems import Problem


def damping(exam: Exam) -> Measured:
    """Another damping gives the answers of an inverse that is built with it; `with_damping` changes only the new one.

    The damping is changed after a product, `diagonal` and `sample`, and each is asked again.
    """
    v, (problem, words) = exam.questions["combination"], _another_damping(exam.problem)
    original = exam.of(exam.problem)  # the exam's own inverse stays as it is
    before, entries = original.answer(v), _right_diagonal(original)  # what they keep is kept now
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


def _right_diagonal(exam: Exam) -> np.ndarray | None:
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


def permutation(exam: Exam) -> Measured:
    """The order of the gradients does not matter."""
    return _same_answer(exam, exam.problem.permuted(), 1.0, "for the gradients in reverse order")


def scale(exam: Exam) -> Measured:
    """Gradients times 2^10 and damping times 2^20 divide the answer by 2^20."""
    return _same_answer(exam, exam.problem.scaled_by(2.0**10), 2.0**20, "for gradients times 2^10, damping times 2^20")


def _same_answer(exam: Exam, problem: Problem, factor: float, what: str) -> Measured:
    other, worst = exam.of(problem), Measured(0.0, LIMIT)
    for name in ("random", "row"):
        v = exam.questions[name]
        gap = exam.error(v, other.answer(v) * factor, exam.answer_to(name).astype(np.longdouble))
        if gap > worst.value:
            worst = Measured(gap, LIMIT, f"v = {name}: another answer {what}")
    return worst


def inputs(exam: Exam) -> Measured:
    """The gradients, the damping, the weights and v are as they were, after several products and `diagonal`."""
    problem = exam.problem.copy()
    given = {"gradients": problem.gradients, "damping": problem.damping, "weights": problem.weights}
    arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    before = {name: array.copy() for name, array in arrays.items()}
    asked = exam.of(exam.problem, lambda _: exam.make(problem))
    is_v_kept = all(_keeps(asked, exam.questions[name]) for name in ("row", "random", "row", "combination"))
    _right_diagonal(asked)
    changed = [name for name, array in arrays.items() if not np.array_equal(array, before[name])]
    changed += [] if is_v_kept else ["v"]
    return Measured(float(len(changed)), 0.0, f"changed: {', '.join(changed)}")


def _keeps(exam: Exam, v: np.ndarray) -> bool:
    asked = exam.asarray(v.copy())
    sent = to_numpy(asked)
    exam.checked(lambda: exam.ask(asked))
    return np.array_equal(to_numpy(asked), sent)


def outputs(exam: Exam) -> Measured:
    """An answer stays as it is when others are asked for, and may be written to."""
    other, v = exam.of(exam.problem), exam.questions["random"]  # its inverse may be spoiled
    asks = {"an answer": lambda: other.ask(other.asarray(v.copy()))}
    if hasattr(other.inverse, "matvec") and _right_diagonal(other) is not None:  # that of a bare array may be a view
        asks["the answer of `diagonal`"] = lambda: other.inverse.diagonal()
    kept = {name: call() for name, call in asks.items()}
    before = {name: to_numpy(x) for name, x in kept.items()}
    for name in ("row", "combination", "row"):
        other.answer(exam.questions[name])
    changed = [f"{name} changed when others were asked for" for name in kept if _differ(kept[name], before[name])]
    for name, call in asks.items():
        if not changed and _is_shared(kept[name], call):
            changed = [f"{name} was written to, and the next one is not as it was"]
    return Measured(float(len(changed)), 0.0, f"{'; '.join(changed)}: they share memory")


def _is_shared(kept: Any, call: Callable[[], Any]) -> bool:
    """Whether writing to an answer changes the next one, or the next one changes what was written."""
    if not overwrite(kept):
        return False
    written = to_numpy(kept)
    again = to_numpy(call())
    return bool(np.any(again == written)) or _differ(kept, written)


def _differ(x: Any, before: np.ndarray) -> bool:
    return not np.array_equal(to_numpy(x), before)


def layout(exam: Exam) -> Measured:
    """A v that is a view with strides, one that is a view backwards, and a read-only one get the same answers."""
    worst = Measured(0.0, LIMIT)
    for name in ("random", "row"):
        v = exam.questions[name]
        expected = exam.answer_to(name).astype(np.longdouble)
        for words, make in LAYOUTS.items():
            same = make(exam, v)
            gap = 0.0 if same is None else exam.error(v, exam.checked(functools.partial(exam.ask, same)), expected)
            if gap > worst.value:
                worst = Measured(gap, LIMIT, f"v = {name}: another answer if v is {words}")
    return worst


def _strided(exam: Exam, v: np.ndarray) -> Any:
    """The same vector as every second entry of a longer one; None where `asarray` takes no other length."""
    wide = np.full(2 * len(v), 1 + np.max(np.abs(v)), v.dtype)
    wide[::2] = v
    try:
        return exam.asarray(wide)[::2]
    except Exception:
        return None


def _read_only(exam: Exam, v: np.ndarray) -> Any:
    """The same vector, which cannot be written to; None for a library that has no such arrays."""
    same = exam.asarray(v.copy())
    if not isinstance(same, np.ndarray):
        return None
    same.flags.writeable = False
    return same


def _backwards(exam: Exam, v: np.ndarray) -> Any:
    """The same vector as a reversed view of its entries in reverse; None for a library that has no such views."""
    try:
        return exam.asarray(v[::-1].copy())[::-1]
    except Exception:
        return None


LAYOUTS: dict[str, Callable[[Exam, np.ndarray], Any]] = {
    "a view with strides": _strided,
    "a view backwards": _backwards,
    "read-only": _read_only,
}


def dtype(exam: Exam) -> Measured:
    """Library, dtype, device and shape of an answer are those of v."""
    v = exam.asarray(exam.questions["random"])
    exam.checked(lambda: exam.ask(v))
    lost = changed_traits(v, exam.ask(v))
    return Measured(float(bool(lost)), 0.0, f"F⁻¹v has {lost}")


def refusal(exam: Exam) -> Measured:
    """A v of the wrong length, a damping that is not positive, and gradients that are not finite raise."""
    problem, v = exam.problem, exam.questions["random"]
    exam.answer(v)  # valid arguments do not raise
    cases = {"a v that is too long": (problem, np.append(v, v[:1]))}
    if len(v) > 1:
        cases["a v that is too short"] = (problem, v[:-1].copy())
    cases["a damping that is negative"] = (problem.with_damping(-1.0 * problem.damping), v)
    for row in sorted({0, problem.shape[0] // 2, problem.shape[0] - 1}):
        spoiled = problem.gradients.copy()
        spoiled[row, -1] = np.nan
        cases[f"gradients with a nan in row {row}"] = (replace(problem, gradients=spoiled), v)
    outcomes = {name: _outcome(exam.of(given), asked) for name, (given, asked) in cases.items()}
    accepted = [name for name, outcome in outcomes.items() if outcome == "accepted"]
    unasked = [name for name, outcome in outcomes.items() if outcome == "not asked"]
    if unasked and not accepted:
        msg = f"`asarray` raised for {' and '.join(unasked)}, which says nothing about the inverse"
        raise NotApplicableError(msg)
    return Measured(float(len(accepted)), 0.0, f"accepted: {', '.join(accepted)}")


def _outcome(exam: Exam, v: np.ndarray) -> str:
    try:
        asked = exam.asarray(v)
    except Exception:
        return "not asked"
    try:
        to_numpy(exam.ask(asked))
    except Exception:
        return "refused"
    return "accepted"
