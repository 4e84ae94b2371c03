"""What rows offer: the public protocol of those that no array holds, and the one that all rows have inside."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from .._typing import Array
from .fingerprint import Fingerprint
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


class Rows(Protocol):
    """Ĝ = 2^−exponent G, shape (m, d), computed in `dtype`: all that is d-sized is behind this.

    Vectors are columns (d, k) in `dtype`; what has one entry a row is (m, k), float64.
    """

    @property
    def is_sparse(self) -> bool:
        """Whether most entries are zero, and none of these is stored."""
        ...

    @property
    def is_dense(self) -> bool:
        """Whether the rows can be computed in any dtype, and divided by a power of two."""
        ...

    @property
    def is_streamed(self) -> bool:
        """Whether each pass costs more than what is computed with it."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        ...

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        ...

    @property
    def like(self) -> Array:
        """An array of the library and device that d-sized results live on."""
        ...

    @property
    def source(self) -> Any:
        """What blocks may be views of; None where all are copies."""
        ...

    @property
    def fingerprint(self) -> Fingerprint | None:
        """That of memory which the user has, too."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whether Ĝ is the caller's array as it stands."""
        ...

    def with_dtype(self, dtype: Any) -> Self:
        """The same rows, computed in another dtype."""
        ...

    def gram(self, column_scale: Array | None, progress: Any) -> Array:
        """Ĝ diag(column_scale)² Ĝᵀ, (m, m), float64; column_scale (d, 1)."""
        ...

    def project(self, v: Array) -> Array:
        """Ĝ v, (m, k), float64."""
        ...

    def combine(self, a: Array) -> Array:
        """Ĝᵀ a, (d, k), for a (m, k)."""
        ...

    def columns(self, j: Array) -> Array:
        """Ĝ[:, j], (m, n), for an index array (n,)."""
        ...

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i Ĝ_ij)² for each column j, (d,), float64."""
        ...

    def row_block(self, rows: slice) -> Array:
        """Ĝ[rows, :] in the computing dtype."""
        ...


class PanelRows(Rows, Protocol):
    """Rows that can be had by column panels."""

    def column_slices(self) -> list[slice]:
        """The columns of each panel, from the first on."""
        ...

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        ...

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """The columns of each panel, and the panel."""
        ...


class GivenRows(Rows, Protocol):
    """The rows of a user's G, from which an inverse may be built anew."""

    gradients: Any
    exponent: Any

    @property
    def is_movable(self) -> bool:
        """Whether G can be brought to another device or dtype."""
        ...

    def largest(self) -> float:
        """The largest absolute entry of G."""
        ...

    def unscaled(self) -> Self:
        """The rows of G as it stands, computed in the dtype of the answers."""
        ...
