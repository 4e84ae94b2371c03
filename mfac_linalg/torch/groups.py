"""What a group of parameters may be, and what groups that share a window have in common."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from .. import _validation as check

Group = dict[str, Any]
NUMBERS = {"lr": math.inf, "momentum": 1.0, "weight_decay": math.inf, "damping": math.inf, "beta2": 1.0}  # in [0, end)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def agreed(name: str, groups: list[Group]) -> float:
    """The value of an option that all groups of a window have."""
    values = {float(group[name]) for group in groups}
    if len(values) > 1:
        msg = f"`{name}` must be one for all groups of a shared window; got {sorted(values)}. Set it in all of them."
        raise ValueError(msg)
    return values.pop()


def settle_options(group: Group) -> None:
    """Accept the numbers and flags of a group, and make numbers Python's: those alone are safe in a file."""
    for name, end in _given(group):
        value = _number(name, group[name])
        if not 0 <= value < end:
            msg = f"`{name}` must be in [0, {end:g}); got {value:g}. Choose one that is."
            raise ValueError(msg)
        group[name] = group[name] if isinstance(group[name], Tensor) else value
    for name in ("decoupled_weight_decay", "maximize"):
        check.check_flag(name, group[name])
    group["window"] = check.check_size("window", group["window"])


def check_still_finite(groups: list[Group]) -> None:
    """Accept the numbers that a scheduler has left in groups, before anything is written."""
    for group in groups:
        for name, _ in _given(group):
            if not math.isfinite(_number(name, group[name])):
                msg = f"`{name}` must be finite; got {float(group[name])}. Check what sets it between steps."
                raise ValueError(msg)


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


def check_one_kind(tensors: list[Tensor]) -> None:
    """Refuse what would make a vector of several dtypes or devices."""
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) > 1:
        held = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        msg = f"`params` of one window must have one dtype on one device; got {held}. Make them groups of their own."
        raise TypeError(msg)
