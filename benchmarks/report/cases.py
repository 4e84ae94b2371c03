"""The figures of the file as rows: the library beside its peers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

LIBRARY = "mfac_linalg"
DENSE = "dense Cholesky"
PROMISED = 30
"""The R that the library promises, and from which a peer's answer counts as good as its own."""
BUSY = 0.05
"""The share of the machine that other processes may use before a figure is marked."""


@dataclass(frozen=True)
class Figure:
    """One contender's seconds and error; a first call may take longer, where it makes what later ones use."""

    name: str
    seconds: float
    first: float
    error: float
    others: float

    @property
    def is_good(self) -> bool:
        """Whether its answer is as good as the library promises its own to be."""
        return self.error <= PROMISED


@dataclass(frozen=True)
class Case:
    """One question at one problem, as the file has it."""

    entry: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(m, d)."""
        return self.entry["m"], self.entry["d"]

    @property
    def kappa(self) -> float:
        """κ."""
        return self.entry["kappa"]

    @property
    def query(self) -> str:
        """What is asked."""
        return self.entry["query"]

    @property
    def limit(self) -> float:
        """The machine's own seconds."""
        return self.entry["limit_seconds"]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The contenders that answered, by name."""
        found = [each for each in self.entry["contenders"] if "seconds" in each]
        return {f["name"]: Figure(f["name"], f["seconds"], f["first"], f["R"], f["others"]) for f in found}

    @property
    def reasons(self) -> dict[str, str]:
        """Why others did not, by name."""
        return {each["name"]: each["reason"] for each in self.entry["contenders"] if "reason" in each}

    @property
    def ours(self) -> Figure | None:
        """The library's figure on NumPy arrays, as the question asks for it."""
        return self.figures.get(LIBRARY) or self.figures.get(f"{LIBRARY}, W kept")

    @property
    def peers(self) -> list[Figure]:
        """The others' figures, the fastest first."""
        others = (figure for name, figure in self.figures.items() if not name.startswith(LIBRARY))
        return sorted(others, key=lambda figure: figure.seconds)

    @property
    def fastest(self) -> Figure | None:
        """The fastest peer."""
        return next(iter(self.peers), None)

    @property
    def fastest_good(self) -> Figure | None:
        """The fastest peer whose answer is good."""
        return next((figure for figure in self.peers if figure.is_good), None)

    @property
    def gain(self) -> float | None:
        """How many times the library's time that peer takes; None where there is none."""
        return self._gain_over(self.fastest_good)

    @property
    def gain_over_all(self) -> float | None:
        """How many times the library's time the fastest peer takes, whatever its answer."""
        return self._gain_over(self.fastest)

    def _gain_over(self, peer: Figure | None) -> float | None:
        return peer.seconds / self.ours.seconds if peer and self.ours else None


@dataclass(frozen=True)
class Results:
    """Everything that the file holds."""

    runs: list[dict[str, Any]]
    cases: list[Case]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file, in the order of κ, m and d."""
        held = json.loads(path.read_text(encoding="utf-8"))
        cases = [Case(entry) for entry in held["cases"]]
        return cls(held["runs"], sorted(cases, key=lambda case: (case.kappa, *case.size)))

    def of(self, **key: Any) -> list[Case]:
        """The cases with these facts that have a figure of the library."""
        return [case for case in self.cases if case.ours and key.items() <= case.entry.items()]

    def cost_of_call(self, case: Case) -> float:
        """The library's seconds for the same question and κ at the smallest size, where G takes next to none."""
        return min(self.of(kappa=case.kappa, query=case.query), key=lambda each: each.size).ours.seconds

    def kappas(self) -> list[float]:
        """Every κ."""
        return sorted({case.kappa for case in self.cases})

    def main_kappa(self) -> float:
        """The κ of real gradients, that of the tables: the one next to 5e4."""
        return min(self.kappas(), key=lambda kappa: abs(kappa - 5e4))

    def largest(self, queries: Iterable[str]) -> tuple[int, int]:
        """The size at that κ with the most of these questions, then the most peers, then the most numbers.

        The dense factorisation does not count: it has no part in large sizes.
        """
        cases = [case for case in self.of(kappa=self.main_kappa()) if case.query in set(queries)]

        def score(size: tuple[int, int]) -> tuple[int, int, int]:
            found = [case for case in cases if case.size == size]
            peers = {figure.name for case in found for figure in case.peers} - {DENSE}
            return len(found), len(peers), size[0] * size[1]

        return max({case.size for case in cases}, key=score)
