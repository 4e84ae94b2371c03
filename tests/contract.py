"""The accuracy contract, measured: which condition numbers it covers and what an inverse makes of one problem."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfac_linalg.testing import Problem, right_hand_sides
from tests.backends import Backend, eps
from tests.cases import construct

REACH = {
    ("float32", "default"): 0.1 / eps("float32"),
    ("float32", "high"): 0.1 / eps("float32"),
    ("float64", "default"): 1e9,
    ("float64", "high"): 1e11,
}
"""The largest condition number at which every answer keeps R <= 30, by dtype and precision."""

STATIC_HIGH = 0.1 / eps("float64")
"""The reach of a static inverse in float64 with precision="high"."""


@dataclass(frozen=True)
class Measured:
    """One answer: its backward and its forward ratio, to be compared with 30."""

    name: str
    backward: float
    forward: float


def decades(dtype: str, precision: str, *, top: float | None = None) -> tuple[float, float]:
    """Powers of ten between which problems of a dtype and precision are drawn: from 1.3 to just inside the reach."""
    return 0.1, float(np.log10(0.99 * (top or REACH[dtype, precision])))


@dataclass(frozen=True, eq=False)
class Exam:
    """The questions of one problem, (d, k), with their answers; the last ones are G^T coefficients."""

    names: list[str]
    questions: np.ndarray
    exact: np.ndarray
    coefficients: np.ndarray

    @property
    def vectors(self) -> int:
        """How many questions are vectors and not combinations."""
        return len(self.names) - self.coefficients.shape[1]


@functools.lru_cache(maxsize=2)
def examine(problem: Problem, seed: int) -> Exam:
    """Every right-hand side of the contract, and three combinations of the rows."""
    vectors = right_hand_sides(problem, seed)
    m = len(problem.gradients)
    coefficients = np.zeros((m, 3), problem.dtype)
    coefficients[:, 0] = np.random.default_rng(seed).standard_normal(m)
    coefficients[-1, 1:] = 1
    coefficients[0, 2] -= 1
    combinations = problem.gradients.astype(problem.wide).T @ coefficients
    questions = np.concatenate([np.stack(list(vectors.values()), axis=1), combinations], axis=1)
    names = [*vectors, "push-through", "push-through of a row", "push-through of a difference"]
    return Exam(names, questions, problem.oracle.solve(questions), coefficients)


def measure(problem: Problem, backend: Backend, *, seed: int = 0, **options: Any) -> list[Measured]:
    """Every right-hand side of the contract by `matvec`, all of them by `matmat`, and combinations by push-through.

    A combination is allowed the rounding of its own terms in addition to the contract: where rows are alike G^T c may
    vanish, and no arithmetic that rounds its terms can keep R. With precision="high" the terms are added in float64.
    """
    inverse, exam = construct(problem, backend, **options), examine(problem, seed)
    vectors = exam.questions[:, : exam.vectors].astype(problem.dtype)
    single = [backend.to_numpy(inverse.matvec(backend.asarray(v))) for v in vectors.T]
    together = backend.to_numpy(inverse.matmat(backend.asarray(vectors)))
    pushed = backend.to_numpy(inverse.matvec_gradients(backend.asarray(exam.coefficients)))
    unit = eps("float64" if options.get("precision") == "high" else problem.dtype)
    rounding = problem.oracle.rounding_of_combinations(exam.coefficients, unit)
    floor = np.concatenate([np.zeros(exam.vectors), rounding])
    return [
        *_compare(problem, exam, np.concatenate([np.stack(single, axis=1), pushed], axis=1), floor),
        *_compare(problem, exam, together, floor, " (matmat)"),
    ]


def _compare(problem: Problem, exam: Exam, answers: np.ndarray, floor: Any, note: str = "") -> list[Measured]:
    k, oracle, unit = answers.shape[1], problem.oracle, eps(problem.dtype)
    backward = oracle.backward_ratio(exam.questions[:, :k], answers, unit, floor[:k])
    forward = oracle.distance_ratio(exam.exact[:, :k], answers, unit, floor[:k])
    return [Measured(n + note, float(r), float(f)) for n, r, f in zip(exam.names[:k], backward, forward, strict=True)]
