"""Rows of gradients of a model, by `torch.func`; those that BackPACK and Opacus have made, gathered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .. import _validation as check
from .hooks import masked_parameters, refresh, refuse_standing, standing_weights
from .parameters import (
    Selection,
    Unravel,
    chosen_parameters,
    copies_of_written,
    places_of,
    tensors_of,
    unravel_of,
)
from .samples import Batches, Samples, alone, arguments_of, each_batch

Loss = Callable[[Any, Any], Tensor]


def per_sample_gradients(
    model: nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    *,
    params: Selection = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Unravel]:
    """Return G with one row for each sample, g_i = ∇ loss_fn(model(x_i), y_i), and the way back to parameter shapes.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed. Layers of batch normalisation, and others with running statistics, must be in eval mode.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` of a batch, here of one sample, as a scalar: `torch.nn.CrossEntropyLoss()` or any
        function, which may ask the model too, as for a penalty of its parameters. Whether it is a mean or a sum does
        not matter here.
    inputs, targets : tensors, shape (m, …)
        Or tuples, lists or dictionaries of tensors, beside which None, flags and words are the same for all samples.
        A tuple is passed as positional, a dictionary as keyword arguments of the model.
    params : iterable of str or callable, optional
        Names of parameters, or of layers whose parameters are all meant; or a function ``(name, parameter) → bool``.
        All that require a gradient unless given.
    chunk_size : int, optional
        Samples that are differentiated at a time; all at once unless given.

    Returns
    -------
    rows : torch.Tensor, shape (m, d)
        In the parameters' dtype, on their device, without a graph.
    unravel : Unravel
        ``unravel(v)`` for v of shape (…, d): a dictionary of tensors by parameter name.

    Raises
    ------
    ValueError
        A layer of batch normalisation or with running statistics in train mode; a weight with a mask of
        `torch.nn.utils.prune` that the model uses without calling its module, as `torch.nn.MultiheadAttention` does
        with that of `out_proj`; a loss that is not a scalar; inputs and targets of different length; names that the
        model has not.
    TypeError
        Chosen parameters of several dtypes or devices; a model that PyTorch cannot call with other parameters, as
        `torch.nn.DataParallel`.
    RuntimeError
        A model that `torch.func.vmap` can not batch, as one with `torch.nn.GRU`: `mean_gradients` of one sample a row
        gives the same rows. A call under `torch.inference_mode()`; under `torch.no_grad()` gradients are the same.

    Notes
    -----
    Cost: one forward and one backward pass a sample, in batches by `torch.func.vmap`; O(md) memory for the rows, and
    activations and gradients of `chunk_size` samples beside them.
    Random layers, as dropout in train mode, draw anew for each sample.

    Examples
    --------
    >>> import torch, mfac_linalg as ml
    >>> from mfac_linalg.torch import per_sample_gradients
    >>> model, x, y = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    >>> rows, unravel = per_sample_gradients(model, torch.nn.functional.cross_entropy, x, y)
    >>> step = ml.WoodburyRankOneInverse(rows, damping=0.1) @ rows.mean(dim=0)
    >>> rows.shape, unravel(step)["weight"].shape
    (torch.Size([8, 15]), torch.Size([3, 4]))
    """
    samples = Samples.of(inputs, targets)
    if chunk_size is not None:
        check.check_size("chunk_size", chunk_size)
    rows = _Rows.of(model, loss_fn, params)
    if samples.count == 0:
        return next(iter(rows.values.values())).new_zeros((0, rows.unravel.dim)), rows.unravel
    if masked_parameters(model) & rows.values.keys():  # one sample by itself tells whether the model uses them
        rows.of_batch(*samples.at(slice(1)))
    each = rows.of_samples(samples, chunk_size)
    if not torch.any(each):  # or whether there is a graph at all
        rows.of_batch(*samples.at(slice(1)))
    return each, rows.unravel


def mean_gradients(
    model: nn.Module, loss_fn: Loss, inputs: Any, targets: Any, *, batch_size: int, params: Selection = None
) -> tuple[Tensor, Unravel]:
    """Return G with one row for each `batch_size` samples in turn, the gradient of their loss, as M-FAC's authors do.

    Parameters
    ----------
    model, inputs, targets, params
        As in `per_sample_gradients`.
    loss_fn : callable
        As there; a mean over the batch makes the rows means.
    batch_size : int
        Samples a row; the last row is of those that are left.

    Returns
    -------
    rows : torch.Tensor, shape (⌈samples / batch_size⌉, d)
    unravel : Unravel

    Notes
    -----
    Cost: one forward and one backward pass a sample; memory as for the training of one batch.
    """
    samples, size = Samples.of(inputs, targets), check.check_size("batch_size", batch_size)
    rows = _Rows.of(model, loss_fn, params)
    means = next(iter(rows.values.values())).new_empty((-(-samples.count // size), rows.unravel.dim))
    for index in range(len(means)):
        means[index] = rows.of_batch(*samples.at(slice(index * size, (index + 1) * size)))
    return means, rows.unravel


def iter_gradients(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    *,
    params: Selection = None,
    per_sample: bool = False,
    chunk_size: int | None = None,
) -> Iterator[Tensor]:
    """Yield gradients, shape (d,), one after the other: for a window, or to be written to a file.

    The model is looked at when each batch comes, so that gradients follow it while it is trained.

    Parameters
    ----------
    model, loss_fn, params, chunk_size
        As in `per_sample_gradients`.
    batches : iterable of (inputs, targets)
        A `torch.utils.data.DataLoader`, for example.
    per_sample : bool
        One gradient for each sample; one for each batch unless so.

    Yields
    ------
    torch.Tensor, shape (d,)

    Examples
    --------
    >>> import torch, mfac_linalg as ml
    >>> from mfac_linalg.torch import iter_gradients
    >>> model = torch.nn.Linear(4, 3)
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(5)]
    >>> window = ml.SlidingWindowInverse(window=4, dim=15, damping=0.1)
    >>> for g in iter_gradients(model, torch.nn.functional.cross_entropy, batches):
    ...     window.append(g)
    >>> len(window)
    4
    """
    check.check_flag("per_sample", per_sample)
    for batch in each_batch(batches):
        if per_sample:
            rows, _ = per_sample_gradients(model, loss_fn, *batch.parts, params=params, chunk_size=chunk_size)
            yield from rows
        else:
            yield _Rows.of(model, loss_fn, params).of_batch(*batch.parts)


def gathered_gradients(
    model: nn.Module, *, params: Selection = None, reduction: str = "mean"
) -> tuple[Tensor, Unravel]:
    """Return G from the per-sample gradients that BackPACK or Opacus have left on the parameters.

    Parameters
    ----------
    model : torch.nn.Module
        After a backward pass under `backpack(BatchGrad())`, which leaves `grad_batch`, or of Opacus's
        `GradSampleModule`, which leaves `grad_sample`.
    params
        As in `per_sample_gradients`.
    reduction : {"mean", "sum"}
        That of the loss. BackPACK's gradients of a mean are those of the samples divided by their number, and are
        multiplied by it here; Opacus's are those of the samples.

    Returns
    -------
    rows : torch.Tensor, shape (m, d)
        One row for each sample: its own gradient.
    unravel : Unravel

    Raises
    ------
    ValueError
        A chosen parameter that has neither attribute.
    """
    check.check_choice("reduction", reduction, ("mean", "sum"))
    chosen = chosen_parameters(model, params)
    unravel = unravel_of(chosen)
    return unravel.ravel({name: _left_on(name, p, reduction) for name, p in chosen.items()}).detach(), unravel


def _left_on(name: str, parameter: nn.Parameter, reduction: str) -> Tensor:
    """The per-sample gradients on one parameter, (m, *shape)."""
    ours = getattr(parameter, "grad_sample", None)
    if isinstance(ours, list):  # of several backward passes
        return torch.cat(ours)
    if ours is not None:
        return ours
    theirs = getattr(parameter, "grad_batch", None)
    if theirs is None:
        msg = f"`model` must have `grad_batch` or `grad_sample` on every chosen parameter; got neither on {name!r}. "
        raise ValueError(msg + "Run the backward pass under BackPACK's BatchGrad() or Opacus's GradSampleModule.")
    return theirs * len(theirs) if reduction == "mean" else theirs


@dataclass(frozen=True)
class _Rows:
    """Gradients of a model's loss by the parameters that were chosen, as rows."""

    model: nn.Module
    loss_fn: Loss
    values: dict[str, Tensor]  # the parameters, without a graph
    written: dict[str, Tensor]  # copies of what the model may write to when it is called
    places: dict[str, list[str]]  # names of each, one for every module that holds it
    unravel: Unravel

    @classmethod
    def of(cls, model: nn.Module, loss_fn: Loss, params: Selection) -> "_Rows":
        refuse_inference_mode()
        _refuse_wrappers(model)
        chosen = chosen_parameters(model, params)
        _refuse_batch_statistics(model)
        copies = copies_of_written(model)
        values = {name: copies.get(parameter, parameter.detach()) for name, parameter in chosen.items()}
        written = {place: copies[tensor] for place, tensor in tensors_of(model) if tensor in copies}
        return cls(model, loss_fn, values, written, places_of(model, chosen), unravel_of(values))

    def loss(self, values: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        """The loss of a batch with other values of the parameters."""
        each = self.written | {place: values[name] for name, places in self.places.items() for place in places}
        each = {f"model.{place}": value for place, value in each.items()}
        # tie_weights=True would not give back the parameters of a module that has several names
        loss = torch.func.functional_call(_Judged(self.model), each, (self.loss_fn, x, y), tie_weights=False)
        if not isinstance(loss, Tensor) or loss.ndim:
            msg = f"`loss_fn` must return a scalar tensor; got {check.describe(loss)}. Take the mean over the batch."
            raise ValueError(msg)
        return loss

    def of_samples(self, samples: Samples, chunk_size: int | None) -> Tensor:
        """The rows of all samples, (m, d)."""
        each = torch.func.vmap(self.of_sample, samples.axes, chunk_size=chunk_size, randomness="different")
        try:
            with torch.no_grad():  # no graph of the parameters themselves: torch.func has its own
                return each(*samples.parts)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.of_batch(*samples.at(slice(1)))  # raises what is wrong without vmap too
            words = str(error).partition("\n")[0].rstrip(".")
            msg = f"`model` must be one that torch.func.vmap can batch; got {words:.300}. Use mean_gradients with "
            raise RuntimeError(msg + "batch_size=1, which gives the same rows one after the other.") from error
        finally:
            refresh(self.model)

    def of_sample(self, x: Any, y: Any) -> Tensor:
        """The row of one sample, (d,), under `vmap`."""
        return self.unravel.ravel(torch.func.grad(self.loss)(self.values, alone(x), alone(y)))

    def of_batch(self, x: Any, y: Any) -> Tensor:
        """The row of a batch, (d,): quicker than `torch.func.grad`, which keeps what second derivatives need."""
        try:
            with torch.enable_grad():
                leaves = {name: value.detach().requires_grad_() for name, value in self.values.items()}
                standing = standing_weights(self.model, leaves)
                loss = self.loss(leaves, x, y)
                if not loss.requires_grad:
                    msg = "`loss_fn` must return a loss with a graph; got one that depends on no parameter. Leave out "
                    raise ValueError(msg + "what detaches it, or choose parameters that it depends on.")
                by = [*leaves.values(), *standing.values()]
                found = torch.autograd.grad(loss, by, allow_unused=True)
        finally:
            refresh(self.model)
        refuse_standing(dict(zip(standing, found[len(leaves) :], strict=True)))
        parts = zip(leaves.items(), found[: len(leaves)], strict=True)
        return self.unravel.ravel({name: torch.zeros_like(v) if g is None else g.to_dense() for (name, v), g in parts})


class _Judged(nn.Module):
    """A model with its loss as one module, so that a loss which asks the model sees the same parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_fn: Loss, inputs: Any, targets: Any) -> Any:
        arguments, options = arguments_of(inputs)
        return loss_fn(self.model(*arguments, **options), targets)


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
