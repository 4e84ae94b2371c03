"""The answers to compare with: dense, in extended precision, obvious and slow. Nothing here imports the library."""

import functools
import html
from dataclasses import dataclass
from typing import Any

import numpy as np

LIMIT = 30.0
"""The constant of all limits: what LAPACK allows its own solvers."""


def tolerance(eps: float, kappa: float = 1.0) -> float:
    """The one rule for tolerances: constant x eps x condition number.

    Parameters
    ----------
    eps : float
        The rounding unit of the arithmetic.
    kappa : float
        The condition number.

    Returns
    -------
    float
        `LIMIT` · eps · kappa.

    Examples
    --------
    >>> from mfac_linalg.testing import tolerance
    >>> tolerance(1e-7, kappa=1000.0)
    0.003
    """
    return LIMIT * eps * kappa


def require_normalization(normalization: Any) -> None:
    """Refuse another word than the two."""
    if not isinstance(normalization, str) or normalization not in ("mean", "sum"):
        msg = f"`normalization` must be 'mean' or 'sum'; got {normalization!r}."
        raise ValueError(msg)


def cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor in the matrix's own precision, which LAPACK has not for longdouble."""
    factor = np.tril(matrix)
    for k in range(factor.shape[0]):
        factor[k, k] = np.sqrt(factor[k, k])
        factor[k + 1 :, k] /= factor[k, k]
        factor[k + 1 :, k + 1 :] -= np.tril(np.outer(factor[k + 1 :, k], factor[k + 1 :, k]))
    return factor


def triangular_inverse(factor: np.ndarray) -> np.ndarray:
    """Inverse of a lower triangular matrix, row by row."""
    inverse = np.eye(len(factor), dtype=factor.dtype)
    for k in range(len(factor)):
        inverse[k, : k + 1] = (inverse[k, : k + 1] - factor[k, :k] @ inverse[:k, : k + 1]) / factor[k, k]
    return inverse


