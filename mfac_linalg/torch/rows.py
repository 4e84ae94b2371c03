"""Gradients of a model's loss as rows: each from the model as it is, which it stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from .. import _validation as check
from .hooks import check_not_used_stale, masked_parameters, stale_masked_weights
from .model_state import Apart, ModelState
from .parameters import Selection, Unravel, chosen_parameters, places_of, tensors_of, unravel_of
from .samples import ONE_BY_ONE, NotBatchedError, Samples, alone, arguments_of
from .user_hooks import has_backward_hooks, refuse_gradient_hooks

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Rows:
    """Gradients of a model's loss by the parameters that were chosen, as rows."""

    model: nn.Module
    loss_fn: Loss
    chosen: dict[str, nn.Parameter]
    places: dict[str, list[str]]  # names of each, one for every module that holds it
    others: dict[str, Tensor]  # parameters that were not chosen, by place
    buffers: dict[str, Tensor]  # by place
    unravel: Unravel
    state: ModelState  # of model and loss, to which they come back after every row

    @classmethod
    def of(cls, model: nn.Module, loss_fn: Loss, params: Selection, apart: Apart | None = None) -> "Rows":
        """Of the parameters that `params` chooses, in the model's order; what is `apart` is not put back."""
        check_differentiable(model, loss_fn)
        return cls.by(model, loss_fn, chosen_parameters(model, params), apart)

    @classmethod
    def by(cls, model: nn.Module, loss_fn: Loss, chosen: dict[str, nn.Parameter], apart: Apart | None = None) -> "Rows":
        """Of these parameters, in their order."""
        check_differentiable(model, loss_fn)
        _refuse_batch_statistics(model)
        refuse_gradient_hooks(chosen)
        places = places_of(model, chosen)
        known = {place for several in places.values() for place in several}
        held = {place: tensor for place, tensor in tensors_of(model) if place not in known}
        others = {place: _without_graph(tensor) for place, tensor in held.items() if isinstance(tensor, nn.Parameter)}
        buffers = {place: tensor for place, tensor in held.items() if place not in others}
        state = ModelState.of(model, loss_fn, apart)
        return cls(model, loss_fn, chosen, places, others, buffers, unravel_of(chosen), state)

    def empty(self, count: int) -> Tensor:
        """Memory for so many rows."""
        return next(iter(self.chosen.values())).detach().new_empty((count, self.unravel.dim))

    def of_samples(self, samples: Samples, chunk_size: int | None) -> Tensor:
        """The rows of all samples, (m, d)."""
        size = chunk_size or samples.count
        rows = self.empty(samples.count)
        if has_backward_hooks(self.model):  # BackPACK's, say: torch.func does not run them
            return self.of_each(samples)
        for start in range(0, samples.count, size):
            part = slice(start, start + size)
            if size >= samples.count:
                rows = self._of_chunk(samples, part)
            else:
                rows[part] = self._of_chunk(samples, part)
        if not rows.is_meta and not torch.any(rows):  # is there a graph at all?
            self.of_batch(*samples.at(slice(1)))
        return rows

    def of_each(self, samples: Samples) -> Tensor:
        """The same rows by one pass after the other, which any model can do."""
        rows = self.empty(samples.count)
        for index in range(samples.count):
            rows[index] = self.of_batch(*samples.at(slice(index, index + 1)))
        return rows

    def of_batch(self, x: Any, y: Any) -> Tensor:
        """The row of a batch, (d,): quicker than `torch.func.grad`, which keeps what second derivatives need."""
        with self.state.kept(), torch.enable_grad():
            leaves = {name: _without_graph(value).requires_grad_() for name, value in self.chosen.items()}
            standing = stale_masked_weights(self.model, leaves)
            direct = self._direct()
            by = [*leaves.values(), *standing.values(), *direct.values()]
            found = iter(self._loss(leaves, x, y, lambda loss: _gradients(loss, by)))
        parts, past, beside = (dict(zip(d, found, strict=False)) for d in (leaves, standing, direct))
        masked = masked_parameters(self.model)
        check_not_used_stale(past)
        check_not_used_stale({name: g for name, g in beside.items() if name in masked})
        return self.unravel.ravel({n: _sum(v, parts[n], beside.get(n)) for n, v in self.chosen.items()}).detach()

    def _of_chunk(self, samples: Samples, part: slice) -> Tensor:
        """The rows of samples that are differentiated at a time."""
        each = torch.func.vmap(self._of_sample, samples.axes, randomness="different")
        try:
            with self.state.kept(), torch.enable_grad():
                past = [*stale_masked_weights(self.model, self.chosen).values(), *self._direct().values()]
                rows, losses = each(*samples.at(part))
                past_modules = _depends(losses, past)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.of_batch(*samples.at(slice(1)))  # raises what is wrong without vmap too
            words = str(error).partition("\n")[0].rstrip(".")
            msg = f"`model` must be one that torch.func.vmap can batch; got {words:.300}. {ONE_BY_ONE}"
            raise NotBatchedError(msg) from error
        if past_modules:
            self.of_batch(*samples.at(slice(1)))  # refuses those that have a mask
            msg = "`model` must use its parameters by their modules; got one that a list or a function holds too. "
            raise NotBatchedError(msg + ONE_BY_ONE)
        _check_finite(losses, part.start)
        return rows.detach()

    def _of_sample(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """The row of one sample, (d,), and its loss, under `vmap`."""
        values = {name: _without_graph(value) for name, value in self.chosen.items()}
        gradients, loss = torch.func.grad_and_value(self._loss)(values, alone(x), alone(y))
        return self.unravel.ravel(gradients), loss

    def _loss(self, values: dict[str, Tensor], x: Any, y: Any, then: Callable[[Tensor], Any] | None = None) -> Any:
        """The loss of a batch with other values of the parameters, and buffers that may be written to.

        Or what `then` makes of it while the model has these: a backward pass may call parts of it again.
        """
        each = {place: values[name] for name, places in self.places.items() for place in places}
        each |= self.others | _copies(self.buffers)
        each = {f"model.{place}": value for place, value in each.items()}
        # tie_weights=True would not give back the parameters of a module that has several names
        model = _ModelWithLoss(self.model)
        return torch.func.functional_call(model, each, (self.loss_fn, x, y, then), tie_weights=False)

    def _direct(self) -> dict[str, Tensor]:
        """The chosen parameters themselves, which a list or a function may hold beside their modules.

        Those that are not trained are watched as well, until the model is put back.
        """
        watched = {n: p for n, p in self.chosen.items() if p.requires_grad or not (p.is_inference() or p.grad_fn)}
        return {name: p if p.requires_grad else p.requires_grad_() for name, p in watched.items()}


class _ModelWithLoss(nn.Module):
    """A model with its loss as one module, so that a loss which asks the model sees the same parameters.

    Global hooks of modules, on calls or on submodules that are set, are not for it.
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules["model"] = model

    def __call__(self, loss_fn: Loss, inputs: Any, targets: Any, then: Callable[[Tensor], Any] | None) -> Any:
        arguments, options = arguments_of(inputs)
        loss = check_scalar(loss_fn(self.model(*arguments, **options), targets))
        return loss if then is None else then(loss)


def _gradients(loss: Tensor, by: list[Tensor]) -> list[Tensor | None]:
    """Those of a loss by tensors, with what a backward pass adds to `.grad` of those that it computes anew."""
    _check_loss(loss)
    for x in by:  # of what the model has differentiated itself
        if x.grad is not None:
            x.grad = None
    try:
        found = torch.autograd.grad(loss, by, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        msg = "`model` must recompute its activations without entering autograd anew; got a call of "
        msg += "torch.utils.checkpoint with use_reentrant=True. Pass use_reentrant=False there."
        raise RuntimeError(msg) from error
    both = [[g for g in (gradient, x.grad) if g is not None] for gradient, x in zip(found, by, strict=True)]
    return [sum(parts[1:], parts[0]) if parts else None for parts in both]


def _copies(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies by place, one for each tensor."""
    copies = {id(tensor): tensor.detach().clone() for tensor in buffers.values()}
    return {place: copies[id(tensor)] for place, tensor in buffers.items()}


def _without_graph(tensor: Tensor) -> Tensor:
    """The values of a tensor; a copy of one that was made in inference mode, which no graph may hold."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _sum(like: Tensor, *gradients: Tensor | None) -> Tensor:
    """The gradients that there are, added up."""
    found = [gradient.to_dense() for gradient in gradients if gradient is not None]
    return sum(found[1:], found[0]) if found else torch.zeros_like(like)


def _depends(losses: Tensor, by: list[Tensor]) -> bool:
    """Whether there is a graph, beside that of torch.func, from losses to tensors."""
    if not (losses.requires_grad and by):
        return False
    return any(g is not None for g in torch.autograd.grad(losses.sum(), by, allow_unused=True))


def check_scalar(loss: Any) -> Tensor:
    """Accept a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.ndim:
        msg = f"`loss_fn` must return a scalar tensor; got {check.describe(loss)}. Take the mean over the batch."
        raise ValueError(msg)
    if loss.is_complex():
        msg = f"`loss_fn` must return real numbers; got {check.describe(loss)}. Take its absolute value or real part."
        raise TypeError(msg)
    return loss


def _check_loss(loss: Tensor) -> None:
    """Accept a loss that can be differentiated."""
    if not loss.requires_grad:
        msg = "`loss_fn` must return a loss with a graph; got one that depends on no parameter. Leave out "
        raise ValueError(msg + "what detaches it, or choose parameters that it depends on.")
    _check_finite(loss.detach()[None])


def _check_finite(losses: Tensor, start: int | None = None) -> None:
    """Refuse nan and inf, where losses are on the host: their gradients are none."""
    if losses.device.type == "cpu" and not torch.all(torch.isfinite(losses)):
        index = int(torch.nonzero(~torch.isfinite(losses))[0])
        where = "" if start is None else f" of sample {start + index}"
        msg = f"`loss_fn` must return finite losses; got {float(losses[index].detach())}{where}. Look for nan and inf "
        raise ValueError(msg + "in the inputs, and for targets that all are ignored.")


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
    """Refuse calls for which PyTorch keeps no graph, whatever is switched on within."""
    if torch.is_inference_mode_enabled():
        msg = (
            "`model` must be differentiated outside of torch.inference_mode(); got a call within it. Leave it for this "
        )
        raise RuntimeError(msg + "call, or use torch.no_grad() in its place.")


def _refuse_wrappers(model: nn.Module) -> None:
    """Refuse what PyTorch cannot call with other parameters than its own."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        msg = f"`model` must not be wrapped for several devices; got {type(model).__name__}. Pass model.module."
        raise TypeError(msg)
    if getattr(model, "hooks_enabled", False) is True:  # Opacus's GradSampleModule
        msg = f"`model` must not take per-sample gradients by hooks of its own; got {type(model).__name__}. Call "
        raise TypeError(msg + "model.disable_hooks() for this call, or take those that it makes by gathered_gradients.")
    if isinstance(model, torch.jit.ScriptModule):
        msg = f"`model` must be a module of Python; got {type(model).__name__}. Pass the one that it was made from."
        raise TypeError(msg)


def _refuse_batch_statistics(model: nn.Module) -> None:
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
