"""The capacitance matrix A = I + S Sᵀ, m × m in float64, or a batch of them: factor, solves, spectrum."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._condition import kappa_of, largest_kappa
from .._typing import Array

POWER_STEPS = 12
SUM_RESOLVED = 1e10  # κ up to which the rounding of a sum S Sᵀ or SᵀS, κ eps of float64, is negligible in M


# κ ε of float32 up to which a float32 Gram matrix leaves elements within 30 eps/λ (docs/theory.md, section 6)
ELEMENTS_RESOLVED = 3e-5
FLOAT32_WHITENING = 1e-3  # κ ε of float32 up to which W is computed in float32


def float32_gram_shows(norm: float) -> bool:
    """Whether the rounding of a float32 Gram matrix is visible in the elements of M."""
    return norm * norm * float(np.finfo(np.float32).eps) > ELEMENTS_RESOLVED


def float32_gram_serves_products(norm: float) -> bool:
    """Whether dual sweeps with a float32 Gram matrix contract, by a factor of about 2κε."""
    return kappa_of(norm) <= largest_kappa("float32")


def whitens_in_float32(kappa: float) -> bool:
    """Whether κ is known, and so small that L⁻¹S may be computed in float32."""
    return kappa * float(np.finfo(np.float32).eps) <= FLOAT32_WHITENING


def sum_loses_digits(norm: Any) -> bool:
    """Whether ‖S‖₂ is so large that the factor must come from the rows and not from S Sᵀ; False where it is unknown."""
    largest = norm if isinstance(norm, float) else float(np.max(norm)) if isinstance(norm, np.ndarray) else 0.0
    return SUM_RESOLVED < largest * largest < math.inf


@dataclass(frozen=True)
class Capacitance(Part):
    """A = I + B for a positive semidefinite B (S Sᵀ, or SᵀS in the primal form), with its factor A = L Lᵀ.

    The diagonal of L may have any signs. All arrays may have a leading axis, for a batch.
    """

    scaled_gram_source: Any  # B, or a function that computes it on first use
    cholesky: Array  # L
    is_from_rows: bool = False  # whether L was computed from the rows of S and is more accurate than B
    diagonal: Array | None = None  # of B, where that costs less than B

    @property
    def scaled_gram(self) -> Array:
        """B."""
        source = self.scaled_gram_source
        return self._once("scaled_gram", source) if callable(source) else source

    @classmethod
    def factor(cls, scaled_gram: Array) -> "Capacitance | None":
        """Factor I + scaled_gram; None if that fails, also by its eigenvalues."""
        lower = _backend.cholesky(add_identity(scaled_gram))
        if lower is None:
            lower = _factor_from_spectrum(scaled_gram)
        return None if lower is None else cls(scaled_gram, lower)

    @classmethod
    def of_rows(cls, scaled_gram: Array, blocks: Iterable[Array]) -> "Capacitance":
        """Factor I + SᵀS by QR of [I; S], for blocks (…, n, d) of the rows of S; I + S Sᵀ by blocks of Sᵀ.

        An eigenvalue 1 + s has a relative error of √κ eps; from a rounded sum SᵀS it would be κ eps.
        """
        identity = add_identity(_backend.namespace(scaled_gram).zeros_like(scaled_gram))
        return cls(scaled_gram, triangle_above(identity, blocks).mT, is_from_rows=True)

    @classmethod
    def primal(cls, scaled_gram: Array, norm: Any, row_blocks: Callable[[], Iterable[Array]]) -> "Capacitance | None":
        """Factor I + SᵀS, from scaled_gram = SᵀS or, for a large ‖S‖, from blocks of the rows of S."""
        return cls.of_rows(scaled_gram, row_blocks()) if sum_loses_digits(norm) else cls.factor(scaled_gram)

    def half_solve(self, b: Array) -> Array:
        """L⁻¹ b."""
        return _backend.solve_triangular(self.cholesky, b)

    def solve(self, b: Array) -> Array:
        """A⁻¹ b."""
        return _backend.factor_solve(self.cholesky, b)

    def inverse_factor(self, growth: float) -> Array | None:
        """L⁻¹, or None if ‖|L| |L⁻¹| |S|‖ > growth ‖S‖: L (L⁻¹S) may then miss S by more than `growth` roundings."""
        xp = _backend.namespace(self.cholesky)
        inverse = _backend.invert_triangular(self.cholesky)
        row_norms = xp.sqrt(xp.linalg.diagonal(self.scaled_gram))
        bound = xp.abs(self.cholesky) @ (xp.abs(inverse) @ row_norms)
        return inverse if xp.linalg.vector_norm(bound) <= growth * xp.linalg.vector_norm(row_norms) else None

    def inverse(self) -> Array:
        """A⁻¹ = L⁻ᵀL⁻¹, computed once."""
        return self._once("inverse", self._inverse)

    def _inverse(self) -> Array:
        half = self.half_solve(add_identity(_backend.namespace(self.cholesky).zeros_like(self.cholesky)))
        return half.mT @ half

    def leverages(self) -> Array:
        """The diagonal of B A⁻¹ = I − A⁻¹, (m,): yᵀB y + ‖e_i − y‖² for each column y of A⁻¹.

        1 − y_i cancels where it is small, and e_iᵀB y may be negative; in this form the error of y is squared.
        """
        xp = _backend.namespace(self.cholesky)
        identity = add_identity(xp.zeros_like(self.cholesky))
        y = self.solve(identity)
        column_quadratic_forms = xp.sum(y * (self.scaled_gram @ y), axis=-2)
        return xp.clip(column_quadratic_forms, 0.0) + _backend.column_squares(identity - y)

    def row_norms(self) -> Array:
        """The norm √A_ii of each row of L, (m,)."""
        return self._once("row_norms", self._row_norms)

    def _row_norms(self) -> Array:
        xp = _backend.namespace(self.cholesky)
        return xp.sqrt(1 + (xp.linalg.diagonal(self.scaled_gram) if self.diagonal is None else self.diagonal))

    def trace(self) -> Array:
        """The trace of B."""
        xp = _backend.namespace(self.cholesky)
        return xp.sum(xp.linalg.diagonal(self.scaled_gram), axis=-1)

    def logdet(self) -> Array:
        """The logarithm of det A."""
        xp = _backend.namespace(self.cholesky)
        return 2 * xp.sum(xp.log(xp.abs(xp.linalg.diagonal(self.cholesky))))

    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues s ≥ 0 of B, ascending, and its eigenvectors Q: B = Q diag(s) Qᵀ; computed once."""
        return self._once("spectrum", self._spectrum)

    def _spectrum(self) -> tuple[Array, Array]:
        if not self.is_from_rows:
            return nonnegative_spectrum(self.scaled_gram)
        xp = _backend.namespace(self.cholesky)
        vectors, roots, _ = xp.linalg.svd(self.cholesky)  # A = Q diag(1 + s) Qᵀ, descending
        return xp.flip(xp.clip((roots - 1) * (roots + 1), 0.0), axis=-1), xp.flip(vectors, axis=-1)


