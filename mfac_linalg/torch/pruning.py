"""Pruning of PyTorch models by F⁻¹, with the masks of `torch.nn.utils.prune`."""

import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _validation as check
from ..pruning import Pruned, prune
from ..pruning.losses import NoFiniteLossError
from ..pruning.schedule import Schedule
from .hooks import has_mask, locate, put_mask, refresh, refuse_own_names, restoring_masks
from .masked_model import MaskedModel, Source
from .model_checks import check_differentiable
from .model_state import reachable_objects
from .parameters import Selection, Unravel, chosen_parameters, paths_of, unravel_for
from .rows import Loss
from .samples import Batches, check_batches


def prune_model(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    sparsity: float | Sequence[float],
    *,
    steps: int = 1,
    schedule: str | Sequence[float] = "geometric",
    moves: int = 0,
    damping: float | Sequence[float],
    relative: bool = False,
    num_gradients: int | None = None,
    params: Selection = None,
    by_layer: bool = False,
    block_sizes: Any = None,
    slope: Any = 0.0,
    slope_damping: float | None = None,
    selection: str = "scores",
    update: str = "joint",
    compensation_damping: float | str = "auto",
    lengths: Sequence[float] = (1.0,),
    validation: Batches | None = None,
    progress: bool = False,
) -> Pruned:
    """Prune a model by F⁻¹ in place: update its weights, and add masks of `torch.nn.utils.prune`.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode where it has batch normalisation, and float32 or float64: call ``model.float()``. Masks that it has
        already stay. Its other state (buffers, attributes, hidden states; `per_sample_gradients` lists it) is restored:
        every batch sees the model as before the call. Changes that batches themselves make in it stay.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` of a batch, as a scalar.
    batches : iterable of (inputs, targets)
        A DataLoader or a list: each batch gives one gradient row. An iterator suffices for one pass, or for
        `num_gradients` a step until it is exhausted.
    sparsity : float or sequence of float
        As in `mfac_linalg.pruning.prune`; one for each parameter with `by_layer`.
    steps : int
        As in `prune`.
    schedule : {"geometric", "cubic", "linear"} or sequence of float
        As in `prune`.
    moves : int
        As in `prune`.
    damping : float or sequence of float
        As in `prune`.
    relative : bool
        As in `prune`.
    num_gradients : int, optional
        Rows a step: each step continues in `batches` where the last one stopped, and starts again at their end. All
        batches in each step unless given.
    params : iterable of str or callable, optional
        Parameters to prune, as in `per_sample_gradients`; all parameters of two or more axes unless given, the
        gains of weight normalisation among them. The mask is that of the parameter: a weight computed from it by weight
        or spectral normalisation has the same zeros, one by an orthogonal parametrisation has not.
    by_layer : bool
        Prune every parameter to the sparsity, instead of all weights together.
    block_sizes : int, sequence of int, "layers" or "filters", optional
        Blocks of F, as in `prune`; "layers" for one for each parameter, "filters" for one for each index of its first
        axis: the weights of an output channel, or of an output of a linear layer.
    slope : float, callable or "batch"
        α, or a function from the step to it, as in `prune`; "batch" for the mean of 1/B over the batches of a step, B
        their numbers of samples, which is consistent for a `loss_fn` that is a mean.
    slope_damping : float, optional
        As in `prune`.
    selection : {"scores", "exchanges"}
        As in `prune`.
    update : {"joint", "single"}
        As in `prune`.
    compensation_damping : float or "auto"
        As in `prune`.
    lengths : sequence of float
        As in `prune`.
    validation : iterable of (inputs, targets), optional
        Other batches, whose mean loss chooses among several dampings or `lengths`: a list, or a DataLoader. The loss of
        a batch is understood as a mean, and is weighted by its number of samples.
    progress : bool
        As in `prune`.

    Returns
    -------
    Pruned
        With all chosen weights as one vector, in the model's order.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `prune` and `per_sample_gradients`; batches that are exhausted; a layer that divides by the norm of weights
        that are all removed (weight normalisation of an output channel). A chosen parameter

        - that is used without a call of its module or before it, so that a mask would have no effect there;
        - that several modules share;
        - of a module that no batch calls (an expert to which nothing is routed);
        - of a module with its own attribute in the place of the mask (``weight_mask``, ``weight_orig``).

        The model is then restored.

    Notes
    -----
    Cost: a forward and a backward pass for each batch of each step, and a step of `prune`; a copy of the model.
    `torch.nn.utils.prune.remove` makes the zeros permanent.

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import prune_model
    >>> layers = torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    >>> model, loss = torch.nn.Sequential(*layers), torch.nn.functional.cross_entropy
    >>> batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(10)]
    >>> pruned = prune_model(model, loss, batches, 0.5, steps=2, damping=1e-3)
    >>> pruned.mask.sum(), model[0].weight_mask.sum() + model[2].weight_mask.sum()
    (tensor(33), tensor(33.))
    """
    chosen = _prunable(model, loss_fn, params)
    unravel = unravel_for(chosen)
    blocks = _named_sizes(block_sizes, chosen) if isinstance(block_sizes, str) else block_sizes
    if isinstance(slope, str):
        check.choice("slope", slope, ("batch",))
    has_validation = validation is not None
    candidates = _check_choices(sparsity, damping, lengths, by_layer=by_layer, has_validation=has_validation)
    check.flag("progress", progress)
    all_steps = Schedule.checked(schedule, steps, moves).steps
    _check_data(batches, all_steps if num_gradients is None else 1, validation, all_steps * candidates)
    count = None if num_gradients is None else check.size("num_gradients", num_gradients)
    before = unravel.ravel({name: parameter.detach() for name, parameter in chosen.items()})
    mask = unravel.ravel({name: _mask(model, name) for name in chosen})
    with restoring_masks(model, chosen):
        masked = MaskedModel.of(model, loss_fn, chosen, Source(batches, count), reachable_objects(batches, validation))
        with _name_validation_in_errors(masked):
            pruned = prune(
                before,
                masked.gradients,
                sparsity,
                steps=steps,
                schedule=schedule,
                moves=moves,
                damping=damping,
                relative=relative,
                selection=selection,
                update=update,
                compensation_damping=compensation_damping,
                layer_sizes=unravel.sizes if by_layer else None,
                block_sizes=blocks,
                slope=(lambda step: masked.source.mean_reciprocal_count) if slope == "batch" else slope,
                slope_damping=slope_damping,
                mask=mask,
                lengths=lengths,
                loss_fn=None if validation is None else lambda weights: masked.mean_loss(weights, validation),
                progress=progress,
            )
        masked.refuse_undefined(pruned.weights)
    _write_pruned(model, unravel, pruned)
    return pruned


