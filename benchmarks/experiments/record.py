"""Figures in a JSON file, part by part: those in it are not computed again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

Task = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What names a figure, and the computation of the rest of it."""
Part = Callable[[Any, dict[str, Any]], Iterator[Task]]
"""The tasks of a part, from the study and the contents of the file at that time."""


def arguments(
    name: str,
    doc: str,
    where: str,
    parts: Mapping[str, Part],
    *,
    keeps_arrays: bool = False,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """Read the command line of an experiment; one that `keeps_arrays` has a folder for what is not in its output.

    `more` adds arguments of its own.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.experiments.{name}",
        description=doc,
        epilog=where,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(parts)}; all unless named")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data")
    parser.add_argument("--output", type=Path, default=Path(f"{name}.json"), help="added to (default: %(default)s)")
    if keeps_arrays:
        scratch = Path(f"{name}-scratch")
        parser.add_argument("--scratch", type=Path, default=scratch, help="a folder to go on from (%(default)s)")
    parser.add_argument("--picture", type=Path, help="where to draw what the output then holds")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    for part in options.parts:
        if part not in parts:
            parser.error(f"no part {part!r}; there are {', '.join(parts)}")
    options.parts = options.parts or list(parts)
    return options


def read(path: Path) -> dict[str, Any]:
    """The contents of a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add(study: Any, name: str, part: Part, path: Path) -> None:
    """Compute the figures of a part that are not in the file, and write each as soon as it is computed."""
    held = read(path)
    figures = held.setdefault(name, {"machine": describe(), "figures": []})["figures"]
    for key, compute in part(study, held):
        if find(figures, **key) is None:
            figures.append({**key, **compute()})
            path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
            plain = {name: value for name, value in figures[-1].items() if not isinstance(value, dict | list)}
            print(name, *(f"{name} {value}," for name, value in plain.items()), flush=True)


def find(figures: list[dict[str, Any]], **key: Any) -> dict[str, Any] | None:
    """The first figure of that name."""
    return next((figure for figure in figures if key.items() <= figure.items()), None)
