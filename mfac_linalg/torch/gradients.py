"""Rows of gradients of a model, by `torch.func`, or from the results of BackPACK and Opacus."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import _validation as check
from .model_state import reachable_objects
from .parameters import Selection, Unravel, chosen_parameters, selected_names, unravel_for
from .rows import Loss, ModelRows
from .samples import Batches, Samples, each_batch


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
        It is not changed: buffers, attributes, lists and hidden states that its forward writes are restored (see
        Notes), so that every sample sees the model as it is before the call. Layers of batch normalisation, and others
        with running statistics, must be in eval mode.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` of a batch of one sample, as a scalar: `torch.nn.CrossEntropyLoss()` or any
        function, which may use the model too, for a penalty of its parameters, say. See Notes on means.
    inputs, targets : tensors, shape (m, …)
        Or tuples, lists or dictionaries of tensors. None, booleans and strings among them are the same for all samples.
        A tuple or list is passed as positional, a dictionary as keyword arguments of the model; so a model with
        one list as its argument takes ``([a, b],)``. Targets are passed to `loss_fn` unchanged.
    params : iterable of str or callable, optional
        Names of parameters, or of layers for all of their parameters; or a function ``(name, parameter) → bool``.
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
        A layer of batch normalisation or with running statistics in train mode, or a lazy one; a weight with a mask of
        `torch.nn.utils.prune` that the model uses without calling its module, or before it, as
        `torch.nn.MultiheadAttention` does with that of `out_proj`; hooks on the gradient of a chosen parameter
        (`Tensor.register_hook`; those of modules, and on what a call computes, take effect); a loss that is not a
        scalar, or (on the host) not finite; no samples, or inputs and targets of different length; names that the model
        does not have.
    TypeError
        Chosen parameters of several dtypes or devices, or not real and floating; a complex loss; a model that
        PyTorch cannot call with other parameters, as `torch.nn.DataParallel`.
    RuntimeError
        A model that `torch.func.vmap` cannot batch, as one with `torch.nn.GRU`, or that uses a parameter by a list or
        a function instead of its module: `mean_gradients` of one sample a row gives the same rows. Checkpoints of
        activations with ``use_reentrant=True``. A call under `torch.inference_mode()`; under `torch.no_grad()`
        gradients are the same.

    Notes
    -----
    Cost: one forward and one backward pass a sample, in batches by `torch.func.vmap`; O(md) memory for the rows, and
    activations and gradients of `chunk_size` samples, and a copy of the state of the model. `factored_gradients` does
    not form the rows of linear and convolutional layers.

    Random layers, as dropout in train mode, draw new numbers for each sample, from PyTorch's generators, which advance.
    What a call writes is restored

    - in modules and hooks, and in a loss that is a module, the method of one, or a function that names one;
    - in tensors, arrays and containers that these refer to;
    - in objects of classes of the same packages, with slots and class attributes;
    - in functions that the model refers to: their attributes, defaults and closures, and modules that they name.

    It is not restored

    - in other parts of `loss_fn`: its closure (a list to which it appends), the object whose method it is;
    - in batches that are iterated over (`iter_gradients`, `prune_model`), and in objects that they refer to: a change
      that a loader makes in a model holds from the next row on;
    - in objects in containers of more than 500 entries (the entries are restored, beyond 10,000 only where their
      number, the first or the last has changed; those of `ModuleList` and its like always), and in tensors and arrays
      of more than 2²² entries that are neither parameters nor buffers nor attributes of a module;
    - in global variables, in objects of other packages, behind proxies and mocks, in iterators, caches of `functools`,
      and in the values of sparse, nested and quantised tensors that are not buffers.

    Row i is the gradient of ``loss_fn(model(x_i), y_i)`` with that sample alone in the batch. The divisor of a mean is
    therefore that of the one sample, and a mean and a sum over samples give the same rows. But

    - `CrossEntropyLoss` and `NLLLoss` with a `weight` divide a mean by the sum of the weights of its targets: by w_y
      here, so that the weight drops out, g_i = ∇ℓ_i. With ``reduction="sum"`` it stays: g_i = w_y ∇ℓ_i. (A weight of
      `BCEWithLogitsLoss` stays in both.)
    - a mean over tokens, pixels or targets that are not ignored divides by the number T_i that this sample has; over a
      batch it divides by Σ T_i. With ``reduction="sum"`` g_i is the sum over the tokens of sample i, and the gradient
      of the batch's mean is Σ g_i/Σ T_i. A sample of which all targets are ignored has a loss of 0/0 as a mean.

    To weight samples in F = Λ + (1/n) Σ w_i g_i g_iᵀ (Λ: the diagonal matrix of the damping), which is linear in the
    weights where w_i g_i is squared, pass unweighted rows, and ``weights=`` to the inverse.

    Examples
    --------
    >>> import torch, mfac_linalg as ml
    >>> from mfac_linalg.torch import per_sample_gradients
    >>> model, x, y = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    >>> rows, unravel = per_sample_gradients(model, torch.nn.functional.cross_entropy, x, y)
    >>> inverse = ml.WoodburyRankOneInverse(rows, damping=0.1)
    >>> step = inverse.matvec_gradients(torch.full((8,), 1 / 8))  # F⁻¹ of the mean of the rows
    >>> rows.shape, unravel(step)["weight"].shape
    (torch.Size([8, 15]), torch.Size([3, 4]))
    """
    samples = Samples.of(inputs, targets)
    size = None if chunk_size is None else check.size("chunk_size", chunk_size)
    rows = ModelRows.of_selection(model, loss_fn, params)
    return rows.of_samples(samples, size), rows.unravel


