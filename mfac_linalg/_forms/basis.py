"""The basis form, for κ beyond what A resolves: an orthonormal basis of the rows, in which nothing is squared."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._rows.scaled import ScaledRows
from .diagonal import complement, refine

Array = Any


@dataclass(frozen=True)
class BasisForm:
    """S = P diag(σ) Vᵀ, thin; M = (I − VVᵀ) + V diag(1/(1+σ²)) Vᵀ, the projection applied twice."""

    rows: ScaledRows
    basis: Array  # V, (d, m)
    singular: Array  # σ, (m,), descending
    left: Array  # P, (m, m)
    norm: Any  # ‖S‖₂
    sweeps: int = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    def _apply(self, u: Array, weights: Array) -> Array:
        """(I − VVᵀ) u + V diag(weights) Vᵀ u."""
        inside = self.basis.T @ u
        outside = u - self.basis @ inside
        again = self.basis.T @ outside
        return (outside - self.basis @ again) + self.basis @ (weights * (inside + again))

    def solve(self, u: Array) -> tuple[Array, Array]:
        """M u and the dual a = S M u (float64)."""
        shrink = 1 / (1 + self.singular[:, None] ** 2)
        inside = self.basis.T @ u
        return self._apply(u, shrink), self.left @ ((self.singular[:, None] * shrink) * inside)

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b = V diag(σ/(1+σ²)) Pᵀ b."""
        sigma = self.singular[:, None]
        return self.basis @ ((sigma / (1 + sigma**2)) * (self.left.T @ b))

    def root(self, u: Array) -> Array:
        """M^½ u."""
        return self._apply(u, 1 / _backend.namespace(u).sqrt(1 + self.singular[:, None] ** 2))

    def path(self, u: Array, ratios: np.ndarray) -> Array:
        """Column k: (I + t_k SᵀS)⁻¹ u."""
        steps = _backend.asarray(ratios[None, :], like=u, dtype=u.dtype)
        return self._apply(u, 1 / (1 + self.singular[:, None] ** 2 * steps))

    def columns(self, j: Array) -> Array:
        """w_j with M = I − WᵀW, as columns."""
        return self._whitened(_backend.namespace(self.basis).take(self.basis, j, axis=0))

    def _whitened(self, block: Array) -> Array:
        weights = self.singular / _backend.namespace(self.basis).sqrt(1 + self.singular**2)
        return (block * weights).T

    def element(self, i: Array, j: Array) -> Array:
        """M_ij = δ_ij − w_iᵀw_j for flat index arrays."""
        products = _backend.namespace(self.basis).vecdot(self.columns(i).T, self.columns(j).T)
        return _backend.to_float64(i == j) - products

    def submatrix(self, i: Array, j: Array) -> Array:
        """M[i][:, j]."""
        return _backend.to_float64(i[:, None] == j[None, :]) - self.columns(i).T @ self.columns(j)

    def diagonal(self) -> Array:
        """M_jj, float64."""
        panels = (self._whitened(self.basis[columns, :]) for columns in self.rows.rows.column_slices())
        return refine(self, complement(panels), like=self.rows.like, norm=self.norm)

    def logdet(self) -> Array:
        """log det M."""
        xp = _backend.namespace(self.singular)
        return -xp.sum(xp.log1p(self.singular**2))

    def spectrum(self) -> Array:
        """Eigenvalues of SᵀS that the rows move, descending."""
        return self.singular**2


def basis_form(rows: ScaledRows, norm: Any) -> BasisForm:
    """Build V, σ and P by a thin QR of Sᵀ and the SVD of its m × m factor. Needs float64 rows."""
    xp = _backend.namespace(rows.like)
    q, r = xp.linalg.qr(rows.panel(slice(0, rows.shape[1])).T)
    u, sigma, vt = xp.linalg.svd(r)
    return BasisForm(rows, q @ u, sigma, vt.T, norm)
