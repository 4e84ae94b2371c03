"""What a group of parameters may be, and what groups that share a window have in common."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _validation as check

Group = dict[str, Any]
NUMBERS = {"lr": math.inf, "momentum": 1.0, "weight_decay": math.inf, "damping": math.inf, "beta2": 1.0}  # in [0, end)
OPTIONS = (*NUMBERS, "window", "decoupled_weight_decay", "maximize")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def agreed(name: str, groups: list[Group]) -> float:
    """The value of an option that all groups of a window have."""
    values = {float(group[name]) for group in groups}
    if len(values) > 1:
        msg = f"`{name}` must be one for all groups of a shared window; got {sorted(values)}. Set it in all of them."
        raise ValueError(msg)
    return values.pop()


def has_moments(groups: list[Group]) -> list[bool]:
    """Whether each group has a damping in the shape of Adam's denominator."""
    return [group["beta2"] is not None for group in groups]


def check_group(group: Any, shared: set[str]) -> Group:
    """Accept a group by its kind, as a dictionary of one's own; options that all groups share are not in it."""
    if not isinstance(group, Mapping) or "params" not in group:
        given = f"entries {list(group)!r:.100}" if isinstance(group, Mapping) else check.describe(group)
        msg = f"`param_group` must be a dictionary with the entry params; got {given}. Pass {{'params': parameters}}."
        raise (ValueError if isinstance(group, Mapping) else TypeError)(msg)
    if clash := sorted(shared & group.keys()):
        msg = f"`{clash[0]}` must be the same for all groups; got one in a group. Pass it to the optimizer."
        raise ValueError(msg)
    return dict(group)


def settle_options(group: Group) -> None:
    """Accept the options of a group, and make numbers Python's: those alone are safe in a file."""
    check_options(group)
    for name, _ in _given(group):
        group[name] = group[name] if isinstance(group[name], Tensor) else float(group[name])
    group["window"] = check.check_size("window", group["window"])


def check_options(group: Group) -> None:
    """Accept what is in a group, also what a scheduler or a user has left there, before anything is written."""
    for name, end in _given(group):
        value, positive = _number(name, group[name]), name == "damping"
        if not 0 <= value < end or (positive and value == 0):
            interval = f"{'(' if positive else '['}0, {end:g})"
            msg = f"`{name}` must be in {interval}; got {value:g}. Choose one that is, or check what sets it."
            raise ValueError(msg)
    for name in ("decoupled_weight_decay", "maximize"):
        check.check_flag(name, group[name])
    check.check_size("window", group["window"])


def _given(group: Group) -> list[tuple[str, float]]:
    """The numbers of a group, with the ends of their ranges; beta2 may be None."""
    return [(name, end) for name, end in NUMBERS.items() if name != "beta2" or group[name] is not None]


def _number(name: str, value: Any) -> float:
    """The value of a number, or of a tensor of one."""
    scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not (scalar or isinstance(value, numbers.Real)):
        msg = f"`{name}` must be a number; got {check.describe(value)}. Pass a float."
        raise TypeError(msg)
    return float(value)


def check_parameters(parameters: list[Tensor]) -> None:
    """Accept real floating parameters of one dtype on one device."""
    for p in parameters:
        if p.dtype not in FLOATING:
            msg = f"`params` must be float16, bfloat16, float32 or float64; got {p.dtype}. "
            raise TypeError(msg + "Pass real and imaginary parts as parameters of their own.")
    check_one_kind(parameters)
    if any(p.is_meta for p in parameters):
        msg = "`params` must have values; got some on the device meta. Move the model to a device first."
        raise ValueError(msg)
    if len(set(parameters)) < len(parameters):
        twice = next(p for k, p in enumerate(parameters) if any(p is other for other in parameters[:k]))
        msg = f"`params` must hold each parameter once; got one of shape {tuple(twice.shape)} twice. Pass "
        raise ValueError(msg + "model.parameters(), which names tied ones once.")


def check_one_kind(tensors: list[Tensor]) -> None:
    """Refuse what would make a vector of several dtypes or devices."""
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) > 1:
        held = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        msg = f"`params` of one window must have one dtype on one device; got {held}. Make them groups of their own."
        raise TypeError(msg)
