"""Which parameters a window serves, and what a window that was saved must fit."""

import hashlib
import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _validation as check
from .masks import ActiveWeights
from .window_state import Options, has_values

VERSION = 2
SHARED = ("normalization", "precision", "compression")  # what all windows of an optimizer have in common


class Served(NamedTuple):
    """The parameters of a window, and which of their weights may move."""

    parameters: list[Tensor]
    kept: ActiveWeights

    @property
    def dim(self) -> int:
        """Entries of a gradient in the window, which has at least one; that of no weights is never used."""
        return max(1, sum(map(self.kept.size, self.parameters)))

    @property
    def offsets(self) -> dict[Tensor, int]:
        """The place of each parameter's first entry."""
        ends = accumulate(map(self.kept.size, self.parameters), initial=0)
        return dict(zip(self.parameters, ends, strict=False))

    @property
    def holder(self) -> Tensor:
        """The parameter whose state has the window: one that is trained, as checkpoints skip the others."""
        return next((p for p in self.parameters if p.requires_grad), self.parameters[0])

    @property
    def like(self) -> Tensor:
        """An empty tensor like the gradients."""
        return self.parameters[0].detach().reshape(-1)[:0]

    def described(self, options: Options) -> dict[str, Any]:
        """What the window of a state must fit."""
        compression = options["compression"]
        return {
            "version": VERSION,
            "shapes": [list(p.shape) for p in self.parameters],
            "dtypes": sorted({str(p.dtype) for p in self.parameters}),
            "kept": [self.kept.indices.get(p) for p in self.parameters],
            **{name: options[name] for name in SHARED},
            "compression": None if compression is None else compression._as_dict(),
        }


def fingerprint(described: dict[str, Any]) -> int:
    """63 bits of what a window must fit: they go where words cannot."""
    kept = [None if x is None else hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest() for x in described["kept"]]
    text = json.dumps(described | {"kept": kept}, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def check_described(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Accept a description that says the same under these names."""
    for name in names:
        if not _says(theirs[name], ours[name]):
            msg = f"`state_dict` must be of windows with {name} {ours[name]!r:.200}; got {theirs[name]!r:.200}. "
            raise ValueError(msg + "Construct the same optimizer first.")


def check_version(theirs: Any) -> None:
    """Accept a description in the form that this version writes."""
    if not _says(theirs, VERSION):
        msg = f"`state_dict` must have version {VERSION} of its windows; got {check.describe(theirs)}. Use the library "
        raise ValueError(msg + "that wrote it.")


def check_masks(theirs: Any, ours: list[Tensor | None]) -> None:
    """Accept the indices of the same weights."""
    if not (isinstance(theirs, list | tuple) and len(theirs) == len(ours) and all(map(_same, ours, theirs))):
        msg = "`state_dict` must be of the same masks; got others. Construct the optimizer with the masks it was saved "
        raise ValueError(msg + "with.")


def _same(ours: Tensor | None, theirs: Any) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return has_values(theirs) and torch.equal(ours.cpu(), theirs.cpu())


def _says(theirs: Any, ours: Any) -> bool:
    """Whether words and numbers, in lists or not, are ours; tensors are none."""
    if isinstance(ours, list):
        alike = isinstance(theirs, list | tuple) and len(theirs) == len(ours)
        return alike and all(_says(*both) for both in zip(theirs, ours, strict=True))
    return isinstance(theirs, type(ours)) and bool(theirs == ours)
