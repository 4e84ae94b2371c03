"""The public protocol of gradient rows: what an inverse asks of gradients that are not an array."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from .._typing import Array
from .panels import column_slices


@runtime_checkable
class GradientRows(Protocol):
    """Rows G of shape (m, d) behind five methods: bring gradients that no array holds.

    An object with these methods is taken where an inverse takes gradients; one that derives from this class need not
    write `panels`. Arrays are of one array-API library, on one device, of one dtype, float32 or float64, which the
    answers have too. The rows must not change while an inverse holds them, and nobody looks
    whether they do.

    Attributes
    ----------
    shape : tuple of int
        (m, d).

    Notes
    -----
    Accuracy: an inverse is as good as the products that it gets. Sums of float32 numbers over d should be carried in
    float64 every thousand terms or so, and `gram` and `project` return what they were carried in; the entries of F⁻¹
    keep their digits for κ > 250 only where `gram` is computed in float64.
    """

    shape: tuple[int, int]

    def gram(self) -> Array:
        """G Gᵀ, shape (m, m), float64 where the library has it."""
        ...

    def project(self, v: Array) -> Array:
        """G v for v of shape (d, k), shape (m, k), in the dtype of the rows or float64."""
        ...

    def combine(self, coefficients: Array) -> Array:
        """Gᵀ c for coefficients c of shape (m, k), shape (d, k), in the dtype of the rows."""
        ...

    def columns(self, j: Array) -> Array:
        """G[:, j] for a NumPy array j of n non-negative indices, shape (m, n), in the dtype of the rows."""
        ...

    def panels(self) -> Iterable[Array]:
        """Blocks of shape (m, p), any p, that make G when set side by side: for `diagonal` and vector damping."""
        for columns in column_slices(*self.shape, np.float64):
            yield self.columns(np.arange(self.shape[1])[columns])
