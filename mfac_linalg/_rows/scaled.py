"""S = C^½ Ĝ Λ̂^-½: the rows in the coordinates where F = I + SᵀS, kept as G and two diagonal factors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._pytree import Part
from .._scaling import ldexp
from .dense import DenseRows
from .panels import panel_width, slices

Array = Any


@dataclass(frozen=True)
class ScaledRows(Part):
    """S = diag(row_scale) Ĝ diag(root), nothing of size m × d beside the caller's G."""

    rows: Any  # DenseRows or SelectedRows
    row_scale: Array  # (m, 1) float64
    root: Array | None  # (d, 1), None for scalar damping

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        return self.rows.gradients

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def is_plain(self) -> bool:
        """Whether T, with S = diag(row_scale) T, is the caller's G as it stands."""
        return self.root is None and self.rows.is_plain

    def unscaled_panel(self, columns: slice) -> Array:
        """T[:, columns] = Ĝ[:, columns] diag(root) in the computing dtype; it may be a view of the caller's G."""
        block = self.rows.panel(columns)
        return block if self.root is None else block * self.root[columns, 0]

    def unscaled_columns(self, j: Array) -> Array:
        """T[:, j] in the computing dtype: a copy."""
        block = self.rows.columns(j)
        return block if self.root is None else block * _backend.namespace(block).take(self.root[:, 0], j)

    def copy_unscaled(self, out: Array) -> None:
        """Write T over a NumPy array of its shape, by panels in threads."""

        def copy(columns: slice) -> None:
            out[:, columns] = self.unscaled_panel(columns)

        _backend.in_threads(copy, self.rows.column_slices())

    def in_float64(self) -> "ScaledRows":
        """The same rows, computed in float64."""
        wide = _backend.namespace(self.like).float64
        root = None if self.root is None else _backend.cast(self.root, wide)
        return ScaledRows(self.rows.computed_in(wide), self.row_scale, root)

    def project(self, u: Array) -> Array:
        """S u, shape (m, k), float64."""
        return self.row_scale * self.rows.project(u if self.root is None else self.root * u)

    def combine(self, a: Array) -> Array:
        """Sᵀ a, shape (d, k)."""
        total = self.rows.combine(self.row_scale * a)
        return total if self.root is None else self.root * total

    def panel(self, columns: slice) -> Array:
        """S[:, columns] in the computing dtype."""
        block = self.unscaled_panel(columns)
        return block * _backend.from_float64(self.row_scale, like=block, dtype=block.dtype)

    def normal(self) -> Array:
        """SᵀS, shape (d, d), float64: for d ≤ m, by blocks of rows."""
        m, d = self.shape
        total = None
        for chunk in slices(m, panel_width(d, np.float64)):
            block = self.row_scale[chunk, :] * _backend.to_float64(self.rows.row_block(chunk))
            part = block.T @ block
            total = part if total is None else total + part
        if self.root is None:
            return total
        root = _backend.to_float64(self.root)
        return root * total * root.T

    def columns(self, j: Array) -> Array:
        """S[:, j], float64."""
        block = self.row_scale * _backend.to_float64(self.rows.columns(j))
        if self.root is None:
            return block
        return block * _backend.to_float64(_backend.namespace(j).take(self.root[:, 0], j))


def scaled_rows(gradients: Array, power: Any, dtype: Any, row_scale: Array, root: Any) -> ScaledRows:
    """S for G = 2^power Ĝ computed in dtype; power None leaves G as it stands."""
    if power is not None:
        row_scale = ldexp(row_scale, _backend.beside_float64(power))
    return ScaledRows(DenseRows(gradients, power, dtype), row_scale, root)
