"""Where float64 exists, and what JAX has to know: switched on for one call, with gradients and pytrees."""

import sys
from functools import partial
from typing import Any

import array_api_compat as compat
import numpy as np

from .._typing import Array
from .kinds import is_traced
from .modes import outside_transforms, plain_modes


def with_x64(function: Any, *arguments: Any) -> Any:
    """Call function(*arguments) where float64 exists and no ambient mode has a say: the way into all computation.

    JAX needs float64 switched on, for this call and its gradient alone. Arrays may be nested in registered classes.
    Traced JAX arguments get a reverse rule that works in float64 too (without it JAX transposes the float64 part in
    float32).
    """
    jax: Any = sys.modules.get("jax")
    leaves = [] if jax is None else [x for x in jax.tree_util.tree_leaves(arguments) if compat.is_jax_array(x)]
    if any(is_traced(x) for x in leaves):
        return _with_float64_gradient(jax, function, arguments)
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


def scan_until(done: Any, step: Any, values: tuple[Any, ...], times: int) -> tuple[Any, ...]:
    """Return values after step(*values) → (*values, done), as often as a traced `done` asks for, `times` at most.

    One loop, so that a compiler sees the step once.
    """
    lax = sys.modules["jax"].lax

    def body(carry: tuple[Any, ...], _: Any) -> tuple[tuple[Any, ...], None]:
        *values, done = carry
        return lax.cond(done, lambda *same: (*same, done), step, *values), None

    return lax.scan(body, (*values, done), None, length=times)[0][:-1]


def scan_sum(part: Any, total: Any, indices: range) -> Any:
    """Return total + Σ part(i) under a JAX trace, as one loop."""
    lax = sys.modules["jax"].lax
    return lax.scan(lambda so_far, i: (so_far + part(i), None), total, np.asarray(indices, dtype=np.int32))[0]


def dynamic_slice(x: Any, start: Any, width: int, *, axis: int) -> Any:
    """Return `width` entries along an axis of a JAX array, from a traced start."""
    return sys.modules["jax"].lax.dynamic_slice_in_dim(x, start, width, axis=axis)


CACHED = "_cached_"  # what the attributes begin with that hold what is computed on demand
ESTIMATES = ("kappa", "norm")  # floats that jit must not compile in


_registered: set[type] = set()


def register_pytrees(like: Array, *classes: type) -> None:
    """Make the classes known to JAX as pytrees, on the first use of a JAX array."""
    if not compat.is_jax_array(like):
        return
    tree_util = sys.modules["jax"].tree_util
    for cls in classes:
        if cls not in _registered:
            tree_util.register_pytree_node(cls, _flatten, _unflatten(cls))
            _registered.add(cls)


def _flatten(instance: Any) -> tuple[tuple[Any, ...], Any]:
    fields = {name: value for name, value in vars(instance).items() if not name.startswith(CACHED)}
    arrays = {name: value for name, value in fields.items() if _is_child(name, value)}
    no_grad_constants = tuple((n, v) for n, v in fields.items() if n not in arrays)
    return tuple(arrays.values()), (tuple(arrays), no_grad_constants)


def _is_child(name: str, value: Any) -> bool:
    if isinstance(value, tuple):
        return any(type(part) in _registered for part in value)
    return compat.is_jax_array(value) or type(value) in _registered or name in ESTIMATES


def _unflatten(cls: type) -> Any:
    def unflatten(auxiliary: Any, arrays: Any) -> Any:
        names, no_grad_constants = auxiliary
        instance: Any = object.__new__(cls)
        vars(instance).update(no_grad_constants)
        vars(instance).update(zip(names, arrays, strict=True))
        return instance

    return unflatten


def picklable(x: Any) -> Any:
    """Return what to pickle for x: JAX would bring float64 back as float32, PyTorch uint16 not at all."""
    if compat.is_torch_array(x) and x.dtype == sys.modules["torch"].uint16:
        with outside_transforms():
            return _Unsigned(x.view(sys.modules["torch"].int16))
    return _Float64(np.asarray(x)) if compat.is_jax_array(x) and x.dtype == np.float64 else x


class _Float64:
    """The values of a float64 JAX array, unpickled as one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, tuple[np.ndarray]]:
        return _restore_float64, (self.values,)


def _restore_float64(values: np.ndarray) -> Array:
    import jax

    with plain_modes(jax):
        return jax.numpy.asarray(values)


class _Unsigned:
    """The bits of a PyTorch tensor of uint16, unpickled as one."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _restore_unsigned, (self.bits,)


def _restore_unsigned(bits: Array) -> Array:
    return bits.view(sys.modules["torch"].uint16)