def _check_data(batches: Batches, reads: int, validation: Batches | None, judgements: int) -> None:
    """Accept batches that can be read as often as they will be."""
    check_batches("batches", batches, reads)
    if validation is not None:
        check_batches("validation", validation, judgements)


def _write_pruned(model: nn.Module, unravel: Unravel, pruned: Pruned) -> None:
    """Write weights and masks into a model."""
    unravel.write(model, pruned.weights)
    for name, part in unravel(pruned.mask).items():
        put_mask(model, name, part)
    refresh(model)


@contextmanager
def _name_validation_in_errors(masked: MaskedModel) -> Iterator[None]:
    """Where no candidate has a finite loss, name the argument of `prune_model` in the error."""
    try:
        yield
    except NoFiniteLossError as none:
        masked.refuse_undefined(none.weights)
        msg = (
            f"`validation` must have finite losses for one candidate of each step at least; got {none.loss}. Look for "
        )
        raise ValueError(msg + "nan and inf in these batches, or pass smaller `lengths`.") from none


def _check_choices(sparsity: Any, damping: Any, lengths: Any, *, by_layer: Any, has_validation: bool) -> int:
    """Check arguments of `prune` by their names in `prune_model`; return the number of candidates of a step."""
    check.flag("by_layer", by_layer)
    if not by_layer and not isinstance(sparsity, numbers.Real):
        msg = f"`sparsity` must be one float; got {check.describe(sparsity)}. Pass by_layer=True for one a parameter."
        raise TypeError(msg)
    sizes = {"damping": np.size(damping), "lengths": np.size(lengths)}
    several = [name for name, size in sizes.items() if size > 1]
    if several and not has_validation:
        msg = f"`validation` must be given to choose among several values of `{several[0]}`; got None. Pass other "
        raise TypeError(msg + "batches.")
    return sizes["damping"] * sizes["lengths"]


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1


def _prunable(model: nn.Module, loss_fn: Loss, params: Selection) -> dict[str, nn.Parameter]:
    """The chosen parameters, each of one module and fit for pruning."""
    check_differentiable(model, loss_fn)
    chosen = chosen_parameters(model, _is_weight if params is None else params)
    dtype = next(iter(chosen.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        msg = f"`model` must be float32 or float64 where it is pruned; got {dtype}. Call model.float()."
        raise TypeError(msg)
    for name, parameter in chosen.items():
        if parameter.is_inference():
            msg = f"`model` must have parameters that can be written; got {name!r}, created in torch.inference_mode(). "
            raise ValueError(msg + "Create the model outside of it.")
        if parameter.is_meta:
            msg = f"`model` must have values; got {name!r} on the device meta. Move the model to a device first."
            raise ValueError(msg)
        if isinstance(module := locate(model, name)[0], torch.jit.ScriptModule):
            msg = f"`model` must be of modules of Python where it is pruned; got {name!r} of {type(module).__name__}. "
            raise TypeError(msg + "Use the original module instead.")
    for shared in paths_of(model, chosen).values():
        if len(shared) > 1:
            msg = f"`params` must choose parameters of one module each; got {' = '.join(shared)}. A mask of "
            msg += "torch.nn.utils.prune would untie them. Leave the parameter out by `params`."
            raise ValueError(msg)
    refuse_own_names(model, chosen)
    return chosen


def _mask(model: nn.Module, name: str) -> Tensor:
    """The mask of a parameter, True without one."""
    module, tensor = locate(model, name)
    if has_mask(module, tensor):
        return getattr(module, f"{tensor}_mask") > 0
    return torch.ones_like(model.get_parameter(name), dtype=torch.bool)


def _named_sizes(blocks: str, chosen: dict[str, nn.Parameter]) -> tuple[int, ...]:
    """The number of weights of each parameter, or of each index of its first axis, parameter after parameter."""
    check.choice("block_sizes", blocks, ("layers", "filters"))
    parameters = [p for p in chosen.values() if p.numel()]
    lengths = [(p.shape[0] if p.ndim and blocks == "filters" else 1, p.numel()) for p in parameters]
    return tuple(size // count for count, size in lengths for _ in range(count))
