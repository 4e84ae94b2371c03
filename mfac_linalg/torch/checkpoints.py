"""State dictionaries of an optimizer: momenta, moments and windows in the state of parameters, and the way back.

A window is in the state of one of its parameters, as tensors and numbers that distributed checkpoints can take apart;
what they drop, entries beside PyTorch's own two, only serves to name what does not fit.
"""

import numbers
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import SlidingWindowInverse
from .. import _validation as check
from .groups import OPTIONS, Group, check_options
from .layout import SHARED, Served, check_described, check_masks, check_version, fingerprint
from .window_state import (
    Options,
    compression_of,
    number_in,
    options_of,
    pack_window,
    require_entries,
    require_values,
    unpack_version_1,
    unpack_window,
)

TENSORS = ("momentum_buffer", "root_mean_square")  # of a parameter, in the dtype of F⁻¹g
RETURNED = "Pass what MFAC.state_dict returned."


class Loaded(NamedTuple):
    """What a state dictionary holds, checked."""

    windows: list[SlidingWindowInverse | None]  # None where there are no parameters
    buffers: dict[Tensor, dict[str, Any]]
    rest: dict[str, Any]  # for PyTorch


# --- to a dictionary --------------------------------------------------------------------------------------------------


def complete_state(
    state_dict: dict[str, Any],
    groups: list[Group],
    served: list[tuple[Served, SlidingWindowInverse | None]],
    options: Options,
) -> dict[str, Any]:
    """PyTorch's dictionary with tensors of its own, and with the windows."""
    described = [part.described(options) for part, _ in served]
    windows: dict[Tensor, dict[str, Any]] = {}
    offsets: dict[Tensor, int] = {}
    for (part, window), words in zip(served, described, strict=True):
        offsets |= part.offsets
        if window is not None:
            windows[part.holder] = pack_window(window, part.like) | {"fingerprint": fingerprint(words)}
    kept, state = served[0][0].kept, dict(state_dict["state"])
    for key, group, p in _numbered(state_dict["param_groups"], groups):
        state[key] = _entry(state.get(key, {}), group, p, kept.shape(p)) | {"offset": offsets[p]}
        if p in windows:
            state[key]["window"] = windows[p]
    numbered = [{name: _own(x) for name, x in group.items()} for group in state_dict["param_groups"]]
    return {**state_dict, "state": state, "param_groups": numbered, "windows": described}


def _entry(state: Mapping[str, Any], group: Group, p: Tensor, shape: torch.Size) -> dict[str, Any]:
    """A copy of the state of a parameter; zeros for what its options ask for and no step has made yet."""
    entry = {name: _own(x) for name, x in state.items() if x is not None}
    entry.pop("window", None)
    wanted = [(group["momentum"], "momentum_buffer"), (group["beta2"] is not None, "root_mean_square")]
    for name in (name for yes, name in wanted if yes and name not in entry):
        entry[name] = torch.zeros(shape, dtype=_answer_dtype(p), device=p.device)
    if group["beta2"] is not None:
        entry.setdefault("share", 0.0)
    return entry


def _own(x: Any) -> Any:
    """A tensor copied, anything else as it is."""
    return x.clone() if isinstance(x, Tensor) else x


def _numbered(numbered: list[Group], groups: list[Group]) -> Iterator[tuple[Any, Group, Tensor]]:
    """The keys of a dictionary's groups, beside the parameters that they stand for and their groups."""
    for there, here in zip(numbered, groups, strict=True):
        for key, p in zip(there["params"], here["params"], strict=True):
            yield key, here, p


def _answer_dtype(p: Tensor) -> torch.dtype:
    """That of F⁻¹g."""
    return torch.promote_types(p.dtype, torch.float32)


# --- from a dictionary ------------------------------------------------------------------------------------------------


def read_state(state_dict: Any, groups: list[Group], served: list[Served], options: Options) -> Loaded:
    """What a state dictionary holds for these groups.

    Raises
    ------
    TypeError, ValueError
        It does not fit them, or is not such a dictionary.
    """
    require_entries(("state", "param_groups"), state_dict)
    _check_groups(state_dict["param_groups"], groups)
    state = state_dict["state"]
    if not (isinstance(state, Mapping) and all(isinstance(entry, Mapping | None) for entry in state.values())):
        msg = f"`state_dict` must have the state of each parameter as a dictionary; got {check.describe(state)}. "
        raise TypeError(msg + RETURNED)
    entries = {p: state.get(key) or {} for key, _, p in _numbered(state_dict["param_groups"], groups)}
    windows = _windows(state_dict, entries, served, options)
    _check_window_sizes(state_dict["param_groups"], windows)
    _check_entries(state_dict["param_groups"], groups, entries)
    kept = served[0].kept
    buffers = {p: _buffers(entry, p, kept.shape(p)) for p, entry in entries.items()}
    own = ("window", "offset", "share", *TENSORS)
    rest = {
        key: entry if entry is None else {name: value for name, value in entry.items() if name not in own}
        for key, entry in state.items()
    }
    others = {name: value for name, value in state_dict.items() if name != "windows"}
    return Loaded(windows, buffers, {**others, "state": rest})


