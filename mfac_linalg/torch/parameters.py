"""The parameters of a model that gradient rows are of, and conversion between rows and their shapes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .. import _validation as check
from .._repr import as_list
from .model_state import forget_cached_weights

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Selection = Iterable[str] | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True)
class Unravel:
    """Conversion of vectors over all chosen parameters to tensors of their shapes: ``unravel(v)["fc.weight"]``.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        The chosen parameters by name, in their order in a vector.

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
        shapes = self.shapes
        if not (isinstance(shapes, Mapping) and shapes and all(isinstance(name, str) for name in shapes)):
            msg = f"`shapes` must be a dictionary of names to shapes; got {check.describe(self.shapes)}. Pass "
            raise TypeError(msg + "{name: tuple(parameter.shape)} for each parameter.")
        object.__setattr__(self, "shapes", {name: _check_shape(name, x) for name, x in self.shapes.items()})

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

    def _repr_html_(self) -> str:
        rows = ((name, " × ".join(map(str, shape)), f"{math.prod(shape):,}") for name, shape in self.shapes.items())
        return as_list(f"Unravel: d = {self.dim:,}", ["parameter", "shape", "entries"], rows)

    def __call__(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return views of a vector, or of rows, as one tensor for each parameter.

        Parameters
        ----------
        vectors : torch.Tensor, shape (…, d)
            One entry for each weight.

        Returns
        -------
        dict of str to torch.Tensor
            Each of its parameter's shape, after the leading axes.
        """
        _check_tensor("vectors", vectors)
        if vectors.shape[-1:] != (self.dim,):
            msg = f"`vectors` must have shape (…, {self.dim}); got {tuple(vectors.shape)}. "
            raise ValueError(msg + "Pass one entry for each weight.")
        parts = vectors.split(self.sizes, dim=-1)
        leading = vectors.shape[:-1]
        return {
            name: part.reshape((*leading, *self.shapes[name])) for name, part in zip(self.names, parts, strict=True)
        }

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the inverse: tensors by name as one vector, or as rows for tensors with leading axes.

        Parameters
        ----------
        tensors : mapping of str to torch.Tensor, of the parameters' shapes
            All chosen parameters, with the same leading axes, if any; other names are ignored.

        Returns
        -------
        torch.Tensor, shape (…, d)

        Raises
        ------
        ValueError
            A parameter that is missing, or has another shape; leading axes that differ.
        TypeError
            Not tensors, or of several dtypes or devices.

        Examples
        --------
        >>> import torch
        >>> from mfac_linalg.torch import Unravel
        >>> unravel = Unravel({"weight": (2, 3), "bias": (2,)})
        >>> weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([6.0, 7.0])
        >>> unravel.ravel({"bias": bias, "weight": weight})
        tensor([0., 1., 2., 3., 4., 5., 6., 7.])
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
        """Copy a vector into the chosen parameters of a model.

        Parameters
        ----------
        model : torch.nn.Module
            A model with parameters of these names and shapes.
        vector : torch.Tensor, shape (d,)
            The new values.

        Raises
        ------
        TypeError
            A vector that is not a real tensor.
        ValueError
            A vector of another length; a model with other parameters.

        Examples
        --------
        >>> import torch
        >>> from mfac_linalg.torch import Unravel
        >>> model = torch.nn.Linear(3, 2)
        >>> unravel = Unravel({name: tuple(p.shape) for name, p in model.named_parameters()})
        >>> unravel.write(model, torch.arange(8.0))
        >>> model.bias.detach()
        tensor([6., 7.])
        """
        _check_real("vector", vector)
        check.shape("vector", vector, (self.dim,), "Pass one entry for each chosen parameter.")
        tensors, chosen = self(vector), chosen_parameters(model, self.names)
        for name, parameter in chosen.items():
            if tuple(parameter.shape) != self.shapes[name]:
                msg = f"`model` must have {name!r} of shape {self.shapes[name]}; got {tuple(parameter.shape)}. "
                raise ValueError(msg + "Pass the model of the vector.")
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(tensors[name])
        forget_cached_weights()


def _check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Accept a shape without negative lengths; return a tuple."""
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
    """Accept tensors that can be concatenated along their last axis."""
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
        selected, paths = _names(params), paths_of(model, named)
        for name in selected:
            if not any(_belongs(path, name) for several in paths.values() for path in several):
                known = ", ".join(named)
                msg = f"`params` must name parameters or layers of the model; got {name!r}. It has {known:.400}."
                raise ValueError(msg)
        names = {n for n, several in paths.items() if any(_belongs(path, s) for path in several for s in selected)}
        chosen = {name: parameter for name, parameter in named.items() if name in names}
    if not chosen:
        msg = f"`params` must choose at least one parameter; got none of {len(named)}. Name some, or set requires_grad."
        raise ValueError(msg)
    for name, parameter in chosen.items():
        if parameter.dtype not in FLOATING:
            msg = f"`params` must choose real floating parameters; got {name!r} in {parameter.dtype}. Leave it out."
            raise TypeError(msg)
    kinds = {(parameter.dtype, parameter.device) for parameter in chosen.values()}
    if len(kinds) > 1:
        several = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        msg = f"`params` must choose parameters of one dtype on one device; got {several}. Make rows for each."
        raise TypeError(msg)
    return chosen


def paths_of(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    """The names of each chosen parameter: one for every module that has it, and for every name of a module."""
    paths: dict[Tensor, list[str]] = {}
    for path, tensor in tensors_of(model):
        paths.setdefault(tensor, []).append(path)
    return {name: paths[parameter] for name, parameter in chosen.items()}


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a model by name, once for every module that has them."""
    for path, module in model.named_modules():
        for named_tensors in (module.named_parameters, module.named_buffers):
            for name, tensor in named_tensors(recurse=False, remove_duplicate=False):
                yield f"{path}.{name}".removeprefix("."), tensor


def selected_names(params: Selection) -> Selection:
    """A selection that can be used more than once; an iterator of names becomes a list."""
    return params if params is None or _is_function(params) else _names(params)


def _is_function(params: Selection) -> TypeGuard[Callable[[str, nn.Parameter], bool]]:
    """Whether a selection is a function; a module is not."""
    return callable(params) and not isinstance(params, nn.Module)


def _chooses(params: Callable[[str, nn.Parameter], Any], name: str, parameter: nn.Parameter) -> bool:
    """Whether a function chooses a parameter."""
    chooses = params(name, parameter)
    if getattr(chooses, "ndim", 0):
        msg = f"`params` must return True or False for (name, parameter); got {check.describe(chooses)} for {name!r}. "
        raise TypeError(msg + "Test a property of the name or of the parameter.")
    return bool(chooses)


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
    """Whether `name` is that of the parameter or of its layer."""
    return parameter == name or parameter.startswith(f"{name}.")


def unravel_for(parameters: Mapping[str, Tensor]) -> Unravel:
    """The `Unravel` of these parameters."""
    return Unravel({name: tuple(parameter.shape) for name, parameter in parameters.items()})
