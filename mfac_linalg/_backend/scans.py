"""Loops and slices that JAX compiles once: `lax.scan` and its like."""

import sys
from typing import Any

import numpy as np


def scan_until(is_done: Any, step: Any, values: tuple[Any, ...], times: int) -> tuple[Any, ...]:
    """Return values after step(*values) → (*values, is_done), as often as a traced `is_done` asks for, `times` at most.

    One loop, so that a compiler sees the step once.
    """
    lax = sys.modules["jax"].lax

    def body(carry: tuple[Any, ...], _: Any) -> tuple[tuple[Any, ...], None]:
        *values, is_done = carry
        return lax.cond(is_done, lambda *same: (*same, is_done), step, *values), None

    return lax.scan(body, (*values, is_done), None, length=times)[0][:-1]


def scan_sum(part: Any, total: Any, indices: range) -> Any:
    """Return total + Σ part(i) under a JAX trace, as one loop."""
    lax = sys.modules["jax"].lax
    return lax.scan(lambda so_far, i: (so_far + part(i), None), total, np.asarray(indices, dtype=np.int32))[0]


def dynamic_slice(x: Any, start: Any, width: int, *, axis: int) -> Any:
    """Return `width` entries along an axis of a JAX array, from a traced start."""
    return sys.modules["jax"].lax.dynamic_slice_in_dim(x, start, width, axis=axis)