def _check_groups(loaded: Any, groups: list[Group]) -> None:
    """Accept groups of as many parameters, whose options are all there and in range."""
    if not isinstance(loaded, list | tuple) or len(loaded) != len(groups):
        given = len(loaded) if isinstance(loaded, list | tuple) else check.describe(loaded)
        msg = f"`state_dict` must have {len(groups)} groups of parameters; got {given}. Construct the same groups "
        raise ValueError(msg + "first.")
    for there, here in zip(loaded, groups, strict=True):
        require_entries((*OPTIONS, "params"), there)
        check_options(there)
        keys = there["params"]
        if not isinstance(keys, list | tuple) or len(keys) != len(here["params"]):
            given = len(keys) if isinstance(keys, list | tuple) else check.describe(keys)
            msg = f"`state_dict` must have {len(here['params'])} parameters in a group; got {given}. Construct the "
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
    """Accept what a step goes on from, of every trained parameter; before version 2 there was less."""
    if not any("offset" in entry for entry in entries.values()):
        return
    for there, here in zip(loaded, groups, strict=True):
        wanted = ["offset", *(["momentum_buffer"] if there["momentum"] else [])]
        wanted += [] if there["beta2"] is None else ["root_mean_square", "share"]
        for p in (p for p in here["params"] if p.requires_grad):
            if missing := [name for name in wanted if isinstance(entries[p].get(name, {}), Mapping | None)]:
                msg = (
                    f"`state_dict` must have {', '.join(missing)} in the state of each parameter; got none for one of "
                )
                raise ValueError(msg + f"shape {tuple(p.shape)}. {RETURNED}")


def _windows(
    state_dict: Mapping[str, Any],
    entries: dict[Tensor, Mapping[str, Any]],
    served: list[Served],
    options: Options,
) -> list[SlidingWindowInverse | None]:
    """The windows, of an own part of the dictionary before version 2."""
    described = state_dict.get("windows")
    if described is None:
        described = [None] * len(served)
    if not isinstance(described, list | tuple) or len(described) != len(served):
        given = len(described) if isinstance(described, list | tuple) else check.describe(described)
        msg = f"`state_dict` must be of {len(served)} windows; got {given}. Construct the same groups first."
        raise ValueError(msg)
    return [_window(words, part, entries, options) for words, part in zip(described, served, strict=True)]


def _window(
    words: Any, part: Served, entries: dict[Tensor, Mapping[str, Any]], options: Options
) -> SlidingWindowInverse | None:
    """The window of some parameters; None where there are none."""
    if words is not None:
        require_entries(("shapes", "dtypes", "kept"), words)
        check_described(words, part.described(options), ("shapes", "dtypes"))
        check_masks(words["kept"], part.described(options)["kept"])
    if not part.parameters:
        return None
    if words is not None and "window" in words:
        window = unpack_version_1(words, part.like)
        check_described(options_of(window), options, SHARED)
        return window
    if words is not None:
        require_entries(("version", *SHARED), words)
        check_version(words["version"])
        check_described(words | {"compression": compression_of(words["compression"])}, options, SHARED)
    held = [entries[p].get("window") for p in part.parameters]  # empty where a checkpoint has left it out
    entry: Any = next((x for x in held if not (x is None or (isinstance(x, Mapping) and not x))), None)
    if entry is None:
        shapes = part.described(options)["shapes"]
        msg = f"`state_dict` must have a window in the state of a parameter of each group; got none for shapes {shapes}"
        msg = f"{msg:.400}. {RETURNED}"
        raise ValueError(msg)
    require_entries(("fingerprint",), entry)
    moved = {p: entries[p]["offset"] for p in part.parameters if "offset" in entries[p]}
    told = [(entry["fingerprint"], fingerprint(part.described(options)))]
    told += [(offset, part.offsets[p]) for p, offset in moved.items()]
    if not all(_is_same(given, ours) for given, ours in told):
        msg = "`state_dict` must be of the same parameters in the same order, masks, normalization, precision and "
        raise ValueError(msg + "compression; got another. Construct the optimizer as that was which was saved.")
    return unpack_window(entry, part.like, part.dim, options)


def _is_same(given: Any, ours: int) -> bool:
    """Whether a number, perhaps in a tensor of its own, is ours."""
    given = number_in(given)
    return isinstance(given, numbers.Integral) and given == ours


def _buffers(entry: Mapping[str, Any], p: Tensor, shape: torch.Size) -> dict[str, Any]:
    """The momentum and the moment of a parameter, copied, in the dtype in which they were kept."""
    # a checkpoint without some entry may give an empty dictionary for it
    given = {name: entry[name] for name in (*TENSORS, "share") if isinstance(entry.get(name, {}), Mapping) is False}
    if ("root_mean_square" in given) != ("share" in given):
        msg = f"`state_dict` must have root_mean_square and share together; got {', '.join(given)}. "
        raise ValueError(msg + RETURNED)
    for name in TENSORS:
        if name in given:
            given[name] = _buffer(name, given[name], p, shape)
    if "share" in given:
        share = number_in(given["share"])
        if not (isinstance(share, numbers.Real) and not share < 0 and share <= 1):
            msg = f"`state_dict` must have a share in [0, 1]; got {check.describe(given['share'])}. "
            raise ValueError(msg + RETURNED)
        given["share"] = float(share)
    return given


def _buffer(name: str, x: Any, p: Tensor, shape: torch.Size) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype != _answer_dtype(p):
        msg = f"`state_dict` must have {name} as a tensor of {_answer_dtype(p)}; got {check.describe(x)}. "
        raise TypeError(msg + "Keep it out of casts.")
    require_values(name, x)
    if x.shape != shape:
        msg = f"`state_dict` must have {name} of the parameters' shapes; got {tuple(x.shape)} for {tuple(shape)}. "
        raise ValueError(msg + "Construct the same groups first.")
    if not bool(torch.isfinite(x).all()) or (name == "root_mean_square" and bool((x < 0).any())):
        wanted = "finite" if name == "momentum_buffer" else "finite and ≥ 0"
        msg = f"`state_dict` must have a {name} that is {wanted}; got other entries for a parameter of shape "
        raise ValueError(msg + f"{tuple(p.shape)}. Go on from a state before the loss overflowed.")
    with torch.inference_mode(False):  # it is written to in every mode
        return x.detach().to(p.device, copy=True)
