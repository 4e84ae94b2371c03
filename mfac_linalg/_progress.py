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
    """A record of how far each pass has come, from which a killed build can be resumed."""

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """The number of columns that a pass of an earlier build has done, and its partial results."""
        ...

    def save(self, stage: str, columns: int, results: Callable[[], dict[str, Array]]) -> None:
        """Record how far a pass has come, unless the last record is recent."""
        ...


@dataclass(frozen=True)
class Progress:
    """A function of a loop and its name that returns the loop, with tqdm's bar if there is one."""

    bar: Any = None  # tqdm
    journal: Checkpoint | None = None

    def __call__(self, loop: Iterable[Any], text: str, total: int | None = None) -> Iterable[Any]:
        """The loop; `total` is its length where it has none."""
        return loop if self.bar is None else _counted(loop, self.bar, text, total)

    def restore(self, stage: str) -> tuple[int, dict[str, Array]]:
        """As the journal's; nothing without one."""
        return (0, {}) if self.journal is None else self.journal.restore(stage)

    def save(self, stage: str, columns: int, results: Callable[[], dict[str, Array]]) -> None:
        """As the journal's."""
        if self.journal is not None:
            self.journal.save(stage, columns, results)


SILENT = Progress()


def _counted(loop: Iterable[Any], bar: Any, text: str, total: int | None) -> Iterator[Any]:
    """Yield what the loop does, counted on a bar for as long as that can be shown."""
    size = len(loop) if total is None and isinstance(loop, Sized) else total
    steps = itertools.repeat(None) if size is None else range(size)
    count: Iterator[Any] = iter(())
    with _errors_ignored():
        count = iter(bar(steps, desc=text, total=size, leave=False, file=_Stream(sys.stderr)))
    try:
        for item in loop:
            with _errors_ignored():
                next(count, None)
            yield item
        with _errors_ignored():
            next(count, None)
    finally:
        with _errors_ignored():
            getattr(count, "close", bool)()


class _Stream:
    """A stream that never fails: a bar that failed while it was made would print a message when it is deleted."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """As the stream's, where that can be written to."""
        with _errors_ignored():
            self._stream.write(text)

    def flush(self) -> None:
        """As the stream's."""
        with _errors_ignored():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _errors_ignored() -> contextlib.AbstractContextManager[None]:
    """Ignore the errors of a bar whose stream is closed: the computation does not need it."""
    return contextlib.suppress(Exception)


def reporter(wanted: bool, journal: Checkpoint | None = None) -> Progress:
    """Return the progress bar of a call, if wanted."""
    if not wanted:
        return Progress(None, journal)
    try:
        from tqdm.auto import tqdm
    except ImportError as missing:
        raise not_installed(what="`progress=True`", library="tqdm", extra="progress") from missing
    return Progress(tqdm if sys.stderr is not None else None, journal)  # as in a program without a console
