"""The progress bar of long calls, and the checkpoints from which a build can go on."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from ._errors import not_installed
from ._typing import Array


class Checkpoint(Protocol):
    """How far each pass has come, kept where a killed build can be taken up again."""

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """Columns that a pass of an earlier build has behind it, and the arrays that it had found by then."""
        ...

    def save(self, stage: str, columns: int, found: Callable[[], dict[str, Array]]) -> None:
        """Take down where a pass stands, or wait until there is more to take down."""
        ...


@dataclass(frozen=True)
class Progress:
    """Called with a loop and its name, it returns the loop, with tqdm's bar where that is wanted."""

    bar: Any = None  # tqdm
    journal: Checkpoint | None = None

    def __call__(self, loop: Iterable[Any], text: str, total: int | None = None) -> Iterable[Any]:
        """The loop; `total` is its length where it does not know it."""
        return loop if self.bar is None else _counted(loop, self.bar, text, total)

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """As the journal's; nothing where there is none."""
        return (0, {}) if self.journal is None else self.journal.restore(stage)

    def save(self, stage: str, columns: int, found: Callable[[], dict[str, Array]]) -> None:
        """As the journal's."""
        if self.journal is not None:
            self.journal.save(stage, columns, found)


SILENT = Progress()


def _counted(loop: Iterable[Any], bar: Any, text: str, total: int | None) -> Iterator[Any]:
    """Yield what the loop does, counted on a bar for as long as that can be shown."""
    size = len(loop) if total is None and isinstance(loop, Sized) else total
    steps = itertools.repeat(None) if size is None else range(size)
    count: Iterator[Any] = iter(())
    with _unseen():
        count = iter(bar(steps, desc=text, total=size, leave=False, file=_Stream(sys.stderr)))
    try:
        for item in loop:
            with _unseen():
                next(count, None)
            yield item
        with _unseen():
            next(count, None)
    finally:
        with _unseen():
            getattr(count, "close", bool)()


class _Stream:
    """A stream whose failures are nobody's: a bar that fails while it is made leaves a message when it is deleted."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """As the stream's, where that can be written to."""
        with _unseen():
            self._stream.write(text)

    def flush(self) -> None:
        """As the stream's."""
        with _unseen():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unseen() -> contextlib.AbstractContextManager[None]:
    """Go on without a bar whose stream is gone, whatever the stream says to that: what is computed does not need it."""
    return contextlib.suppress(Exception)


def reporter(wanted: bool, journal: Checkpoint | None = None) -> Progress:
    """Return what a call tells of its loops to."""
    if not wanted:
        return Progress(None, journal)
    try:
        from tqdm.auto import tqdm
    except ImportError as missing:
        raise not_installed(what="`progress=True`", library="tqdm", extra="progress") from missing
    return Progress(tqdm if sys.stderr is not None else None, journal)  # as in a program without a console
