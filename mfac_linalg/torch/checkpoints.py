"""What an optimizer's windows, momenta and moments are in a state dictionary, and the way back."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .. import SlidingWindowInverse
from .. import _validation as check
from .._rules import STATE_ON_HOST
from .groups import OPTIONS, check_options

Layout = tuple[list[Tensor], list[Tensor | None]]
"""The parameters that a window serves, and of each the flat indices of weights that may move, None for all."""


def window_state(window: SlidingWindowInverse, parameters: list[Tensor], kept: list[Tensor | None]) -> dict[str, Any]:
    """A window as tensors, numbers and words, with the parameters that it fits."""
    state = window.state_dict()
    host = [name for name in STATE_ON_HOST if name in state]  # what stays there, as no other device needs float64
    return {**_fitting(parameters), "kept": kept, "host": host, "window": state}


def restored_windows(state_dict: Any, layouts: list[Layout], rules: dict[str, Any]) -> list[SlidingWindowInverse]:
    """The windows of a state dictionary, beside the parameters that they serve; refused where they do not fit."""
    _require(("state", "param_groups", "windows"), state_dict)
    entries = state_dict["windows"]
    if not isinstance(entries, list) or len(entries) != len(layouts):
        given = len(entries) if isinstance(entries, list) else check.describe(entries)
        msg = f"`state_dict` must be of {len(layouts)} windows; got {given}. Construct the same groups first."
        raise ValueError(msg)
    return [_restored(entry, layout, rules) for entry, layout in zip(entries, layouts, strict=True)]


def _restored(entry: dict[str, Any], layout: Layout, rules: dict[str, Any]) -> SlidingWindowInverse:
    parameters, kept = layout
    _require(("shapes", "dtypes", "kept", "host", "window"), entry)
    for name, ours in _fitting(parameters).items():
        if entry[name] != ours:
            msg = f"`state_dict` must be of parameters with {name} {ours!r:.200}; got {entry[name]!r:.200}. "
            raise ValueError(msg + "Construct the same groups first.")
    if not all(map(_same, kept, entry["kept"])):
        msg = "`state_dict` must be of the same masks; got others. Construct the optimizer with the masks it was saved "
        raise ValueError(msg + "with.")
    device = parameters[0].device if parameters else None
    moving = {name for name, value in entry["window"].items() if isinstance(value, Tensor)} - {*entry["host"]}
    moved = {name: entry["window"][name].to(device) for name in moving}
    made = SlidingWindowInverse.from_state_dict(entry["window"] | moved)
    for name, value in rules.items():
        if getattr(made._rules, name) != value:
            msg = f"`state_dict` must be of windows with {name}={value!r}; got {getattr(made._rules, name)!r}. "
            raise ValueError(msg + "Construct the optimizer with it.")
    return made


def _require(names: tuple[str, ...], part: Any) -> None:
    """Refuse what is not a dictionary with these entries, such as the state of another optimizer."""
    given = ", ".join(map(str, part)) if isinstance(part, Mapping) else check.describe(part)
    if not (isinstance(part, Mapping) and part.keys() >= set(names)):
        msg = f"`state_dict` must have the entries {', '.join(names)}; got {given:.200}. "
        raise ValueError(msg + "Pass what MFAC.state_dict returned.")


def _fitting(parameters: list[Tensor]) -> dict[str, Any]:
    """What parameters must have in common with those that were saved."""
    return {"shapes": [list(p.shape) for p in parameters], "dtypes": sorted({str(p.dtype) for p in parameters})}


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours.cpu(), theirs.cpu())


def copied(state_dict: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's part of a state, with tensors of its own as the windows have."""
    state = {
        key: {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def check_groups(groups: Any, windows: list[SlidingWindowInverse]) -> None:
    """Accept groups whose options are all there, in range, and fit the windows."""
    for index, group in enumerate(groups):
        _require((*OPTIONS, "params"), group)
        check_options(group)
        window = windows[min(index, len(windows) - 1)].window
        if group["window"] != window:
            msg = f"`state_dict` must have windows of the size in its groups; got {window} and {group['window']}. "
            raise ValueError(msg + "Pass what MFAC.state_dict returned.")


def restored_buffers(
    state_dict: dict[str, Any], parameters: list[Tensor], shapes: list[torch.Size]
) -> dict[Tensor, dict[str, Tensor]]:
    """The momenta and moments of a state dictionary, copied, in the dtype in which they were kept."""
    keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    found: dict[Tensor, dict[str, Tensor]] = {}
    for key, p, shape in zip(keys, parameters, shapes, strict=False):  # PyTorch compares the numbers
        entry = state_dict["state"].get(key, {})
        if ("root_mean_square" in entry) != ("share" in entry):
            msg = f"`state_dict` must have root_mean_square and share together; got {', '.join(entry)}. "
            raise ValueError(msg + "Pass what MFAC.state_dict returned.")
        for name, buffer in entry.items():
            if not isinstance(buffer, Tensor):
                continue
            if buffer.shape != shape:
                msg = f"`state_dict` must have {name} of the parameters' shapes; got {tuple(buffer.shape)} for "
                raise ValueError(msg + f"{tuple(shape)}. Construct the same groups first.")
            found.setdefault(p, {})[name] = buffer.detach().to(p.device, copy=True)
    return found
