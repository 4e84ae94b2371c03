"""What an inverse looks like in a terminal and in a notebook."""

import html
from typing import Any

import numpy as np

from . import _backend
from . import _validation as check
from ._condition import largest_kappa

NEAR = 0.05  # of the largest κ


def short(value: Any, *, digits: int = 6) -> str:
    """A number by its leading digits, an array by its shape and dtype."""
    return check.describe(value) if _backend.is_array(value) else f"{value:.{digits}g}"


def with_hint(kappa: Any, dtype: str) -> str:
    """κ, and near the largest that the dtype resolves what that means."""
    words, limit = short(kappa, digits=3), largest_kappa(dtype)
    if not isinstance(kappa, float) or kappa < NEAR * limit:
        return words
    eps = float(np.finfo(np.dtype(dtype)).eps)
    return f"{words}, near the limit {limit:.1e} of {dtype}: forward errors may be κ eps = {kappa * eps:.1g}"


def as_call(name: str, facts: dict[str, str]) -> str:
    """Name and facts as a call with keywords."""
    return f"{name}({', '.join(f'{fact}={value}' for fact, value in facts.items())})"


def as_table(name: str, facts: dict[str, str]) -> str:
    """Name and facts as an HTML table."""
    rows = "".join(f"<tr><th>{fact}</th><td>{html.escape(value)}</td></tr>" for fact, value in facts.items())
    return f"<table><caption>{name}</caption>{rows}</table>"
