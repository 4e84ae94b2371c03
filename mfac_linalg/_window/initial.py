"""Where a window is: its empty Held for gradients like some array, and the same filled from a state dictionary."""

from collections.abc import Callable
from typing import Any

from .. import _backend
from .. import _validation as check
from .._backend.pytree import register
from .options import Rules
from .state import Held

Array = Any


def placed(rules: Rules, like: Array, damping: Any) -> Held:
    """No rows, of the library, device and dtype of an array, under a damping, which is checked and copied."""
    check.check_precision_available(rules.precision, like)
    register(like)
    with _backend.constants(like):
        like = _backend.ring((0, rules.dim), like=like)
        damping = own_damping(damping, like)
        return _backend.in_float64(lambda like: Held.placed(rules, damping, like), like)


def refilled(rules: Rules, state: dict[str, Any]) -> Held:
    """What `Held.as_dict` described, copied: it may be read-only, or memory of another process."""
    empty = placed(rules, gradients_like(state), state["damping"])
    return run(lambda: empty.filled(state), empty.ring.like)


@_backend.in_plain_modes
def gradients_like(state: dict[str, Any]) -> Array:
    """An array (0, d) like the gradients of a window that `as_dict` described."""
    rows = state["rows" if "rows" in state else "values"]
    name = state.get("gradient_dtype", _backend.dtype_name(rows.dtype))
    return _backend.empty((0, state["dim"]), like=rows, dtype=_backend.named_dtype(name, like=rows))


def own_damping(damping: Any, like: Array) -> Any:
    """A checked damping, a constant of differentiation that nobody else can write to."""
    check.check_values("damping", damping)
    damping = check.check_damping(damping, like, _backend.result_dtype(like))
    return _backend.stop_gradient(damping) if _backend.is_array(damping) else damping


def run(function: Callable[..., Any], like: Array, *arguments: Any) -> Any:
    """Call a function where float64 exists, whether or not an argument shows that JAX is in use; `like` shows it."""
    with _backend.constants(like):
        return _backend.in_float64(lambda _, *rest: function(*rest), like, *arguments)
