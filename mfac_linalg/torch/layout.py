"""The parameters and options of a window, and whether a saved window fits them."""

import hashlib
import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _validation as check
from .masks import ActiveWeights
from .window_state import Options, arguments_of_compression, has_values

VERSION = 2
SHARED = ("normalization", "precision", "compression")  # options of all windows of an optimizer


class WindowLayout(NamedTuple):
    """The parameters of a window, and their active weights."""

    parameters: list[Tensor]
    active: ActiveWeights

    @property
    def dim(self) -> int:
        """Entries of a gradient in the window; 1 for no weights, a window that is never used."""
        return max(1, sum(map(self.active.size, self.parameters)))

    @property
    def offsets(self) -> dict[Tensor, int]:
        """The index of each parameter's first entry in a gradient."""
        ends = accumulate(map(self.active.size, self.parameters), initial=0)
        return dict(zip(self.parameters, ends, strict=False))

    @property
    def holder(self) -> Tensor:
        """The parameter whose state has the window: the first that is trained, because checkpoints skip the others."""
        return next((p for p in self.parameters if p.requires_grad), self.parameters[0])

    @property
    def like(self) -> Tensor:
        """An empty tensor like the gradients."""
        return self.parameters[0].detach().reshape(-1)[:0]

    def description(self, options: Options) -> dict[str, Any]:
        """The parameters and options that a saved window must fit."""
        compression = options["compression"]
        return {
            "version": VERSION,
            "shapes": [list(p.shape) for p in self.parameters],
            "dtypes": sorted({str(p.dtype) for p in self.parameters}),
            "kept": [self.active.indices.get(p) for p in self.parameters],
            **{name: options[name] for name in SHARED},
            "compression": arguments_of_compression(compression),
        }


def fingerprint(description: dict[str, Any]) -> int:
    """A 63-bit hash of a description, for checkpoints that store no strings."""
    hashes = [None if x is None else hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest() for x in description["kept"]]
    text = json.dumps(description | {"kept": hashes}, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_description(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Accept a description whose entries of these names are equal."""
    for name in names:
        if not _equals(theirs[name], ours[name]):
            msg = f"`state_dict` must be of windows with {name} {ours[name]!r:.200}; got {theirs[name]!r:.200}. "
            raise ValueError(msg + "Construct the same optimizer first.")


def check_version(theirs: Any) -> None:
    """Accept the version of descriptions that this version of the library writes."""
    if not _equals(theirs, VERSION):
        msg = f"`state_dict` must have version {VERSION} of its windows; got {check.describe(theirs)}. Use the library "
        raise ValueError(msg + "that wrote it.")


def check_masks(theirs: Any, ours: list[Tensor | None]) -> None:
    """Accept the indices of the same weights."""
    if not (isinstance(theirs, list | tuple) and len(theirs) == len(ours) and all(map(_is_same_mask, ours, theirs))):
        msg = "`state_dict` must be of the same masks; got others. Construct the optimizer with the masks it was saved "
        raise ValueError(msg + "with.")


def _is_same_mask(ours: Tensor | None, theirs: Any) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return has_values(theirs) and torch.equal(ours.cpu(), theirs.cpu())


def _equals(theirs: Any, ours: Any) -> bool:
    """Whether strings and numbers, or lists of them, are equal; a tensor equals none."""
    if isinstance(ours, list):
        alike = isinstance(theirs, list | tuple) and len(theirs) == len(ours)
        return alike and all(_equals(*pair) for pair in zip(theirs, ours, strict=True))
    return isinstance(theirs, type(ours)) and bool(theirs == ours)
