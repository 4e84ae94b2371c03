"""What a sum of rank-one terms is divided by."""

from typing import Any


def divisor_of(normalization: str, count: Any, capacity: int | None = None) -> Any:
    """Return n with c_i = w_i/n: the number of gradients, 1, or the capacity of a window."""
    return {"mean": count, "sum": 1, "window": capacity}[normalization]
