"""Checks of how an inverse behaves: towards other problems, its arguments, and invalid ones."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from ._answers import Measured
from ._arrays import to_numpy
from ._exam import Exam, NotApplicableError, ask, changed_traits
from ._explain import explain_error
from ._oracle import LIMIT
from ._problems import Problem


def damping(exam: Exam) -> Measured:
    """Another damping gives the answers of an inverse that is built with it; `with_damping` changes only the new one.

    The damping is changed after a product.
    """
    problem, v = exam.problem.with_damping(exam.problem.damping * 7), exam.questions["combination"]
    original = exam.of(exam.problem)  # the exam's own inverse stays as it is
    before = original.answer(v)  # what a product keeps is kept now
    changed = exam.of(problem, lambda _: _redamped(original, problem))
    expected, x = problem.oracle.solve(v), changed.answer(v)
    found = Measured(changed.error(v, x, expected), LIMIT, f"for 7 λ. {explain_error(changed, v, x, expected)}")
    if found.value > LIMIT or exam.redamp is not None or not hasattr(original.inverse, "with_damping"):
        return found
    after = original.answer(v)
    return Measured(original.error(v, after, before), LIMIT, "`with_damping` changed the inverse that it was called on")


def _redamped(other: Exam, problem: Problem) -> Any:
    value = problem.damping if np.ndim(problem.damping) == 0 else other.asarray(problem.damping)
    if other.redamp is not None:
        return other.redamp(other.inverse, value)
    if hasattr(other.inverse, "with_damping"):
        return other.inverse.with_damping(value)
    if not has_setter(other.inverse, "damping"):
        msg = "there is no `with_damping`, `damping` is no property that can be set, and no `redamp` was given"
        raise NotApplicableError(msg)
    other.inverse.damping = value
    return other.inverse


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
    """The gradients, the damping, the weights and v are as they were."""
    problem, v = exam.problem.copy(), exam.questions["row"]
    given = {"gradients": problem.gradients, "damping": problem.damping, "weights": problem.weights}
    arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    before = {name: array.copy() for name, array in arrays.items()}
    asked = exam.asarray(v.copy())
    sent = to_numpy(asked)
    exam.checked(lambda: ask(exam.make(problem), asked))
    changed = [name for name, array in arrays.items() if not np.array_equal(array, before[name])]
    changed += [] if np.array_equal(to_numpy(asked), sent) else ["v"]
    return Measured(float(len(changed)), 0.0, f"changed: {', '.join(changed)}")


def outputs(exam: Exam) -> Measured:
    """An answer stays as it is when another one is asked for."""
    kept = exam.ask(exam.asarray(exam.questions["row"]))
    before = exam.checked(lambda: kept)
    exam.answer(exam.questions["random"])
    is_changed = not np.array_equal(to_numpy(kept), before)
    return Measured(float(is_changed), 0.0, "an answer changed when another was asked for: they share memory")


def layout(exam: Exam) -> Measured:
    """A v that is a view with strides, and one that is read-only, get the same answers."""
    worst = Measured(0.0, LIMIT)
    for name in ("random", "row"):
        v = exam.questions[name]
        expected = exam.answer_to(name).astype(np.longdouble)
        for words, make in (("a view with strides", _strided), ("read-only", _read_only)):
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
    spoiled = problem.gradients.copy()
    spoiled[-1, -1] = np.nan
    cases = {
        "a v that is too long": (problem, np.append(v, v[:1])),
        "a damping that is negative": (problem.with_damping(-1.0 * problem.damping), v),
        "gradients with a nan": (replace(problem, gradients=spoiled), v),
    }
    accepted = [name for name, (given, asked) in cases.items() if not _raises(exam.of(given), asked)]
    return Measured(float(len(accepted)), 0.0, f"accepted: {', '.join(accepted)}")


def _raises(exam: Exam, v: np.ndarray) -> bool:
    try:
        to_numpy(exam.ask(exam.asarray(v)))
    except Exception:
        return True
    return False
