"""Saliencies: the least increase of the quadratic model of the loss when weights are removed."""

import itertools
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse
from .._scaling.powers_of_two import ldexp, mantissa
from .._scaling.sqrt_damping import as_result, scalar_like
from .._typing import Array
from .groups import check_groups, check_weights, group_systems, scale_to_order_one, scatter, solve_groups
from .slope import check_slope, minimum_of_model

LARGEST_PATTERN = 16


@_backend.outside_graphs
@_backend.in_plain_modes
def obs_scores(weights: Array, inverse: Inverse, *, slope: float = 0.0) -> Array:
    """w_i²/(2 [F⁻¹]_ii), the least that ½ δᵀFδ can be with weight i removed: optimal brain surgeon's saliency.

    With a slope α the model is α ḡᵀδ + ½ δᵀFδ, ḡ = Σ c_i g_i. It is least at w̄ = w − α F⁻¹ḡ, and the score w̄_i²/(2
    [F⁻¹]_ii) is how much more it is at least with weight i removed.

    Parameters
    ----------
    weights : array, shape (d,)
        w, of the inverse's library and device, in its dtype.
    inverse : Inverse
        F⁻¹ of any class. Blocks on the diagonal give the scores of blocked methods.
    slope : float
        α ≥ 0, the weight of the mean gradient: 1/B is consistent for rows that are means of B samples
        (docs/pruning.md, "With a slope"). The weights that stay are then also trained on the rows.

    Returns
    -------
    array, shape (d,)
        In the units of the loss, where F is the curvature of the loss; in any case the order in which to prune. A score
        below the smallest number of its dtype is zero; `prune` orders by square roots, which tells such weights apart.

    Raises
    ------
    TypeError, ValueError
        Weights of another library, device, dtype or shape; nan or infinity among them (host arrays).
    OverflowError
        The scores, or the step of a slope, do not fit into their dtype, or all scores are too small for it (host
        arrays).

    Notes
    -----
    Cost: that of ``inverse.diagonal()``: O(dm) with whitened rows.

    Accuracy: 1e-3 relative and better, that of the diagonal.

    References
    ----------
    .. [1] B. Hassibi, D. G. Stork, "Second order derivatives for network pruning: optimal brain surgeon",
       NeurIPS 1992.
    .. [2] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 2 and equation (2).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import obs_scores
    >>> gradients = np.array([[3.0, 0.0, 1.0], [0.0, 0.1, 1.0]])
    >>> scores = obs_scores(np.ones(3), ml.WoodburyRankOneInverse(gradients, damping=0.1))
    >>> scores.argmin()  # the weight that the loss depends on least
    np.int64(1)
    """
    w = minimum_of_model(check_weights(weights, inverse), inverse, check_slope(slope))
    return _backend.with_x64(_obs_scores, inverse._unchanged, w)


