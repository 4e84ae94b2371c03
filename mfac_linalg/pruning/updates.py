"""The change δ of all weights that compensates best for those removed; w + δ is pruned."""

from typing import Any

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse
from .._typing import Array
from .compensation import check_compensation_damping, compensate
from .groups import check_groups, check_weights, group_solutions, scatter
from .slope import check_slope, minimum_of_model


@_backend.outside_graphs
@_backend.in_plain_modes
def obs_update(weights: Array, inverse: Inverse, mask: Array, *, slope: float = 0.0) -> Array:
    """Return the sum of the best changes for each removed weight by itself, −Σ_i w_i/[F⁻¹]_ii F⁻¹ e_i: the paper's.

    For several removed weights it is not the best change, because each term assumes that the other weights stay;
    `joint_update` is. Removed weights become zero all the same.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    mask : array of bool, shape (d,)
        True where a weight stays.
    slope : float
        α ≥ 0 of `obs_scores`: the change of weights that stay then moves them to the minimum of the model too.

    Returns
    -------
    array, shape (d,)
        δ, with δ_i = −w_i for removed weights.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `obs_scores`; a mask that is not a boolean array (d,) of the inverse's library.

    Notes
    -----
    Cost: a diagonal and a product with F⁻¹.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 2 and equation (2).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import obs_update
    >>> inverse = ml.WoodburyRankOneInverse(np.array([[1.0, 1.0]]), damping=0.5)
    >>> obs_update(np.ones(2), inverse, np.array([False, True])).round(3)
    array([-1.   ,  0.667])
    """
    w, mask = check_weights_and_mask(weights, inverse, mask)
    least = minimum_of_model(w, inverse, check_slope(slope))
    change = (least - w) - _backend.with_x64(_single_changes, inverse._unchanged, least, mask)
    return _backend.namespace(w).where(mask, change, -w)


def _single_changes(state: State, w: Array, mask: Array) -> Array:
    """Λ^-½ M applied to z_i/M_ii of the removed weights."""
    z, power = state.to_scaled(_backend.namespace(w).where(mask, _backend.namespace(w).zeros_like(w), w))
    return state.solve_scaled(z / state.bounded_diagonal(), power)


@_backend.outside_graphs
@_backend.in_plain_modes
def group_update(weights: Array, inverse: Inverse, groups: Any, *, slope: float = 0.0) -> Array:
    """Return the sum of the best changes for each removed group by itself, −Σ_Q F⁻¹_:Q ([F⁻¹]_QQ)⁻¹ w_Q.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    groups : array of int, shape (k, B)
        The indices of each group that is removed, as for `group_scores`.
    slope : float
        α ≥ 0 of `obs_scores`: the change of weights that stay then moves them to the minimum of the model too.

    Returns
    -------
    array, shape (d,)
        δ, with δ_i = −w_i for removed weights.

    Raises
    ------
    TypeError, IndexError, ValueError
        As `group_scores`.

    Notes
    -----
    Cost: as `group_scores`, and a product with F⁻¹.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import group_update
    >>> gradients = np.random.default_rng(0).standard_normal((8, 6))
    >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
    >>> delta = group_update(np.ones(6), inverse, np.array([[0, 1], [2, 3]]))
    >>> np.ones(6)[:4] + delta[:4]
    array([0., 0., 0., 0.])
    """
    w = check_weights(weights, inverse)
    groups = check_groups(groups, inverse)
    least = minimum_of_model(w, inverse, check_slope(slope))
    change, removed = _backend.with_x64(_group_changes, inverse._unchanged, least, groups)
    return _backend.namespace(w).where(removed, -w, (least - w) - change)


