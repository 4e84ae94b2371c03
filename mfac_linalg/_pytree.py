"""The pieces that an inverse is made of: pytrees for JAX, and picklable whatever the library."""

from typing import Any

from . import _backend

CACHED = _backend.CACHED


class Part:
    """An immutable piece of state; its subclasses are frozen dataclasses of arrays, Parts and constants."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: _backend.portable(value) for name, value in vars(self).items() if not name.startswith(CACHED)}


def register(like: Any, *public: type) -> None:
    """Make public classes and the pieces known to JAX, where `like` is a JAX array."""
    _backend.adopt(like, *public, *Part.__subclasses__())
