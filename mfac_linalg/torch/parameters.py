"""Which parameters of a model make a gradient row, and the way between the row and their shapes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .. import _validation as check
from .model_state import forget_cached_weights

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Selection = Iterable[str] | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True)
class Unravel:
    """The way from vectors over all chosen parameters to tensors of their shapes: ``unravel(v)["fc.weight"]``.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        The chosen parameters by name, in the order in which they lie in a vector.

    Examples
    --------
    >>> import torch
    >>> from mfac_linalg.torch import Unravel
    >>> unravel = Unravel({"weight": (2, 3), "bias": (2,)})
    >>> tensors = unravel(torch.arange(8.0))
    >>> tensors["bias"], unravel.dim, unravel.sizes
    (tensor([6., 7.]), 8, [6, 2])
    >>> unravel.ravel(tensors)
    tensor([0., 1., 2., 3., 4., 5., 6., 7.])
    """

    shapes: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        named = isinstance(self.shapes, Mapping) and self.shapes and all(isinstance(name, str) for name in self.shapes)
        if not named:
            msg = f"`shapes` must be a dictionary of names to shapes; got {check.describe(self.shapes)}. Pass "
            raise TypeError(msg + "{name: tuple(parameter.shape)} for each parameter.")
        object.__setattr__(self, "shapes", {name: _checked_shape(name, x) for name, x in self.shapes.items()})

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in order."""
        return list(self.shapes)

    @property
    def sizes(self) -> list[int]:
        """Entries of each parameter: the `block_sizes` of a `BlockDiagonalInverse` by layers."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def dim(self) -> int:
        """Number d of entries of a vector."""
        return sum(self.sizes)

    def __call__(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return views of vectors, shape (…, d), as one tensor (…, *shape) for each parameter."""
        _check_tensor("vectors", vectors)
        if vectors.shape[-1:] != (self.dim,):
            msg = f"`vectors` must have shape (…, {self.dim}); got {tuple(vectors.shape)}. "
            raise ValueError(msg + "Pass what has an entry for each chosen parameter.")
        parts = vectors.split(self.sizes, dim=-1)
        leading = vectors.shape[:-1]
        return {
            name: part.reshape((*leading, *self.shapes[name])) for name, part in zip(self.names, parts, strict=True)
        }

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the way back: tensors (…, *shape) by name as one (…, d); names that were not chosen are passed over.

        Raises
        ------
        ValueError
            A parameter that is missing, or has another shape; leading axes that differ.
        TypeError
            Not tensors, or of several dtypes or devices.
        """
        if not isinstance(tensors, Mapping):
            msg = f"`tensors` must be a dictionary of tensors by name; got {check.describe(tensors)}. Name them."
            raise TypeError(msg)
        parts = []
        for name, shape in self.shapes.items():
            if name not in tensors:
                msg = f"`tensors` must have all of {self.names}; got none for {name!r}. Add it."
                raise ValueError(msg)
            _check_tensor(f"tensors[{name!r}]", tensors[name])
            parts.append(_as_rows(name, tensors[name], shape))
        _check_alike(parts)
        return torch.cat(parts, dim=-1)

    def write(self, model: nn.Module, vector: Tensor) -> None:
        """Copy a vector, shape (d,), into the chosen parameters of a model."""
        _check_real("vector", vector)
        check.shape("vector", vector, (self.dim,), "Pass one entry for each chosen parameter.")
        tensors, chosen = self(vector), chosen_parameters(model, self.names)
        for name, parameter in chosen.items():
            if tuple(parameter.shape) != self.shapes[name]:
                msg = f"`model` must have {name!r} of shape {self.shapes[name]}; got {tuple(parameter.shape)}. "
                raise ValueError(msg + "Pass the model that the vector is of.")
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(tensors[name])
        forget_cached_weights()


def _checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape, without negative lengths, as a tuple."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        msg = (
            f"`shapes` must have a tuple of integers as shape; got {check.describe(shape)} for {name!r}. Pass () for a "
        )
        raise TypeError(msg + "single number.")
    return tuple(check.count(f"shapes[{name!r}]", length) for length in shape)


def _as_rows(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor (…, *shape) as (…, size)."""
    leading = tensor.shape[: max(0, tensor.ndim - len(shape))]
    if tuple(tensor.shape[len(leading) :]) != shape:
        msg = f"`tensors` must have {name!r} of shape (…, {str(shape)[1:-1]}); got {tuple(tensor.shape)}. "
        raise ValueError(msg + "Reshape it.")
    return tensor.reshape((*leading, math.prod(shape)))


