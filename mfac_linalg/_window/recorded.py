"""Derivatives that PyTorch recorded of a window, which need its rows as they were."""

from typing import Protocol, TypeVar

from .. import _backend
from .._forms.state import State


class _Answering(Protocol):
    """A state of a window, by what queries of it leave."""

    @property
    def is_by_numpy(self) -> bool: ...

    @property
    def host_state(self) -> State: ...


Answering = TypeVar("Answering", bound=_Answering)


def with_recorded(after: Answering, before: Answering) -> Answering:
    """Return a state that has the ring of another: what was recorded of that one needs the same rows."""
    vars(after)["recorded"] = _recorded(before)
    return after


def _recorded(state: _Answering) -> tuple[State, ...]:
    """What may have been recorded since the rows last changed."""
    earlier = vars(state).get("recorded", ())
    is_used = state.is_by_numpy and "host_state" in vars(state) and _backend.is_in_library(state.host_state)
    return (*earlier, state.host_state) if is_used else earlier


def count_changes(before: _Answering) -> None:
    """Tell PyTorch that rows of a state change: it then refuses to take derivatives that need them."""
    for state in _recorded(before):
        _backend.count_changes(state)
