"""Gradients of one weight as sums of outer products that are never formed for all samples and entries at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _backend
from .._rows.panels import combination, gram, long_product, panel_width, slices

RUN = 1024  # positions whose inner products with as many others are in memory
TERMS = 2048  # of inner products, converted to float64 at a time
TILE = 2**18  # numbers of a float64 intermediate result
WEIGHTED = 2**21  # numbers of the inputs times coefficients
CANCELLATION = 8.0  # of the outer products of a row: the norm of their norms over that of their sum


class Tile(NamedTuple):
    """A block of the weight: one group, some of its outputs and some of its inputs."""

    group: int
    outputs: slice
    inputs: slice
    start: int  # of its columns, in the order of the weight

    @property
    def size(self) -> int:
        """Number of entries."""
        return (self.outputs.stop - self.outputs.start) * (self.inputs.stop - self.inputs.start)


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """Rows vec Σ_t b_it a_itᵀ of a weight (p, q) by its inputs a and the gradients b of its outputs, for each group.

    Several groups are blocks of the weight with factors of their own: (groups p, q).
    """

    inputs: Tensor  # (groups, m, positions, q)
    output_gradients: Tensor  # (groups, m, positions, p)
    dtype: torch.dtype  # of the computation: float32 or float64

    @property
    def shape(self) -> tuple[int, int]:
        """(m, groups p q)."""
        groups, m, _, q = self.inputs.shape
        return m, groups * self.output_gradients.shape[3] * q

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return self.inputs.nbytes + self.output_gradients.nbytes

    @property
    def _positions(self) -> int:
        return self.inputs.shape[2]

    @property
    def _sizes(self) -> tuple[int, int]:
        """Numbers p of outputs and q of inputs."""
        return self.output_gradients.shape[3], self.inputs.shape[3]

    @cached_property
    def _cancels(self) -> bool:
        """Whether the outer products of a row cancel in their sum, which then loses digits in any product with it.

        The rounding of formed columns is the same for all products: it makes them those of a slightly different G.
        """
        if self._positions == 1:
            return False
        a, b = (torch.linalg.vector_norm(x, dim=3, dtype=torch.float64) for x in (self.inputs, self.output_gradients))
        terms = (a * b).square().sum(dim=(0, 2))
        sums = self._sum_over_blocks(lambda _, block: block.double().square().sum(dim=1))
        return bool(terms.max() > CANCELLATION**2 * sums.max())

    def _forms_columns(self, k: int) -> bool:
        """Whether products with k vectors are computed by panels of columns."""
        return self._positions > 1 and (k > 1 or self._cancels)

    # --- Gram matrix ----------------------------------------------------------------------------------------------

    def gram(self) -> Tensor:
        """The Gram matrix (m, m), float64: by inner products of the factors, or by panels where these cost less."""
        (m, t), (p, q) = self.inputs.shape[1:3], self._sizes
        if t <= RUN and m * t * t * (p + q) <= p * q * (t + m) and not self._cancels:
            return self._gram_of_factors()
        return self._sum_over_blocks(lambda _, block: gram(block.double()))

    def _gram_of_factors(self) -> Tensor:
        """K_ij = Σ_{t,s} ⟨a_it, a_js⟩⟨b_it, b_js⟩, summed over groups: the blocks on and below the diagonal."""
        m, t = self.inputs.shape[1:3]
        runs = slices(m, max(1, RUN // t))
        lower = torch.zeros((m, m), dtype=torch.float64, device=self.inputs.device)
        for index, rows in enumerate(runs):
            for others in runs[: index + 1]:
                for a, b in zip(self.inputs, self.output_gradients, strict=True):
                    products = _inner_products(a[rows], a[others]) * _inner_products(b[rows], b[others])
                    lower[rows, others] += products.reshape(-1, t, len(a[others]), t).sum(dim=(1, 3))
        return torch.tril(lower) + torch.tril(lower, -1).T

    # --- products with vectors ------------------------------------------------------------------------------------

    def project(self, v: Tensor) -> Tensor:
        """G v, (m, k) float64, for v (d, k): Σ_t b_itᵀ V a_it, or by panels where these cost less."""
        k = v.shape[1]
        if self._forms_columns(k):
            return self._sum_over_blocks(lambda columns, block: long_product(block, v[columns, :]))
        (groups, m, t), (p, q) = self.inputs.shape[:3], self._sizes
        weights = v.reshape(groups, p, q * k)
        of_positions = [self._project_group(group, weights[group]) for group in range(groups)]
        return sum(of_positions[1:], of_positions[0]).reshape(m, t, k).sum(dim=1)

    def _project_group(self, group: int, weights: Tensor) -> Tensor:
        """bᵀ V a of each position, (m positions, k) float64, for V (p, q k)."""
        a, b = self._flat(self.inputs, group), self._flat(self.output_gradients, group)
        q = a.shape[1]
        k = weights.shape[1] // q
        parts = []
        for run in slices(len(a), RUN):
            factor, errors = a[run].to(self.dtype), b[run].to(self.dtype)
            total = torch.zeros((len(factor), k), dtype=torch.float64, device=a.device)
            for c in slices(q, max(1, TILE // (len(factor) * k))):
                products = long_product(errors, weights[:, c.start * k : c.stop * k])
                total = total + (products.reshape(len(factor), -1, k) * factor[:, c, None]).sum(dim=1)
            parts.append(total)
        return torch.cat(parts)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Gᵀ c, (d, k), for c (m, k): Σ_i c_i Σ_t b_it a_itᵀ, or by panels where these cost less."""
        if self._forms_columns(coefficients.shape[1]):
            return torch.cat([combination(block, coefficients) for _, block in self.blocks()])
        weights = coefficients.repeat_interleave(self._positions, dim=0)
        return torch.cat([self._combine_group(group, weights) for group in range(len(self.inputs))])

    def _combine_group(self, group: int, weights: Tensor) -> Tensor:
        """Σ weights a ⊗ b over the positions of a group, (p q, k), for weights (m positions, k)."""
        a, b = self._flat(self.inputs, group), self._flat(self.output_gradients, group).to(self.dtype)
        (p, q), k = self._sizes, weights.shape[1]
        parts = []
        for c in slices(q, max(1, WEIGHTED // (len(a) * k))):
            weighted = a[:, c, None].to(self.dtype) * weights[:, None, :]
            parts.append(combination(b, weighted.reshape(len(a), -1)).reshape(p, -1, k))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).reshape(p * q, k)

    def _flat(self, factor: Tensor, group: int) -> Tensor:
        """A factor of one group, (m positions, p or q)."""
        return factor[group].reshape(-1, factor.shape[3])

    def _sum_over_blocks(self, function: Callable[[slice, Tensor], Tensor]) -> Tensor:
        total = None
        for columns, block in self.blocks():
            part = function(columns, block)
            total = part if total is None else total + part
        assert total is not None
        return total

    # --- entries --------------------------------------------------------------------------------------------------

    def columns(self, j: np.ndarray) -> Tensor:
        """G[:, j], (m, n), the same to the bit in whatever company a column is asked for."""
        p, q = self._sizes
        if self._positions == 1:  # one product an entry
            row, column = np.divmod(j, q)
            a = self.inputs[row // p, :, 0, column]
            b = self.output_gradients[row // p, :, 0, row % p]
            return (b.to(self.dtype) * a.to(self.dtype)).T
        result = self.inputs.new_empty((self.shape[0], len(j)), dtype=self.dtype)
        tiles = self._tiles()
        of_tile = np.searchsorted([tile.start for tile in tiles], j, side="right") - 1
        for index in np.unique(of_tile):
            asked = np.flatnonzero(of_tile == index)
            result[:, asked] = self._form(tiles[index])[:, j[asked] - tiles[index].start]
        return result

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Column slices and the columns, tile by tile."""
        for tile in self._tiles():
            yield slice(tile.start, tile.start + tile.size), self._form(tile)

    def _tiles(self) -> list[Tile]:
        """Blocks of consecutive columns: whole rows of the weight, or parts of one."""
        (m, d), (p, q) = self.shape, self._sizes
        width = panel_width(m, self.dtype)
        tiles, start = [], 0
        for group in range(d // (p * q)):
            for outputs in slices(p, max(1, width // q)):
                for inputs in slices(q, max(width, 1)):
                    tiles.append(Tile(group, outputs, inputs, start))
                    start += tiles[-1].size
        return tiles

    def _form(self, tile: Tile) -> Tensor:
        """The columns of a tile, (m, size)."""
        a = self.inputs[tile.group, :, :, tile.inputs].to(self.dtype)
        b = self.output_gradients[tile.group, :, :, tile.outputs].to(self.dtype)
        if self._positions == 1:
            return (b.transpose(1, 2) * a).reshape(len(a), tile.size)
        return _backend.matmul(b.transpose(1, 2).contiguous(), a.contiguous()).reshape(len(a), tile.size)


def _inner_products(x: Tensor, y: Tensor) -> Tensor:
    """⟨x_it, y_js⟩, (i t, j s) float64, for x (i, t, n) and y (j, s, n)."""
    x, y = x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])
    parts = (_backend.matmul(x[:, c].double(), y[:, c].double().T) for c in slices(x.shape[1], TERMS))
    total = next(parts)
    for part in parts:
        total = total + part
    return total
