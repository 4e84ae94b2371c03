"""What a sum of rank-one terms is divided by."""

from typing import Any


def divisor_of(normalization: str, held: Any, capacity: int | None = None) -> Any:
    """Return n with c_i = w_i/n: the number of gradients held, 1, or the capacity of a window."""
    return {"mean": held, "sum": 1, "window": capacity}[normalization]
