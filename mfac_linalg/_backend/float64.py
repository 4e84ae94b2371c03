"""Float64 where JAX has it switched off: for one call and its gradient."""

import sys
from functools import partial
from typing import Any

import array_api_compat as compat

from .kinds import is_traced
from .libraries import is_jax
from .modes import plain_modes
from .twins import call_by_numpy, in_library


def with_x64(function: Any, *arguments: Any, like: Any = None) -> Any:
    """Call function(*arguments) where float64 exists and no ambient mode has a say: the way into all computation.

    JAX needs float64 switched on, for this call and its gradient alone. That it is in use is seen from the arguments,
    whose arrays may be nested in registered classes, or from an array that they are `like`. Traced JAX arguments get a
    reverse rule that works in float64 too (without it JAX transposes the float64 part in float32). Queries of what is
    in the host's memory are computed by NumPy: see twins.py.
    """
    is_computed, result = call_by_numpy(function, arguments)
    if is_computed:
        return result
    arguments = in_library(arguments)
    jax: Any = sys.modules.get("jax")
    leaves = [] if jax is None else [x for x in jax.tree_util.tree_leaves(arguments) if is_jax(x)]
    if any(is_traced(x) for x in leaves):
        return _with_float64_gradient(jax, function, arguments)
    if not leaves and is_jax(like):
        leaves = [like]
    with plain_modes(jax, like=leaves[0]) if leaves else plain_modes():
        return function(*arguments)


def _with_float64_gradient(jax: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(arguments)
    is_leaf_array = [compat.is_jax_array(x) for x in leaves]
    arrays = [x for x, yes in zip(leaves, is_leaf_array, strict=True) if yes]

    def evaluate(*arrays: Any) -> Any:
        given = iter(arrays)
        filled = [next(given) if yes else x for x, yes in zip(leaves, is_leaf_array, strict=True)]
        return function(*jax.tree_util.tree_unflatten(structure, filled))

    return _scoped(jax, evaluate)(*arrays)


def _scoped(jax: Any, function: Any) -> Any:
    """`function` in float64 and plain modes, its reverse rule too, and the reverse rules of these."""

    def evaluate(*arguments: Any) -> Any:
        with plain_modes(jax):
            return function(*arguments)

    def forward(*arguments: Any) -> Any:
        return _scoped(jax, partial(jax.vjp, evaluate))(*arguments)

    def backward(pullback: Any, cotangent: Any) -> Any:
        return _scoped(jax, lambda pull, x: pull(x))(pullback, cotangent)

    scoped = jax.custom_vjp(evaluate)
    scoped.defvjp(forward, backward)
    return scoped
