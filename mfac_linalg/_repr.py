"""What an inverse looks like in a terminal and in a notebook."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _backend
from . import _validation as check
from ._condition import largest_kappa

NEAR = 0.05  # of the largest κ
MOST_ROWS = 40  # of a table


def short(value: Any, *, digits: int = 6) -> str:
    """A number by its leading digits, an array by its shape and dtype."""
    return check.describe(value) if _backend.is_array(value) else f"{value:.{digits}g}"


def with_hint(kappa: Any, dtype: str) -> str:
    """κ, and near the largest that the dtype resolves what that means."""
    words = short(kappa, digits=3)
    if not isinstance(kappa, float) or kappa <= 1:  # of an empty window, which may have no dtype yet
        return words
    limit = largest_kappa(dtype)
    if kappa < NEAR * limit:
        return words
    eps = float(np.finfo(np.dtype(dtype)).eps)
    return f"{words}, near the limit {limit:.1e} of {dtype}: forward errors may be κ eps = {kappa * eps:.1g}"


def as_call(name: str, facts: dict[str, str]) -> str:
    """Name and facts as a call with keywords."""
    return f"{name}({', '.join(f'{fact}={value}' for fact, value in facts.items())})"


def as_table(name: str, facts: dict[str, str]) -> str:
    """Name and facts as an HTML table."""
    rows = "".join(f"<tr><th>{html.escape(fact)}</th>{_cell(value)}</tr>" for fact, value in facts.items())
    return f"<table><caption>{html.escape(name)}</caption>{rows}</table>"


def as_list(name: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Name, heads of columns and rows as an HTML table; of a long list, its first and last rows."""
    rows = list(rows)
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS // 2], ["…"] * len(heads), *rows[-MOST_ROWS // 2 :]]
    head = "".join(_cell(word, "th") for word in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><caption>{html.escape(name)}</caption><tr>{head}</tr>{body}</table>"


def _cell(value: str, element: str = "td") -> str:
    return f'<{element} style="text-align: left">{html.escape(value)}</{element}>'
