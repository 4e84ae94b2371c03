"""Rows of which some columns are kept as factors and the others as they are."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .. import _backend
from .._progress import SILENT
from .._repr import as_call
from .._rows.dense import DenseRows
from .._rows.protocol import GradientRows
from .outer_products import OuterProducts

Part = DenseRows | OuterProducts


class FactoredRows(GradientRows):
    """`GradientRows` of parts with consecutive columns, each by outer products or explicit."""

    def __init__(self, parts: list[Part]) -> None:
        parts = [part for part in parts if part.shape[1]] or parts
        ends = np.cumsum([part.shape[1] for part in parts])
        self._parts = [(slice(int(end) - part.shape[1], int(end)), part) for end, part in zip(ends, parts, strict=True)]
        self.dtype: torch.dtype = parts[0].dtype
        self.shape = parts[0].shape[0], int(ends[-1])

    @property
    def _like(self) -> Tensor:
        part = self._parts[0][1]
        return part.inputs if isinstance(part, OuterProducts) else part.gradients

    @property
    def nbytes(self) -> int:
        """Bytes of the factors and of the explicit columns."""
        return sum(part.nbytes if isinstance(part, OuterProducts) else part.gradients.nbytes for _, part in self._parts)

    def __repr__(self) -> str:
        facts = {"shape": self.shape, "dtype": self.dtype, "nbytes": f"{self.nbytes:,}"}
        return as_call(type(self).__name__, {name: str(fact) for name, fact in facts.items()})

    @_backend.in_plain_modes
    def gram(self) -> Tensor:
        """G Gᵀ, (m, m), float64."""
        grams = [_gram(part) for _, part in self._parts]
        return sum(grams[1:], grams[0])

    @_backend.in_plain_modes
    def project(self, v: Tensor) -> Tensor:
        """G v, (m, k) float64, for v (d, k)."""
        products = [part.project(v[columns, :]) for columns, part in self._parts]
        return sum(products[1:], products[0])

    @_backend.in_plain_modes
    def combine(self, coefficients: Tensor) -> Tensor:
        """Gᵀ c, (d, k), for c (m, k)."""
        combinations = [part.combine(coefficients) for _, part in self._parts]
        return combinations[0] if len(combinations) == 1 else torch.cat(combinations)

    @_backend.in_plain_modes
    def columns(self, j: np.ndarray) -> Tensor:
        """G[:, j], (m, n)."""
        j = np.asarray(j)
        result = self._like.new_empty((self.shape[0], len(j)), dtype=self.dtype)
        for columns, part in self._parts:
            inside = np.flatnonzero((columns.start <= j) & (j < columns.stop))
            if inside.size:
                result[:, inside] = _columns(part, j[inside] - columns.start)
        return result

    def panels(self) -> Iterator[Tensor]:
        """Blocks of columns, from the first to the last."""
        for _, part in self._parts:
            for _, block in part.blocks():
                yield block


def _gram(part: Part) -> Tensor:
    return part.gram() if isinstance(part, OuterProducts) else part.with_dtype(torch.float64).gram(None, SILENT)


def _columns(part: Part, j: np.ndarray) -> Tensor:
    return part.columns(j if isinstance(part, OuterProducts) else _backend.index_like(j, like=part.gradients))
