"""Checks that leaves of pytrees and results of functions are real floating numbers, which JAX differentiates."""

import numbers
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from .. import _validation as check


def is_real_floating(x: Any) -> bool:
    """Whether x is a number or an array of JAX or NumPy, real and floating."""
    known = isinstance(x, numbers.Real | np.generic | np.ndarray | jax.Array)
    return known and bool(jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.floating))


def check_real_leaves(name: str, tree: Any, cure: str) -> None:
    """Accept a pytree of real floating numbers."""
    for leaf in jax.tree.leaves(tree):
        if not is_real_floating(leaf):
            msg = f"`{name}` must be real floating; got a leaf that is {check.describe(leaf)}. {cure}"
            raise TypeError(msg)


def check_real_result(name: str, x: Any, cure: str) -> None:
    """Accept a real floating result of a function; the derivative of integers would silently be zero."""
    if not is_real_floating(x):
        msg = f"`{name}` must return real floating numbers; got {check.describe(x)}. {cure}"
        raise TypeError(msg)
