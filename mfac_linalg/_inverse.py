"""The abstract base of the public inverses: what every one of them is and answers."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np

from . import _backend
from . import _validation as check
from ._backend.pytree import register
from ._forms.certificates import backward_error, relative_residual
from ._forms.damping_path import damping_path
from ._forms.state import State
from ._forward import Forward
from ._operator import SymmetricOperator, of_one_column
from ._repr import as_call, as_table, short, with_hint
from ._typing import Array


@_backend.methods_outside_graphs
class Inverse(SymmetricOperator):
    """F⁻¹ as an object; `_current` gives the immutable state that all answers are computed from."""

    @property
    @abc.abstractmethod
    def gradients(self) -> Array:
        """The gradients, shape (m, d)."""

    @property
    @abc.abstractmethod
    def damping(self) -> Any:
        """λ as a float, or a copy of the (d,) array it was given as."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.dtype is not None:  # else it is a window that has seen no gradient, and has no library yet
            register(self._like, type(self))

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def num_gradients(self) -> int:
        """Number m of gradients."""
        return self._current.form.shape[0]

    @property
    def kappa(self) -> Any:
        """κ = ‖F‖/λ, estimated by power steps (for vector damping ‖Λ^-½ F Λ^-½‖)."""
        return self._current.kappa

    @property
    def sweeps(self) -> int:
        """Dual sweeps of a product whose values cannot be read; on the host as many as needed are done."""
        return self._current.form.sweeps

    @property
    def forward(self) -> Forward:
        """F itself, as an operator; that of a window follows it."""
        return Forward(self)

    # --- products ---------------------------------------------------------------------------------------------

    def matvec(self, v: Array) -> Array:
        """F⁻¹ v, the inverse-Hessian-vector product, by dual sweeps.

        For a combination of the stored gradients, v = Gᵀ c (their mean, one of them), call `matvec_gradients`: unless
        rows nearly depend on each other it keeps all digits, where this leaves κ eps, two digits at κ = 1e5 in float32.

        Parameters
        ----------
        v : array, shape (d,) or (d, 1)
            Of the gradients' library and device, in `dtype` (16-bit is widened) or the complex dtype of its precision,
            which is answered by parts.

        Returns
        -------
        array, of the shape of v

        Raises
        ------
        TypeError
            Another library, device or dtype.
        ValueError
            Another shape, or non-finite values in a host array.
        OverflowError
            The answer does not fit into `dtype`: it is too large, or even its largest entry too small (host arrays).
        FactorizationError
            κ is so large that the answer is not a number (host arrays).

        Notes
        -----
        Cost: 2s passes over the m × d rows for s sweeps, O(dm + m²) time, O(d) memory.

        Accuracy: ‖v − Fx‖ ≤ 30 eps ‖F‖ ‖x‖ for every v, also in the span of the gradients. That is the backward error;
        ‖x − F⁻¹v‖ ≤ 30 κ eps ‖x‖ follows, and in that span it is of the order of κ eps (κ = 4e5, float32: 3e-2).

        With ``precision="high"`` the forward error is below 1e-6 for a row as it is given, κ up to 1e7.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> inverse.matvec(np.array([1.0, 0.0, 3.0])).round(3)  # inverse @ v is the same
        array([ 0.75, -0.25,  2.  ])
        """
        return self._vector_product(State.solve, v, "v")

    def matmat(self, V: Array) -> Array:  # noqa: N803 (one letter, as in the formulas)
        """F⁻¹ V, the product with every column of V: as `matvec`, by matrix products.

        Parameters
        ----------
        V : array, shape (d, k)
            A vector per column, as in `matvec`.

        Returns
        -------
        array, shape (d, k)

        Raises
        ------
        TypeError, ValueError, OverflowError, FactorizationError
            As `matvec`.

        Notes
        -----
        Cost: 2s passes over the rows for s sweeps, whatever k; O(dmk + m²k) time, O(dk) memory.

        Accuracy: that of `matvec`, for every column.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((4, 30))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> V = np.eye(30)[:, :2]
        >>> inverse.matmat(V).shape, bool(np.allclose(inverse @ V, inverse.columns([0, 1])))
        ((30, 2), True)
        """
        return self._matrix_product(State.solve, V, "V")

    def matvec_gradients(self, coefficients: Array) -> Array:
        """F⁻¹ Gᵀ c, the IHVP of a combination of the stored gradients, by push-through.

        F⁻¹ Gᵀ c = Λ⁻¹ Gᵀ (I + C G Λ⁻¹ Gᵀ)⁻¹ c: v / λ is never subtracted from. The way for every v = Gᵀ c: its forward
        error is that of rounding (float32: 1e-7 for iid gradients, whatever κ), that of `matvec` up to κ eps.

        Parameters
        ----------
        coefficients : array, shape (m,) or (m, k)
            Weights c of the stored gradients, not divided by m.

        Returns
        -------
        array, shape (d,) or (d, k)

        Raises
        ------
        TypeError, ValueError, OverflowError, FactorizationError
            As `matvec`.

        Notes
        -----
        Cost: one pass over the rows, O(dm + m²); a second where terms of the sum cancel, to see whether a sweep must
        follow, and one in float64 where those of float32 rows cancel by more than κ.

        Accuracy: the backward error of `matvec`; digits are lost only where rows that nearly depend on each other
        cancel in the answer; for float32 ``precision="high"`` keeps those too.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> inverse.matvec_gradients(np.array([0.5, 0.5])).round(3)  # F⁻¹ of the mean gradient
        array([0.25 , 0.25 , 0.333])
        """
        check.refuse_masked("coefficients", coefficients)
        c, like = _backend.evaluate_with_like(coefficients, "coefficients", like=self._like)
        if not (_backend.is_array(c) and c.ndim == 1):
            c = check.columns("coefficients", c, like, self.dtype, self.num_gradients)
            return _backend.with_x64(State.solve_gradients, self._unchanged, c)
        c = check.vector("coefficients", c, like, self.dtype, self.num_gradients)
        return _backend.with_x64(partial(of_one_column, State.solve_gradients), self._unchanged, c)

    def dual_coefficients(self, v: Array) -> Array:
        """The a with F⁻¹ v = Λ⁻¹ (v − Gᵀ a): what to keep to apply F⁻¹ v without this object.

        Parameters
        ----------
        v : array, shape (d,)
            As in `matvec`.

        Returns
        -------
        array, shape (m,)
            For blocks (n, m), a row for each of the n blocks.

        Raises
        ------
        TypeError, ValueError, OverflowError
            As `matvec`.

        Notes
        -----
        Cost: as `matvec`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients, v = np.random.default_rng(0).standard_normal((4, 30)), np.ones(30)
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> a = inverse.dual_coefficients(v)
        >>> a.shape, bool(np.allclose((v - gradients.T @ a) / 0.1, inverse @ v))
        ((4,), True)
        """
        return self._of_vector(partial(of_one_column, State.dual), v)

    def sqrt_matvec(self, v: Array) -> Array:
        """B v for a B with B Bᵀ = F⁻¹; B = F^-½ for scalar damping.

        Parameters
        ----------
        v : array, shape (d,)
            As in `matvec`.

        Returns
        -------
        array, shape (d,)

        Raises
        ------
        TypeError, ValueError, OverflowError
            As `matvec`.

        Notes
        -----
        Cost: an eigendecomposition, O(m³), and two passes over the rows.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients, v = np.random.default_rng(0).standard_normal((4, 30)), np.ones(30)
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> bool(np.allclose(inverse.sqrt_matvec(inverse.sqrt_matvec(v)), inverse @ v))
        True
        """
        return self._of_vector(partial(of_one_column, State.apply_square_root), v)

    def sample(self, size: int, *, seed: int) -> Array:
        """Draw from N(0, F⁻¹) by the library's own generator, on its own device.

        Parameters
        ----------
        size : int
            Number of draws.
        seed : int
            The same seed gives the same draws on the same library and device.

        Returns
        -------
        array, shape (size, d)

        Raises
        ------
        TypeError, ValueError
            A `size` or `seed` that is not an integer, or is negative.

        Notes
        -----
        Cost: an eigendecomposition, O(m³), and O(dm) per draw; O(d · size) memory.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> draws = inverse.sample(20_000, seed=0)
        >>> draws.shape, bool(np.allclose(np.cov(draws.T), inverse.to_dense(), atol=0.02))
        ((20000, 3), True)
        """
        size, seed = check.count("size", size), check.count("seed", seed)
        draw = partial(_backend.standard_normal, (self.dim, size), seed=seed, dtype=self.dtype)
        draws = _backend.with_x64(lambda like: draw(like=like), self._like)
        return _backend.with_x64(partial(State.apply_square_root, name=None), self._unchanged, draws).T

    def damping_path(self, v: Array, dampings: Any) -> Array:
        """F(λ_k)⁻¹ v for many λ_k, each as accurate as that of an inverse built with its λ_k.

        Parameters
        ----------
        v : array, shape (d,)
            As in `matvec`.
        dampings : sequence of float
            The λ_k > 0. Unit: that of squared gradients.

        Returns
        -------
        array, shape (d, k)
            A column for each λ_k.

        Raises
        ------
        TypeError
            A v as `matvec` refuses it; dampings that are not numbers.
        ValueError
            Vector damping; a v as `matvec` refuses it; dampings that are not a sequence of finite numbers > 0.
        OverflowError
            The answer does not fit into `dtype` (host arrays).

        Notes
        -----
        Cost: an eigendecomposition, O(m³), and one matrix product of k columns per pass instead of k passes.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((4, 30))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> v, dampings = np.ones(30), [0.01, 0.1, 1.0]
        >>> path = inverse.damping_path(v, dampings)
        >>> path.shape, bool(np.allclose(path[:, 2], inverse.with_damping(1.0) @ v))
        ((30, 3), True)
        """
        self._current.require_scalar("damping_path")
        values = check.dampings(dampings)
        return self._of_vector(lambda state, u: damping_path(state, u[:, None], values), v)

    # --- entries ----------------------------------------------------------------------------------------------

    def diagonal(self) -> Array:
        """The diagonal of F⁻¹, each entry in [1/‖F‖, 1/λ].

        Returns
        -------
        array, shape (d,)

        Notes
        -----
        Cost: one pass over whitened rows, O(dm); O(dm²) where rows are not whitened. It is kept, in d numbers of
        float64, so that the next call costs O(d); that of rows that are read from elsewhere is not.

        Accuracy: that of `element` absolute, and 1e-3 relative: entries that cancel are redone as sums of squares. In
        float64 1e-5 relative up to κ = 4e14.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).diagonal().round(3)
        array([0.75 , 0.75 , 0.667])
        """
        return _backend.with_x64(State.diagonal_entries, self._unchanged)

    def element(self, i: Any, j: Any) -> Array:
        """F⁻¹[i, j], one element or many.

        Parameters
        ----------
        i, j : int or array of int
            Indices of parameters, which broadcast against each other; negative ones count from the end.

        Returns
        -------
        array, of the shape of i and j together

        Raises
        ------
        TypeError
            Indices that are not integers.
        IndexError
            An index outside [−d, d).
        ValueError
            Shapes that do not broadcast.

        Notes
        -----
        Cost: O(m) each on whitened rows, O(m²) where rows are not whitened.

        Accuracy: 30 eps/λ absolute for float32 where float64 exists; else about κ/4 eps/λ, and then `columns` is
        better (docs/theory.md, section 6).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> float(inverse.element(0, 1).round(3))
        -0.25
        >>> inverse.element([0, 2], [1, -1]).round(3)
        array([-0.25 ,  0.667])
        """
        i = check.indices("i", i, self.dim, like=self._like)
        j = check.indices("j", j, self.dim, like=self._like)
        return _backend.with_x64(_elements, self._unchanged, i, j)

    def columns(self, j: Any) -> Array:
        """Columns F⁻¹[:, j].

        Parameters
        ----------
        j : array or list of int, shape (k,)
            As in `element`.

        Returns
        -------
        array, shape (d, k)

        Raises
        ------
        TypeError, IndexError, ValueError
            As `element`; another shape than (k,).

        Notes
        -----
        Cost: as `matmat` with k columns.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).columns([1])[:, 0].round(3)
        array([-0.25,  0.75,  0.  ])
        """
        j = check.vector_of_indices("j", j, self.dim, like=self._like)
        return _backend.with_x64(State.columns, self._unchanged, j)

    def submatrix(self, rows: Any, cols: Any = None) -> Array:
        """The dense block F⁻¹[rows][:, cols].

        Parameters
        ----------
        rows : array or list of int, shape (n,)
            As in `element`.
        cols : array or list of int, shape (k,), optional
            Unless given they are the rows.

        Returns
        -------
        array, shape (n, k)

        Raises
        ------
        TypeError, IndexError, ValueError
            As `columns`.

        Notes
        -----
        Cost: O(mnk) on whitened rows, for n rows and k columns; O(m²(n + k) + mnk) where rows are not whitened.

        Accuracy: that of `element`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).submatrix([0, 1]).round(3)
        array([[ 0.75, -0.25],
               [-0.25,  0.75]])
        """
        rows = check.vector_of_indices("rows", rows, self.dim, like=self._like)
        cols = rows if cols is None else check.vector_of_indices("cols", cols, self.dim, like=self._like)
        return _backend.with_x64(State.submatrix, self._unchanged, rows, cols)

    def to_dense(self) -> Array:
        """F⁻¹ as a dense array, for small d.

        Returns
        -------
        array, shape (d, d)

        Raises
        ------
        ValueError
            If d > 16,384, where `columns` and `submatrix` serve.

        Notes
        -----
        Cost: as `matmat` with d columns, O(d²m) time, O(d²) memory.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> ml.WoodburyRankOneInverse(gradients, damping=1.0).to_dense().round(3)
        array([[ 0.75 , -0.25 ,  0.   ],
               [-0.25 ,  0.75 ,  0.   ],
               [ 0.   ,  0.   ,  0.667]])
        """
        check.dense(self.dim)
        return _backend.with_x64(_backend.symmetric_part, self.columns(np.arange(self.dim)))

    # --- scalars ----------------------------------------------------------------------------------------------

    def quadratic_form(self, v: Array) -> Array:
        """vᵀ F⁻¹ v as a sum of squares: never negative, zero for v = 0 alone.

        For a scalar damping and the mean it is ‖r‖²/λ + m ‖a‖², with a the `dual_coefficients` of v and r = v − Gᵀ a.

        Parameters
        ----------
        v : array, shape (d,) or (d, k)
            One vector, or one per column.

        Returns
        -------
        array, shape () or (k,)

        Raises
        ------
        TypeError, ValueError, OverflowError
            As `matvec`.

        Notes
        -----
        Cost: as `matvec`, or `matmat`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> float(inverse.quadratic_form(np.array([1.0, 0.0, 3.0])).round(3))
        6.75
        """
        v, is_vector = self._one_or_more("v", v)
        values = _backend.with_x64(State.quadratics, self._unchanged, v)
        return values[0] if is_vector else values

    def logdet(self) -> Array:
        """The logarithm of det F⁻¹.

        Returns
        -------
        array, shape ()

        Notes
        -----
        Cost: O(m); a pass over the rows more where κ > 1e10 (float64) or κ > 250 (float32: of windows, and of static
        inverses at the first query of entries, log det or spectrum).

        Accuracy: 3e-6 absolute for κ up to 4e14, and the rounding of the sum Σ log λ_i to `dtype` (docs/theory.md,
        section 8); min(m, d) κ eps of float64 under `jit`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)  # det F = 3
        >>> bool(np.isclose(inverse.logdet(), -np.log(3.0)))
        True
        """
        return _backend.with_x64(State.logdet, self._unchanged)

    def trace(self) -> Array:
        """The trace of F⁻¹.

        Returns
        -------
        array, shape ()

        Notes
        -----
        Cost: as `diagonal`.

        Accuracy: relative, that of `diagonal` and better.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> float(ml.WoodburyRankOneInverse(gradients, damping=1.0).trace().round(3))
        2.167
        """
        return _backend.with_x64(State.trace, self._unchanged)

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
        Cost: an eigendecomposition, O(m³). The property `kappa` has an estimate of ‖F‖/λ, which is the same for m < d,
        at no cost.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> float(ml.WoodburyRankOneInverse(gradients, damping=1.0).condition_number().round(3))
        2.0
        """
        return self.forward.condition_number()

    def backward_error(self, v: Array, x: Array) -> Array:
        """‖v − F x‖ / (‖F‖ ‖x‖), to be compared with 30 eps: the certificate of x as F⁻¹ v.

        For vector damping it is taken in the scaled norm, ‖Λ^-½(v − Fx)‖ / (κ ‖Λ^½x‖).

        Parameters
        ----------
        v : array, shape (d,) or (d, k)
            The right-hand side, or one per column.
        x : array, of the shape of v
            The answer to be judged, from wherever it comes.

        Returns
        -------
        array, shape () or (k,)
            A certificate for each column.

        Raises
        ------
        TypeError, ValueError
            As `matvec`; an x that has not the shape of v.

        Notes
        -----
        It says that x is the answer for a matrix within that of F, not how many digits of x are right: the forward
        error ‖x − F⁻¹v‖/‖x‖ may be κ = `kappa` times as large, 1e-2 at κ = 1e5 in float32. Where that is too much,
        call `matvec_gradients` for v = Gᵀ c, or build with ``precision="high"``.

        Cost: two passes over the rows.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((4, 30))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> v = np.ones(30)
        >>> bool(inverse.backward_error(v, inverse @ v) < 30 * np.finfo(float).eps)
        True
        >>> bool(inverse.backward_error(v, 1.001 * (inverse @ v)) < 30 * np.finfo(float).eps)
        False
        """
        return self._certificate(backward_error, v, x)

    def relative_residual(self, v: Array, x: Array) -> Array:
        """‖v − F x‖ / ‖v‖, for x = F⁻¹ v bounded by κ eps, not by eps.

        Parameters
        ----------
        v : array, shape (d,) or (d, k)
            The right-hand side, or one per column.
        x : array, of the shape of v
            The answer to be judged.

        Returns
        -------
        array, shape () or (k,)

        Raises
        ------
        TypeError, ValueError
            As `backward_error`.

        Notes
        -----
        Cost: two passes over the rows.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((4, 30))
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
        >>> v = np.ones(30)
        >>> limit = 30 * inverse.kappa * np.finfo(float).eps
        >>> bool(inverse.relative_residual(v, inverse @ v) < limit)
        True
        """
        return self._certificate(relative_residual, v, x)

    # --- other shapes of the same thing ------------------------------------------------------------------------

    @_backend.in_plain_modes
    def to_device(self, device: Any) -> Self:
        """Return a new inverse of the same gradients on another device of their library, factored there.

        Parameters
        ----------
        device : object
            As the library names it.

        Returns
        -------
        inverse of the same class

        Raises
        ------
        TypeError
            A device that the library does not have.

        Notes
        -----
        Cost: a build, and a copy of the gradients.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> inverse = ml.WoodburyRankOneInverse(np.ones((2, 3)), damping=1.0)
        >>> inverse.to_device("cpu").device  # NumPy has no other; "cuda" for PyTorch
        'cpu'
        """
        return self._map_arrays(lambda x: check.as_device(x, device))

    @_backend.in_plain_modes
    def astype(self, dtype: Any) -> Self:
        """Return a new inverse that answers in another dtype, built from the cast gradients.

        Parameters
        ----------
        dtype : dtype or str
            float32 or float64, of any library or by name.

        Returns
        -------
        inverse of the same class

        Raises
        ------
        TypeError
            Any other dtype, or float64 where the library or the device has none.

        Notes
        -----
        Cost: a build, and a copy of the gradients.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> inverse = ml.WoodburyRankOneInverse(np.ones((2, 3)), damping=1.0)
        >>> inverse.astype("float32").diagonal().dtype
        dtype('float32')
        """
        dtype = check.as_result_dtype(dtype, self._like)
        return self._map_arrays(lambda x: _backend.cast(x, dtype))

    @abc.abstractmethod
    def _map_arrays(self, move: Callable[[Array], Array]) -> Self:
        """Rebuild the inverse from its arrays, transferred or cast by `move`."""

    def _describe(self) -> dict[str, str]:
        """What a repr shows: never a value of an array, never a wait for a device."""
        return {
            "m": f"{self.num_gradients}",
            "d": f"{self.dim}",
            "damping": short(self.damping),
            "dtype": _backend.dtype_name(self.dtype),
            "device": f"{self.device}",
            "kappa": short(self.kappa, digits=3),
            "sweeps": f"{self.sweeps}",
        }

    def __repr__(self) -> str:
        return as_call(type(self).__name__, self._describe())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._describe() | self._hint())

    def _hint(self) -> dict[str, str]:
        """What κ near its limit means, in place of κ alone."""
        return {"kappa": with_hint(self.kappa, _backend.dtype_name(self.dtype))}

    # --- checks ------------------------------------------------------------------------------------------------

    def _of_vector(self, function: Any, v: Array) -> Array:
        """`function` of the state and of one vector."""
        v = check.vector("v", v, self._like, self.dtype, self.dim)
        return _backend.with_x64(function, self._unchanged, v)

    def _certificate(self, function: Any, v: Array, x: Array) -> Array:
        (columns, is_vector), (answers, _) = self._one_or_more("v", v), self._one_or_more("x", x)
        if tuple(v.shape) != tuple(x.shape):
            msg = f"`x` must have the shape of `v`, {tuple(v.shape)}; got {check.describe(x)}. Pass an answer for each."
            raise ValueError(msg)
        values = _backend.with_x64(function, self._unchanged, columns, answers)
        return values[0] if is_vector else values

    def _one_or_more(self, name: str, v: Array) -> tuple[Array, bool]:
        """One vector (d,) as a column, or columns (d, k); and which of both it was."""
        if _backend.is_array(v) and v.ndim == 2:
            return check.columns(name, v, self._like, self.dtype, self.dim), False
        return check.vector(name, v, self._like, self.dtype, self.dim)[:, None], True


def _elements(state: State, i: Array, j: Array) -> Array:
    """F⁻¹[i, j] for index arrays that broadcast."""
    i, j = check.broadcast_indices(i, j)
    xp = _backend.namespace(i)
    flat = state.element(xp.reshape(i, (-1,)), xp.reshape(j, (-1,)))
    return flat[0] if i.ndim == 0 else xp.reshape(flat, i.shape)


def check_inverse(inverse: Any) -> Inverse:
    """Accept one of this library's inverses."""
    if not isinstance(inverse, Inverse):
        msg = f"`inverse` must be one of this library's inverses; got {check.describe(inverse)}. "
        raise TypeError(msg + "Build one from gradients, for example a WoodburyRankOneInverse.")
    return inverse
