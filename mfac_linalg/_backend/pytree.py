"""The pieces that an inverse is made of: pytrees for JAX, and picklable whatever the library."""

from collections.abc import Callable
from typing import Any

from .. import _backend

CACHED = _backend.CACHED


class Part:
    """An immutable piece of state; its subclasses are frozen dataclasses of arrays, Parts and constants."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: _backend.picklable(value) for name, value in vars(self).items() if not name.startswith(CACHED)}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Make something once, where it holds for good: not fields, so that no pytree and no pickle carries them."""
        name = CACHED + name
        if name in vars(self):
            return vars(self)[name]
        made = make()
        first = made[0] if isinstance(made, tuple) else made
        if _backend.is_concrete(first) and not _backend.is_differentiated(first):
            vars(self)[name] = made
        return made


def register(like: Any, *public: type) -> None:
    """Make public classes and the pieces known to JAX, where `like` is a JAX array."""
    _backend.register_pytrees(like, *public, *Part.__subclasses__())
