"""A progress bar where somebody can see it."""

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")


def visible() -> bool:
    """Whether tqdm is installed and standard error is a terminal."""
    return find_spec("tqdm") is not None and sys.stderr is not None and sys.stderr.isatty()


def tracked(steps: Sequence[T], description: str) -> Iterable[T]:
    """Return `steps` behind a progress bar that vanishes at its end, or as they are where it would not be seen."""
    if not visible():
        return steps
    from tqdm.auto import tqdm

    bar: Iterable[T] = tqdm(steps, desc=description, leave=False)
    return bar
