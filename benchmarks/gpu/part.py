"""One part in a process of its own, so that what stops it stops nothing else: ``benchmarks.gpu`` starts it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.libraries import LIBRARIES, Library
from benchmarks.gpu.record import Record


def _speed(library: Library, record: Record) -> None:
    from benchmarks.gpu.speed import speed

    speed(library, record)


def _reads(library: Library, record: Record) -> None:
    from benchmarks.gpu.speed import reads

    reads(library, record)


def _sweep(library: Library, record: Record) -> None:
    from benchmarks.gpu.sweep import sweep

    sweep(library, record)


def _suite(library: Library, record: Record) -> None:
    from benchmarks.gpu.suite import suite

    suite(library, record)


PARTS: dict[str, Callable[[Library, Record], None]] = {
    "speed": _speed,
    "reads": _reads,
    "sweep": _sweep,
    "suite": _suite,
}
"""Each imports what it needs itself: the time of its imports is its own, and so is their failure."""


def main() -> int:
    """Run one part on one library."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.part", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("file", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    library, record = LIBRARIES[given.library](on_gpu=not given.dry_run), Record(given.file, given.seconds)
    library.require_device()
    PARTS[given.part](library, record)
    return int(record.fields["status"] != "passed")


if __name__ == "__main__":
    raise SystemExit(main())
