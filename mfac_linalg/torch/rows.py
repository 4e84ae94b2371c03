"""Gradients of a model's loss as rows; the model is restored after each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _validation as check
from .hooks import check_not_used_stale, masked_parameters, stale_masked_weights
from .model_checks import check_differentiable, refuse_batch_statistics
from .model_state import Excluded, ModelState
from .parameters import Selection, Unravel, chosen_parameters, paths_of, tensors_of, unravel_for
from .samples import ONE_BY_ONE, NotBatchedError, Samples, arguments_of, batch_of_one
from .user_hooks import has_backward_hooks, refuse_gradient_hooks

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class ModelRows:
    """Gradients of a model's loss with respect to chosen parameters, as rows."""

    model: nn.Module
    loss_fn: Loss
    chosen: dict[str, nn.Parameter]
    paths: dict[str, list[str]]  # of each parameter, one for every module that has it
    others: dict[str, Tensor]  # parameters that were not chosen, by path
    buffers: dict[str, Tensor]  # by path
    unravel: Unravel
    state: ModelState  # of model and loss, restored after every row

    @classmethod
    def of_selection(cls, model: nn.Module, loss_fn: Loss, params: Selection, excluded: Excluded | None = None) -> Self:
        """For the parameters that `params` chooses, in the model's order; `excluded` objects are not restored."""
        check_differentiable(model, loss_fn)
        return cls.of_parameters(model, loss_fn, chosen_parameters(model, params), excluded)

    @classmethod
    def of_parameters(
        cls, model: nn.Module, loss_fn: Loss, chosen: dict[str, nn.Parameter], excluded: Excluded | None = None
    ) -> Self:
        """Of these parameters, in their order."""
        check_differentiable(model, loss_fn)
        refuse_batch_statistics(model)
        refuse_gradient_hooks(chosen)
        paths = paths_of(model, chosen)
        known = {path for several in paths.values() for path in several}
        rest = {path: tensor for path, tensor in tensors_of(model) if path not in known}
        others = {path: without_graph(tensor) for path, tensor in rest.items() if isinstance(tensor, nn.Parameter)}
        buffers = {path: tensor for path, tensor in rest.items() if path not in others}
        state = ModelState.of(model, loss_fn, excluded)
        return cls(model, loss_fn, chosen, paths, others, buffers, unravel_for(chosen), state)

    def empty(self, count: int) -> Tensor:
        """Uninitialised memory for `count` rows."""
        return next(iter(self.chosen.values())).detach().new_empty((count, self.unravel.dim))

    def of_samples(self, samples: Samples, chunk_size: int | None) -> Tensor:
        """The rows of all samples, (m, d)."""
        size = chunk_size or samples.count
        rows = self.empty(samples.count)
        if has_backward_hooks(self.model):  # such as BackPACK's: torch.func does not run them
            return self.of_samples_one_by_one(samples)
        for start in range(0, samples.count, size):
            part = slice(start, start + size)
            if size >= samples.count:
                rows = self.batched(self._of_sample, samples, part)
            else:
                rows[part] = self.batched(self._of_sample, samples, part)
        if not rows.is_meta and not torch.any(rows):  # raises without a graph
            self.of_batch(*samples.at(slice(1)))
        return rows

    def of_samples_one_by_one(self, samples: Samples) -> Tensor:
        """The same rows, one backward pass at a time, for any model."""
        rows = self.empty(samples.count)
        for index in range(samples.count):
            rows[index] = self.of_batch(*samples.at(slice(index, index + 1)))
        return rows

    def of_batch(self, x: Any, y: Any) -> Tensor:
        """The row of a batch, (d,): faster than `torch.func.grad`, which prepares for second derivatives."""
        with self.state.restoring(), torch.enable_grad():
            leaves = {name: without_graph(value).requires_grad_() for name, value in self.chosen.items()}
            gradients, _ = self.of_tensors(leaves, [], x, y)
        return self.unravel.ravel({name: sum_of_terms(v, *gradients[name]) for name, v in self.chosen.items()}).detach()

    def of_tensors(
        self, leaves: dict[str, Tensor], others: list[Tensor], x: Any, y: Any
    ) -> tuple[dict[str, list[Tensor | None]], list[Tensor | None]]:
        """The gradients of a batch's loss with respect to leaves: by parameter in two terms, and of the others.

        The terms of a parameter are by its modules, which use its leaf, and by what uses it without them.
        """
        stale = stale_masked_weights(self.model, leaves)
        direct = self._direct()
        tensors = [*leaves.values(), *stale.values(), *direct.values(), *others]
        gradients = iter(self.loss(leaves, x, y, lambda loss: _gradients(loss, tensors)))
        of_leaves, of_stale, of_direct = (dict(zip(d, gradients, strict=False)) for d in (leaves, stale, direct))
        masked = masked_parameters(self.model)
        check_not_used_stale(of_stale)
        check_not_used_stale({name: g for name, g in of_direct.items() if name in masked})
        return {n: [gradient, of_direct.get(n)] for n, gradient in of_leaves.items()}, list(gradients)

    def batched(self, of_sample: Callable[[Any, Any], tuple[Any, Tensor]], samples: Samples, part: slice) -> Any:
        """What a function computes of each sample, (x, y) → (result, loss), for samples differentiated at a time."""
        of_samples = torch.func.vmap(of_sample, samples.axes, randomness="different")
        try:
            with self.state.restoring(), torch.enable_grad():
                unseen = [*stale_masked_weights(self.model, self.chosen).values(), *self._direct().values()]
                results, losses = of_samples(*samples.at(part))
                bypasses_modules = _depends_on(losses, unseen)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.of_batch(*samples.at(slice(1)))  # raises an error that does not come from vmap
            words = str(error).partition("\n")[0].rstrip(".")
            msg = f"`model` must be one that torch.func.vmap can batch; got {words:.300}. {ONE_BY_ONE}"
            raise NotBatchedError(msg) from error
        if bypasses_modules:
            self.of_batch(*samples.at(slice(1)))  # refuses parameters with a mask
            raise BypassedModulesError
        _check_finite(losses, part.start)
        return pytree.tree_map(Tensor.detach, results)

    def _of_sample(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """The row of one sample, (d,), and its loss, under `vmap`."""
        values = {name: without_graph(value) for name, value in self.chosen.items()}
        gradients, loss = torch.func.grad_and_value(self.loss)(values, batch_of_one(x), batch_of_one(y))
        return self.unravel.ravel(gradients), loss

    def loss(self, values: dict[str, Tensor], x: Any, y: Any, then: Callable[[Tensor], Any] | None = None) -> Any:
        """The loss of a batch with other values of the parameters, and copies of the buffers.

        With `then` its result for the loss, while the model has these values: a backward pass may call parts of it.
        """
        tensors = {path: values[name] for name, paths in self.paths.items() for path in paths}
        tensors |= self.others | _copies(self.buffers)
        tensors = {f"model.{path}": value for path, value in tensors.items()}
        # tie_weights=True would not restore the parameters of a module that has several names
        model = _ModelWithLoss(self.model)
        return torch.func.functional_call(model, tensors, (self.loss_fn, x, y, then), tie_weights=False)

    def _direct(self) -> dict[str, Tensor]:
        """The chosen parameters themselves, which a list or a function may use without their modules.

        Those that are not trained require gradients too, until the model is restored.
        """
        watched = {n: p for n, p in self.chosen.items() if p.requires_grad or not (p.is_inference() or p.grad_fn)}
        return {name: p if p.requires_grad else p.requires_grad_() for name, p in watched.items()}


class BypassedModulesError(NotBatchedError):
    """A model that uses a parameter by other ways than its modules."""

    def __init__(self) -> None:
        msg = "`model` must use its parameters by their modules; got one that a list or a function has too. "
        super().__init__(msg + ONE_BY_ONE)


class _ModelWithLoss(nn.Module):
    """A model with its loss as one module, so that a loss that calls the model uses the same parameters.

    Global hooks of modules, on calls or on new submodules, do not run for it.
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules["model"] = model

    def __call__(self, loss_fn: Loss, inputs: Any, targets: Any, then: Callable[[Tensor], Any] | None) -> Any:
        arguments, options = arguments_of(inputs)
        loss = check_scalar(loss_fn(self.model(*arguments, **options), targets))
        return loss if then is None else then(loss)


def _gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor | None]:
    """The gradients of a loss with respect to tensors, with the part that checkpoints of activations add to `.grad`."""
    _check_loss(loss)
    for x in tensors:  # left by a backward pass within the model
        if x.grad is not None:
            x.grad = None
    try:
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        msg = "`model` must recompute its activations without entering autograd again; got a call of "
        msg += "torch.utils.checkpoint with use_reentrant=True. Pass use_reentrant=False there."
        raise RuntimeError(msg) from error
    pairs = zip(gradients, tensors, strict=True)
    parts = [[g for g in (gradient, x.grad) if g is not None] for gradient, x in pairs]
    return [sum(part[1:], part[0]) if part else None for part in parts]


def _copies(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies by path, one for each tensor."""
    copies = {id(tensor): tensor.detach().clone() for tensor in buffers.values()}
    return {path: copies[id(tensor)] for path, tensor in buffers.items()}


def without_graph(tensor: Tensor) -> Tensor:
    """The values of a tensor; a copy of an inference tensor, which autograd cannot save."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def sum_of_terms(like: Tensor, *gradients: Tensor | None) -> Tensor:
    """The sum of the gradients that are not None; zeros without any."""
    terms = [gradient.to_dense() for gradient in gradients if gradient is not None]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(like)


def _depends_on(losses: Tensor, tensors: list[Tensor]) -> bool:
    """Whether there is a graph from losses to tensors outside of torch.func."""
    if not (losses.requires_grad and tensors):
        return False
    return any(g is not None for g in torch.autograd.grad(losses.sum(), tensors, allow_unused=True))


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
    """Refuse nan and inf, where losses are on the host: they have no gradients."""
    if losses.device.type == "cpu" and not torch.all(torch.isfinite(losses)):
        index = int(torch.nonzero(~torch.isfinite(losses))[0])
        where = "" if start is None else f" of sample {start + index}"
        msg = f"`loss_fn` must return finite losses; got {float(losses[index].detach())}{where}. Look for nan and inf "
        raise ValueError(msg + "in the inputs, and for targets that all are ignored.")
