"""One problem put to one inverse: building it, asking it, and how far its answers are off."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ._arrays import to_numpy, traits
from ._oracle import LIMIT
from ._problems import GROUPS, Problem, right_hand_sides

ASKED_AT = 0  # the seed of right-hand sides


class NotApplicableError(Exception):
    """The check does not apply; the text says why."""


class NotOfferedError(NotApplicableError):
    """The inverse does not offer what the check asks for, whatever the problem."""


class NoAnswerError(Exception):
    """The check failed without a figure; the text says how."""


@dataclass(frozen=True, eq=False)
class Exam:
    """An inverse of one problem, and what is allowed to its answers.

    In what follows every vector is scaled by Λ^½ or Λ^-½, so that F = I + SᵀS and κ = ‖F‖.
    """

    make: Callable[[Problem], Any]
    problem: Problem
    asarray: Callable[[np.ndarray], Any]
    redamp: Callable[[Any, Any], Any] | None
    unit: float  # the rounding error of one operation

    @functools.cached_property
    def inverse(self) -> Any:
        """What `make` returns."""
        try:
            return self.make(self.problem.copy())
        except (NoAnswerError, NotApplicableError):
            raise
        except Exception as error:
            msg = f"`make` raised {described(error)}"
            raise NoAnswerError(msg) from error

    def of(self, problem: Problem, make: Callable[[Problem], Any] | None = None) -> "Exam":
        """The same for another problem."""
        return replace(self, problem=problem, make=make or self.make)

    def ask(self, v: Any) -> Any:
        """The inverse times v, an array of its library, as it answers."""
        return ask(self.inverse, v)

    def answer(self, v: np.ndarray) -> np.ndarray:
        """The inverse times v, (d,), in NumPy."""
        return self.checked(lambda: self.ask(self.asarray(v.copy())))

    def answer_to(self, name: str) -> np.ndarray:
        """The inverse times a right-hand side by name: asked once for all checks of products."""
        if name not in self._answers:
            self._answers[name] = self.answer(self.questions[name])
        return self._answers[name]

    @functools.cached_property
    def _answers(self) -> dict[str, np.ndarray]:
        return {}

    def diagonal(self) -> np.ndarray:
        """What `diagonal` returns, (d,), in NumPy."""
        return self.checked(lambda: self.inverse.diagonal(), "`diagonal`", "the answer of `diagonal`", "")

    def checked(
        self, function: Callable[[], Any], call: str = "a product", answer: str = "F⁻¹v", of: str = " for v of shape"
    ) -> np.ndarray:
        """The answer of a function as a NumPy array of finite real numbers, (d,); else the words that name the call."""
        try:
            x = to_numpy(function())
        except (NoAnswerError, NotApplicableError):
            raise
        except Exception as error:
            msg = f"{call} raised {described(error)}"
            raise NoAnswerError(msg) from error
        if x.shape != (self.problem.shape[1],):
            msg = f"{answer} has shape {x.shape}{of or ' instead of'} ({self.problem.shape[1]},)"
            raise NoAnswerError(msg)
        require_real(x, f"{answer} is")
        if not np.isfinite(x).all():
            msg = f"{answer} has {np.sum(~np.isfinite(x))} entries that are not finite"
            raise NoAnswerError(msg)
        return x

    @functools.cached_property
    def questions(self) -> dict[str, np.ndarray]:
        """Right-hand sides by name."""
        return right_hand_sides(self.problem, ASKED_AT)

    def in_group(self, name: str) -> dict[str, np.ndarray]:
        """The right-hand sides of a group; it may be empty."""
        return {key: self.questions[key] for key in GROUPS[name] if key in self.questions}

    @property
    def roots(self) -> np.ndarray:
        """The diagonal of Λ^½."""
        return self.problem.oracle.roots

    def error(self, v: np.ndarray, x: np.ndarray, expected: np.ndarray) -> float:
        """‖x − expected‖ in units of what a correct formula may lose, ε(κ‖expected‖ + √κ‖v‖).

        The second term is what the textbook formula loses where v lies in the span of the gradients.
        """
        gap = float(np.linalg.norm((self.roots * (x - expected)).astype(np.float64)))
        loss = float(self._loss(v, expected))
        return gap / loss if loss else (np.inf if gap else 0.0)  # v = 0 has the answer 0

    def _loss(self, v: np.ndarray, expected: np.ndarray) -> Any:
        kappa, size = self.problem.oracle.kappa, np.linalg.norm((self.roots * expected).astype(np.float64))
        return self.unit * (kappa * size + np.sqrt(kappa) * np.linalg.norm((v / self.roots).astype(np.float64)))

    def resolves(self, v: np.ndarray, expected: np.ndarray) -> bool:
        """Whether a wrong formula shows: rounding may not be of the size of the answer."""
        size = np.linalg.norm((self.roots * expected).astype(np.float64))
        return bool(LIMIT * self._loss(v, expected) <= 0.3 * size)


def ask(inverse: Any, v: Any) -> Any:
    """The inverse times v: by `matvec`, `@`, or a call."""
    if hasattr(inverse, "matvec"):
        return inverse.matvec(v)
    if hasattr(type(inverse), "__matmul__"):
        return inverse @ v
    if not callable(inverse):
        msg = f"`make` must return an object with `matvec` or `@`, or a function; got {type(inverse).__name__}"
        raise NoAnswerError(msg)
    return inverse(v)


def changed_traits(v: Any, x: Any) -> str:
    """What the answer x has not of v, in words; empty if nothing."""
    before, after = traits(v), traits(x)
    return "; ".join(f"{name} {after[name]} for {before[name]}" for name in before if before[name] != after[name])


def require_real(x: np.ndarray, what: str) -> None:
    """Refuse complex numbers, of which NumPy would drop the imaginary part."""
    if np.iscomplexobj(x):
        msg = f"{what} complex, {x.dtype}, for a real matrix"
        raise NoAnswerError(msg)


def described(error: BaseException) -> str:
    """Class and text of an exception."""
    return f"{type(error).__name__}: {error}"
