"""Checks of what an inverse answers. Each measures one exam; the value, its limit and what was found."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._arrays import to_numpy
from ._exam import Exam, NoAnswerError, NotApplicableError, NotOfferedError, require_real
from ._explain import explain_error, explain_rounding
from ._oracle import LIMIT

SAMPLES, DEVIATIONS = 4000, 6.0
MOST_REPEATED = 0.1  # of the draws, which agree by chance where d is 1
FEW, ALIKE = 8, 1e-3  # draws that are compared, and their relative distance up to which they are the same


class Measured(NamedTuple):
    """What a check measured; it passes if value ≤ limit."""

    value: float
    limit: float
    message: str = ""


def right_formula(group: str, exam: Exam) -> Measured:
    """F⁻¹v to a few κε: whether the formula is right, however it rounds."""
    worst, is_resolved = Measured(0.0, LIMIT), True
    for name, v in _questions(exam, group).items():
        expected = exam.problem.oracle.solve(v)
        x = exam.answer_to(name)
        error = exam.error(v, x, expected)
        is_resolved &= exam.resolves(v, expected)
        if error > worst.value:
            worst = Measured(error, LIMIT, f"v = {name}. {explain_error(exam, v, x, expected)}")
    if worst.value <= LIMIT and not is_resolved:
        msg = f"rounding may hide a wrong formula at κ = {exam.problem.oracle.kappa:.3g} in {exam.problem.dtype}"
        raise NotApplicableError(msg)
    return worst


def stable(group: str, exam: Exam) -> Measured:
    """R = ‖v − Fx‖/(‖F‖‖x‖ε) ≤ 30: an answer as good as LAPACK's, at any κ."""
    worst = Measured(0.0, LIMIT)
    for name, v in _questions(exam, group).items():
        x = exam.answer_to(name)
        ratio = float(exam.problem.oracle.backward_ratio(v, x, exam.unit))
        if ratio > worst.value:
            worst = Measured(ratio, LIMIT, f"v = {name}. {explain_rounding(exam, v, x)}")
    return worst


def _questions(exam: Exam, group: str) -> dict[str, np.ndarray]:
    found = exam.in_group(group)
    if not found:
        msg = "no vector is orthogonal to the rows: m ≥ d"
        raise NotApplicableError(msg)
    return found


def factor(exam: Exam) -> Measured:
    """The n of F = Λ + (1/n) Σ w_i g_i g_iᵀ that the answers have, as a multiple of the one that was asked for."""
    v = exam.questions["first singular vector"]
    top = exam.problem.oracle.size  # F v = (1 + top) Λv
    if top < 0.1 or not exam.resolves(v, exam.problem.oracle.solve(v)):
        msg = f"n can hardly be told at κ = {1 + top:.3g} in {exam.problem.dtype}"
        raise NotApplicableError(msg)
    size = float(np.linalg.norm((exam.roots * exam.answer_to("first singular vector")).astype(np.float64)))
    if not size:
        msg = "F⁻¹v is 0"
        raise NoAnswerError(msg)
    shrinking = float(np.linalg.norm((v / exam.roots).astype(np.float64))) / size
    implied = top / (shrinking - 1) if shrinking > 1 else np.inf
    m, asked = exam.problem.shape[0], exam.problem.normalization
    n = m if asked == "mean" else 1
    found = f"the answers divide Σ w_i g_i g_iᵀ by {implied * n:.3g}; normalization={asked!r} is {n}, with m = {m}"
    return Measured(max(implied, 1 / implied), 1.1 + LIMIT * exam.unit * (1 + top), found)


def symmetric(exam: Exam) -> Measured:
    """uᵀF⁻¹v = vᵀF⁻¹u, in units of κε‖u‖‖v‖/λ."""
    worst = 0.0
    for one, other in (("random", "row"), ("row", "combination"), ("random", "last singular vector")):
        u, v = exam.questions[one], exam.questions[other]
        x, y = (exam.answer_to(name).astype(np.longdouble) for name in (one, other))
        gap = abs(u @ y - v @ x)
        worst = max(worst, float(gap) / _product_rounding(exam, u, v))
    return Measured(worst, LIMIT, "uᵀF⁻¹v and vᵀF⁻¹u differ")


def positive(exam: Exam) -> Measured:
    """‖v‖²/‖F‖ ≤ vᵀF⁻¹v ≤ ‖v‖²/λ, in units of κε‖v‖²/λ."""
    worst = Measured(0.0, LIMIT)
    for name, v in exam.questions.items():
        form = float(v @ exam.answer_to(name).astype(np.longdouble))
        most = float(np.sum((v / exam.roots) ** 2))
        beyond = max(form - most, most / exam.problem.oracle.kappa - form) / _product_rounding(exam, v, v)
        if beyond > worst.value:
            worst = Measured(beyond, LIMIT, f"v = {name}: vᵀF⁻¹v = {form:.3g}")
    return worst


def _product_rounding(exam: Exam, u: np.ndarray, v: np.ndarray) -> float:
    sizes = [np.linalg.norm((x / exam.roots).astype(np.float64)) for x in (u, v)]
    return float(exam.unit * exam.problem.oracle.kappa * sizes[0] * sizes[1]) or 1.0


