"""Hooks of users on backward passes: those of modules take effect, those on gradients are refused."""

from torch import nn
from torch.nn.modules.module import _global_backward_hooks, _global_backward_pre_hooks


def has_backward_hooks(model: nn.Module) -> bool:
    """Whether the modules of a model, or all modules, have hooks on their backward passes."""
    if _global_backward_hooks or _global_backward_pre_hooks:
        return True
    return any(module._backward_hooks or module._backward_pre_hooks for module in model.modules())


def refuse_gradient_hooks(chosen: dict[str, nn.Parameter]) -> None:
    """Refuse hooks on gradients of parameters, which would not run: the rows are computed with copies."""
    for name, parameter in chosen.items():
        hooks = {"register_hook": parameter._backward_hooks}
        hooks["register_post_accumulate_grad_hook"] = getattr(parameter, "_post_accumulate_grad_hooks", None)
        for kind in (kind for kind, registered in hooks.items() if registered):
            msg = f"`model` must have no hooks on gradients of chosen parameters; got one of {kind} on {name!r}. It "
            raise ValueError(msg + "would not change the rows. Remove it for this call, and apply it to them.")
