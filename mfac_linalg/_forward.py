"""F itself: the same rows and scalings as its inverse, no factorisation."""

from typing import Any

import numpy as np

from . import _backend
from . import _validation as check
from ._forms.state import State
from ._operator import SymmetricOperator
from ._repr import as_call, as_table
from ._typing import Array

SHOWN = ("m", "window", "d", "blocks", "damping", "dtype", "device")  # the facts of an inverse that hold for F


@_backend.methods_outside_graphs
class Forward(SymmetricOperator):
    """F = Λ + Σ c_i g_i g_iᵀ as an operator of shape (d, d): the `forward` property of an inverse.

    Λ is the diagonal matrix of the damping. F follows its inverse: that of a window slides with it. A copy or a pickle
    has a copy of the inverse. F is symmetric and multiplies arrays from both sides by ``@``, in the library, on the
    device and in the dtype of the inverse.

    Notes
    -----
    Cost: none to make it, nothing is factored. A product is two passes over the rows, O(dm).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> F = ml.WoodburyRankOneInverse(gradients, damping=1.0).forward
    >>> F @ np.array([1.0, 0.0, 3.0])
    array([1.5, 0.5, 4.5])
    """

    def __init__(self, inverse: Any) -> None:
        self._inverse = inverse

    @property
    def _current(self) -> State:
        return self._inverse._current

    @property
    def _like(self) -> Array:
        return self._inverse._like

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._inverse.dim

    @property
    def dtype(self) -> Any:
        """Dtype of the answers."""
        return self._inverse.dtype

    @property
    def device(self) -> Any:
        """Device of the answers."""
        return self._inverse.device

    def matvec(self, x: Array) -> Array:
        """F x, the product with a vector.

        Parameters
        ----------
        x : array, shape (d,) or (d, 1)
            Of the inverse's library and device, in `dtype` (16-bit is widened) or the complex dtype of its precision.

        Returns
        -------
        array, of the shape of x

        Raises
        ------
        TypeError
            Another library, device or dtype.
        ValueError
            Another shape, or non-finite values in a host array.
        OverflowError
            The answer does not fit into `dtype` (host arrays).

        Notes
        -----
        Cost: two passes over the rows, O(dm).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((4, 30))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> v = np.ones(30)
        >>> bool(np.allclose(inverse.forward.matvec(inverse @ v), v))
        True
        """
        return self._vector_product(State.multiply, x, "x")

    def matmat(self, X: Array) -> Array:  # noqa: N803 (one letter, as in the formulas)
        """F X, the product with every column of X.

        Parameters
        ----------
        X : array, shape (d, k)
            A vector per column, as in `matvec`.

        Returns
        -------
        array, shape (d, k)

        Raises
        ------
        TypeError, ValueError, OverflowError
            As `matvec`.

        Notes
        -----
        Cost: two passes over the rows, O(dmk).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> F = ml.WoodburyRankOneInverse(gradients, damping=1.0).forward
        >>> F.matmat(np.eye(3)[:, :2]).round(3)
        array([[1.5, 0.5],
               [0.5, 1.5],
               [0. , 0. ]])
        """
        return self._matrix_product(State.multiply, X, "X")

    def rmatvec(self, x: Array) -> Array:
        """The product of the transpose with x: `matvec`, by symmetry.

        Parameters
        ----------
        x : array, shape (d,) or (d, 1)
            As in `matvec`.

        Returns
        -------
        array, of the shape of x
        """
        return self.matvec(x)

    def rmatmat(self, X: Array) -> Array:  # noqa: N803
        """The product of the transpose with X: `matmat`, by symmetry.

        Parameters
        ----------
        X : array, shape (d, k)
            As in `matmat`.

        Returns
        -------
        array, shape (d, k)
        """
        return self.matmat(X)

    def diagonal(self) -> Array:
        """The diagonal of F.

        Returns
        -------
        array, shape (d,)

        Notes
        -----
        Cost: one pass over the rows, O(dm).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).forward.diagonal()
        array([1.5, 1.5, 1.5])
        """
        return _backend.with_x64(State.forward_diagonal, self._unchanged)

    def trace(self) -> Array:
        """The trace of F.

        Returns
        -------
        array, shape ()

        Notes
        -----
        Cost: as `diagonal`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> float(ml.WoodburyRankOneInverse(gradients, damping=1.0).forward.trace().round(3))
        4.5
        """
        return _backend.with_x64(State.forward_trace, self._unchanged)

    def logdet(self) -> Array:
        """The logarithm of det F.

        Returns
        -------
        array, shape ()

        Notes
        -----
        Cost: O(m), as `logdet` of the inverse, whose negative it is.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> F = ml.WoodburyRankOneInverse(gradients, damping=1.0).forward
        >>> bool(np.isclose(F.logdet(), np.log(np.linalg.det(F.to_dense()))))
        True
        """
        return -_backend.with_x64(State.logdet, self._unchanged)

    def to_dense(self) -> Array:
        """F as a dense array, for small d.

        Returns
        -------
        array, shape (d, d)

        Raises
        ------
        ValueError
            If d > 16,384.

        Notes
        -----
        Cost: O(d²m) time, O(d²) memory.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).forward.to_dense()
        array([[1.5, 0.5, 0. ],
               [0.5, 1.5, 0. ],
               [0. , 0. , 1.5]])
        """
        check.dense(self.shape[0])
        return _backend.with_x64(_backend.symmetric_part, self.matmat(_backend.with_x64(self._units, self._like)))

    def _units(self, like: Array) -> Array:
        """The unit vectors, (d, d)."""
        index = _backend.index_like(np.arange(self.dim), like=like)
        return _backend.unit_columns(index, self.dim, like=like, dtype=self.dtype)

    def eigenvalues(self) -> Array:
        """The eigenvalues that the gradients move, descending; the others equal λ.

        Returns
        -------
        array, shape (min(m, d),)

        Raises
        ------
        ValueError
            Vector damping: F and I + SᵀS then have different eigenvalues.

        Notes
        -----
        Cost: an eigendecomposition of the m × m system, O(m³), kept for the next query.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).forward.eigenvalues().round(3)
        array([2. , 1.5])
        """
        self._current.require_scalar("forward.eigenvalues")
        return _backend.with_x64(State.eigenvalues, self._unchanged)

    def condition_number(self) -> Array:
        """‖F‖ ‖F⁻¹‖ from the eigenvalues, for scalar damping.

        Returns
        -------
        array, shape ()

        Raises
        ------
        ValueError
            Vector damping.

        Notes
        -----
        Cost: as `eigenvalues`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> F = ml.WoodburyRankOneInverse(gradients, damping=1.0).forward
        >>> float(F.condition_number().round(3))
        2.0
        """
        self._current.require_scalar("condition_number")
        return _backend.with_x64(State.condition_number, self._unchanged)

    def effective_rank(self) -> Array:
        """Σ s/(1 + s), s the eigenvalues of Λ^-½ (F − Λ) Λ^-½: σ/(σ + λ) for scalar damping.

        Returns
        -------
        array, shape ()

        Notes
        -----
        Cost: as `eigenvalues`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # σ = 1 and 1/2
        >>> F = ml.WoodburyRankOneInverse(gradients, damping=1.0).forward
        >>> float(F.effective_rank().round(3))
        0.833
        """
        return _backend.with_x64(State.effective_rank, self._unchanged)

    def _describe(self) -> dict[str, str]:
        return {name: fact for name, fact in self._inverse._describe().items() if name in SHOWN}

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self._describe())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._describe())
