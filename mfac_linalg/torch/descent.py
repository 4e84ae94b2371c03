"""What an optimizer descends along, the gradients of parameters as one vector in coordinates of their own; the step."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _second_moment
from .groups import PLAIN, Group, check_one_kind, check_plain, check_writable
from .masks import ActiveWeights

State = Mapping[Tensor, dict[str, Any]]


class ScaledGradient(NamedTuple):
    """A gradient as it goes into a window, what it and the answer are scaled by, and what that is made of."""

    g: Tensor
    scale: Tensor | None
    moments: dict[Tensor, dict[str, Any]]


def descent(groups: list[Group], kept: ActiveWeights, state: State) -> ScaledGradient | None:
    """What these groups descend along, from the state before the step; None where no weight has a gradient."""
    pairs = [(group, p) for group in groups for p in group["params"]]
    for _, p in pairs:
        if type(p) not in PLAIN:
            check_plain("`params` must stay", p)
    if not any(p.grad is not None and kept.size(p) for _, p in pairs):
        return None
    for _, p in pairs:
        _require_shape(p, kept.shape(p), state.get(p, {}))
        if p.grad is not None:
            check_writable(p)
    parts = {p: _part(group, p, kept) for group, p in pairs}
    check_one_kind(list(parts.values()))
    g = _flat(parts.values())
    scaled = [(group, p) for group, p in pairs if group["beta2"] is not None and p.grad is not None]
    if not scaled:
        return ScaledGradient(g, None, {})
    moments = {p: _moment(state.get(p, {}), parts[p], float(group["beta2"])) for group, p in scaled}
    scale = _flat(
        _second_moment.inverse_sqrt_damping(moments[p]["root_mean_square"], moments[p]["share"])
        if p in moments
        else torch.ones_like(part)
        for p, part in parts.items()
    )
    return ScaledGradient((g * scale).to(g.dtype), scale, moments)


def _require_shape(p: Tensor, shape: torch.Size, state: Mapping[str, Any]) -> None:
    """Refuse a parameter that has lost the shape of its momentum or moment, before anything is written."""
    for name, buffer in state.items():
        if isinstance(buffer, Tensor) and buffer.shape != shape:
            msg = f"`params` must stay as they were at construction; got {tuple(p.shape)} beside {name} of shape "
            raise ValueError(msg + f"{tuple(buffer.shape)}. Construct a new optimizer.")


def _part(group: Group, p: Tensor, kept: ActiveWeights) -> Tensor:
    """The gradient of one parameter, of its weights that may move."""
    if p.grad is None:
        return torch.zeros_like(kept.of(p, p))
    if type(p.grad) not in PLAIN or p.grad.layout != torch.strided:
        check_plain("`params` must have gradients that are", p.grad)
    g = -p.grad if group["maximize"] else p.grad
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        g = g.add(p, alpha=float(group["weight_decay"]))
    return kept.of(p, g)


def _moment(state: Mapping[str, Any], g: Tensor, beta2: float) -> dict[str, Any]:
    """The root of the running mean of a parameter's squared gradients with this one, and the weight of gradients."""
    g = g.float() if g.dtype.itemsize < 4 else g
    root, share = state.get("root_mean_square"), state.get("share", 0.0)
    root, share = _second_moment.update_rms(torch.zeros_like(g) if root is None else root, share, g, beta2)
    return {"root_mean_square": root, "share": share}


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def move(
    groups: list[Group], kept: ActiveWeights, state: State, direction: ScaledGradient, x: Tensor
) -> dict[Tensor, dict[str, Any]]:
    """Write the step F⁻¹g of these groups into the parameters; return the momenta and moments after it.

    The state itself is as it was, for a write may fail.
    """
    after = {p: dict(moment) for p, moment in direction.moments.items()}
    x = x if direction.scale is None else x * direction.scale
    parameters = [p for group in groups for p in group["params"]]
    parts = dict(zip(parameters, x.split([kept.size(p) for p in parameters]), strict=True))
    for group in groups:
        moving = [p for p in group["params"] if p.grad is not None]
        if not moving:
            continue
        weights = [kept.of(p, p) for p in moving]
        steps = [parts[p].reshape(w.shape) for p, w in zip(moving, weights, strict=True)]
        if group["momentum"]:
            steps = _followed(moving, steps, float(group["momentum"]), state)
            for p, buffer in zip(moving, steps, strict=True):
                after.setdefault(p, {})["momentum_buffer"] = buffer
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            steps = list(torch._foreach_add(steps, weights, alpha=float(group["weight_decay"])))
        torch._foreach_add_(weights, steps, alpha=-float(group["lr"]))
        for p, w in zip(moving, weights, strict=True):
            kept.write(p, w)
    return after


def _followed(parameters: list[Tensor], steps: list[Tensor], momentum: float, state: State) -> list[Tensor]:
    """The momenta after these steps."""
    held = [state[p].get("momentum_buffer") for p in parameters]
    before = [torch.zeros_like(step) if x is None else x for x, step in zip(held, steps, strict=True)]
    followed = list(torch._foreach_mul(before, momentum))
    torch._foreach_add_(followed, steps)
    return followed