def diagonal(exam: Exam) -> Measured:
    """Entries within κε/λ of those of F⁻¹, and between 1/‖F‖ and 1/λ."""
    if not hasattr(exam.inverse, "diagonal"):
        msg = "there is no `diagonal`"
        raise NotOfferedError(msg)
    entries = exam.diagonal() * exam.roots**2
    expected = np.diag(exam.problem.oracle.inverse) * exam.roots**2
    kappa = exam.problem.oracle.kappa
    unit = exam.unit * kappa
    outside = np.maximum(entries - 1, 1 / kappa - entries)
    j = int(np.argmax(np.abs(entries - expected)))
    found = f"entry {j} is {entries[j]:.6g}/λ instead of {expected[j]:.6g}/λ"
    return Measured(float(max(np.max(np.abs(entries - expected)), np.max(outside)) / unit), LIMIT, found)


def sample(exam: Exam) -> Measured:
    """Samples of N(0, F⁻¹): variances in four directions and a fourth moment, in standard deviations; and the seed."""
    draws = _drawn(exam)
    _require_seeded(exam.inverse)
    found = max(_variance(exam, draws), _fourth_moment(exam, draws))
    repeated = SAMPLES - len(np.unique(draws, axis=0))
    if found.value <= found.limit and repeated > MOST_REPEATED * SAMPLES:
        msg = f"{repeated} of sample({SAMPLES}) are copies of others"
        raise NoAnswerError(msg)
    return found


def sampled_variance(exam: Exam) -> Measured:
    """The variances alone."""
    return _variance(exam, _drawn(exam))


def _drawn(exam: Exam) -> np.ndarray:
    """As many draws as are judged, (SAMPLES, d), float64."""
    if not hasattr(exam.inverse, "sample"):
        msg = "there is no `sample`"
        raise NotOfferedError(msg)
    draws = to_numpy(_sampler(exam.inverse.sample)(SAMPLES, seed=0))
    d = exam.problem.shape[1]
    if draws.shape != (SAMPLES, d):
        msg = f"sample({SAMPLES}) has shape {draws.shape}; ({SAMPLES}, {d}) is needed"
        raise NoAnswerError(msg)
    require_real(draws, "the draws are")
    return draws.astype(np.float64)


def _variance(exam: Exam, draws: np.ndarray) -> Measured:
    worst = Measured(0.0, DEVIATIONS)
    for name in ("orthogonal to rows", "random", "row", "first singular vector"):
        v = exam.questions.get(name)
        variance = 0.0 if v is None else float(v @ exam.problem.oracle.solve(v))
        if v is not None and variance > 0:
            ratio = float(np.mean((draws @ v) ** 2)) / variance
            off = abs(ratio - 1) / np.sqrt(2 / SAMPLES)
            if off > worst.value:
                worst = Measured(off, DEVIATIONS, f"along {name} the variance is {ratio:.3g} of vᵀF⁻¹v")
    return worst


def _fourth_moment(exam: Exam, draws: np.ndarray) -> Measured:
    """How far the entry of the largest variance is from normal: its fourth moment, 3 in units of its variance²."""
    j = int(np.argmax(np.diag(exam.problem.oracle.inverse)))
    moment = float(np.mean(draws[:, j] ** 4) / max(np.mean(draws[:, j] ** 2) ** 2, np.finfo(np.float64).tiny))
    found = f"entry {j} is not normal: its fourth moment is {moment:.3g} variance², that of a normal one 3"
    return Measured(abs(moment - 3) / np.sqrt(24 / SAMPLES), DEVIATIONS, found)


def _sampler(sample: Callable[..., Any]) -> Callable[..., Any]:
    """A method that takes a size and `seed`; another one is not asked. A builtin says so only when it is called."""
    try:
        signature = inspect.signature(sample)
    except (TypeError, ValueError):
        return functools.partial(_call_builtin, sample)
    try:
        signature.bind(SAMPLES, seed=0)
    except TypeError as error:
        raise NotOfferedError(_OTHER_SAMPLER.format(error)) from error
    return sample


def _call_builtin(sample: Callable[..., Any], size: int, seed: int) -> Any:
    try:
        return sample(size, seed=seed)
    except TypeError as error:
        raise NotOfferedError(_OTHER_SAMPLER.format(error)) from error


_OTHER_SAMPLER = "`sample` is not called as sample(size, seed=0): {}"


def _require_seeded(inverse: Any) -> None:
    draws, again, others = (to_numpy(inverse.sample(FEW, seed=seed)).astype(np.float64) for seed in (1, 1, 2))
    size = float(np.max(np.abs(draws), initial=0.0))
    is_repeated, is_alike = (np.max(np.abs(draws - x), initial=0.0) <= ALIKE * size for x in (again, others))
    if not is_repeated:
        msg = f"sample({FEW}, seed=1) gives other draws when it is called again: the seed does not decide them"
        raise NoAnswerError(msg)
    if is_alike and size:
        msg = f"sample({FEW}, seed=1) and sample({FEW}, seed=2) give the same draws: the seed is not used"
        raise NoAnswerError(msg)
