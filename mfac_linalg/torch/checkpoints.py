"""State dictionaries of an optimizer, with momenta, moments and windows in the state of parameters, and their checks.

A window is in the state of one of its parameters, as tensors and numbers that distributed checkpoints can split.
Entries other than PyTorch's own two, which they drop, serve for clearer error messages only.
"""

import numbers
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import SlidingWindowInverse
from .. import _validation as check
from .groups import OPTIONS, Group, check_options, has_momentum_of_steps
from .layout import SHARED, WindowLayout, check_description, check_masks, check_version, fingerprint
from .window_state import (
    Options,
    compression_of,
    number_in,
    options_of_version_1,
    pack_window,
    require_entries,
    require_values,
    unpack_version_1,
    unpack_window,
)

TENSORS = ("momentum_buffer", "root_mean_square")  # of a parameter, in the dtype of F⁻¹g
RETURNED = "Pass what MFAC.state_dict returned."


class Loaded(NamedTuple):
    """The checked parts of a state dictionary."""

    windows: list[SlidingWindowInverse | None]  # None where there are no parameters
    buffers: dict[Tensor, dict[str, Any]]
    rest: dict[str, Any]  # for PyTorch


# --- to a dictionary --------------------------------------------------------------------------------------------------


def complete_state(
    state_dict: dict[str, Any],
    groups: list[Group],
    layouts: list[tuple[WindowLayout, SlidingWindowInverse | None]],
    options: Options,
) -> dict[str, Any]:
    """PyTorch's dictionary with tensors of its own, and with the windows."""
    descriptions = [layout.description(options) for layout, _ in layouts]
    windows: dict[Tensor, dict[str, Any]] = {}
    offsets: dict[Tensor, int] = {}
    for (layout, window), description in zip(layouts, descriptions, strict=True):
        offsets |= layout.offsets
        if window is not None:
            windows[layout.holder] = pack_window(window, layout.like, options)
            windows[layout.holder]["fingerprint"] = fingerprint(description)
    active, state = layouts[0][0].active, dict(state_dict["state"])
    for key, group, p in _numbered_parameters(state_dict["param_groups"], groups):
        state[key] = _entry(state.get(key, {}), group, p, active.shape(p)) | {"offset": offsets[p]}
        if p in windows:
            state[key]["window"] = windows[p]
    numbered = [{name: _copy(x) for name, x in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "state": state, "param_groups": numbered, "windows": descriptions}


def _entry(state: Mapping[str, Any], group: Group, p: Tensor, shape: torch.Size) -> dict[str, Any]:
    """A copy of the state of a parameter, with zeros for the buffers of its options before the first step."""
    entry = {name: _copy(x) for name, x in state.items() if x is not None}
    entry.pop("window", None)
    required = [(has_momentum_of_steps(group), "momentum_buffer"), (group["beta2"] is not None, "root_mean_square")]
    for name in (name for is_used, name in required if is_used and name not in entry):
        entry[name] = torch.zeros(shape, dtype=_step_dtype(p), device=p.device)
    if group["beta2"] is not None:
        entry.setdefault("share", 0.0)
    return entry


def _copy(x: Any) -> Any:
    """A tensor copied, anything else as it is."""
    return x.clone() if isinstance(x, Tensor) else x


def _numbered_parameters(numbered: list[Group], groups: list[Group]) -> Iterator[tuple[Any, Group, Tensor]]:
    """The key of each parameter in a dictionary's groups, its group, and the parameter."""
    for loaded_group, group in zip(numbered, groups, strict=True):
        for key, p in zip(loaded_group["params"], group["params"], strict=True):
            yield key, group, p


def _step_dtype(p: Tensor) -> torch.dtype:
    """The dtype of F⁻¹g."""
    return torch.promote_types(p.dtype, torch.float32)


# --- from a dictionary ------------------------------------------------------------------------------------------------


def read_state(state_dict: Any, groups: list[Group], layouts: list[WindowLayout], options: Options) -> Loaded:
    """Check a state dictionary for these groups, and return its parts.

    Raises
    ------
    TypeError, ValueError
        It does not fit them, or is not such a dictionary.
    """
    require_entries(("state", "param_groups"), state_dict)
    state_dict = {**state_dict, "param_groups": _with_later_options(state_dict["param_groups"])}
    _check_groups(state_dict["param_groups"], groups)
    state = state_dict["state"]
    if not (isinstance(state, Mapping) and all(isinstance(entry, Mapping | None) for entry in state.values())):
        msg = f"`state_dict` must have the state of each parameter as a dictionary; got {check.describe(state)}. "
        raise TypeError(msg + RETURNED)
    entries = {p: state.get(key) or {} for key, _, p in _numbered_parameters(state_dict["param_groups"], groups)}
    windows = _windows(state_dict, entries, layouts, options)
    _check_window_sizes(state_dict["param_groups"], windows)
    _check_entries(state_dict["param_groups"], groups, entries)
    active = layouts[0].active
    buffers = {p: _buffers(entry, p, active.shape(p)) for p, entry in entries.items()}
    checked = ("window", "offset", "share", *TENSORS)
    rest = {
        key: entry if entry is None else {name: value for name, value in entry.items() if name not in checked}
        for key, entry in state.items()
    }
    others = {name: value for name, value in state_dict.items() if name != "windows"}
    return Loaded(windows, buffers, {**others, "state": rest})


def _with_later_options(groups: Any) -> Any:
    """Groups of a dictionary, with the values of the options that groups did not have when it was written."""
    if not isinstance(groups, list | tuple):
        return groups
    return [{"momentum_of": "steps", **group} if isinstance(group, Mapping) else group for group in groups]


def _check_groups(loaded: Any, groups: list[Group]) -> None:
    """Accept groups of as many parameters, with all options, and these in range."""
    if not isinstance(loaded, list | tuple) or len(loaded) != len(groups):
        given = len(loaded) if isinstance(loaded, list | tuple) else check.describe(loaded)
        msg = f"`state_dict` must have {len(groups)} groups of parameters; got {given}. Construct the same groups "
        raise ValueError(msg + "first.")
    for loaded_group, group in zip(loaded, groups, strict=True):
        require_entries((*OPTIONS, "params"), loaded_group)
        check_options(loaded_group)
        keys = loaded_group["params"]
        if not isinstance(keys, list | tuple) or len(keys) != len(group["params"]):
            given = len(keys) if isinstance(keys, list | tuple) else check.describe(keys)
            msg = f"`state_dict` must have {len(group['params'])} parameters in a group; got {given}. Construct the "
            raise ValueError(msg + "same groups first.")
        if not all(isinstance(key, Hashable) for key in keys):
            msg = f"`state_dict` must number or name its parameters; got {check.describe(keys)}. {RETURNED}"
            raise TypeError(msg)


def _check_window_sizes(groups: list[Group], windows: list[SlidingWindowInverse | None]) -> None:
    """Accept windows of the size in their groups."""
    for index, group in enumerate(groups):
        window = windows[min(index, len(windows) - 1)]
        if window is not None and group["window"] != window.window:
            msg = f"`state_dict` must have windows of the size in its groups; got {window.window} and "
            raise ValueError(msg + f"{group['window']}. {RETURNED}")


def _check_entries(loaded: list[Group], groups: list[Group], entries: dict[Tensor, Mapping[str, Any]]) -> None:
    """Accept entries with all that a step needs, of every trained parameter; before version 2 some were missing."""
    if not any("offset" in entry for entry in entries.values()):
        return
    for loaded_group, group in zip(loaded, groups, strict=True):
        required = ["offset", *(["momentum_buffer"] if has_momentum_of_steps(loaded_group) else [])]
        required += [] if loaded_group["beta2"] is None else ["root_mean_square", "share"]
        for p in (p for p in group["params"] if p.requires_grad):
            if missing := [name for name in required if isinstance(entries[p].get(name, {}), Mapping | None)]:
                msg = (
                    f"`state_dict` must have {', '.join(missing)} in the state of each parameter; got none for one of "
                )
                raise ValueError(msg + f"shape {tuple(p.shape)}. {RETURNED}")


def _windows(
    state_dict: Mapping[str, Any],
    entries: dict[Tensor, Mapping[str, Any]],
    layouts: list[WindowLayout],
    options: Options,
) -> list[SlidingWindowInverse | None]:
    """The windows; before version 2 they are in a part of the dictionary of their own."""
    descriptions = state_dict.get("windows")
    if descriptions is None:
        descriptions = [None] * len(layouts)
    if not isinstance(descriptions, list | tuple) or len(descriptions) != len(layouts):
        given = len(descriptions) if isinstance(descriptions, list | tuple) else check.describe(descriptions)
        msg = f"`state_dict` must be of {len(layouts)} windows; got {given}. Construct the same groups first."
        raise ValueError(msg)
    pairs = zip(descriptions, layouts, strict=True)
    return [_window(description, layout, entries, options) for description, layout in pairs]


def _window(
    description: Any, layout: WindowLayout, entries: dict[Tensor, Mapping[str, Any]], options: Options
) -> SlidingWindowInverse | None:
    """The window of some parameters; None where there are none."""
    if description is not None:
        require_entries(("shapes", "dtypes", "kept"), description)
        check_description(description, layout.description(options), ("shapes", "dtypes"))
        check_masks(description["kept"], layout.description(options)["kept"])
    if not layout.parameters:
        return None
    if description is not None and "window" in description:
        window = unpack_version_1(description, layout.like)
        check_description(options_of_version_1(description), options, SHARED)
        return window
    if description is not None:
        require_entries(("version", *SHARED), description)
        check_version(description["version"])
        check_description(description | {"compression": compression_of(description["compression"])}, options, SHARED)
    windows = [entries[p].get("window") for p in layout.parameters]  # empty where a checkpoint has dropped it
    entry: Any = next((x for x in windows if not (x is None or (isinstance(x, Mapping) and not x))), None)
    if entry is None:
        shapes = layout.description(options)["shapes"]
        msg = f"`state_dict` must have a window in the state of a parameter of each group; got none for shapes {shapes}"
        msg = f"{msg:.400}. {RETURNED}"
        raise ValueError(msg)
    require_entries(("fingerprint",), entry)
    offsets = {p: entries[p]["offset"] for p in layout.parameters if "offset" in entries[p]}
    pairs = [(entry["fingerprint"], fingerprint(layout.description(options)))]
    pairs += [(offset, layout.offsets[p]) for p, offset in offsets.items()]
    if not all(_is_same(given, ours) for given, ours in pairs):
        msg = "`state_dict` must be of the same parameters in the same order, masks, normalization, precision and "
        raise ValueError(msg + "compression; got another. Construct the optimizer as it was when it was saved.")
    return unpack_window(entry, layout.like, layout.dim, options)


def _is_same(given: Any, ours: int) -> bool:
    """Whether a number, perhaps in a tensor of one entry, is equal to ours."""
    given = number_in(given)
    return isinstance(given, numbers.Integral) and given == ours


def _buffers(entry: Mapping[str, Any], p: Tensor, shape: torch.Size) -> dict[str, Any]:
    """Copies of the momentum and the moment of a parameter, in the dtype of the dictionary."""
    # some checkpoints give an empty dictionary for a missing entry
    given = {name: entry[name] for name in (*TENSORS, "share") if isinstance(entry.get(name, {}), Mapping) is False}
    if ("root_mean_square" in given) != ("share" in given):
        msg = f"`state_dict` must have root_mean_square and share together; got {', '.join(given)}. "
        raise ValueError(msg + RETURNED)
    for name in TENSORS:
        if name in given:
            given[name] = _buffer(name, given[name], p, shape)
    if "share" in given:
        bias_correction = number_in(given["share"])
        if not (isinstance(bias_correction, numbers.Real) and not bias_correction < 0 and bias_correction <= 1):
            msg = f"`state_dict` must have a share in [0, 1]; got {check.describe(given['share'])}. "
            raise ValueError(msg + RETURNED)
        given["share"] = float(bias_correction)
    return given


def _buffer(name: str, x: Any, p: Tensor, shape: torch.Size) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype != _step_dtype(p):
        msg = f"`state_dict` must have {name} as a tensor of {_step_dtype(p)}; got {check.describe(x)}. "
        raise TypeError(msg + "Keep it out of casts.")
    require_values(name, x)
    if x.shape != shape:
        msg = f"`state_dict` must have {name} of the parameters' shapes; got {tuple(x.shape)} for {tuple(shape)}. "
        raise ValueError(msg + "Construct the same groups first.")
    if not bool(torch.isfinite(x).all()) or (name == "root_mean_square" and bool((x < 0).any())):
        range_ = "finite" if name == "momentum_buffer" else "finite and ≥ 0"
        msg = f"`state_dict` must have a {name} that is {range_}; got other entries for a parameter of shape "
        raise ValueError(msg + f"{tuple(p.shape)}. Load a state from before the loss overflowed.")
    with torch.inference_mode(False):  # a step writes to it in every mode
        return x.detach().to(p.device, copy=True)
