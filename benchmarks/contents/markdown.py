"""Numbers and tables in Markdown, from the files of results."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


@functools.cache
def held(name: str) -> Any:
    """The contents of a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def one(figures: list[dict[str, Any]], **key: Any) -> dict[str, Any]:
    """The one figure with these facts."""
    (found,) = (figure for figure in figures if key.items() <= figure.items())
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *map(list, rows)]
    head_line, *others = [f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines]
    return "".join([head_line, "|---" * len(lines[0]), "|\n", *others])


def rounded(x: float, places: int = 2) -> str:
    """A number to so many decimals, halves upwards, as they are counted by hand."""
    return str(Decimal(repr(x)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def with_best(rows: list[tuple[str, list[float]]]) -> list[list[str]]:
    """Rows of accuracies to two decimals, the best of each column in bold."""
    best = [max(column) for column in zip(*(values for _, values in rows), strict=True)]
    return [
        [label, *(f"**{rounded(x)}**" if x == top else rounded(x) for x, top in zip(values, best, strict=True))]
        for label, values in rows
    ]


def two_digits(x: float) -> str:
    power = math.floor(math.log10(x))
    return f"{round(x, 1 - power):.{max(0, 1 - power)}f}"


def scientific(x: float) -> str:
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
