"""Factored rows of a model: the weights that are factored, and their factors sample by sample."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from .._rows.dense import DenseRows
from .factored_rows import FactoredRows, Part
from .layer_calls import Recorder, calls_of, intercepted
from .layers import Call
from .outer_products import OuterProducts
from .rows import BypassedModulesError, ModelRows, sum_of_terms, without_graph
from .samples import Samples, batch_of_one
from .user_hooks import has_backward_hooks


@dataclass(frozen=True)
class FactoredModel:
    """The rows of a model, and the calls of those layers whose factors are fewer numbers than the rows."""

    rows: ModelRows
    calls: dict[str, list[Call]]  # by the name of the weight

    @classmethod
    def of(cls, rows: ModelRows, samples: Samples) -> "FactoredModel":
        """For samples that are like the first one."""
        return cls(rows, {name: calls for name, calls in calls_of(rows, samples).items() if _are_fewer(calls)})

    def of_samples(self, samples: Samples, chunk_size: int | None) -> FactoredRows:
        """The rows of all samples, in chunks."""
        size = chunk_size or samples.count
        store = _Store(self, samples.count)
        if has_backward_hooks(self.rows.model):  # torch.func does not run them
            for index in range(samples.count):
                store.write(slice(index, index + 1), *self._of_one(samples, index))
        else:
            for start in range(0, samples.count, size):
                part = slice(start, min(start + size, samples.count))
                store.write(part, *self.rows.batched(self._of_sample, samples, part))
        if not store.is_nonzero():
            self.rows.of_batch(*samples.at(slice(1)))  # raises without a graph
        return FactoredRows(store.parts())

    def _of_sample(self, x: Any, y: Any) -> tuple[Any, Tensor]:
        """The explicit gradients, the gradients of outputs and the inputs of calls of one sample, under `vmap`."""
        differentiate = torch.func.grad_and_value(self._loss, argnums=(0, 1), has_aux=True)
        (gradients, of_outputs), (loss, inputs) = differentiate(
            self._values(), self._shifts(), batch_of_one(x), batch_of_one(y)
        )
        return ({name: gradients[name] for name in self._explicit}, of_outputs, inputs), loss

    def _loss(
        self, values: dict[str, Tensor], shifts: dict[str, list[Tensor]], x: Any, y: Any
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The loss with zeros added to the outputs of calls, and the inputs of these calls."""
        recorder = Recorder(self.calls, shifts, {name: values[name] for name in self.calls})
        with intercepted(self._layers, recorder.intercept):
            loss = self.rows.loss(values, x, y)
        recorder.check_complete()
        return loss, recorder.inputs

    def _of_one(self, samples: Samples, index: int) -> Any:
        """The same as of `_of_sample`, with an axis of one sample before all others, by a backward pass of autograd."""
        values, shifts = self._values(), self._shifts()
        recorder = Recorder(self.calls, shifts, {name: values[name] for name in self.calls})
        with self.rows.state.restoring(), torch.enable_grad():
            added = [x.requires_grad_() for several in shifts.values() for x in several]
            leaves = {name: value.requires_grad_() for name, value in values.items()}
            with intercepted(self._layers, recorder.intercept):
                found, of_added = self.rows.of_tensors(leaves, added, *samples.at(slice(index, index + 1)))
        recorder.check_complete()
        if any(gradient is not None for name in self.calls for gradient in found[name]):
            raise BypassedModulesError
        gradients = {name: sum_of_terms(leaves[name], *found[name]).detach()[None] for name in self._explicit}
        remaining = iter([sum_of_terms(x, gradient)[None] for x, gradient in zip(added, of_added, strict=True)])
        of_outputs = {name: list(itertools.islice(remaining, len(several))) for name, several in shifts.items()}
        return gradients, of_outputs, {name: [x[None] for x in several] for name, several in recorder.inputs.items()}

    @property
    def _layers(self) -> dict[Any, str]:
        return {call.layer: name for name, calls in self.calls.items() for call in calls}

    @property
    def _explicit(self) -> list[str]:
        """The parameters without factors."""
        return [name for name in self.rows.chosen if name not in self.calls]

    def _values(self) -> dict[str, Tensor]:
        return {name: without_graph(value) for name, value in self.rows.chosen.items()}

    def _shifts(self) -> dict[str, list[Tensor]]:
        """Zeros like the outputs of each call."""
        like = next(iter(self.rows.chosen.values())).detach()
        return {
            name: [like.new_zeros(call.outputs, dtype=call.dtype) for call in calls]
            for name, calls in self.calls.items()
        }


