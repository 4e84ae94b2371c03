"""Threads for work that NumPy does in one: sums and copies of large arrays."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from .modes import in_another_thread

MOST_THREADS = 8  # memory is no faster for more


def thread_count() -> int:
    """Return the number of threads for this process: its processors, or fewer where BLAS is limited."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    blas_limits = (os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"))
    return min([MOST_THREADS, allowed, *(int(count) for count in blas_limits if count.isdecimal() and int(count))])


def read_ahead(read: Callable[[Any], Any], pieces: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each piece with read(piece), read in a thread, under the caller's modes, while the one before was used."""
    if not pieces:
        return
    read = in_another_thread(read)
    with _pool(1) as pool:
        ahead = _submit(pool, read, pieces[0])
        for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
            found = ahead()
            if following is not None:
                ahead = _submit(pool, read, following)
            yield piece, found


def in_threads(function: Callable[[Any], Any], pieces: Iterable[Any]) -> list[Any]:
    """Return [function(piece) for piece in pieces], computed in threads, under the caller's modes."""
    with _pool(thread_count()) as pool:
        return [result() for result in [_submit(pool, in_another_thread(function), piece) for piece in pieces]]


def _pool(size: int) -> Any:
    """A pool of threads; None in a context where the interpreter is ending, whose threads cannot start others."""
    try:
        from concurrent.futures import ThreadPoolExecutor  # on first use: it imports logging
    except RuntimeError:  # it registers for the end of the main thread, which has been
        return nullcontext()
    return ThreadPoolExecutor(size)


def _submit(pool: Any, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Start a call, and return a function that waits for its result; where no thread can start, the call itself."""
    try:
        return pool.submit(function, *arguments).result if pool is not None else partial(function, *arguments)
    except RuntimeError:  # after the end of the main thread, or beyond what the system allows
        return partial(function, *arguments)
