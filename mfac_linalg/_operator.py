"""The abstract real symmetric d × d operator: products with vectors, and SciPy's LinearOperator."""

import abc
from functools import partial
from typing import Any, Self

from . import _backend
from . import _validation as check
from ._forms.state import State
from ._rows.fingerprint import require_unchanged
from ._typing import Array


@_backend.methods_outside_graphs
class SymmetricOperator(abc.ABC):
    """The abstract base of F⁻¹ and of F: all that follows from one product with columns."""

    __array_ufunc__ = None  # ndarray @ operator is ours
    __array_priority__ = 100.0

    @property
    @abc.abstractmethod
    def _current(self) -> State:
        """The state to answer from."""

    @property
    def _unchanged(self) -> State:
        """The same for a query, after the one check that memory shared with the user is unchanged."""
        state = self._current
        rows, whitened = state.form.rows, getattr(state.form, "whitened", None)
        require_unchanged(rows, None if whitened is rows else whitened)
        return state

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._current.form.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (d, d)."""
        return (self.dim, self.dim)

    @property
    def dtype(self) -> Any:
        """Dtype of the answers."""
        return self._current.dtype

    @property
    def device(self) -> Any:
        """Device of the answers."""
        return _backend.device(self._like)

    @property
    def T(self) -> Self:  # noqa: N802 (the name NumPy gives it)
        """The transpose: the object itself, which is symmetric."""
        return self

    @property
    def H(self) -> Self:  # noqa: N802
        """The adjoint: the object itself, which is real symmetric."""
        return self

    @property
    def _like(self) -> Array:
        return self._current.form.rows.like

    @abc.abstractmethod
    def matvec(self, v: Array) -> Array:
        """Return the product with a vector.

        Parameters
        ----------
        v : array, shape (d,) or (d, 1)
            The vector.

        Returns
        -------
        array, of the shape of v
        """

    @abc.abstractmethod
    def matmat(self, V: Array) -> Array:  # noqa: N803 (one letter, as in the formulas)
        """Return the product with vectors.

        Parameters
        ----------
        V : array, shape (d, k)
            A vector per column.

        Returns
        -------
        array, shape (d, k)
        """

    def rmatvec(self, v: Array) -> Array:
        """The product of the transpose with v: `matvec`, by symmetry.

        Parameters
        ----------
        v : array, shape (d,) or (d, 1)
            As in `matvec`.

        Returns
        -------
        array, of the shape of v
        """
        return self.matvec(v)

    def rmatmat(self, V: Array) -> Array:  # noqa: N803
        """The product of the transpose with V: `matmat`, by symmetry.

        Parameters
        ----------
        V : array, shape (d, k)
            As in `matmat`.

        Returns
        -------
        array, shape (d, k)
        """
        return self.matmat(V)

    def _matvec(self, v: Array) -> Array:
        """As `matvec`, by the name that PyLops calls on what it wraps."""
        return self.matvec(v)

    def _rmatvec(self, v: Array) -> Array:
        """As `matvec`, by the name that PyLops calls on what it wraps."""
        return self.matvec(v)

    def __matmul__(self, v: Array) -> Array:
        if not _backend.is_array(v):
            check.refuse_sparse("V", v)
            return NotImplemented
        return self.matvec(v) if v.ndim == 1 else self.matmat(v)

    def __rmatmul__(self, v: Array) -> Array:
        if not _backend.is_array(v):
            check.refuse_sparse("V", v)
            return NotImplemented
        check.refuse_masked("V", v)
        if v.ndim != 2:
            return self.matvec(v)
        return self.matmat(v.T).T

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give `tensor @ operator` to the operator: PyTorch asks the right operand here and nowhere else."""
        if getattr(func, "__name__", "") in ("matmul", "__matmul__") and len(args) == 2:
            left, right = args
            return right.__rmatmul__(left) if isinstance(right, SymmetricOperator) else left.__matmul__(right)
        return NotImplemented

    def as_linear_operator(self) -> Any:
        """The operator as a LinearOperator of SciPy, or of CuPy for CuPy, with `matmat`.

        It follows the operator: that of a window slides with it. It can be pickled.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            For NumPy arrays, whatever the library of the gradients: vectors of another travel there and back. Vectors
            and matrices of any real or complex dtype are answered in the dtype that a matrix of `dtype` would give;
            what is wider than `dtype` is computed in `dtype`, scaled so that nothing overflows or underflows.

        Notes
        -----
        Cost: none; products cost as much as those of the operator.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> from scipy.sparse.linalg import cg
        >>> gradients = np.random.default_rng(0).standard_normal((20, 100))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1e-3)
        >>> F, preconditioner = inverse.forward.as_linear_operator(), inverse.as_linear_operator()
        >>> iterations = []
        >>> x, info = cg(F, np.ones(100), M=preconditioner, callback=iterations.append)
        >>> info, len(iterations)  # F⁻¹ is the ideal preconditioner of F
        (0, 1)
        """
        return _backend.linear_operator(self, self._like)

    def _vector_product(self, function: Any, v: Array, name: str) -> Array:
        """`function` of one vector (d,) or (d, 1); of a complex one by parts."""
        if _backend.is_complex(v):
            check.complex(name, v, self._like, self.dtype)
            check.vector_shape(name, v, self.dim)
            columns = self._by_parts(partial(function, name=name), v if v.ndim == 2 else v[:, None], name)
            return columns if v.ndim == 2 else columns[:, 0]
        v = check.vector(name, v, self._like, self.dtype, self.dim, column=True)
        if v.ndim == 2:
            return _backend.with_x64(function, self._unchanged, v)
        return _backend.with_x64(partial(of_one_column, function), self._unchanged, v)

    def _matrix_product(self, function: Any, v: Array, name: str) -> Array:
        """`function` of columns (d, k); of complex ones by parts."""
        if _backend.is_complex(v):
            check.complex(name, v, self._like, self.dtype)
            check.shape(name, v, (self.dim, "k"), "Pass one vector per column.")
            return self._by_parts(partial(function, name=name), v, name)
        v = check.columns(name, v, self._like, self.dtype, self.dim)
        return _backend.with_x64(partial(function, name=name), self._unchanged, v)

    def _by_parts(self, function: Any, z: Array, name: str) -> Array:
        """`function` of x + iy for real x and y (d, k), as one product with 2k columns."""
        parts = check.columns(name, _backend.with_x64(_backend.as_parts, z), self._like, self.dtype, self.dim)
        return _backend.with_x64(_backend.from_parts, _backend.with_x64(function, self._unchanged, parts))


def of_one_column(function: Any, state: State, v: Array) -> Array:
    """`function` of the one column that a vector is; its last axis is left out."""
    return function(state, v[:, None])[..., 0]
