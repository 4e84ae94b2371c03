"""What one part has found so far, in a file that is whole at any time: a part may be stopped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

Json = dict[str, object]


class Record:
    """The fields of one part, and the time that is left to it.

    Parameters
    ----------
    path : Path
        Where they are kept.
    seconds : float
        How long the part may take from now on.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.deadline = path, time.monotonic() + seconds
        self.fields: Json = {"status": "unfinished"}

    @property
    def seconds_left(self) -> float:
        """Seconds until the part should stop by itself."""
        return self.deadline - time.monotonic()

    @property
    def is_late(self) -> bool:
        """Whether no time is left."""
        return self.seconds_left <= 0

    def update(self, **fields: object) -> None:
        """Set some fields and save all."""
        self.fields |= fields
        write_json(self.path, self.fields)


def write_json(path: Path, fields: Json) -> None:
    """Write fields beside the file, then take its place."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(fields, indent=1, allow_nan=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_json(path: Path) -> Json:
    """What `write_json` wrote; nothing where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
