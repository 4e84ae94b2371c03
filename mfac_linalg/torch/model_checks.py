"""Which models rows of gradients can be of."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from .. import _validation as check
from .parameters import tensors_of


def check_differentiable(model: Any, loss_fn: Any) -> None:
    """Accept a module that can be called with other parameters, and a function."""
    refuse_inference_mode()
    if not isinstance(model, nn.Module):
        msg = f"`model` must be a torch.nn.Module; got {type(model).__name__}. Wrap the function in one."
        raise TypeError(msg)
    check.function("loss_fn", loss_fn, "Pass (outputs, targets) → loss: torch.nn.functional.cross_entropy, say.")
    _refuse_wrappers(model)
    lazy = next((name for name, tensor in tensors_of(model) if is_lazy(tensor)), None)
    if lazy is not None:
        msg = f"`model` must have all its parameters; got {lazy!r}, of a lazy module that has not seen an input. "
        raise ValueError(msg + "Call the model once.")


def refuse_inference_mode() -> None:
    """Refuse calls in inference mode, in which PyTorch records no graph."""
    if torch.is_inference_mode_enabled():
        msg = (
            "`model` must be differentiated outside of torch.inference_mode(); got a call within it. Leave it for this "
        )
        raise RuntimeError(msg + "call, or use torch.no_grad() in its place.")


def _refuse_wrappers(model: nn.Module) -> None:
    """Refuse modules that PyTorch cannot call with other parameters than their own."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        msg = f"`model` must not be wrapped for several devices; got {type(model).__name__}. Pass model.module."
        raise TypeError(msg)
    if getattr(model, "hooks_enabled", False) is True:  # Opacus's GradSampleModule
        msg = f"`model` must not compute per-sample gradients by its own hooks; got {type(model).__name__}. Call "
        raise TypeError(msg + "model.disable_hooks() for this call, or collect them by gathered_gradients.")
    if isinstance(model, torch.jit.ScriptModule):
        msg = f"`model` must be a module of Python; got {type(model).__name__}. Pass the original."
        raise TypeError(msg)


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse layers with which samples depend on each other, or which a forward pass changes."""
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            mode = "in train mode" if module.training else "without running statistics"
            msg = f"`model` must have its batch normalisation in eval mode; got {name or 'the model'!r} {mode}. "
            msg += "There a sample's gradient depends on the others of its batch. "
            raise ValueError(msg + ("Call model.eval()." if module.training else "Track running statistics."))
        if module.training and module.track_running_stats and module.running_mean is not None:
            msg = f"`model` must have layers of running statistics in eval mode; got {name or 'the model'!r} in train "
            raise ValueError(msg + "mode. There every forward pass changes them, and so the model. Call model.eval().")