class _Store:
    """Memory for the rows of all samples: factors of some weights, and explicit columns of what is between them."""

    def __init__(self, model: FactoredModel, count: int) -> None:
        self._model = model
        self._dense: list[Tensor] = []  # the explicit columns of consecutive parameters, (m, n) each
        self._places: dict[str, tuple[int, slice]] = {}  # of an explicit parameter: in which of them, and its columns
        self._factors = {name: _empty_factors(model, name, count) for name in model.calls}
        self._names = list(model.rows.chosen)
        for is_factored, names in itertools.groupby(self._names, lambda name: name in model.calls):
            if not is_factored:
                self._add_dense(list(names), count)

    def _add_dense(self, names: list[str], count: int) -> None:
        chosen, width = self._model.rows.chosen, 0
        for name in names:
            self._places[name] = len(self._dense), slice(width, width + chosen[name].numel())
            width += chosen[name].numel()
        self._dense.append(chosen[names[0]].detach().new_empty((count, width)))

    def write(
        self,
        part: slice,
        gradients: dict[str, Tensor],
        of_outputs: dict[str, list[Tensor]],
        inputs: dict[str, list[Tensor]],
    ) -> None:
        """Write what belongs to some samples."""
        for name, gradient in gradients.items():
            index, columns = self._places[name]
            self._dense[index][part, columns] = gradient.reshape(len(gradient), -1)
        for name, calls in self._model.calls.items():
            a, b = self._factors[name]
            start = 0
            for call, x, of_output in zip(calls, inputs[name], of_outputs[name], strict=True):
                if call.positions == 0:
                    continue
                positions = slice(start, start + call.positions)
                a[:, part, positions] = call.as_factor(x)
                b[:, part, positions] = call.as_output_factor(of_output)
                start = positions.stop

    def is_nonzero(self) -> bool:
        """Whether any row differs from zero, as far as values can be read."""
        tensors = [*self._dense, *(b for _, b in self._factors.values())]
        return any(x.is_meta or bool(torch.any(x)) for x in tensors)

    def parts(self) -> list[Part]:
        """The rows of consecutive parameters, in the order of the parameters."""
        dtype = _backend.result_dtype(next(iter(self._model.rows.chosen.values())))
        parts: dict[int | str, Part] = {}
        for name in self._names:
            if name in self._factors:
                parts[name] = OuterProducts(*self._factors[name], dtype)
            else:
                index = self._places[name][0]
                parts[index] = DenseRows(self._dense[index], None, dtype)
        return list(parts.values())


def _empty_factors(model: FactoredModel, name: str, count: int) -> tuple[Tensor, Tensor]:
    """Memory for the factors of a weight; zeros, at one position, where no call has a position."""
    calls = model.calls[name]
    like, (p, q) = model.rows.chosen[name].detach(), calls[0].sizes
    make = like.new_empty if any(call.positions for call in calls) else like.new_zeros
    leading = calls[0].groups, count, _positions(calls)
    return make((*leading, q)), make((*leading, p))


def _positions(calls: list[Call]) -> int:
    """How often a weight is used for a sample; 1 also for calls with an empty sequence only."""
    return max(1, sum(call.positions for call in calls))


def _are_fewer(calls: list[Call]) -> bool:
    """Whether the factors of a weight are fewer numbers than its gradient."""
    p, q = calls[0].sizes
    return len({call.groups for call in calls}) == 1 and _positions(calls) * (p + q) < p * q
