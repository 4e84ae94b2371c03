"""Checks of parameter groups and their options, and the values that groups with one window share."""

import math
import numbers
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import _validation as check
from .._repr import as_list
from .parameters import FLOATING

Group = dict[str, Any]
NUMBERS = {"lr": math.inf, "momentum": 1.0, "weight_decay": math.inf, "damping": math.inf, "beta2": 1.0}  # in [0, end)
MOMENTUM_OF = ("steps", "gradients")
OPTIONS = (*NUMBERS, "window", "momentum_of", "decoupled_weight_decay", "maximize")
FOREIGN = ("betas", "eps", "nesterov", "dampening", "amsgrad", "foreach", "fused", "capturable", "differentiable")
"""Options of PyTorch's optimizers that would have no effect; other entries of a group belong to the user."""
OF_OPTIMIZER = ("normalization", "precision", "compression", "masks", "shared_window")  # not of a group
PLAIN = (Tensor, torch.nn.Parameter)


def as_html(optimizer: torch.optim.Optimizer) -> str:
    """The groups of an optimizer as an HTML table: the number of parameters of each, and its options."""
    groups = optimizer.param_groups
    counts = (sum(p.numel() for p in group["params"]) for group in groups)
    rows = ([f"{count:,}", *(f"{group[x]}" for x in OPTIONS)] for count, group in zip(counts, groups, strict=True))
    return as_list(type(optimizer).__name__, ["parameters", *OPTIONS], rows)


def agreed(name: str, groups: list[Group]) -> Any:
    """The value of an option that all groups of a window have."""
    values = {group[name] if isinstance(group[name], str) else float(group[name]) for group in groups}
    if len(values) > 1:
        msg = f"`{name}` must be one for all groups of a shared window; got {sorted(values)}. Set it in all of them."
        raise ValueError(msg)
    return values.pop()


def momentum_of_gradients(groups: list[Group]) -> float | None:
    """The momentum in the coefficients of stored gradients, one for all groups of a window; None for that of steps."""
    return agreed("momentum", groups) if agreed("momentum_of", groups) == "gradients" else None


def has_momentum_of_steps(group: Group) -> bool:
    """Whether the parameters of a group have a running sum of steps F⁻¹g."""
    return bool(group["momentum"]) and group["momentum_of"] == "steps"


def has_moments(groups: list[Group]) -> list[bool]:
    """Whether each group has a damping λ√v̂, in proportion to Adam's denominator."""
    return [group["beta2"] is not None for group in groups]


def check_group(group: Any, known: set[Tensor]) -> Group:
    """Accept a dictionary of parameters that are in no other group, without options of the optimizer; return a copy."""
    if not isinstance(group, Mapping) or "params" not in group:
        given = f"entries {list(group)!r:.100}" if isinstance(group, Mapping) else f"a {type(group).__name__}"
        msg = f"`param_group` must be a dictionary with the entry params; got {given}. Pass {{'params': parameters}}."
        raise (ValueError if isinstance(group, Mapping) else TypeError)(msg)
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    if not isinstance(params, Iterable) or isinstance(params, Mapping | str | bytes | Set):
        msg = f"`params` of a group must be an ordered iterable of parameters; got a {type(params).__name__}. Pass a "
        raise TypeError(msg + "list.")
    _refuse_foreign(group)
    listed = list(params)
    check_tensors(listed)
    tensors = [one[1] if isinstance(one, tuple) else one for one in listed]
    _check_once(tensors, known)
    return {**group, "params": listed}


def require_groups(groups: list[Any], names: tuple[str, ...] = OPTIONS) -> None:
    """Accept dictionaries with a list of parameters and these options, which users may have changed."""
    for group in groups:
        if not isinstance(group, Mapping) or not isinstance(group.get("params", []), list):
            given = f"params={check.describe(group['params'])}" if isinstance(group, Mapping) else check.describe(group)
            msg = f"`param_groups` must hold dictionaries with a list of params; got {given}. Leave them to "
            raise TypeError(msg + "add_param_group.")
        if missing := [name for name in ("params", *names) if name not in group]:
            msg = f"`param_groups` must have {missing[0]} in each group; got {', '.join(map(str, group))}. Put it back."
            raise ValueError(msg)


def _refuse_foreign(group: Mapping[str, Any]) -> None:
    """Refuse options of other optimizers that are set, and options of the optimizer in a group."""
    if clash := [name for name in OF_OPTIMIZER if name in group]:
        msg = f"`{clash[0]}` must be the same for all groups; got one in a group. Pass it to the optimizer."
        raise ValueError(msg)
    if foreign := [name for name in FOREIGN if group.get(name)]:
        msg = f"`{foreign[0]}` must be left out of a group; got {group[foreign[0]]!r:.60}. MFAC has "
        raise ValueError(msg + f"{', '.join(OPTIONS)}.")


def normalize_options(groups: list[Group]) -> None:
    """Accept the options of groups, and convert numbers to Python's, which files can store safely."""
    require_groups(groups)
    for group in groups:
        check_options(group)
        for name, _ in _numbers(group):
            group[name] = group[name] if isinstance(group[name], Tensor) else float(group[name])
        group["window"] = check.size("window", group["window"])
        group["momentum_of"] = check.choice("momentum_of", group["momentum_of"], MOMENTUM_OF)


def check_options(group: Group) -> None:
    """Accept the options of a group, which schedulers and users write, before anything is changed."""
    _refuse_foreign(group)
    for name, end in _numbers(group):
        value, positive = _number(name, group[name]), name == "damping"
        if not 0 <= value < end or (positive and value == 0):
            interval = f"{'(' if positive else '['}0, {end:g})"
            msg = f"`{name}` must be in {interval}; got {value:g}. Choose one that is, or check what sets it."
            raise ValueError(msg)
    check.choice("momentum_of", group["momentum_of"], MOMENTUM_OF)
    for name in ("decoupled_weight_decay", "maximize"):
        check.flag(name, group[name])
    check.size("window", group["window"])


