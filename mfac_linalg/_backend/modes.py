"""Ambient modes of the libraries, none of which may change a result: off for one call, and the same in threads."""

import contextlib
import functools
import sys
from collections.abc import Callable
from contextvars import copy_context
from types import FunctionType, GeneratorType, MethodType, ModuleType
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
"""Settings of JAX by the name of their context manager, ``jax_<name>`` in `jax.config`, with the values in use here.

The first is set where another one is in force. They belong to a thread, and to a trace, in which they stay.
"""

OPTION = {name: f"jax_{name}" for name in (*PLAIN_JAX, "default_device")}
ELSEWHERE = tuple(name for name in PLAIN_JAX if name not in ("enable_x64", "default_matmul_precision"))
AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
PLAIN_VALUES = (int, float, str, type, ModuleType, np.ndarray, np.generic, np.dtype)


def plain_modes(jax: Any = None, *, like: Any = None, products: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which all modes that would change a result are off; JAX's where `jax` is given.

    Arrays made within are on the device of `like`, a JAX array with values, and have values too, under any trace.
    `products=False` leaves JAX's dtypes and precision unchanged, for arrays in dtypes of the user's choice.
    """
    errors = np.errstate(all="ignore")  # what overflows is found, and named, in the answer
    others = _autocasts_off()
    if jax is not None:
        others += _plain_jax(jax, products=products)
        others += [] if like is None else [*_device_mode(jax, like), jax.ensure_compile_time_eval()]
    return _CombinedContext([errors, *others]) if others else errors


def in_plain_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function in plain modes, computed in the dtypes of its arrays."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        jax = sys.modules.get("jax")
        wide = jax is not None and any(isinstance(x, jax.Array) and x.dtype == np.float64 for x in arguments)
        with plain_modes(jax, products=wide):  # float64 where an argument has it
            return function(*arguments, **options)

    return run


def transfers_allowed(jax: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which host arrays may be transferred to JAX's devices."""
    guard = "transfer_guard_host_to_device"
    allowed = getattr(jax.config, OPTION[guard]) in PLAIN_JAX[guard]
    return contextlib.nullcontext() if allowed else getattr(jax, guard)("allow")


def makes_plain_arrays(jax: Any, like: Any) -> bool:
    """Return whether JAX takes a host array as it is, and puts it on the device of like."""
    config = jax.config
    if config.jax_debug_nans or config.jax_debug_infs or config.jax_default_device is not None:
        return False
    guard = "transfer_guard_host_to_device"
    return getattr(config, OPTION[guard]) in PLAIN_JAX[guard] and like.device == jax.local_devices()[0]


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which PyTorch computes in the dtypes that tensors have."""
    return _CombinedContext(_autocasts_off())


def in_transforms() -> bool:
    """Return whether a transform of torch.func is active."""
    torch = sys.modules.get("torch")
    return torch is not None and torch._C._functorch.peek_interpreter_stack() is not None


def outside_transforms() -> contextlib.AbstractContextManager[Any]:
    """Leave the transforms of torch.func, within which new tensors are bound to them and have no memory."""
    if not in_transforms():
        return contextlib.nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def is_untransformed(*given: Any) -> bool:
    """Return whether torch.func transforms no tensor that can be reached from these objects.

    Those of a generator cannot be seen.
    """
    torch: Any = sys.modules["torch"]
    wrapped, seen, ahead = torch._C._functorch.is_functorch_wrapped_tensor, set[int](), list(given)
    while ahead:
        x = ahead.pop()
        if isinstance(x, GeneratorType) or (isinstance(x, torch.Tensor) and wrapped(x)):
            return False
        if id(x) not in seen and not isinstance(x, (torch.Tensor, *PLAIN_VALUES)):
            seen.add(id(x))
            ahead += _parts(x)
    return True


def _parts(x: Any) -> list[Any]:
    """The objects in a container, a function's closure, or an object's attributes."""
    if isinstance(x, dict):
        return list(x.values())
    if isinstance(x, tuple | list | set | frozenset):
        return list(x)
    if isinstance(x, FunctionType):
        return [*(x.__defaults__ or ()), *(cell.cell_contents for cell in x.__closure__ or ())]
    if isinstance(x, MethodType):
        return [x.__self__, x.__func__]
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    return list(getattr(x, "__dict__", {}).values())


class _CombinedContext(contextlib.ExitStack):
    """Several contexts in one, entered in their order."""

    def __init__(self, contexts: list[Any]) -> None:
        super().__init__()
        self._contexts = contexts

    def __enter__(self) -> "_CombinedContext":
        for context in self._contexts:
            self.enter_context(context)
        return self


def _autocasts_off() -> list[Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    casts = [torch.autocast(device, enabled=False) for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    if torch.is_inference_mode_enabled():  # what is kept must be of use outside of it
        return [torch.inference_mode(False), torch.no_grad(), *casts]
    return casts


def _plain_jax(jax: Any, *, products: bool) -> list[Any]:
    config, names = jax.config, PLAIN_JAX if products else ELSEWHERE
    found = [name for name in names if getattr(config, OPTION[name]) not in PLAIN_JAX[name]]
    return [getattr(jax, name)(PLAIN_JAX[name][0]) for name in found]


def _device_mode(jax: Any, like: Any) -> list[Any]:
    """Make the device of a JAX array the default one, unless it is spread over several."""
    device = like.device
    known = isinstance(device, jax.Device) and device != (jax.config.jax_default_device or jax.local_devices()[0])
    return [jax.default_device(device)] if known else []


def in_another_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under the modes of the present thread, to be called in another, one call at a time.

    They are NumPy's error state and all else in context variables, JAX's settings, and whether PyTorch records.
    """
    context, torch = copy_context(), sys.modules.get("torch")
    jax: Any = sys.modules.get("jax")
    settings = [] if jax is None else [(name, getattr(jax.config, option)) for name, option in OPTION.items()]
    records = torch is not None and torch.is_grad_enabled()

    def run(*arguments: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for name, value in settings:
                if getattr(jax.config, OPTION[name]) != value:
                    stack.enter_context(getattr(jax, name)(value))
            if torch is not None:
                stack.enter_context(torch.set_grad_enabled(records))
            return context.run(function, *arguments)

    return run
