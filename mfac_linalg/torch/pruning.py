"""Pruning of PyTorch models, which leaves the masks of `torch.nn.utils.prune`."""

import contextlib
import itertools
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

from .. import _validation as check
from ..pruning import Pruned, prune
from .gradients import Loss, iter_gradients, refuse_inference_mode
from .hooks import calls_required, place, refresh
from .parameters import Selection, Unravel, chosen_parameters, places_of, unravel_of
from .samples import Batches, arguments_of, each_batch

OPTIONS = ("steps", "relative", "update", "lengths")


def prune_model(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    sparsity: float | Sequence[float],
    *,
    damping: float | Sequence[float],
    num_gradients: int | None = None,
    params: Selection = None,
    by_layer: bool = False,
    block_sizes: Any = None,
    validation: Batches | None = None,
    **options: Any,
) -> Pruned:
    """Prune a model by F⁻¹ in place: the weights are moved, and `torch.nn.utils.prune` holds the masks.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode where it has batch normalisation, and float32 or float64: ``model.float()`` makes it so. Masks that
        it has already stay.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` of a batch, as a scalar.
    batches : iterable of (inputs, targets)
        A DataLoader or a list: each batch makes one gradient row.
    sparsity : float or sequence of float
        As in `mfac_linalg.pruning.prune`; one for each parameter with `by_layer`.
    damping : float or sequence of float
        As in `prune`.
    num_gradients : int, optional
        Rows a step: each step goes on in `batches` where the last one stopped, and from the start when they are used
        up. All batches, each step, unless given.
    params : iterable of str or callable, optional
        What to prune, as in `per_sample_gradients`; all parameters of two or more axes unless given, with the gains of
        weight normalisation among them.
    by_layer : bool
        Every parameter keeps its own share of weights, instead of all weights competing.
    block_sizes : int, sequence of int, "layers" or "filters", optional
        Blocks of F, as in `prune`; "layers" for one for each parameter, "filters" for one for each index of its first
        axis: the weights of an output channel, or of an output of a linear layer.
    validation : iterable of (inputs, targets), optional
        Other batches, on whose mean loss several dampings or `lengths` are judged: a list, or a DataLoader.
    **options
        `steps`, `relative`, `update` and `lengths` of `prune`.

    Returns
    -------
    Pruned
        With all chosen weights as one vector, in the model's order.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `prune` and `per_sample_gradients`; batches that are used up for good; a chosen parameter whose module is
        not called, so that a mask would never take effect, or that several modules share. The model is as it was then.

    Notes
    -----
    Cost: a forward and a backward pass for each batch of each step, and a step of `prune`.
    `torch.nn.utils.prune.remove` makes the zeros permanent.

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import prune_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(10)]
    >>> found = prune_model(model, torch.nn.functional.cross_entropy, batches, 0.5, steps=2, damping=1e-3)
    >>> found.mask.sum(), model[0].weight_mask.sum() + model[2].weight_mask.sum()
    (tensor(33), tensor(33.))
    """
    chosen = _prunable(model, params)
    unravel = unravel_of(chosen)
    if isinstance(block_sizes, str):
        check.check_choice("block_sizes", block_sizes, ("layers", "filters"))
        block_sizes = unravel.sizes if block_sizes == "layers" else _filter_sizes(chosen)
    before = unravel.ravel({name: parameter.detach() for name, parameter in chosen.items()})
    _check_options(sparsity, damping, options, by_layer=by_layer, judged=validation is not None)
    count = None if num_gradients is None else check.check_size("num_gradients", num_gradients)
    source = _round_and_round(batches)

    def gradients_fn(weights: Tensor, step: int) -> Tensor:
        unravel.write(model, weights)
        taken = batches if count is None else itertools.islice(source, count)
        with contextlib.nullcontext() if step else calls_required(model, unravel.names):
            rows = list(iter_gradients(model, loss_fn, taken, params=unravel.names))
            return torch.stack(rows) if rows else _refuse_none("batches")

    def loss(weights: Tensor) -> float:
        _write(model, unravel, weights)
        return mean_loss(model, loss_fn, () if validation is None else validation)

    try:
        found = prune(
            before,
            gradients_fn,
            sparsity,
            damping=damping,
            layer_sizes=unravel.sizes if by_layer else None,
            block_sizes=block_sizes,
            mask=unravel.ravel({name: _mask(model, name) for name in chosen}),
            loss_fn=None if validation is None else loss,
            **options,
        )
    except BaseException:
        _write(model, unravel, before)
        raise
    unravel.write(model, found.weights)
    _leave_masks(model, unravel, found.mask)
    refresh(model)
    return found


