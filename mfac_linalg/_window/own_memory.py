"""How a window is copied, pickled and rolled back: memory that is written in place is never shared."""

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .initial import restore_state, run
from .options import STATE_ON_HOST, WindowOptions
from .state import WindowState

Snapshot = tuple[WindowState | None, Any, int]


@_backend.methods_outside_graphs
class OwnMemory(abc.ABC):
    """The rule of `WindowState` for a window: no two windows share a state, by any kind of copy."""

    _options: WindowOptions
    _state: WindowState | None
    _initial_damping: Any  # until the first gradient decides on a library
    _changes: int  # of the rows; a snapshot is valid for one

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The whole state, copied."""

    def __copy__(self) -> Self:
        """As `copy.deepcopy`; attributes of a subclass are shared."""
        return self._fill_copy(object.__new__(type(self)), lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = memo[id(self)] = object.__new__(type(self))
        return self._fill_copy(new, lambda value: copy.deepcopy(value, memo))

    def _fill_copy(self, new: Self, copy_value: Callable[[Any], Any]) -> Self:
        """Make `new` the same window, with new memory for what is written in place."""
        vars(new).update({name: copy_value(value) for name, value in vars(self).items() if name != "_state"})
        new._state = None if self._state is None else run(copy.deepcopy, self._state)
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = None if self._state is None else {n: _backend.picklable(x) for n, x in self.state_dict().items()}
        return vars(self) | {"_state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copy what was unpickled: it may be read-only, or shared with another process."""
        vars(self).update(state | {"_state": None})
        if state["_state"] is not None:
            self._state = restore_state(self._options, check.as_window_state(state["_state"], STATE_ON_HOST))

    def _snapshot(self) -> Snapshot:
        """The present state, for `_restore`: nothing is copied, so it is valid for one change of the rows.

        New dampings, before or after that change, do not count: see `WindowState`.
        """
        return self._state, self._initial_damping, self._changes

    def _restore(self, snapshot: Snapshot) -> None:
        """Return to the state of a snapshot."""
        state, damping, changes = snapshot
        if self._changes - changes > 1:
            msg = f"A snapshot is valid for one change of the rows; got one from {self._changes - changes} changes ago."
            raise RuntimeError(msg)
        self._state, self._initial_damping, self._changes = state, damping, changes
