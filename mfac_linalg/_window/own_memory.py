"""How a window is copied, pickled and set back: what it writes in place belongs to it alone."""

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .initial import restore_state, with_x64
from .options import STATE_ON_HOST, WindowOptions
from .state import WindowState

Snapshot = tuple[WindowState | None, Any, int]


@_backend.methods_outside_graphs
class OwnMemory(abc.ABC):
    """A window's side of the rule in `WindowState`: two windows never share one, whatever the copy is called."""

    _options: WindowOptions
    _state: WindowState | None
    _unplaced: Any  # damping before there is a place
    _changes: int  # of the rows, which spoil a snapshot from before the last of them

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the window is, copied."""

    def __copy__(self) -> Self:
        """As `copy.deepcopy`, but for attributes of a subclass, which both have."""
        return self._own_copy(object.__new__(type(self)), lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = object.__new__(type(self))
        return self._own_copy(made, lambda value: copy.deepcopy(value, memo))

    def _own_copy(self, made: Self, copied: Callable[[Any], Any]) -> Self:
        """The same window in `made`, with memory of its own for what is written in place."""
        vars(made).update({name: copied(value) for name, value in vars(self).items() if name != "_state"})
        made._state = None if self._state is None else with_x64(copy.deepcopy, self._state, like=self._state.ring.like)
        return made

    def __getstate__(self) -> dict[str, Any]:
        held = None if self._state is None else {n: _backend.picklable(x) for n, x in self.state_dict().items()}
        return vars(self) | {"_state": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With memory of its own, whether what was unpickled can be written to or not, or is another process's too."""
        vars(self).update(state | {"_state": None})
        if state["_state"] is not None:
            self._state = restore_state(self._options, check.as_window_state(state["_state"], STATE_ON_HOST))

    def _snapshot(self) -> Snapshot:
        """What the window is now, for `_restore`: nothing is copied, so it is good for one change of the rows.

        New dampings, before or after that change, do not count: see `WindowState`.
        """
        return self._state, self._unplaced, self._changes

    def _restore(self, snapshot: Snapshot) -> None:
        """Be again what the window was."""
        held, unplaced, changes = snapshot
        if self._changes - changes > 1:
            msg = f"A snapshot is good for one change of the rows; got one from {self._changes - changes} changes ago."
            raise RuntimeError(msg)
        self._state, self._unplaced, self._changes = held, unplaced, changes
