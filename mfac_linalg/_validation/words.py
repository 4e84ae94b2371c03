"""Descriptions of values for error messages."""

from typing import Any

from .. import _backend


def describe(x: Any) -> str:
    """Say what x is in a few words, without its values if it is an array."""
    if _backend.is_array(x) and _backend.kind_of_tensor(x) != "nested":  # which has no shape
        return f"an array of shape {tuple(x.shape)} and dtype {_backend.dtype_name(x.dtype)}"
    return f"{x!r:.60} ({type(x).__name__})"
