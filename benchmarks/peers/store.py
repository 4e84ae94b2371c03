"""The file of figures: one entry a question, written when it is there, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

KEY = ("m", "d", "kappa", "query")


class Store:
    """Cases in a JSON file, each with the run that it was measured in.

    Parameters
    ----------
    path : Path
        Read if it is there.
    run : dict
        Machine, versions and options of this run; it is written when there is a first case of it.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self._path, self._run, self._index = path, run, None
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.runs: list[dict[str, Any]] = held.get("runs", [])
        self.cases: list[dict[str, Any]] = held.get("cases", [])

    def holds(self, key: dict[str, Any]) -> bool:
        """Whether the file has figures of a question."""
        return any(key.items() <= case.items() for case in self.cases)

    def add(self, key: dict[str, Any], figures: dict[str, Any]) -> None:
        """Write down the figures of a question, in place of earlier ones."""
        if self._index is None:
            self._index = len(self.runs)
            self.runs.append(self._run)
        self.cases = [case for case in self.cases if not key.items() <= case.items()]
        self.cases.append({**key, "run": self._index, **figures})
        self._write()

    def _write(self) -> None:
        """Write a new file beside the old one, then take its place: a kill leaves one of the two."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".part")
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in self.cases)
        runs = json.dumps(self.runs, indent=1, ensure_ascii=False)
        aside.write_text(f'{{"runs": {runs},\n "cases": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(aside, self._path)
