"""One question at one problem: every contender answers, the answers are compared, then all take turns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from benchmarks.cases import rounds
from benchmarks.machine import Limits, measure
from benchmarks.neighbours import Patience, timed
from benchmarks.peers.contender import Call, Contender, Question, RefusalError
from benchmarks.peers.library import NUMPY
from benchmarks.peers.queries import BUILDS, PRODUCTS, QUERIES
from benchmarks.problems import Problem
from benchmarks.reference import Reference
from benchmarks.workbench import EPS

FAILURES = (ArithmeticError, ValueError, RuntimeError, TypeError, MemoryError, np.linalg.LinAlgError)
"""What a contender may raise: it is written down, and the race goes on without it."""

LARGE = 1e9
"""Bytes of gradients from which the limits are measured once a problem: that takes as much memory again."""
SHORT = 2e-4
"""Seconds below which calls are timed some at a time."""


@dataclass(frozen=True)
class Pace:
    """How long turns are.

    Parameters
    ----------
    rounds : int
        Turns of each contender, fewer where calls take seconds.
    run_in : float
        Seconds of calls that do not count at the start of a turn: threads that wait for the BLAS of the contender
        before stand in the way for a tenth of a second.
    counted : float
        Seconds of calls that count, one at least.
    memory : float
        Bytes that all of them may hold together.
    patience : Patience
        How long to wait, in all, for a quiet machine.
    """

    rounds: int = 5
    run_in: float = 0.12
    counted: float = 0.02
    memory: float = 17e9
    patience: Patience = field(default_factory=partial(Patience, 0.0))


@dataclass
class Entrant:
    """A contender in one race: its call, its first answer, and the seconds of its calls."""

    contender: Contender
    call: Call
    answer: np.ndarray
    first: float
    others: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def usual(self) -> float:
        """Seconds of a call as far as they are known; a first one may make what later ones use."""
        return statistics.median(self.seconds) if self.seconds else self.first

    def wants_turn(self, turn: int, query: str) -> bool:
        """Whether there is time for one more turn; a build that takes many seconds is timed when it is first made."""
        if turn == 0:
            return query not in BUILDS or rounds(self.first) > 1
        return turn < rounds(self.usual)

    def take_turn(self, pace: Pace) -> None:
        """Run in, then time calls; short ones some at a time, so that the clock does not count."""
        turn, _ = timed(partial(self._time_calls, pace))
        self.others.append(turn.others)

    def _time_calls(self, pace: Pace) -> None:
        until = time.perf_counter() + (pace.run_in if self.usual < 10 * pace.run_in else 0)
        calls = 0
        while time.perf_counter() < until:
            self.call()
            calls += 1
        number = max(1, int(calls * SHORT / pace.run_in)) if pace.run_in else 1
        until = time.perf_counter() + pace.counted
        while True:
            timing, _ = timed(self.call if number == 1 else partial(_repeat, self.call, number))
            self.seconds.append(timing.seconds / number)
            if time.perf_counter() >= until:
                return

    def figure(self, error: float) -> dict[str, Any]:
        """The figures of the contender, ready for JSON; where a call is too long to be repeated, of the first."""
        seconds = self.seconds or [self.first]
        return {
            "name": self.contender.name,
            "seconds": statistics.median(seconds),
            "best": min(seconds),
            "worst": max(seconds),
            "samples": len(seconds),
            "first": self.first,
            "others": statistics.median(self.others or [0.0]),
            "R": error,
        }


def _repeat(call: Call, number: int) -> None:
    for _ in range(number):
        call()


class Race:
    """All questions at one problem; what contenders have built serves the questions that follow.

    Parameters
    ----------
    problem : Problem
        Sizes, κ and seed.
    contenders : iterable of Contender
        The library first: iterations stop at the residual of its answer.
    pace : Pace
        How long turns are, and the memory.
    """

    def __init__(self, problem: Problem, contenders: Iterable[Contender], pace: Pace) -> None:
        self.problem, self.pace = problem, pace
        self.contenders = list(contenders)
        self._built: dict[int, Any] = {}

    @cached_property
    def reference(self) -> Reference:
        """The float64 reference."""
        return Reference(self.problem)

    @cached_property
    def limits(self) -> Limits:
        """The machine's limits, the best so far."""
        return measure(self.problem.gradients, repeats=2)

    def run(self, query: str) -> dict[str, Any]:
        """Return the figures of a question, ready for JSON."""
        if self.problem.gradients.nbytes < LARGE:
            self.limits = self.limits.better(measure(self.problem.gradients, repeats=1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figures, entrants = self._line_up(Question(self.problem, query))
            for turn in range(self.pace.rounds):
                self.pace.patience.wait()
                start = turn % max(1, len(entrants))
                for entrant in entrants[start:] + entrants[:start]:
                    if entrant.wants_turn(turn, query):
                        entrant.take_turn(self.pace)
        return self._record(query, figures, entrants)

    def _line_up(self, question: Question) -> tuple[list[dict[str, Any]], list[Entrant]]:
        """Ask every contender once; return those that have no answer, with reasons, and those that have one."""
        absent, entrants = [], []
        concerned = [each for each in self.contenders if each.is_concerned(question.query)]
        reasons = self._reasons(concerned, question)
        for contender in concerned:
            try:
                if reasons[contender.name]:
                    raise RefusalError(reasons[contender.name])
                entrants.append(self._enter(contender, question))
            except (RefusalError, *FAILURES) as error:
                said = str(error).strip().partition("\n")[0]
                reason = said if isinstance(error, RefusalError) else f"raises {type(error).__name__}: {said}"
                absent.append({"name": contender.name, "reason": reason})
                continue
            if contender.name == NUMPY and question.query in PRODUCTS:
                question = replace(question, residual=self._residual(question, entrants[-1].answer))
        return absent, entrants

    def _reasons(self, concerned: list[Contender], question: Question) -> dict[str, str]:
        """Why each does not answer, or ""; the last ones stay out if the memory is too small for all."""
        room = self.pace.memory - self.problem.gradients.nbytes
        if sum(each.bytes_for(question) for each in self.contenders) > room:
            kept = set(map(id, concerned))
            self._built = {key: state for key, state in self._built.items() if key in kept}
        reasons = {}
        for contender in concerned:
            reason, held = contender.reason_against(question, self.limits), contender.bytes_for(question)
            if not reason and held > room:
                reason = f"the memory is too small for its {held / 1e9:.1f} GB beside the others"
            room -= 0 if reason else held
            if reason:
                self._built.pop(id(contender), None)
            reasons[contender.name] = reason
        return reasons

    def _enter(self, contender: Contender, question: Question) -> Entrant:
        """Build what is not built, and make the call once, which warms it up."""
        if question.query in BUILDS:
            call = contender.build(self.problem)
            timing, state = timed(call)
            self._built[id(contender)] = state
            answer = contender.answers[question.query](state, question)()
        else:
            if id(contender) not in self._built:
                self._built[id(contender)] = contender.build(self.problem)()
            call = contender.answers[question.query](self._built[id(contender)], question)
            timing, answer = timed(call)
        answer = QUERIES[question.query].sample(answer)
        if not np.all(np.isfinite(answer)):
            msg = "its answer is not finite"
            raise RefusalError(msg)
        return Entrant(contender, call, answer, timing.seconds)

    def _residual(self, question: Question, x: np.ndarray) -> float:
        """‖v − Fx‖/‖v‖ of an answer, or eps where it is less: iterations in float32 do not see what is below."""
        (error,) = QUERIES[question.query].errors(self.reference, question, [x])
        v = QUERIES[question.query].sample(question.v)
        return max(EPS, float(error * EPS * self.reference.norm * np.linalg.norm(x) / np.linalg.norm(v)))

    def _record(self, query: str, figures: list[dict[str, Any]], entrants: list[Entrant]) -> dict[str, Any]:
        """Everything that is known of a question, ready for JSON."""
        asked, question = QUERIES[query], Question(self.problem, query)
        answers = [entrant.answer for entrant in entrants]
        errors = asked.errors(self.reference, question, answers) if answers else []
        figures = [entrant.figure(float(error)) for entrant, error in zip(entrants, errors, strict=True)] + figures
        order = [contender.name for contender in self.contenders]
        return {
            "measured_kappa": self.reference.kappa,
            "limit": asked.limit.name,
            "limit_seconds": asked.limit.seconds(self.problem, self.limits),
            "flops": asked.flops(self.problem),
            "bytes": asked.bytes(self.problem),
            "rates": {"sgemm": self.limits.sgemm, "read": self.limits.read, "two_passes": self.limits.two_passes},
            "contenders": sorted(figures, key=lambda figure: order.index(figure["name"])),
        }