def _check_alike(parts: list[Tensor]) -> None:
    """Accept tensors that can be joined along their last axis as they are."""
    if len(axes := {tuple(part.shape[:-1]) for part in parts}) > 1:
        msg = f"`tensors` must have the same leading axes; got {', '.join(map(str, sorted(axes)))}. Expand them."
        raise ValueError(msg)
    if len(kinds := {f"{part.dtype} on {part.device}" for part in parts}) > 1:
        msg = f"`tensors` must be of one dtype on one device; got {', '.join(sorted(kinds))}. Cast or move them."
        raise TypeError(msg)


def _check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        msg = f"`{name}` must be a tensor; got {check.describe(x)}. Convert it first."
        raise TypeError(msg)


def _check_real(name: str, x: Any) -> None:
    _check_tensor(name, x)
    if x.is_complex():
        msg = f"`{name}` must be of real numbers; got {check.describe(x)}. Pass its real part."
        raise TypeError(msg)


def chosen_parameters(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    """The parameters that `params` chooses, by name, in the model's order; they share dtype and device."""
    if not isinstance(model, nn.Module):
        msg = f"`model` must be a torch.nn.Module; got {type(model).__name__}. Wrap the function in one."
        raise TypeError(msg)
    named = dict(model.named_parameters())
    if params is None:
        chosen = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    elif _is_function(params):
        chosen = {name: parameter for name, parameter in named.items() if _chooses(params, name, parameter)}
    else:
        wanted, names = _names(params), places_of(model, named)
        for name in wanted:
            if not any(_belongs(place, name) for places in names.values() for place in places):
                known = ", ".join(named)
                msg = f"`params` must name parameters or layers of the model; got {name!r}. It has {known:.400}."
                raise ValueError(msg)
        meant = {n for n, places in names.items() if any(_belongs(place, w) for place in places for w in wanted)}
        chosen = {name: parameter for name, parameter in named.items() if name in meant}
    if not chosen:
        msg = f"`params` must choose at least one parameter; got none of {len(named)}. Name some, or set requires_grad."
        raise ValueError(msg)
    for name, parameter in chosen.items():
        if parameter.dtype not in FLOATING:
            msg = f"`params` must choose real floating parameters; got {name!r} in {parameter.dtype}. Leave it out."
            raise TypeError(msg)
    kinds = {(parameter.dtype, parameter.device) for parameter in chosen.values()}
    if len(kinds) > 1:
        held = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        msg = f"`params` must choose parameters of one dtype on one device; got {held}. Make rows for each."
        raise TypeError(msg)
    return chosen


def places_of(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """The names of each chosen parameter: one for every module that holds it, also where a module has several names."""
    found: dict[Tensor, list[str]] = {}
    for name, tensor in tensors_of(model):
        found.setdefault(tensor, []).append(name)
    return {name: found[parameter] for name, parameter in chosen.items()}


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a model by name, once for every module that holds them."""
    for path, module in model.named_modules():
        for held in (module.named_parameters, module.named_buffers):
            for name, tensor in held(recurse=False, remove_duplicate=False):
                yield f"{path}.{name}".removeprefix("."), tensor


def selected_names(params: Selection) -> Selection:
    """A selection that can be asked for more than once, as an iterator of names can not."""
    return params if params is None or _is_function(params) else _names(params)


def _is_function(params: Selection) -> TypeGuard[Callable[[str, nn.Parameter], bool]]:
    """Whether a selection is to be asked for each parameter; a module is none."""
    return callable(params) and not isinstance(params, nn.Module)


def _chooses(params: Callable[[str, nn.Parameter], Any], name: str, parameter: nn.Parameter) -> bool:
    """Whether a function chooses a parameter."""
    answer = params(name, parameter)
    if getattr(answer, "ndim", 0):
        msg = f"`params` must answer (name, parameter) with True or False; got {check.describe(answer)} for {name!r}. "
        raise TypeError(msg + "Ask for a property of the name or of the parameter.")
    return bool(answer)


def _names(params: Any) -> list[str]:
    if isinstance(params, str) or not isinstance(params, Iterable):
        msg = f"`params` must be names or a function of (name, parameter); got {check.describe(params)}. "
        raise TypeError(msg + "Pass a list of names.")
    names = list(params)
    for name in names:
        if not isinstance(name, str):
            msg = f"`params` must hold names; got {check.describe(name)}. Take them from model.named_parameters()."
            raise TypeError(msg)
    return names


def _belongs(parameter: str, name: str) -> bool:
    """Whether a parameter is the named one, or in the named layer."""
    return parameter == name or parameter.startswith(f"{name}.")


def unravel_of(parameters: Mapping[str, Tensor]) -> Unravel:
    """The way back to the shapes of these parameters."""
    return Unravel({name: tuple(parameter.shape) for name, parameter in parameters.items()})
