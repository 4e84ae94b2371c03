"""The first state of a window: empty, or restored from a dictionary."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .. import _backend
from .. import _validation as check
from .._backend.pytree import register
from .._typing import Array
from .options import WindowOptions
from .state import WindowState


def empty_state(options: WindowOptions, like: Array, damping: Any) -> WindowState:
    """A state without rows, for gradients like an array, under a damping that is checked and copied."""
    check.precision_available(options.precision, like)
    register(like)
    with _backend.no_grad_constants(like):
        like = _backend.writable_zeros((0, options.dim), like=like)
        damping = copied_damping(damping, like)
        by_numpy = options.compression is None and _backend.has_view(like)
    if by_numpy:
        return replace(_backend.by_numpy(WindowState.empty, options, damping, like, like=like), like=like)
    with _backend.no_grad_constants(like):
        return _backend.with_x64(WindowState.empty, options, damping, like)


def restore_state(options: WindowOptions, state: dict[str, Any]) -> WindowState:
    """The state that `WindowState.as_dict` described, copied: its arrays may be read-only, or shared."""
    empty = empty_state(options, gradients_like(state), state["damping"])
    return run(WindowState.restore, empty, state)


def gradients_like(state: dict[str, Any]) -> Array:
    """An array (0, d) like the gradients of a window that `as_dict` described."""
    rows = state["rows" if "rows" in state else "values"]
    name = state.get("gradient_dtype", _backend.dtype_name(rows.dtype))
    with _backend.no_grad_constants(rows):
        return _backend.empty((0, state["dim"]), like=rows, dtype=_backend.named_dtype(name, like=rows))


def copied_damping(damping: Any, like: Array) -> Any:
    """A checked damping: a copy, and a constant of differentiation."""
    check.values("damping", damping)
    damping = check.damping(damping, like, _backend.result_dtype(like))
    return _backend.stop_gradient(damping) if _backend.is_array(damping) else damping


def run(function: Callable[..., Any], state: WindowState, *arguments: Any) -> Any:
    """Call a function of a state where float64 exists, without recording it for differentiation."""
    if state.is_by_numpy:
        return _backend.by_numpy(function, state, *arguments, like=state.like)
    with _backend.no_grad_constants(state.like):
        return _backend.with_x64(function, state, *arguments, like=state.like)