@dataclass(frozen=True, eq=False, repr=False)
class Oracle:
    """Dense answers for F = Λ + Σ c_i g_i g_iᵀ, c_i = w_i/n, in extended precision with refined solves.

    Parameters
    ----------
    gradients : numpy.ndarray, shape (m, d)
        The rows g_i.
    damping : float or numpy.ndarray, shape (d,)
        λ, or the diagonal of Λ.
    weights : numpy.ndarray, shape (m,), or None
        The w_i; None for 1.
    normalization : str
        "mean" for n = m, "sum" for n = 1.
    wide : type
        The dtype of the arithmetic: numpy.longdouble, or numpy.float64 where that takes too long: no BLAS knows it.

    Raises
    ------
    ValueError
        Another normalization.

    Notes
    -----
    Cost: O(min(m, d)³) to set up, O(d²) for a solve of d columns. Accuracy: to the last digits of float64 up to
    κ = 1e14, where longdouble has 64 bits.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg.testing import Oracle
    >>> oracle = Oracle(np.array([[1.0, 2.0, 0.0]]), damping=0.5)
    >>> round(oracle.kappa, 9)
    11.0
    >>> oracle.solve(np.array([0.0, 0.0, 1.0])).astype(float)
    array([0., 0., 2.])
    """

    gradients: np.ndarray
    damping: Any
    weights: np.ndarray | None = None
    normalization: str = "mean"
    wide: type = np.longdouble

    def __post_init__(self) -> None:
        require_normalization(self.normalization)

    def __repr__(self) -> str:
        m, d = self.gradients.shape
        damping = f"{float(self.damping):.6g}" if np.ndim(self.damping) == 0 else "one per parameter"
        weights = "none" if self.weights is None else "one per gradient"
        return f"Oracle({m=}, {d=}, {damping=!s}, {weights=!s}, normalization={self.normalization!r})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @functools.cached_property
    def coefficients(self) -> np.ndarray:
        """The c_i, shape (m,)."""
        m = len(self.gradients)
        weights = np.ones(m) if self.weights is None else self.weights
        return np.asarray(weights, self.wide) / (m if self.normalization == "mean" else 1)

    @functools.cached_property
    def roots(self) -> np.ndarray:
        """Square roots of the damping, shape (d,)."""
        return np.sqrt(np.broadcast_to(np.asarray(self.damping, self.wide), self.gradients.shape[1:]))

    @functools.cached_property
    def scaled(self) -> np.ndarray:
        """S = C^½ G Λ^-½, shape (m, d)."""
        return np.sqrt(self.coefficients)[:, None] * np.asarray(self.gradients, self.wide) / self.roots

    @functools.cached_property
    def size(self) -> float:
        """‖S‖²."""
        rows = (self.scaled if self.is_wide else self.scaled.T).astype(np.float64)
        return float(np.max(np.linalg.eigvalsh(rows @ rows.T), initial=0.0))

    @property
    def kappa(self) -> float:
        """κ = 1 + ‖S‖²: the condition number of F in the norm that the damping sets."""
        return 1.0 + self.size

    @functools.cached_property
    def _inverse_factor(self) -> np.ndarray:
        """L^-1 with I + S S^T = L L^T, or I + S^T S where that is no larger."""
        rows = self.scaled if self.is_wide else self.scaled.T
        return triangular_inverse(cholesky(np.eye(len(rows), dtype=self.wide) + rows @ rows.T))

    @property
    def is_wide(self) -> bool:
        """Whether m < d."""
        return self.scaled.shape[0] < self.scaled.shape[1]

    def _solve_scaled(self, u: np.ndarray) -> np.ndarray:
        """(I + S^T S)^-1 u. Each round corrects the last one by the residual that is really there."""
        rows, factor = self.scaled, self._inverse_factor
        solution, dual = (u, 0.0) if self.is_wide else (np.zeros_like(u), 0.0)
        for _ in range(2 if self.kappa < 1e8 else 6):
            if self.is_wide:  # u = solution + S^T dual throughout; the rounds bring dual to S solution
                step = factor.T @ (factor @ (rows @ solution - dual))
                solution, dual = solution - rows.T @ step, dual + step
            else:
                solution = solution + factor.T @ (factor @ (u - solution - rows.T @ (rows @ solution)))
        return solution

    def solve(self, v: np.ndarray) -> np.ndarray:
        """F⁻¹ v in the arithmetic of the oracle.

        Parameters
        ----------
        v : numpy.ndarray, shape (d,) or (d, k)
            One vector, or one per column.

        Returns
        -------
        numpy.ndarray, of the shape of v
            In the dtype `wide`.

        Examples
        --------
        >>> import numpy as np
        >>> from mfac_linalg.testing import Oracle
        >>> oracle, v = Oracle(np.eye(2, 3), damping=0.5), np.ones(3)
        >>> bool(np.allclose(oracle.forward @ oracle.solve(v).astype(float), v))
        True
        """
        roots = self._column(v, self.roots)
        return self._solve_scaled(np.asarray(v, self.wide) / roots) / roots

    @staticmethod
    def _column(v: np.ndarray, roots: np.ndarray) -> np.ndarray:
        return roots if np.ndim(v) == 1 else roots[:, None]

    def _real(self, x: Any) -> np.ndarray:
        """An answer in the arithmetic of the oracle, which would drop an imaginary part."""
        if np.iscomplexobj(x):
            msg = f"`x` must be real, as F is; its dtype is {np.asarray(x).dtype}."
            raise TypeError(msg)
        return np.asarray(x, self.wide)

    @functools.cached_property
    def forward(self) -> np.ndarray:
        """F itself, shape (d, d), float64."""
        gradients: np.ndarray = np.asarray(self.gradients, self.wide)
        return np.asarray(np.diag(self.roots**2) + (gradients.T * self.coefficients) @ gradients, np.float64)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """F⁻¹, shape (d, d), float64."""
        return np.asarray(self.solve(np.eye(len(self.roots))), np.float64)

    def backward_ratio(self, v: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """R = ‖Λ^-½ (v − F x)‖ / (κ ‖Λ^½ x‖ eps + floor): how far x is from an exact answer, in roundings.

        Parameters
        ----------
        v : numpy.ndarray, shape (d,) or (d, k)
            The right-hand side, or one per column.
        x : numpy.ndarray, of the shape of v
            The answer to be judged.
        eps : float
            The rounding unit of the arithmetic that gave x.
        floor : float or numpy.ndarray, shape (k,)
            An error that is allowed besides, in the norm of the numerator.

        Returns
        -------
        numpy.ndarray, shape () or (k,)
            `LIMIT` is the largest that a stable algorithm may have.

        Raises
        ------
        TypeError
            If x is complex.

        Examples
        --------
        >>> import numpy as np
        >>> from mfac_linalg.testing import LIMIT, Oracle
        >>> oracle, v = Oracle(np.eye(2, 3), damping=0.5), np.ones(3)
        >>> bool(oracle.backward_ratio(v, np.linalg.solve(oracle.forward, v), eps=2**-52) < LIMIT)
        True
        """
        roots = self._column(v, self.roots)
        scaled_x = roots * self._real(x)
        residual = np.asarray(v, self.wide) / roots - scaled_x - self.scaled.T @ (self.scaled @ scaled_x)
        return _ratio(residual, scaled_x, self.kappa * eps, floor)

    def forward_ratio(self, v: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """‖Λ^½ (x − F⁻¹ v)‖ / (κ ‖Λ^½ F⁻¹ v‖ eps + floor): the error of x, in units of what rounding may cost.

        Parameters
        ----------
        v : numpy.ndarray, shape (d,) or (d, k)
            The right-hand side, or one per column.
        x : numpy.ndarray, of the shape of v
            The answer to be judged.
        eps : float
            The rounding unit of the arithmetic that gave x.
        floor : float or numpy.ndarray, shape (k,)
            An error that is allowed besides, in the norm of the numerator.

        Returns
        -------
        numpy.ndarray, shape () or (k,)

        Raises
        ------
        TypeError
            If x is complex.

        Examples
        --------
        >>> import numpy as np
        >>> from mfac_linalg.testing import LIMIT, Oracle
        >>> oracle, v = Oracle(np.eye(2, 3), damping=0.5), np.ones(3)
        >>> bool(oracle.forward_ratio(v, 1.001 * oracle.solve(v), eps=2**-52) < LIMIT)
        False
        """
        return self.distance_ratio(self.solve(v), x, eps, floor)

    def distance_ratio(self, exact: np.ndarray, x: np.ndarray, eps: float, floor: Any = 0.0) -> Any:
        """`forward_ratio` where F⁻¹ v is known already.

        Parameters
        ----------
        exact : numpy.ndarray, shape (d,) or (d, k)
            F⁻¹ v.
        x : numpy.ndarray, of the shape of exact
            The answer to be judged.
        eps : float
            The rounding unit of the arithmetic that gave x.
        floor : float or numpy.ndarray, shape (k,)
            As in `forward_ratio`.

        Returns
        -------
        numpy.ndarray, shape () or (k,)

        Raises
        ------
        TypeError
            If x is complex.

        Examples
        --------
        >>> import numpy as np
        >>> from mfac_linalg.testing import Oracle
        >>> oracle, v = Oracle(np.eye(2, 3), damping=0.5), np.ones(3)
        >>> exact, x = oracle.solve(v), np.ones(3)
        >>> ratio = oracle.forward_ratio(v, x, eps=2**-52)
        >>> bool(oracle.distance_ratio(exact, x, eps=2**-52) == ratio)
        True
        """
        roots = self._column(x, self.roots)
        return _ratio(roots * (self._real(x) - exact), roots * exact, self.kappa * eps, floor)

    def rounding_of_combinations(self, coefficients: np.ndarray, eps: float) -> Any:
        """How far rounding its terms moves a combination Gᵀ c of the rows: eps times ‖Λ^-½ abs(G)ᵀ abs(c)‖.

        Parameters
        ----------
        coefficients : numpy.ndarray, shape (m, k)
            The weights c of the rows, by column.
        eps : float
            The rounding unit of the arithmetic.

        Returns
        -------
        numpy.ndarray, shape (k,)
            A `floor` for the ratios.

        Examples
        --------
        >>> import numpy as np
        >>> from mfac_linalg.testing import Oracle
        >>> oracle = Oracle(np.array([[3.0, 4.0]]), damping=1.0)
        >>> oracle.rounding_of_combinations(np.array([[2.0]]), eps=0.5).astype(float)
        array([5.])
        """
        terms = np.abs(np.asarray(self.gradients, self.wide)).T @ np.abs(coefficients)
        return eps * np.sqrt(np.sum((terms / self._column(terms, self.roots)) ** 2, axis=0))


def _ratio(error: np.ndarray, size: np.ndarray, unit: float, floor: Any) -> Any:
    error, size = (np.sqrt(np.sum(array**2, axis=0)) for array in (error, size))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(error == 0, 0, error / (size * unit + floor)), np.float64)
