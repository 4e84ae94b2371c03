"""A model during pruning: set its weights, compute gradients and losses, and detect undefined layers."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from .hooks import calls_required, masked_parameters, put_mask, refresh
from .model_state import Excluded, ModelState
from .parameters import Unravel, unravel_for
from .rows import Loss, ModelRows, check_scalar
from .samples import Batches, Samples, arguments_of, each_batch


@dataclass
class MaskedModel:
    """A model with masks on its chosen parameters: gradients and losses at given weights."""

    model: nn.Module
    loss_fn: Loss
    chosen: dict[str, nn.Parameter]  # by the names that masks give them
    names: dict[str, str]  # from those names to names without masks
    source: "Source"
    excluded: Excluded = field(default_factory=dict)  # objects of batches, which are not restored
    needs_graph: bool = False  # in a call: a model that differentiates within

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss_fn: Loss,
        chosen: dict[str, nn.Parameter],
        source: "Source",
        excluded: Excluded,
    ) -> "MaskedModel":
        """Give masks of ones to chosen parameters without a mask, so that uses without the mask are noticed."""
        masked = masked_parameters(model)
        names = {name if name in masked else put_mask(model, name): name for name in chosen}
        refresh(model)
        return cls(model, loss_fn, {name: model.get_parameter(name) for name in names}, names, source, excluded)

    @property
    def _unravel(self) -> Unravel:
        return unravel_for(self.chosen)

    def gradients(self, weights: Tensor, step: int) -> Tensor:
        """One row for each batch of a step."""
        self._write(weights)
        if step:
            self.refuse_undefined(weights)
        with contextlib.nullcontext() if step else calls_required(self.model, self.names):
            rows, gradients = None, []
            for batch in self.source.of_step():
                if rows is None or not (self.source.is_plain or rows.state.is_current()):
                    rows = ModelRows.of_parameters(self.model, self.loss_fn, self.chosen, self.excluded)
                gradients.append(rows.of_batch(*batch.whole))
            stacked = torch.stack(gradients) if gradients else _refuse_none("batches")
        self._refuse_nonfinite(stacked)
        return stacked

    def mean_loss(self, weights: Tensor, batches: Batches) -> float:
        """The mean of the losses of other batches, each weighted by its number of samples."""
        self._write(weights)
        total, count, state = 0.0, 0, None
        for batch in each_batch(batches, "validation"):
            if state is None or not (_is_plain(batches) or state.is_current()):
                state = self._state()
            with state.restoring():
                total += self._loss(batch, state) * batch.count
            count += batch.count
        return total / count if count else _refuse_none("validation")

    def refuse_undefined(self, weights: Tensor) -> None:
        """Refuse weights for which a layer divides by zero, the norm of weights that are all removed."""
        self._write(weights)
        with self._state().restoring() as state:
            loss = self._loss(self.source.last, state)
            undefined = next(_undefined_weights(self.model), None)
        if undefined or not np.isfinite(loss):
            where = f"nan in {undefined!r}" if undefined else f"a loss of {loss}"
            msg = f"`sparsity` must leave the model defined; got {where} after pruning. Where a layer divides by the "
            msg += "norm of weights that are all removed, as weight normalisation does, fold it into the weights by "
            raise ValueError(msg + "remove_parametrizations, leave the parameter out by `params`, or prune less.")

    def _state(self) -> ModelState:
        return ModelState.of(self.model, self.loss_fn, self.excluded)

    def _refuse_nonfinite(self, gradients: Tensor) -> None:
        """Refuse gradients with nan or infinity, where they are on the host."""
        if gradients.device.type == "cpu" and not bool(torch.isfinite(gradients).all()):
            parts = self._unravel(gradients).items()
            bad = next(self.names[name] for name, part in parts if not bool(torch.isfinite(part).all()))
            msg = f"`model` must have finite gradients where its losses are; got nan or infinity in {bad!r}. Look for "
            raise ValueError(msg + "roots and norms of zero, and for masked branches (torch.where) that overflow.")

    def _loss(self, batch: Samples, state: ModelState) -> float:
        """The loss of a batch, without a graph unless the model needs one."""
        try:
            with torch.set_grad_enabled(self.needs_graph):
                inputs, targets = batch.whole
                arguments, options = arguments_of(inputs)
                return float(check_scalar(self.loss_fn(self.model(*arguments, **options), targets)).detach())
        except RuntimeError as error:
            if self.needs_graph or "grad" not in str(error):
                raise
        state.restore()
        self.needs_graph = True
        return self._loss(batch, state)

    def _write(self, weights: Tensor) -> None:
        """Set the parameters, and the masked weights computed from them."""
        self._unravel.write(self.model, weights)
        refresh(self.model)


class Source:
    """The batches of each step: all of them, or the next `count`, starting where the last step stopped."""

    def __init__(self, batches: Batches, count: int | None) -> None:
        self._batches, self._count, self._endless = batches, count, _cycle(batches)
        self.last: Samples = Samples((), (), 0)
        self._counts: list[int] = []  # of samples, of the batches of this step

    @property
    def is_plain(self) -> bool:
        """Whether iterating over the batches cannot change the model."""
        return _is_plain(self._batches)

    def of_step(self) -> Iterator[Samples]:
        """The batches of a step; `last` is the last of them."""
        self._counts = []
        batches = self._batches if self._count is None else itertools.islice(self._endless, self._count)
        for batch in each_batch(batches):
            self.last = batch
            self._counts.append(batch.count)
            yield batch

    @property
    def mean_reciprocal_count(self) -> float:
        """The mean of 1/B over the batches of the last step, B their numbers of samples."""
        return float(np.mean(1 / np.array(self._counts)))


def _is_plain(batches: Batches) -> bool:
    """Whether iterating runs no code of others, which may change the model."""
    return type(batches) in (list, tuple)


def _cycle(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """All batches, again and again."""
    while True:
        is_empty = True
        for batch in batches:
            is_empty = False
            yield batch
        if is_empty:
            _refuse_none("batches")


def _undefined_weights(model: nn.Module) -> Iterator[str]:
    """The names of weights that the modules have computed in their last call, and that are not finite."""
    for path, module in model.named_modules():
        with torch.no_grad():
            computed = {name: getattr(module, name) for name in getattr(module, "parametrizations", {})}
        by_hooks = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}  # older normalisations
        computed |= {name: value for name, value in vars(module).items() if name in by_hooks}
        for name, value in computed.items():
            if isinstance(value, Tensor) and not bool(torch.isfinite(value.detach()).all()):
                yield f"{path}.{name}".removeprefix(".")


def _refuse_none(name: str) -> NoReturn:
    msg = f"`{name}` must have batches in each pass; got none. Pass a list or a DataLoader."
    raise ValueError(msg)