def _obs_scores(state: State, weights: Array) -> Array:
    roots, power = _scaled_score_roots(state, weights)
    fraction, shift = mantissa(state.scaling.scale)
    odd = shift % 2  # √λ₀ 2^power is √(fraction 2^odd) 2^((shift − odd)/2 + power)
    half = _backend.like_small_system((shift - odd) // 2) + _backend.like_small_system(power)
    unit = scalar_like(fraction, roots) * 2.0**odd if isinstance(odd, int) else ldexp(scalar_like(fraction, roots), odd)
    values = ldexp(roots * (unit / 2) ** 0.5, half)
    values = _backend.as_lazy(values * values, like=state.form.rows.like)
    return as_result(values, "weights", like=weights, dtype=state.dtype, unscaled=roots)


def score_roots(weights: Array, inverse: Inverse) -> Array:
    """√score up to a common factor, which orders weights as `obs_scores` does, for weights and dampings of any size.

    Float64 where the weights' library has it.
    """
    return _backend.with_x64(_score_roots_as_wide, inverse._unchanged, check_weights(weights, inverse))


def _score_roots_as_wide(state: State, weights: Array) -> Array:
    roots, _ = _scaled_score_roots(state, weights)
    wide = _backend.namespace(weights).float64 if _backend.supports_float64(weights) else weights.dtype
    return _backend.from_float64(_backend.as_lazy(roots, like=state.form.rows.like), like=weights, dtype=wide)


def _scaled_score_roots(state: State, weights: Array) -> tuple[Array, Any]:
    """|z_i|/√M_ii · 2^−power, (d,) float64, and power: the roots of scores, times √(2/λ₀)."""
    z, power = state.to_scaled(weights)
    return _backend.namespace(z).abs(z) / state.bounded_diagonal() ** 0.5, power


@_backend.outside_graphs
def group_scores(weights: Array, inverse: Inverse, groups: Any, *, slope: float = 0.0) -> Array:
    """½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q, the least that ½ δᵀFδ can be with all weights of a group Q removed.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    groups : int or array of int, shape (k, B)
        The indices of each group; an int B for runs of B neighbours. No index twice; not all have to be in a group.
    slope : float
        α ≥ 0 of `obs_scores`.

    Returns
    -------
    array, shape (k,)

    Raises
    ------
    TypeError
        Weights as `obs_scores` refuses them; indices that are not integers.
    IndexError
        An index outside [−d, d).
    ValueError
        A size that does not divide d, an index twice, another shape.

    Notes
    -----
    Cost: B²/2 elements of F⁻¹ a group, O(m) each with whitened rows, and an eigendecomposition of B × B.

    Accuracy: float64 throughout; between ½ w_Qᵀ Λ w_Q and 2(1 + Σ_i c_i g_iᵀ Λ⁻¹ g_i) times that, whatever the elements
    lost, for F = Λ + Σ_i c_i g_i g_iᵀ with the damping on the diagonal of Λ.

    References
    ----------
    .. [1] E. Kurtic et al., "The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large Language
       Models", EMNLP 2022, arXiv:2203.07259, section 3.1.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import group_scores
    >>> gradients = np.random.default_rng(0).standard_normal((8, 6))
    >>> inverse, w = ml.WoodburyRankOneInverse(gradients, damping=0.1), np.ones(6)
    >>> scores = group_scores(w, inverse, 2)  # of w[0:2], w[2:4] and w[4:6]
    >>> block = inverse.submatrix([0, 1])
    >>> scores.shape, bool(np.isclose(scores[0], w[:2] @ np.linalg.solve(block, w[:2]) / 2))
    ((3,), True)
    """
    w = minimum_of_model(check_weights(weights, inverse), inverse, check_slope(slope))
    groups = check_groups(groups, inverse)
    return _backend.with_x64(_group_scores, inverse._unchanged, w, groups)


def _group_scores(state: State, weights: Array, groups: Array) -> Array:
    blocks, z, power = group_systems(state, weights, groups)
    z, powers = scale_to_order_one(z)
    doubled = solve_groups(blocks, z, state.floor())[1]
    fraction, shift = mantissa(state.scaling.scale)
    powers = 2 * (powers[:, 0] + _backend.like_small_system(power)) + _backend.like_small_system(shift)
    values = ldexp(doubled * scalar_like(fraction, doubled) / 2, powers)
    return as_result(values, "weights", like=weights, dtype=state.dtype, unscaled=doubled)


@_backend.outside_graphs
def n_m_mask(weights: Array, inverse: Inverse, n: int, m: int, *, groups: Any = None, slope: float = 0.0) -> Array:
    """Return the mask that keeps n of every m weights, such that removing the other m − n together costs least.

    Of each group, every subset Q of m − n weights is scored by ½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    n, m : int
        0 < n < m ≤ 16: 2 and 4 for the pattern that hardware runs.
    groups : array of int, shape (k, m), optional
        The indices of each group; runs of m neighbours unless given. Weights in no group are kept.
    slope : float
        α ≥ 0 of `obs_scores`.

    Returns
    -------
    array of bool, shape (d,)
        True where a weight stays.

    Raises
    ------
    TypeError, IndexError, ValueError
        As `group_scores`; n and m out of range, an m that does not divide d, groups of another size than m.

    Notes
    -----
    Cost: as `group_scores`, and an eigendecomposition for each of the m over n subsets of a group.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import n_m_mask
    >>> inverse = ml.WoodburyRankOneInverse(np.eye(8), damping=0.1)  # of a multiple of I
    >>> weights = np.array([1.0, 4.0, 2.0, 3.0, 8.0, 5.0, 7.0, 6.0])
    >>> n_m_mask(weights, inverse, 2, 4).astype(int)  # so the largest stay
    array([0, 1, 0, 1, 1, 0, 1, 0])
    """
    w = minimum_of_model(check_weights(weights, inverse), inverse, check_slope(slope))
    n, m = check.size("n", n), check.size("m", m)
    if not n < m <= LARGEST_PATTERN:
        msg = f"`n` must be less than `m`, and m ≤ {LARGEST_PATTERN}; got {n} of {m}. Pass 2 and 4 for 2:4."
        raise ValueError(msg)
    if groups is None and inverse.dim % m:
        msg = f"`m` must divide d = {inverse.dim}; got {m}. Pass `groups`, the indices of {m} weights each."
        raise ValueError(msg)
    groups = check_groups(m if groups is None else groups, inverse)
    if groups.shape[1] != m:
        msg = f"`groups` must have shape (k, {m}); got {tuple(groups.shape)}. Give the indices of {m} weights a group."
        raise ValueError(msg)
    return _backend.with_x64(_n_m_mask, inverse._unchanged, w, groups, n)


def _n_m_mask(state: State, weights: Array, groups: Array, n: int) -> Array:
    blocks, z, _ = group_systems(state, weights, groups)
    z, _ = scale_to_order_one(z)
    xp, m = _backend.namespace(z), groups.shape[1]
    least = xp.full_like(z[:, :1], xp.inf)
    mask = z != z
    for subset in itertools.combinations(range(m), m - n):
        removed = _backend.index_like(np.array(subset), like=z)
        block = xp.take(xp.take(blocks, removed, axis=1), removed, axis=2)
        score = solve_groups(block, xp.take(z, removed, axis=1), state.floor())[1][:, None]
        remaining = _backend.asarray(~np.isin(np.arange(m), subset), like=z)
        mask = xp.where(score < least, remaining, mask)
        least = xp.minimum(score, least)
    ones = _backend.namespace(weights).ones_like(weights, dtype=mask.dtype)
    flat = _backend.namespace(groups).reshape(groups, (-1,))
    return scatter(_backend.namespace(mask).reshape(mask, (-1,)), flat, ones)