def triangle_above(upper: Array, blocks: Iterable[Array]) -> Array:
    """The triangle of the QR factorisation of [U; blocks], by one block at a time."""
    for block in blocks:
        upper = _backend.triangle(_backend.namespace(upper).concat([upper, block], axis=-2))
    return upper


def add_identity(scaled_gram: Array) -> Array:
    """I + B."""
    xp = _backend.namespace(scaled_gram)
    return scaled_gram + _backend.asarray(np.eye(scaled_gram.shape[-1]), like=scaled_gram, dtype=xp.float64)


def nonnegative_spectrum(scaled_gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, clipped at zero, and eigenvectors of a positive semidefinite B."""
    xp = _backend.namespace(scaled_gram)
    values, vectors = xp.linalg.eigh(scaled_gram)
    return xp.where(values > 0, values, xp.zeros_like(values)), vectors


def _factor_from_spectrum(scaled_gram: Array) -> Array | None:
    """Factor I + Q diag(s) Qᵀ, s ≥ 0, where Cholesky failed by rounding: no eigenvalue of A is below 1."""
    xp = _backend.namespace(scaled_gram)
    if not math.isfinite(float(_backend.read(xp.sum(scaled_gram)))):
        return None
    values, vectors = nonnegative_spectrum(scaled_gram)
    upper = xp.linalg.qr((vectors * xp.sqrt(1 + values)[..., None, :]).mT).R
    signs = xp.sign(xp.linalg.diagonal(upper))
    return (upper * signs[..., :, None]).mT


def largest_eigenvalue(scaled_gram: Array) -> Array:
    """Largest eigenvalue of B, or of each in a batch, from below: a few power steps from a fixed random vector."""
    xp = _backend.namespace(scaled_gram)
    scaled_gram = _backend.stop_gradient(scaled_gram)
    unit = xp.max(
        xp.linalg.diagonal(scaled_gram), axis=-1
    )  # no entry of B is larger: squares do not overflow in these units
    scaled_gram = scaled_gram / xp.where(unit > 0, unit, xp.ones_like(unit))[..., None, None]
    start = np.random.default_rng(0).standard_normal((scaled_gram.shape[-1], 1))
    x = _backend.asarray(start, like=scaled_gram, dtype=xp.float64)
    for _ in range(POWER_STEPS):
        norm = xp.linalg.vector_norm(x, axis=-2, keepdims=True)
        x = scaled_gram @ (x / xp.where(norm > 0, norm, xp.ones_like(norm)))
    return unit * xp.linalg.vector_norm(x, axis=(-2, -1))
