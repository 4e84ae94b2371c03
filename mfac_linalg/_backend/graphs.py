"""`torch.compile`: a compiled function may call the library, whose own code is not compiled."""

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

from .modes import in_transforms, is_untransformed, outside_transforms

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
OPERATORS = ("__init__", "__matmul__", "__rmatmul__", "__repr__", "__copy__", "__deepcopy__")
PROPERTIES = ("gradients", "damping")  # that compute; the others are read within every product
_uncompiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def outside_graphs(function: F) -> F:
    """The function, called between two graphs of `torch.compile`, and outside of unrelated transforms of torch.func.

    Compiled, NumPy's functions would be PyTorch's: other answers, or none. Within a transform of torch.func that is not
    of its arguments, all that it keeps would be bound to that transform.
    """
    function = _outside_unrelated_transforms(function)

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes a second
            return function(*arguments, **options)
        if function not in _uncompiled:
            _uncompiled[function] = sys.modules["torch"].compiler.disable(function)
        return _uncompiled[function](*arguments, **options)

    # PyTorch keeps what it has compiled by code object: one for all would mix up the functions once one of them, such
    # as a bound method, is given to torch.compile itself
    own = cast(FunctionType, run)
    own.__code__ = own.__code__.replace(co_name=function.__qualname__)
    return run  # type: ignore[return-value]


def _outside_unrelated_transforms(function: F) -> F:
    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if not in_transforms() or not is_untransformed(*arguments, *options.values()):
            return function(*arguments, **options)
        with outside_transforms():
            return function(*arguments, **options)

    return run  # type: ignore[return-value]


def methods_outside_graphs(cls: C) -> C:
    """The class with `outside_graphs` around its public methods, operators, and what properties compute."""
    for name, value in list(vars(cls).items()):
        if name.startswith("_") and name not in OPERATORS:
            continue
        if isinstance(value, FunctionType):
            setattr(cls, name, outside_graphs(value))
        elif isinstance(value, classmethod):
            setattr(cls, name, classmethod(outside_graphs(value.__func__)))
        elif isinstance(value, property) and name in PROPERTIES:
            setter = value.fset and outside_graphs(value.fset)
            setattr(cls, name, property(value.fget and outside_graphs(value.fget), setter, doc=value.__doc__))
    return cls
