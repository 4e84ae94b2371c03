"""Whose memory values stand on: copies that nobody else can write to."""

from typing import Any

import array_api_compat as compat
import numpy as np

from .kinds import namespace

Array = Any


def copied(x: Array) -> Array:
    """Return a copy, through which derivatives flow; of JAX, whose arrays nobody writes to, x itself."""
    if compat.is_jax_array(x):
        return x
    return x.clone() if compat.is_torch_array(x) else namespace(x).asarray(x, copy=True)


def owned(block: Array, *, source: Any) -> Array:
    """Return the block, or its copy where writing over it could change the source (NumPy); None is no source."""
    if not isinstance(block, np.ndarray) or source is None:
        return block
    shared = np.may_share_memory(block, source) if isinstance(source, np.ndarray) else True
    return np.array(block) if shared else block