def mean_gradients(
    model: nn.Module, loss_fn: Loss, inputs: Any, targets: Any, *, batch_size: int, params: Selection = None
) -> tuple[Tensor, Unravel]:
    """Return G with one row for each `batch_size` consecutive samples, the gradient of their loss, as in M-FAC.

    Parameters
    ----------
    model : torch.nn.Module
        As in `per_sample_gradients`.
    loss_fn : callable
        As there, of `batch_size` samples: a mean over the batch makes the rows means. Each batch has its own divisor:
        the last, shorter one its number of samples, and with a `weight` the sum of the weights of its targets.
    inputs, targets : tensors, shape (m, …)
        As in `per_sample_gradients`.
    batch_size : int
        Samples a row; the last row is of the remaining ones.
    params : iterable of str or callable, optional
        As in `per_sample_gradients`.

    Returns
    -------
    rows : torch.Tensor, shape (⌈samples / batch_size⌉, d)
    unravel : Unravel

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `per_sample_gradients`, except for models that cannot be batched; a `batch_size` that is not an integer ≥ 1.

    Notes
    -----
    Cost: one forward and one backward pass a sample; memory as for the training of one batch.

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import mean_gradients
    >>> model, loss = torch.nn.Linear(4, 3), torch.nn.functional.cross_entropy
    >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
    >>> rows, unravel = mean_gradients(model, loss, x, y, batch_size=3)
    >>> rows.shape  # of samples 0 to 2, 3 to 5, and 6 and 7
    torch.Size([3, 15])
    """
    samples, size = Samples.of(inputs, targets), check.size("batch_size", batch_size)
    rows = ModelRows.of_selection(model, loss_fn, params)
    means = rows.empty(-(-samples.count // size))
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

    Gradients are of the model at the time of each batch, and follow it while it is trained. It is restored before a
    gradient is yielded.

    Parameters
    ----------
    model : torch.nn.Module
        As in `per_sample_gradients`.
    loss_fn : callable
        As in `per_sample_gradients`; without `per_sample` the loss of a batch, as in `mean_gradients`.
    batches : iterable of (inputs, targets)
        A `torch.utils.data.DataLoader`, for example. From samples ``((a, b), y)`` it makes batches ``[[a, b], y]``,
        and the model is called with a and b.
    params : iterable of str or callable, optional
        As in `per_sample_gradients`.
    per_sample : bool
        One gradient for each sample; False for one for each batch.
    chunk_size : int, optional
        As in `per_sample_gradients`.

    Yields
    ------
    torch.Tensor, shape (d,)

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `per_sample_gradients`; batches that are not pairs.

    Notes
    -----
    Cost: one forward and one backward pass a sample; O(d) memory, with `per_sample` O(d) a sample of a batch.

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
    check.flag("per_sample", per_sample)
    size = None if chunk_size is None else check.size("chunk_size", chunk_size)
    selection = selected_names(params)
    excluded = reachable_objects(batches)
    for batch in each_batch(batches):
        rows = ModelRows.of_selection(model, loss_fn, selection, excluded)
        if per_sample:
            yield from rows.of_samples(batch, size)
        else:
            yield rows.of_batch(*batch.whole)


def gathered_gradients(
    model: nn.Module, *, params: Selection = None, reduction: str = "mean"
) -> tuple[Tensor, Unravel]:
    """Return G from the per-sample gradients that BackPACK or Opacus have stored on the parameters.

    Parameters
    ----------
    model : torch.nn.Module
        After a backward pass under `backpack(BatchGrad())`, which sets `grad_batch`, or of Opacus's
        `GradSampleModule`, which sets `grad_sample`.
    params : iterable of str or callable, optional
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
        A chosen parameter that has neither attribute, or gradients of another shape or of another number of samples.

    Notes
    -----
    Cost: a copy of the stored gradients, O(md).

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import gathered_gradients
    >>> model, x = torch.nn.Linear(4, 1, bias=False), torch.randn(8, 4)
    >>> model.weight.grad_sample = x[:, None, :]  # Opacus's, for the sum of the outputs
    >>> rows, unravel = gathered_gradients(model)
    >>> torch.equal(rows, x)
    True
    """
    check.choice("reduction", reduction, ("mean", "sum"))
    chosen = chosen_parameters(model, params)
    parts = {name: _per_sample_gradients_on(name, p, reduction) for name, p in chosen.items()}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        first, other = next(iter(counts)), next(name for name in counts if counts[name] != next(iter(counts.values())))
        msg = f"`model` must have gradients of as many samples on every chosen parameter; got {counts[first]} on "
        msg += f"{first!r} and {counts[other]} on {other!r}. Delete those of another batch, and run one "
        raise ValueError(msg + "backward pass over all.")
    unravel = unravel_for(chosen)
    return unravel.ravel(parts).detach(), unravel


def _per_sample_gradients_on(name: str, parameter: nn.Parameter, reduction: str) -> Tensor:
    """The per-sample gradients on one parameter, (m, *shape)."""
    of_opacus, of_backpack = getattr(parameter, "grad_sample", None), getattr(parameter, "grad_batch", None)
    if of_opacus is None and of_backpack is None:
        msg = f"`model` must have `grad_batch` or `grad_sample` on every chosen parameter; got neither on {name!r}. "
        raise ValueError(msg + "Run the backward pass under BackPACK's BatchGrad() or Opacus's GradSampleModule.")
    is_backpack = of_opacus is None
    attribute = "grad_batch" if is_backpack else "grad_sample"
    parts: list[Any] = [of_backpack if is_backpack else of_opacus]
    if isinstance(of_opacus, list):  # of several backward passes
        parts = of_opacus
    for part in parts:
        if not isinstance(part, Tensor) or part.ndim == 0 or part.shape[1:] != parameter.shape:
            shape = ", ".join(map(str, ("m", *parameter.shape)))
            given = check.describe(part) if isinstance(part, Tensor) else type(part).__name__
            msg = f"`model` must have `{attribute}` of shape ({shape}) on {name!r}; got {given}. "
            raise ValueError(msg + "Run the backward pass again.")
    if not parts:
        msg = f"`model` must have `{attribute}` on {name!r}; got an empty list. Run the backward pass again."
        raise ValueError(msg)
    gradients = torch.cat(parts)
    return gradients * len(gradients) if is_backpack and reduction == "mean" else gradients
