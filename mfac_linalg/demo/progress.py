"""A progress bar, on terminals only."""

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

from .._progress import reporter

T = TypeVar("T")


def is_visible() -> bool:
    """Whether tqdm is installed and standard error is a terminal."""
    try:
        return find_spec("tqdm") is not None and sys.stderr.isatty()
    except (AttributeError, ValueError):  # standard error is None, as in a program without a console, or closed
        return False


def with_progress(steps: Sequence[T], description: str) -> Iterable[T]:
    """Return `steps` with a progress bar that vanishes at its end, on a terminal; else unchanged."""
    return reporter(is_visible())(steps, description)
