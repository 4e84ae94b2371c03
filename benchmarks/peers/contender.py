"""What takes part in a race: how it is built, which queries it answers, and why it leaves out others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from benchmarks.machine import Limits
from benchmarks.problems import Problem

Call = Callable[[], Any]


class RefusalError(Exception):
    """The contender has no answer here; the text says why."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Parameters
    ----------
    problem : Problem
        Gradients, damping and right-hand sides.
    query : str
        A name in `queries.QUERIES`.
    residual : float
        ‖v − Fx‖/‖v‖ of the library's answer, or eps if that is more: where iterations stop.
    """

    problem: Problem
    query: str
    residual: float = 0.0

    @property
    def v(self) -> Any:
        """The right-hand side of a product, shape (d,) or (d, 64)."""
        names = {"random": "random_vector", "row": "stored_row", "combination": "combination", "block": "block"}
        return getattr(self.problem, names[self.query])


def admit_all(_: Question, __: Limits) -> str:
    """Find no reason to leave out a question."""
    return ""


@dataclass(frozen=True)
class Contender:
    """One way to the answers.

    Parameters
    ----------
    name : str
        As the figures call it.
    build : callable
        Of the problem: the call that returns what the answers need. What `build` does itself is not timed.
    answers : mapping of str to callable
        For each query, of what was built and the question: the call to be timed.
    needs : tuple of str
        Libraries without which it is left out.
    cannot : mapping of str to str
        Reasons, by query, for those that it has no answer to.
    refuse : callable
        Of the question and the machine's limits: the reason to leave this one out, or "".
    copies : float
        How many arrays of the size of G it holds beside the caller's; `copies_for` has exceptions by query.
    """

    name: str
    build: Callable[[Problem], Call]
    answers: Mapping[str, Callable[[Any, Question], Call]]
    needs: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)
    refuse: Callable[[Question, Limits], str] = admit_all
    copies: float = 0.0
    copies_for: Mapping[str, float] = field(default_factory=dict)

    def is_concerned(self, query: str) -> bool:
        """Whether the figures of a query have a line for it."""
        return query in self.answers or query in self.cannot

    def reason_against(self, question: Question, limits: Limits) -> str:
        """Return why it does not answer a question, or ""."""
        missing = [library for library in self.needs if find_spec(library) is None]
        if missing:
            return f"needs {', '.join(missing)}"
        return self.cannot.get(question.query, "") or self.refuse(question, limits)

    def bytes_for(self, question: Question) -> float:
        """Return the memory that it holds for a question, without the caller's gradients."""
        return self.copies_for.get(question.query, self.copies) * question.problem.gradients.nbytes
