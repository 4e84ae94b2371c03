"""Ambient modes of the libraries, none of which may change an answer: off for one call, and the same in a thread."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import numpy as np

PLAIN_JAX: dict[str, tuple[Any, ...]] = {
    "enable_x64": (True,),
    "default_matmul_precision": ("highest",),  # float32 products are of float32: the default of a GPU is TF32
    "numpy_dtype_promotion": ("standard",),
    "numpy_rank_promotion": ("allow",),
    "debug_nans": (False,),  # for what a user computes: in here nan and infinity are found, and named, in the answer
    "debug_infs": (False,),
    "disable_jit": (False,),
    "check_tracer_leaks": (False,),
    "threefry_partitionable": (True,),
    "transfer_guard_host_to_device": ("allow", None),  # some numbers of the small system travel
    "transfer_guard_device_to_device": ("allow", None),
    "transfer_guard_device_to_host": ("allow", None),
}
"""Settings of JAX by the name of their context manager, ``jax_<name>`` in `jax.config`, with the values that serve.

The first is set where another one is in force. They belong to a thread, and to a trace, in which they stay.
"""

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextlib.contextmanager
def plain_modes(jax: Any = None, *, like: Any = None, x64: bool = True) -> Iterator[None]:
    """Switch off, for what is computed within, all modes that would change it; JAX's where that is given.

    What is made within is beside `like`, a JAX array with values. `x64=False` leaves that setting of JAX as it is, for
    arrays in dtypes of the user's choice.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))  # what overflows is found, and named, in the answer
        if "torch" in sys.modules:
            _leave_autocast(stack)
        if jax is not None:
            for name, plain in PLAIN_JAX.items():
                if getattr(jax.config, f"jax_{name}") not in plain and (x64 or name != "enable_x64"):
                    stack.enter_context(getattr(jax, name)(plain[0]))
        if like is not None:
            _stay_beside(stack, jax, like)
        yield


def in_plain_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function in plain modes, for what is computed in the dtypes that arrays have."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with plain_modes(sys.modules.get("jax"), x64=False):
            return function(*arguments, **options)

    return run


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Let PyTorch compute in the dtypes that tensors have."""
    with contextlib.ExitStack() as stack:
        _leave_autocast(stack)
        yield


def _stay_beside(stack: contextlib.ExitStack, jax: Any, like: Any) -> None:
    """Make the device of a JAX array the default one, unless it is spread over several."""
    device = like.device
    if isinstance(device, jax.Device) and device != (jax.config.jax_default_device or jax.local_devices()[0]):
        stack.enter_context(jax.default_device(device))


def _leave_autocast(stack: contextlib.ExitStack) -> None:
    torch = sys.modules["torch"]
    for device in AUTOCAST_DEVICES:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))


def in_another_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under the modes of the thread that asks for it, to be called in another, one call at a time.

    They are NumPy's error state and all else in context variables, JAX's settings, and whether PyTorch records.
    """
    context, jax, torch = copy_context(), sys.modules.get("jax"), sys.modules.get("torch")
    names = [] if jax is None else [*PLAIN_JAX, "default_device"]
    settings = [(name, getattr(jax.config, f"jax_{name}")) for name in names]
    records = torch is not None and torch.is_grad_enabled()

    def run(*arguments: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for name, value in settings:
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            if torch is not None:
                stack.enter_context(torch.set_grad_enabled(records))
            return context.run(function, *arguments)

    return run