def _numbers(group: Group) -> list[tuple[str, float]]:
    """The numbers of a group, with the ends of their ranges; beta2 may be None."""
    return [(name, end) for name, end in NUMBERS.items() if name != "beta2" or group[name] is not None]


def _number(name: str, value: Any) -> float:
    """The value of a number, or of a tensor of one entry."""
    scalar = isinstance(value, Tensor) and value.numel() == 1 and not (value.is_complex() or value.is_meta)
    if (
        isinstance(value, bool)
        or not (scalar or isinstance(value, numbers.Real))
        or (scalar and value.dtype == torch.bool)
    ):
        msg = f"`{name}` must be a number; got {check.describe(value)}. Pass a float."
        raise TypeError(msg)
    try:
        return float(value)
    except OverflowError:  # an int
        return math.inf


def check_params(params: Any) -> list[Any]:
    """Accept a non-empty iterable of parameters, named or not, or of groups; return a list."""
    if not isinstance(params, Iterable) or isinstance(params, Tensor | Mapping | str | bytes | Set):
        msg = f"`params` must be an ordered iterable of parameters or of groups; got a {type(params).__name__}. Pass "
        raise TypeError(msg + "model.parameters().")
    listed = list(params)
    if not listed:
        msg = "`params` must hold at least one parameter; got none. Pass model.parameters(), which can be read once."
        raise ValueError(msg)
    kinds = [isinstance(one, Mapping) for one in listed]
    if any(kinds) and not all(kinds):
        msg = f"`params` must be all parameters or all groups; got {sum(kinds)} groups among {len(kinds)}. Put "
        raise TypeError(msg + "parameters in groups of their own.")
    if not any(kinds):
        check_tensors(listed)
    return listed


def check_tensors(listed: list[Any]) -> None:
    """Accept leaves of the graph, or tensors that retain their gradient, with names or without."""
    named = [isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) for one in listed]
    if any(named) and not all(named):
        msg = f"`params` must all have names or none; got {sum(named)} names for {len(named)}. Pass "
        raise ValueError(msg + "model.named_parameters() or model.parameters().")
    for p in (one[1] if is_named else one for one, is_named in zip(listed, named, strict=True)):
        if not isinstance(p, Tensor):
            msg = f"`params` must hold tensors; got {check.describe(p)}. Pass model.parameters()."
            raise TypeError(msg)
        if not (p.is_leaf or p.retains_grad):
            msg = f"`params` must be leaves of the graph; got one of shape {tuple(p.shape)} that was computed. Pass "
            raise ValueError(msg + "what it was computed from.")


def check_parameters(parameters: list[Tensor]) -> None:
    """Accept dense real floating parameters of one dtype on one device."""
    for p in parameters:
        check_plain("`params` must be", p)
        if p.dtype not in FLOATING:
            msg = f"`params` must be float16, bfloat16, float32 or float64; got {p.dtype}. "
            raise TypeError(msg + "Pass real and imaginary parts as parameters of their own.")
    check_one_kind(parameters)
    if any(p.is_meta for p in parameters):
        msg = "`params` must have values; got some on the device meta. Move the model to a device first."
        raise ValueError(msg)


def _check_once(parameters: list[Tensor], known: set[Tensor]) -> None:
    seen = set(known)
    for p in parameters:
        if p in seen:
            msg = f"`params` must hold each parameter once; got one of shape {tuple(p.shape)} twice. Pass "
            raise ValueError(msg + "model.parameters(), which names tied ones once.")
        seen.add(p)


def check_plain(wanted: str, p: Tensor) -> None:
    """Accept a tensor that is one dense array in memory."""
    if not isinstance(p, Tensor):
        msg = f"{wanted} tensors; got {check.describe(p)}. Pass model.parameters()."
        raise TypeError(msg)
    if hasattr(type(p), "__tensor_flatten__"):  # composed of others, as DTensor of shards
        msg = f"{wanted} plain tensors; got a {type(p).__name__}. Construct the optimizer on a model that is not "
        raise TypeError(msg + "sharded or quantised: its windows hold whole gradients.")
    if is_lazy(p):
        msg = f"{wanted} initialised; got {type(p).__name__}. Call the model once before it is optimised."
        raise ValueError(msg)
    if p.layout != torch.strided or p.is_nested:
        kind = "a nested one" if p.is_nested else f"one in {p.layout}"
        msg = f"{wanted} dense tensors; got {kind}. Convert it, or construct its embedding without sparse=True."
        raise TypeError(msg)


def check_writable(p: Tensor) -> None:
    """Refuse a parameter that a step cannot write to, before anything else is written."""
    if p.is_inference() and not torch.is_inference_mode_enabled():
        msg = f"`params` must be tensors that can be written; got one of shape {tuple(p.shape)}, created in "
        raise ValueError(msg + "torch.inference_mode(). Create the model outside of it.")
    if any(stride == 0 and length > 1 for stride, length in zip(p.stride(), p.shape, strict=True)):
        msg = f"`params` must have memory for each of their entries; got one of shape {tuple(p.shape)} that was "
        raise ValueError(msg + "expanded. Call contiguous() on it before it becomes a parameter.")


def check_one_kind(tensors: list[Tensor]) -> None:
    """Refuse tensors of several dtypes or devices."""
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        msg = f"`params` of one window must have one dtype on one device; got {names}. Make them groups of their own."
        raise TypeError(msg)
