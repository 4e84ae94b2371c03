"""PyTorch's compiler: a compiled function may call the library, whose own code is not compiled."""

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
OPERATORS = ("__init__", "__matmul__", "__rmatmul__", "__repr__", "__copy__", "__deepcopy__")
PROPERTIES = ("gradients", "damping")  # that compute; the others are read within every product
_uncompiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def outside_graphs(function: F) -> F:
    """The function, called between two graphs by what `torch.compile` has compiled.

    Compiled, NumPy's functions would be PyTorch's: other answers, or none.
    """

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes a second
            return function(*arguments, **options)
        if function not in _uncompiled:
            _uncompiled[function] = sys.modules["torch"].compiler.disable(function)
        return _uncompiled[function](*arguments, **options)

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
            accessors = [access and outside_graphs(access) for access in (value.fget, value.fset)]
            setattr(cls, name, property(*accessors, doc=value.__doc__))
    return cls
