"""What an inverse looks like in a terminal and in a notebook."""

import html
from typing import Any

from . import _backend
from . import _validation as check


def short(value: Any, *, digits: int = 6) -> str:
    """A number by its leading digits, an array by its shape and dtype."""
    return check.describe(value) if _backend.is_array(value) else f"{value:.{digits}g}"


def as_call(name: str, facts: dict[str, str]) -> str:
    """Name and facts as a call with keywords."""
    return f"{name}({', '.join(f'{fact}={value}' for fact, value in facts.items())})"


def as_table(name: str, facts: dict[str, str]) -> str:
    """Name and facts as an HTML table."""
    rows = "".join(f"<tr><th>{fact}</th><td>{html.escape(value)}</td></tr>" for fact, value in facts.items())
    return f"<table><caption>{name}</caption>{rows}</table>"
