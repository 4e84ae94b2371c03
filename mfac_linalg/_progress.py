"""An optional progress bar."""

from collections.abc import Callable, Iterable
from typing import Any


def reporter(wanted: bool) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """Return what wraps a loop over panels: tqdm's bar, or nothing."""
    if not wanted:
        return _silent
    try:
        from tqdm.auto import tqdm
    except ImportError as missing:
        msg = '`progress=True` needs tqdm; it is not installed. Run pip install "mfac_linalg[progress]".'
        raise ImportError(msg) from missing
    return lambda loop, text: tqdm(loop, desc=text, leave=False)


def _silent(loop: Iterable[Any], text: str) -> Iterable[Any]:
    del text
    return loop
