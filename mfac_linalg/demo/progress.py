"""A progress bar where somebody can see it."""

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def visible() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def tracked(steps: Sequence[T], description: str) -> Sequence[T]:
    """Return `steps` behind a tqdm bar if tqdm is installed and standard error is a terminal, else as they are."""
    if not visible():
        return steps
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return steps
    return tqdm(steps, desc=description, leave=False)
