"""A progress bar where somebody can see it."""

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

from .._progress import reporter

T = TypeVar("T")


def visible() -> bool:
    """Whether tqdm is installed and standard error is a terminal."""
    try:
        return find_spec("tqdm") is not None and sys.stderr.isatty()
    except (AttributeError, ValueError):  # it is None, as in a program without a console, or closed
        return False


def tracked(steps: Sequence[T], description: str) -> Iterable[T]:
    """Return `steps` behind a progress bar that vanishes at its end, or as they are where it would not be seen."""
    return reporter(visible())(steps, description)
