"""How a window is copied, pickled and set back: what it writes in place belongs to it alone."""

import abc
import copy
from collections.abc import Callable
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .initial import refilled, run
from .options import STATE_ON_HOST, Rules
from .state import Held

Snapshot = tuple[Held | None, Any, int]


@_backend.methods_outside_graphs
class OwnMemory(abc.ABC):
    """A window's side of the rule in `Held`: two windows never share one, whatever the copy is called."""

    _rules: Rules
    _held: Held | None
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
        vars(made).update({name: copied(value) for name, value in vars(self).items() if name != "_held"})
        made._held = None if self._held is None else run(lambda: copy.deepcopy(self._held), self._held.ring.like)
        return made

    def __getstate__(self) -> dict[str, Any]:
        held = None if self._held is None else {n: _backend.portable(x) for n, x in self.state_dict().items()}
        return vars(self) | {"_held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With memory of its own, whether what was unpickled can be written to or not, or is another process's too."""
        vars(self).update(state | {"_held": None})
        if state["_held"] is not None:
            self._held = refilled(self._rules, check.as_window_state(state["_held"], STATE_ON_HOST))

    def _snapshot(self) -> Snapshot:
        """What the window is now, for `_restore`: nothing is copied, so it is good for one change of the rows.

        New dampings, before or after that change, do not count: see `Held`.
        """
        return self._held, self._unplaced, self._changes

    def _restore(self, snapshot: Snapshot) -> None:
        """Be again what the window was."""
        held, unplaced, changes = snapshot
        if self._changes - changes > 1:
            msg = f"A snapshot is good for one change of the rows; got one from {self._changes - changes} changes ago."
            raise RuntimeError(msg)
        self._held, self._unplaced, self._changes = held, unplaced, changes
