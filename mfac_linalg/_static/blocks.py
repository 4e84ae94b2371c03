"""The inverse of a block-diagonal Fisher-like matrix."""

import copy
from collections.abc import Callable
from typing import Any, Self, cast

from .. import _backend
from .. import _validation as check
from .._backend.pytree import register
from .._files.saveable import Saveable
from .._forms.state import State
from .._inverse import Inverse
from .._rows.kinds import rows_of
from .._rows.protocol import GivenRows
from .._scaling.normalization import divisor_of
from .._typing import Array
from .build_blocks import build_blocks
from .options import Options
from .problem import Problem
from .serialize import arguments_as_arrays, arguments_of


@_backend.methods_outside_graphs
class BlockDiagonalInverse(Inverse, Saveable):
    """F⁻¹ for the blocks on the diagonal of Λ + Σ_i c_i g_i g_iᵀ, zero elsewhere: c_i = w_i/m, or w_i for "sum".

    Λ is the diagonal matrix of the damping. Choose this class where the curvature between layers, or between groups of
    parameters, is to be ignored. A block of B ≤ m columns has a B × B factor, a wider one an m × m factor: the smaller
    one, which also keeps its digits.

    Parameters
    ----------
    gradients : array, shape (m, d), real floating
        One gradient per row, of any array-API library, or a sparse matrix of SciPy or CuPy; kept by reference, and
        not to be changed: queries raise ValueError for a buffer on the host that was refilled
        (`WoodburyRankOneInverse`, Notes, "Shared memory"), and do not see a change of few entries.
    damping : float or array, shape (d,) or (n,)
        λ > 0, one λ per parameter, or one per block where n, the number of blocks, is not d. Unit: that of squared
        gradients.
    block_sizes : int or sequence of int
        Columns of every block, the last of which may be narrower; or those of each block, d in all.
    weights : array, shape (m,), optional
        w_i > 0, not renormalised; 1 unless given.
    normalization : {"mean", "sum"}
        Whether the sum is divided by m, the number of gradients.
    precision : {"default", "high"}
        "high" computes in float64 whatever the dtype of the gradients.

    Raises
    ------
    TypeError
        Not an array, another library, device or dtype than the gradients', block sizes that are no integers.
    ValueError
        Wrong shape, non-finite or non-positive values, block sizes that do not add up to d.
    FactorizationError
        A small system has no factor: gradients that overflow, or damping below round-off.

    Warns
    -----
    IllConditionedWarning
        κ of a block is beyond what the arithmetic in use resolves.

    Notes
    -----
    Cost: build O(d m min(m, B)) and O(d min(m, B)²/B · min(m, B)) for the factors, O(d min(m, B)²/B) memory besides G;
    `matvec` O(d m), and O(d B) for B ≤ m. Neighbours of one size share their calls while m B ≤ 2¹⁸.

    Accuracy: as `WoodburyRankOneInverse`, block by block; `kappa` is the largest of them.

    `dual_coefficients` has one row for each block, shape (n, m).

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 4 (blocks in pruning).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> gradients = np.random.default_rng(0).standard_normal((3, 6))
    >>> inverse = ml.BlockDiagonalInverse(gradients, damping=0.1, block_sizes=[2, 4])
    >>> first = np.linalg.inv(0.1 * np.eye(2) + gradients[:, :2].T @ gradients[:, :2] / 3)
    >>> bool(np.allclose(inverse.submatrix([0, 1]), first))
    True
    """

    def __init__(
        self,
        gradients: Array,
        damping: Any,
        *,
        block_sizes: Any,
        weights: Array | None = None,
        normalization: str = "mean",
        precision: str = "default",
    ) -> None:
        check.can_be_cut(gradients)
        rows = rows_of(gradients, streams=False)
        self._block_sizes = check.block_sizes(block_sizes, rows.shape[1])
        self._damping = check.block_damping(damping, len(self._block_sizes), rows.like)
        self._weights = check.weights(weights, rows.like, rows.shape[0])
        self._normalization = check.choice("normalization", normalization, ("mean", "sum"))
        self._precision = check.choice("precision", precision, ("default", "high"))
        check.precision_available(precision, rows.like)
        register(rows.like, type(self))
        self._state = self._build_state(rows)

    def _build_state(self, rows: GivenRows) -> State:
        dtype = _backend.result_dtype(rows.like)
        options = Options(dtype, self._precision, whiten=False, overwrite=False)
        arguments = (rows, self._damping, self._weights, self._normalization, self._block_sizes, options)
        return _backend.with_x64(_build, *arguments)

    @property
    def _current(self) -> State:
        return self._state

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Columns of every block."""
        return self._block_sizes

    @property
    def damping(self) -> Any:
        """λ as a float, or a copy of the array, (d,) or one number per block, that it was given as."""
        return _backend.copy_of(self._damping) if _backend.is_array(self._damping) else self._damping

    @property
    def gradients(self) -> Array:
        """The caller's gradients, shape (m, d)."""
        return cast(GivenRows, self._unchanged.rows).gradients

    def with_damping(self, damping: Any) -> "BlockDiagonalInverse":
        """Return a new inverse of the same blocks with another damping.

        Parameters
        ----------
        damping : float or array, shape (d,) or (n,)
            As in the constructor.

        Returns
        -------
        BlockDiagonalInverse
            This one stays as it is.

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As the constructor.

        Notes
        -----
        Cost: a build.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> inverse = ml.BlockDiagonalInverse(np.ones((2, 6)), damping=1.0, block_sizes=3)
        >>> inverse.with_damping(np.array([1.0, 2.0])).diagonal()  # one λ per block
        array([0.75, 0.75, 0.75, 0.4 , 0.4 , 0.4 ])
        """
        new = copy.copy(self)
        new._damping = check.block_damping(damping, len(self._block_sizes), self._like)
        new._state = new._build_state(rows_of(self.gradients, streams=False))
        return new

    def _to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        rules = {"normalization": self._normalization, "precision": self._precision}
        facts, arrays = arguments_as_arrays(self.gradients, self._damping, self._weights)
        return {**rules, **facts, "block_sizes": list(self._block_sizes)}, arrays

    @classmethod
    def _from_parts(cls, facts: dict[str, Any], arrays: dict[str, Array]) -> Self:
        gradients, damping, weights = arguments_of(facts, arrays)
        rules = {name: facts[name] for name in ("normalization", "precision", "block_sizes")}
        return cls(gradients, damping, weights=weights, **rules)

    def _map_arrays(self, move: Callable[[Array], Array]) -> Self:
        damping, weights = (move(x) if _backend.is_vector(x) else x for x in (self._damping, self._weights))
        return type(self)(
            move(self.gradients),
            damping,
            block_sizes=self._block_sizes,
            weights=weights,
            normalization=self._normalization,
            precision=self._precision,
        )

    def _describe(self) -> dict[str, str]:
        return {"blocks": f"{len(self._block_sizes)}", **super()._describe()}


def _build(
    rows: GivenRows, damping: Any, weights: Any, normalization: str, sizes: tuple[int, ...], options: Options
) -> State:
    problem = Problem(rows, damping, weights, divisor_of(normalization, rows.shape[0]))
    return build_blocks(problem, sizes, options)