def _check_options(sparsity: Any, damping: Any, options: dict[str, Any], *, by_layer: Any, judged: bool) -> None:
    """Refuse, in the words of `prune_model`, what `prune` would refuse in its own."""
    check.check_flag("by_layer", by_layer)
    if unknown := [name for name in options if name not in OPTIONS]:
        msg = f"`options` must be of {', '.join(OPTIONS)}; got {unknown[0]!r}. Masks are those of the model, layers "
        raise TypeError(msg + "its parameters: see `by_layer` and `block_sizes`.")
    if not by_layer and not isinstance(sparsity, numbers.Real):
        msg = f"`sparsity` must be one float; got {check.describe(sparsity)}. Pass by_layer=True for one a parameter."
        raise TypeError(msg)
    several = [n for n, value in (("damping", damping), ("lengths", options.get("lengths", 1.0))) if np.size(value) > 1]
    if several and not judged:
        msg = f"`validation` must be given to choose among several values of `{several[0]}`; got None. Pass other "
        raise TypeError(msg + "batches.")


def mean_loss(model: nn.Module, loss_fn: Loss, batches: Batches) -> float:
    """The mean of the losses of `validation`, each weighted by its number of samples."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in each_batch(batches, "validation"):
            arguments, options = arguments_of(batch.inputs)
            total += float(loss_fn(model(*arguments, **options), batch.targets)) * batch.count
            count += batch.count
    return total / count if count else _refuse_none("validation")


def _weights(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1


def _prunable(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    """The chosen parameters; refused where they cannot be pruned, or several modules share one."""
    refuse_inference_mode()
    chosen = chosen_parameters(model, _weights if params is None else params)
    dtype = next(iter(chosen.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        msg = f"`model` must be float32 or float64 where it is pruned; got {dtype}. Call model.float()."
        raise TypeError(msg)
    for shared in places_of(model, chosen).values():
        if len(shared) > 1:
            msg = f"`params` must choose parameters of one module each; got {' = '.join(shared)}. A mask of "
            msg += "torch.nn.utils.prune would untie them. Leave the parameter out by `params`."
            raise ValueError(msg)
    return chosen


def _round_and_round(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Batch after batch, from the start again when they are used up."""
    while True:
        found = False
        for batch in batches:
            found = True
            yield batch
        if not found:
            _refuse_none("batches")


def _refuse_none(name: str) -> NoReturn:
    msg = f"`{name}` must hold batches each time they are asked for; got none. Pass a list or a DataLoader."
    raise ValueError(msg)


def _filter_sizes(chosen: dict[str, nn.Parameter]) -> tuple[int, ...]:
    """The number of weights of each index of the first axis, parameter after parameter."""
    lengths = [(p.shape[0] if p.ndim else 1, p.numel()) for p in chosen.values()]
    return tuple(size // count for count, size in lengths for _ in range(count))


def _mask(model: nn.Module, name: str) -> Tensor:
    """Where a parameter may be other than zero, of its shape."""
    module, tensor = place(model, name)
    mask = getattr(module, f"{tensor}_mask", None)
    return torch.ones_like(model.get_parameter(name), dtype=torch.bool) if mask is None else mask > 0


def _write(model: nn.Module, unravel: Unravel, weights: Tensor) -> None:
    """Set the parameters, and the masked weights that are computed from them."""
    unravel.write(model, weights)
    refresh(model)


def _leave_masks(model: nn.Module, unravel: Unravel, mask: Tensor) -> None:
    for name, part in unravel(mask).items():
        masks.custom_from_mask(*place(model, name), part)
