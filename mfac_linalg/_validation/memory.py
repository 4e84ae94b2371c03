"""Checks that windows and the contents of files fit into this machine's memory."""

import functools
import math
import os
import sys

SMALL_ARRAYS = 24  # bytes for each of window²: the Gram matrix of a window, and memory for two factors


@functools.cache
def total_memory() -> float:
    """Bytes of memory that this process may have; infinite if the system does not report it."""
    try:
        total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf
    try:
        import resource
    except ImportError:
        return total
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return total if limit == resource.RLIM_INFINITY else min(total, float(limit))


def check_window_memory(window: int, dim: int) -> None:
    """Refuse a window whose m × m system does not fit into memory, or whose rows have too many entries to index."""
    if SMALL_ARRAYS * (window + 1) ** 2 > total_memory():
        msg = f"`window` must leave room for its system, {SMALL_ARRAYS} window² bytes of {total_memory():,.0f} that "
        raise ValueError(msg + f"there are; got {window}. Choose a smaller one.")
    if (window + 1) * dim > sys.maxsize // 8:
        msg = f"`dim` must leave room for `window` + 1 rows; got {dim} for a window of {window}. Choose smaller ones."
        raise ValueError(msg)


def check_row_memory(window: int, width: int, itemsize: int) -> None:
    """Refuse the state of a window whose rows do not fit into memory."""
    if (window + 1) * width * itemsize > total_memory():
        msg = f"`state['window']` must leave room for its rows, {window + 1} × {width} numbers of {itemsize} bytes; "
        raise ValueError(msg + f"there are {total_memory():,.0f} bytes. Restore it on a larger machine.")
