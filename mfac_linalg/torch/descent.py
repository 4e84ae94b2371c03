"""The gradients of all parameters as one vector, scaled by second moments, and the step that F⁻¹ makes of it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import SlidingWindowInverse, _second_moment
from .groups import (
    PLAIN,
    Group,
    agreed,
    check_one_kind,
    check_plain,
    check_writable,
    has_momentum_of_steps,
    momentum_of_gradients,
)
from .masks import ActiveWeights

OptimizerState = Mapping[Tensor, dict[str, Any]]


class ScaledGradient(NamedTuple):
    """The gradient D^−½g that a window stores, the scale D^−½, and the second moments it is made of."""

    g: Tensor
    scale: Tensor | None
    moments: dict[Tensor, dict[str, Any]]


def scaled_gradient(groups: list[Group], active: ActiveWeights, state: OptimizerState) -> ScaledGradient | None:
    """The gradient of these groups, from the state before the step; None where no weight has one."""
    pairs = [(group, p) for group in groups for p in group["params"]]
    for _, p in pairs:
        if type(p) not in PLAIN:
            check_plain("`params` must stay", p)
    if not any(p.grad is not None and active.size(p) for _, p in pairs):
        return None
    for _, p in pairs:
        _require_shape(p, active.shape(p), state.get(p, {}))
        if p.grad is not None:
            check_writable(p)
    parts = {p: _active_gradient(group, p, active) for group, p in pairs}
    check_one_kind(list(parts.values()))
    g = _concatenate(parts.values())
    with_moments = [(group, p) for group, p in pairs if group["beta2"] is not None and p.grad is not None]
    if not with_moments:
        return ScaledGradient(g, None, {})
    moments = {p: _update_moment(state.get(p, {}), parts[p], float(group["beta2"])) for group, p in with_moments}
    scale = _concatenate(
        _second_moment.inverse_sqrt_damping(moments[p]["root_mean_square"], moments[p]["share"])
        if p in moments
        else torch.ones_like(part)
        for p, part in parts.items()
    )
    return ScaledGradient((g * scale).to(g.dtype), scale, moments)


def _require_shape(p: Tensor, shape: torch.Size, state: Mapping[str, Any]) -> None:
    """Refuse a parameter whose shape differs from that of its momentum or moment, before anything is written."""
    for name, buffer in state.items():
        if isinstance(buffer, Tensor) and buffer.shape != shape:
            msg = f"`params` must stay as they were at construction; got shape {tuple(p.shape)}, and {name} of shape "
            raise ValueError(msg + f"{tuple(buffer.shape)}. Construct a new optimizer.")


def _active_gradient(group: Group, p: Tensor, active: ActiveWeights) -> Tensor:
    """The gradient of one parameter with respect to its active weights."""
    if p.grad is None:
        return torch.zeros_like(active.of(p, p))
    if type(p.grad) not in PLAIN or p.grad.layout != torch.strided:
        check_plain("`params` must have gradients that are", p.grad)
    g = -p.grad if group["maximize"] else p.grad
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        g = g.add(p, alpha=float(group["weight_decay"]))
    return active.of(p, g)


def _update_moment(state: Mapping[str, Any], g: Tensor, beta2: float) -> dict[str, Any]:
    """√v and the bias correction 1 − β₂ᵗ (the key "share") with one more gradient; v as in `torch.optim.Adam`."""
    g = g.float() if g.dtype.itemsize < 4 else g
    rms, bias_correction = state.get("root_mean_square"), state.get("share", 0.0)
    rms = torch.zeros_like(g) if rms is None else rms
    rms, bias_correction = _second_moment.update_rms(rms, bias_correction, g, beta2)
    return {"root_mean_square": rms, "share": bias_correction}


def _concatenate(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def append_and_solve(window: SlidingWindowInverse, groups: list[Group], g: Tensor) -> Tensor:
    """Append g, then F⁻¹g, or F⁻¹ of the momentum of gradients, with the current damping of the groups."""
    if agreed("window", groups) != window.window:
        msg = f"`window` must stay {window.window}; got {groups[0]['window']}. Construct a new optimizer."
        raise ValueError(msg)
    if g.shape[0] != window.dim or (window.dtype is not None and g.dtype != window._like.dtype):
        msg = f"`params` must stay as they were at construction; got {g.shape[0]} weights in {g.dtype} for a window of "
        raise ValueError(msg + f"{window.dim}. Construct a new optimizer.")
    damping = agreed("damping", groups)
    if damping != window.damping:
        window.damping = damping
    momentum = momentum_of_gradients(groups)
    try:
        if momentum is None:
            return window.append_matvec(g)
        window.append(g)
        return window.matvec_gradients(_powers_by_age(momentum, len(window), like=window._like))
    except ValueError as refused:
        if torch.all(torch.isfinite(g)):
            raise
        msg = "`params` must have finite gradients; got nan or infinity. Skip the step whose loss overflowed."
        raise ValueError(msg) from refused


def _powers_by_age(momentum: float, count: int, *, like: Tensor) -> Tensor:
    """The powers momentumᵃ for the ages a of stored gradients, the oldest first, in the dtype of products."""
    powers = momentum ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
    return powers.to(like.device, torch.promote_types(like.dtype, torch.float32))


def apply_step(
    groups: list[Group], active: ActiveWeights, state: OptimizerState, gradient: ScaledGradient, x: Tensor
) -> dict[Tensor, dict[str, Any]]:
    """Write the step F⁻¹g of these groups into the parameters; return the momenta and moments after it.

    The state itself is unchanged, because a write may fail.
    """
    after = {p: dict(moment) for p, moment in gradient.moments.items()}
    x = x if gradient.scale is None else x * gradient.scale
    parameters = [p for group in groups for p in group["params"]]
    parts = dict(zip(parameters, x.split([active.size(p) for p in parameters]), strict=True))
    for group in groups:
        moving = [p for p in group["params"] if p.grad is not None]
        if not moving:
            continue
        weights = [active.of(p, p) for p in moving]
        steps = [parts[p].reshape(w.shape) for p, w in zip(moving, weights, strict=True)]
        if has_momentum_of_steps(group):
            steps = _update_momentum(moving, steps, float(group["momentum"]), state)
            for p, buffer in zip(moving, steps, strict=True):
                after.setdefault(p, {})["momentum_buffer"] = buffer
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            steps = list(torch._foreach_add(steps, weights, alpha=float(group["weight_decay"])))
        torch._foreach_add_(weights, steps, alpha=-float(group["lr"]))
        for p, w in zip(moving, weights, strict=True):
            active.write(p, w)
    return after


def _update_momentum(
    parameters: list[Tensor], steps: list[Tensor], momentum: float, state: OptimizerState
) -> list[Tensor]:
    """The momentum buffers after these steps."""
    stored = [state[p].get("momentum_buffer") for p in parameters]
    previous = [torch.zeros_like(step) if x is None else x for x, step in zip(stored, steps, strict=True)]
    buffers = list(torch._foreach_mul(previous, momentum))
    torch._foreach_add_(buffers, steps)
    return buffers
