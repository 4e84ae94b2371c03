"""Problems: gradients of a kind, with the damping for a condition number, and the vectors that are hard for them.

Everything is drawn from one seed, so that a problem is named by the call that makes it.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._repr import as_table
from ._gradients import KINDS
from ._oracle import Oracle, require_normalization

GROUPS = {
    "in span": ("row", "largest row", "combination", "first singular vector"),
    "orthogonal": ("orthogonal to rows",),
    "random": ("random",),
    "cancelling": ("difference of rows", "middle singular vector", "last singular vector", "mix"),
}
"""Right-hand sides by what is hard about them."""


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """Gradients, damping, weights and normalization of F = Λ + Σ c_i g_i g_iᵀ, as NumPy data of one dtype.

    Its `repr` is the call of `make_problem` that makes it again.

    Parameters
    ----------
    name : str
        That call.
    gradients : numpy.ndarray, shape (m, d)
        The rows g_i.
    damping : float or numpy.ndarray, shape (d,)
        λ, or the diagonal of Λ.
    weights : numpy.ndarray, shape (m,), or None
        The w_i of c_i = w_i/n; None for 1.
    normalization : str
        "mean" for n = m, "sum" for n = 1.
    wide : type
        The dtype of the oracle's arithmetic.

    Raises
    ------
    TypeError
        Gradients that are no matrix of real floating numbers.
    ValueError
        Another normalization.

    Examples
    --------
    >>> from mfac_linalg.testing import make_problem
    >>> problem = make_problem(0, shape=(3, 5), kappa=10.0)
    >>> problem
    make_problem(0, kind='gaussian', shape=(3, 5), kappa=10.0, dtype='float64')
    >>> problem.gradients.shape, round(problem.oracle.kappa, 6)
    ((3, 5), 10.0)
    """

    name: str
    gradients: np.ndarray
    damping: Any
    weights: np.ndarray | None = None
    normalization: str = "mean"
    wide: type = np.longdouble

    def __post_init__(self) -> None:
        require_normalization(self.normalization)
        gradients = self.gradients
        if not isinstance(gradients, np.ndarray) or gradients.ndim != 2 or gradients.dtype.kind != "f":
            shape = getattr(gradients, "shape", type(gradients).__name__)
            msg = f"`gradients` must be a NumPy matrix (m, d) of floating numbers; got {shape} of "
            msg += f"{getattr(gradients, 'dtype', 'no dtype')}. Cast it to float64."
            raise TypeError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, d) of the gradients."""
        m, d = self.gradients.shape
        return m, d

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return self.gradients.dtype.name

    @property
    def eps(self) -> float:
        """The rounding unit of the dtype."""
        return float(np.finfo(self.gradients.dtype).eps)

    @property
    def coefficients(self) -> np.ndarray:
        """The c_i, shape (m,), float64."""
        return self.oracle.coefficients.astype(np.float64)

    @functools.cached_property
    def oracle(self) -> Oracle:
        """The dense answers."""
        return Oracle(self.gradients, self.damping, self.weights, self.normalization, self.wide)

    def copy(self) -> "Problem":
        """The same problem on arrays of its own, with the same oracle.

        Returns
        -------
        Problem

        Examples
        --------
        >>> from mfac_linalg.testing import make_problem
        >>> problem = make_problem(0)
        >>> copy = problem.copy()
        >>> copy.gradients is problem.gradients, copy.oracle is problem.oracle
        (False, True)
        """
        arrays = {name: getattr(self, name) for name in ("gradients", "damping", "weights")}
        copies: dict[str, Any] = {name: array.copy() for name, array in arrays.items() if isinstance(array, np.ndarray)}
        other = replace(self, **copies)
        other.__dict__["oracle"] = self.oracle
        return other

    def scaled_by(self, scale: float) -> "Problem":
        """The same problem in other units: gradients times a scale, damping times its square.

        Parameters
        ----------
        scale : float
            The scale; F⁻¹ is divided by its square.

        Returns
        -------
        Problem

        Examples
        --------
        >>> from mfac_linalg.testing import make_problem
        >>> problem = make_problem(0, kappa=10.0)
        >>> scaled = problem.scaled_by(2.0)
        >>> scaled.damping / problem.damping, round(scaled.oracle.kappa, 6)
        (4.0, 10.0)
        """
        gradients = (self.gradients * np.float64(scale)).astype(self.dtype)
        return replace(self, name=f"{self}.scaled_by({scale!r})", gradients=gradients, damping=self.damping * scale**2)

    def permuted(self) -> "Problem":
        """The same problem with the gradients in reverse order.

        Returns
        -------
        Problem

        Examples
        --------
        >>> from mfac_linalg.testing import make_problem
        >>> problem = make_problem(0)
        >>> bool((problem.permuted().gradients[0] == problem.gradients[-1]).all())
        True
        """
        weights = None if self.weights is None else self.weights[::-1].copy()
        return replace(self, name=f"{self}.permuted()", gradients=self.gradients[::-1].copy(), weights=weights)

    def with_damping(self, damping: Any) -> "Problem":
        """The same gradients under another damping.

        Parameters
        ----------
        damping : float or numpy.ndarray, shape (d,)
            λ, or the diagonal of Λ.

        Returns
        -------
        Problem

        Examples
        --------
        >>> from mfac_linalg.testing import make_problem
        >>> make_problem(0, kappa=10.0).with_damping(0.5)
        make_problem(0, kind='gaussian', shape=(6, 14), kappa=10.0, dtype='float64').with_damping(0.5)
        """
        words = (
            f"np.array({damping.tolist()}, {damping.dtype.name!r})"
            if isinstance(damping, np.ndarray)
            else repr(damping)
        )
        return replace(self, name=f"{self}.with_damping({words})", damping=damping)

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython and Hypothesis print."""
        printer.text(self.name)

    def _repr_html_(self) -> str:
        (m, d), damping = self.shape, self.damping
        facts = {"m": f"{m}", "d": f"{d}", "κ": f"{self.oracle.kappa:.3g}", "dtype": self.dtype}
        facts["damping"] = f"{damping:.3g}" if np.ndim(damping) == 0 else "one per parameter"
        facts["weights"] = "none" if self.weights is None else "one per gradient"
        return as_table("Problem", {**facts, "normalization": self.normalization, "made by": self.name})


def make_problem(
    seed: int,
    *,
    kind: str = "gaussian",
    shape: tuple[int, int] = (6, 14),
    kappa: float = 100.0,
    dtype: str = "float64",
    vector: bool = False,
    weighted: bool = False,
    normalization: str = "mean",
    wide: type = np.longdouble,
) -> Problem:
    """Return a problem of a kind, with the damping for which κ = ‖F‖/λ is as given.

    Parameters
    ----------
    seed : int
        Of NumPy's generator.
    kind : str
        The kind of gradients, one of the keys of `KINDS`.
    shape : tuple of int
        (m, d).
    kappa : float
        κ = 1 + ‖S‖², above 1; for one λ, ‖F‖/λ.
    dtype : str
        "float32" or "float64".
    vector : bool
        A damping per parameter, over two decades.
    weighted : bool
        A weight per gradient, over two decades.
    normalization : str
        "mean" for c_i = w_i/m, "sum" for c_i = w_i.
    wide : type
        The dtype of the oracle's arithmetic; numpy.float64 is faster, for sizes of a thousand.

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        Another kind, shape, dtype or normalization; a κ that is not above 1.

    Examples
    --------
    >>> from mfac_linalg.testing import make_problem
    >>> make_problem(1, kind="duplicates", shape=(4, 9), kappa=50.0).gradients.shape
    (4, 9)
    """
    if kind not in KINDS:
        msg = f"`kind` must be one of {sorted(KINDS)}; got {kind!r}."
        raise ValueError(msg)
    if not 1 < kappa < np.inf:
        msg = f"`kappa` must be finite and above 1, the value without gradients; got {kappa}."
        raise ValueError(msg)
    require_normalization(normalization)
    (m, d), dtype = shape, float_name(dtype)
    if m < 1 or d < 1:
        msg = f"`shape` must be (m, d) with m ≥ 1 and d ≥ 1; got {shape}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    gradients = KINDS[kind](rng, m, d).astype(dtype)
    weights = (10 ** rng.uniform(-1, 1, m)).astype(dtype) if weighted else None
    profile = (10 ** rng.uniform(-1, 1, d)).astype(dtype) if vector else 1.0
    least = Oracle(gradients, profile, weights, normalization, wide).size / (kappa - 1)
    damping: Any = (profile * least).astype(dtype) if isinstance(profile, np.ndarray) else least
    rare = {"vector": vector, "weighted": weighted}
    options = "".join(f", {name}={value}" for name, value in rare.items() if value)
    options += f", normalization={normalization!r}" if normalization != "mean" else ""
    options += f", wide=np.{np.dtype(wide).name}" if wide is not np.longdouble else ""
    name = f"make_problem({seed}, kind={kind!r}, shape={shape}, kappa={kappa}, dtype={dtype!r}{options})"
    return Problem(name, gradients, damping, weights, normalization, wide)


def float_name(dtype: Any) -> str:
    """The name of a dtype, one of the two that problems have."""
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in ("float32", "float64"):
        msg = f"`dtype` must be 'float32' or 'float64'; got {dtype!r}."
        raise ValueError(msg)
    return name


def right_hand_sides(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    """Return the vectors that are hard for an inverse, by name, each (d,) in the problem's dtype and units.

    Parameters
    ----------
    problem : Problem
        The matrix.
    seed : int
        For those that are random, and for the choice of rows.

    Returns
    -------
    dict of str to numpy.ndarray, shape (d,)
        A row, the largest row and a combination of the rows lie in their span, where an inverse is 1/κ of what v/λ
        says. A difference of rows and singular vectors from the middle cancel in other ways. A random vector shows
        little of either, and a vector orthogonal to the rows, where there is one, is mapped to v/λ.

    Examples
    --------
    >>> from mfac_linalg.testing import make_problem, right_hand_sides
    >>> sorted(right_hand_sides(make_problem(0), 0))[:3]
    ['combination', 'difference of rows', 'first singular vector']
    """
    rng = np.random.default_rng(seed)
    gradients = problem.gradients.astype(np.float64)
    m, d = gradients.shape
    oracle = problem.oracle
    roots = oracle.roots.astype(np.float64)
    rank = min(m, d)
    singular = np.linalg.svd(oracle.scaled.astype(np.float64), full_matrices=False)[2]
    basis = singular * roots  # in these units F maps basis[k] / damping to itself times 1 + s_k
    unit = np.linalg.norm(gradients) / np.sqrt(d)
    first, second = rng.integers(0, m, 2)
    order = np.argsort(-np.linalg.norm(gradients, axis=1))
    vectors = {
        "random": rng.standard_normal(d),
        "row": gradients[first],
        "largest row": gradients[order[0]],
        "difference of rows": gradients[order[0]] - gradients[second],
        "combination": gradients.T @ rng.standard_normal(m),
        "first singular vector": basis[0],
        "middle singular vector": basis[rank // 2],
        "last singular vector": basis[rank - 1],
        "mix": basis[0] + 1e-3 * basis[rank // 2] + 1e-6 * basis[-1],
    }
    if d > rank:
        free = rng.standard_normal((d,))
        for _ in range(2):
            free = free - singular.T @ (singular @ free)
        vectors["orthogonal to rows"] = free * roots
    sizes = {name: float(np.linalg.norm(vector)) or 1.0 for name, vector in vectors.items()}
    return {name: (vector * (unit / sizes[name])).astype(problem.dtype) for name, vector in vectors.items()}