@_backend.outside_graphs
@_backend.in_plain_modes
def joint_update(
    weights: Array,
    inverse: Inverse,
    mask: Array,
    *,
    slope: float = 0.0,
    compensation_damping: float | str = 0.0,
) -> Array:
    """Return the best change with all weights outside the mask removed: the minimum of ½ δᵀFδ under δ_S = −w_S.

    With R for the weights that stay and S for those removed, F_RR δ_R = F_RS w_S. For F = Λ + Gᵀ C G, with the damping
    on the diagonal of Λ and the factors of the rows on that of C,

        δ_R = Λ_R⁻¹ G_Rᵀ (C⁻¹ + G_R Λ_R⁻¹ G_Rᵀ)⁻¹ G_S w_S,

    for scalar damping δ_R = G_Rᵀ (G_R G_Rᵀ + mλI)⁻¹ G_S w_S (docs/pruning.md). With a slope α the minimum is that of
    α ḡᵀδ + ½ δᵀFδ, and G_S w_S − α 1 stands in the place of G_S w_S.

    In one large step that minimum may trust the gradients too far. A damping θ of the compensation adds
    θ G_S Λ_S⁻¹ G_Sᵀ to the matrix that is inverted. That is the minimum where each removed weight is ε_i instead of
    zero at the cost λ_i ε_i²/(2θ), and at θ = 1 the sum of single changes, up to the factors λ_i [F⁻¹]_ii.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    mask : array of bool, shape (d,)
        True where a weight stays.
    slope : float
        α ≥ 0 of `obs_scores`: the change of weights that stay then moves them to the minimum of the model too.
    compensation_damping : float or "auto"
        θ in [0, 1]; 0 is the minimum. "auto" takes the square of the optimism: of the amount by which the
        compensation leaves more of the damage in rows that it has not seen than in its own, by leave-one-out in closed
        form, as a share of all damage, at most 1. One θ for all blocks.

    Returns
    -------
    array, shape (d,)
        δ, with δ_S = −w_S.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `obs_update`; ValueError also for an inverse that has whitened rows in a file and nothing else.

    Notes
    -----
    Cost: the Gram matrix of the columns that stay, dm² flops, its factorisation, and two passes over G; with θ > 0
    that of all columns too, twice as much for "auto", which needs values now, not under `jit`.

    Accuracy: by push-through: no digits are lost to the damping.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import joint_update
    >>> gradients, w = np.random.default_rng(0).standard_normal((2, 5)), np.ones(5)
    >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1e-6)
    >>> delta = joint_update(w, inverse, np.array([True, True, True, False, False]))
    >>> (w + delta)[3:]
    array([0., 0.])
    >>> bool(np.allclose(gradients @ delta, 0, atol=1e-4))  # the gradients see no change
    True
    """
    alpha, theta = check_slope(slope), check_compensation_damping(compensation_damping)
    w, mask = check_weights_and_mask(weights, inverse, mask, are_read=isinstance(theta, str))
    removed = _backend.namespace(w).where(mask, _backend.namespace(w).zeros_like(w), w)
    change = _backend.with_x64(compensate, inverse._unchanged, removed, mask, alpha, theta)
    return _backend.namespace(w).where(mask, change, -w)


def _group_changes(state: State, w: Array, groups: Array) -> tuple[Array, Array]:
    """Λ^-½ M applied to the solutions of all groups, and the mask of the removed weights."""
    xp = _backend.namespace(w)
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    removed = scatter(xp.ones_like(xp.take(w, flat)), flat, xp.zeros_like(w)) > 0
    return state.solve_scaled(*group_solutions(state, w, groups)), removed


def check_weights_and_mask(weights: Any, inverse: Inverse, mask: Any, *, are_read: bool = False) -> tuple[Array, Array]:
    """Accept the weights and a mask of them; what is read must have values, perhaps while it is differentiated."""
    w = check_weights(weights, inverse)
    mask = check.mask("mask", mask, inverse._like, inverse.dim)
    for name, x in (("weights", w), ("mask", mask), ("inverse", inverse._unchanged.row_scale)) if are_read else ():
        check.values(name, _backend.unwrapped(x))
    return w, mask
