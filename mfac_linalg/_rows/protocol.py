"""The protocols of rows: `GradientRows`, which users implement, and `Rows`, which all of the library's rows have."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from .._progress import Progress
from .._typing import Array
from .fingerprint import Fingerprint
from .panels import column_slices


@runtime_checkable
class GradientRows(Protocol):
    """Rows G of shape (m, d) behind five methods, for gradients that are not stored in an array.

    An inverse accepts an object with these methods as its gradients. A class that derives from this one need not
    write `panels`. Arrays are of one array-API library, on one device, of one dtype, float32 or float64, which the
    answers have too. The rows must not change as long as an inverse uses them; this is not checked.

    Attributes
    ----------
    shape : tuple of int
        (m, d).

    Notes
    -----
    Accuracy: an inverse is as accurate as these products. Sums of float32 numbers over d should be accumulated in
    float64 every thousand terms or so, and `gram` and `project` should return the float64 sums. For κ > 250 the
    entries of F⁻¹ are accurate only if `gram` is computed in float64.

    Examples
    --------
    The gradients of a linear layer are outer products, g_i = vec(a_i b_iᵀ) of its inputs a_i and output errors b_i:

    >>> import numpy as np, mfac_linalg as ml
    >>> class OuterProducts(ml.GradientRows):
    ...     def __init__(self, a, b):
    ...         self.a, self.b, self.shape = a, b, (a.shape[0], a.shape[1] * b.shape[1])
    ...     def gram(self):
    ...         return (self.a @ self.a.T) * (self.b @ self.b.T)
    ...     def project(self, v):
    ...         v = v.reshape(self.a.shape[1], self.b.shape[1], -1)
    ...         return np.einsum("mi,mj,ijk->mk", self.a, self.b, v)
    ...     def combine(self, coefficients):
    ...         sums = np.einsum("mi,mj,mk->ijk", self.a, self.b, coefficients)
    ...         return sums.reshape(self.shape[1], -1)
    ...     def columns(self, j):
    ...         return self.a[:, j // self.b.shape[1]] * self.b[:, j % self.b.shape[1]]
    >>> rng = np.random.default_rng(0)
    >>> rows = OuterProducts(rng.standard_normal((5, 6)), rng.standard_normal((5, 4)))
    >>> inverse = ml.WoodburyRankOneInverse(rows, damping=0.1)
    >>> dense = ml.WoodburyRankOneInverse(rows.columns(np.arange(24)), damping=0.1)
    >>> bool(np.allclose(inverse @ np.ones(24), dense @ np.ones(24)))
    True
    """

    shape: tuple[int, int]

    def gram(self) -> Array:
        """G Gᵀ, in float64 where the library has it.

        Returns
        -------
        array, shape (m, m)
        """
        ...

    def project(self, v: Array) -> Array:
        """G v, in the dtype of the rows or in float64.

        Parameters
        ----------
        v : array, shape (d, k)
            A vector per column.

        Returns
        -------
        array, shape (m, k)
        """
        ...

    def combine(self, coefficients: Array) -> Array:
        """Gᵀ c, in the dtype of the rows.

        Parameters
        ----------
        coefficients : array, shape (m, k)
            The weights c of the rows.

        Returns
        -------
        array, shape (d, k)
        """
        ...

    def columns(self, j: Array) -> Array:
        """G[:, j], in the dtype of the rows.

        Parameters
        ----------
        j : numpy.ndarray of int, shape (n,)
            Indices ≥ 0, for any library: in any order, and one may be there twice.

        Returns
        -------
        array, shape (m, n)
        """
        ...

    def panels(self) -> Iterable[Array]:
        """Yield column blocks of G, from the first to the last column: for `diagonal` and vector damping.

        Yields
        ------
        array, shape (m, p)
            Of any p; blocks may differ in it.
        """
        for columns in column_slices(*self.shape, np.float64):
            yield self.columns(np.arange(self.shape[1])[columns])


class RowMatrix(Protocol):
    """A matrix of m rows by its products: Ĝ, or S = C^½ G Λ^-½ in the forms of M, of a batch with a leading axis.

    Vectors are columns (d, k) in `dtype`; arrays with one entry per row are (m, k), float64.
    """

    @property
    def multiplies_by_entries(self) -> bool:
        """Whether products of rows use only their common non-zeros; `column_quadratic_forms` is then there."""
        ...

    @property
    def is_streamed(self) -> bool:
        """Whether a pass over the rows costs more than its arithmetic; `descend` then joins two passes."""
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
        """An array of the library and on the device of d-sized results."""
        ...

    def project(self, u: Array) -> Array:
        """The matrix times u, (m, k), float64."""
        ...

    def combine(self, a: Array) -> Array:
        """Its transpose times a, (d, k), for a (m, k)."""
        ...


class Rows(RowMatrix, Protocol):
    """Ĝ = 2^−exponent G, shape (m, d), computed in `dtype`: every operation on d-sized arrays is one of these.

    Vectors are columns (d, k) in `dtype`; arrays with one entry per row are (m, k), float64.
    """

    @property
    def can_change_dtype(self) -> bool:
        """Whether `with_dtype` changes the dtype of the computation."""
        ...

    @property
    def source(self) -> Any:
        """The object that blocks may be views of; None if all are copies."""
        ...

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint of memory that is shared with the user."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whether Ĝ is the caller's array itself."""
        ...

    def with_dtype(self, dtype: Any) -> Self:
        """The same rows, computed in another dtype."""
        ...

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """Ĝ diag(column_scale)² Ĝᵀ, (m, m), float64; column_scale (d, 1)."""
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
    """Rows that can be read by column panels."""

    def column_slices(self) -> list[slice]:
        """The columns of each panel, in order."""
        ...

    def panel(self, columns: slice) -> Array:
        """Ĝ[:, columns] in the computing dtype."""
        ...

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """The columns of each panel, and the panel."""
        ...


class GivenRows(Rows, Protocol):
    """The rows of the user's G, from which an inverse can be built again."""

    @property
    def gradients(self) -> Any:
        """G, as the user passed it."""
        ...

    @property
    def exponent(self) -> Any:
        """The exponent of the power of two that G is divided by; None for G itself."""
        ...

    @property
    def is_movable(self) -> bool:
        """Whether G can be copied to another device or dtype."""
        ...

    def largest(self) -> float:
        """The largest absolute entry of G."""
        ...

    def unscaled(self) -> Self:
        """The rows of G without scaling, computed in the dtype of the answers."""
        ...
