"""Masks of a lower joint objective, by exchanges of kept and removed weights (docs/pruning.md, "Exchanges")."""

from dataclasses import replace
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._forms.state import State
from .._inverse import Inverse
from .._scaling.sqrt_damping import check_range
from .._typing import Array
from .dual import CLOSE, NOTICEABLE, by_dual
from .groups import check_groups
from .joint import Masked, systems_of
from .quotas import Quotas, ranked
from .slope import check_slope
from .updates import check_weights_and_mask

WIDEST, FEWEST = 64, 4  # candidates of a pair: of all weights, and of each of several groups
PAIRS = 4096  # whose objectives are computed exactly where no batch of exchanges is accepted


@_backend.outside_graphs
@_backend.in_plain_modes
def joint_objective(weights: Array, inverse: Inverse, mask: Array, *, slope: float = 0.0) -> float:
    """½ w_Sᵀ([F⁻¹]_SS)⁻¹w_S, the least that ½ δᵀFδ can be with all weights outside the mask removed.

    With a slope α, the least of α ḡᵀδ + ½ δᵀFδ: what `joint_update` reaches. It is computed by m × m systems, as
    ½ w_SᵀΛ_S w_S + ½ yᵀ(C⁻¹ + G_R Λ_R⁻¹ G_Rᵀ)⁻¹y − ½ α² Σ c_i with y = G_S w_S − α 1.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    mask : array of bool, shape (d,)
        True where a weight stays.
    slope : float
        α ≥ 0 of `obs_scores`; the result may then be negative.

    Returns
    -------
    float
        In the units of the loss, where F is the curvature of the loss.

    Raises
    ------
    TypeError, ValueError
        As `joint_update`.
    OverflowError
        The result does not fit into float64, or is too small for it.

    Notes
    -----
    Cost: the Gram matrix of the columns that stay, dm² flops, and its factorisation.

    Accuracy: float64 where the library has it: κ eps of the removed weights' own terms.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import joint_objective, joint_update
    >>> inverse = ml.WoodburyRankOneInverse(np.array([[1.0, 2.0, 0.5]]), damping=0.1)
    >>> w, mask = np.ones(3), np.array([True, False, True])
    >>> delta = joint_update(w, inverse, mask)
    >>> value = joint_objective(w, inverse, mask)
    >>> bool(np.isclose(value, delta @ (inverse.forward @ delta) / 2))
    True
    """
    w, mask = check_weights_and_mask(weights, inverse, mask, are_read=True)
    return _backend.with_x64(_objective, inverse._unchanged, w, _backend.read(mask), check_slope(slope))


def _objective(state: State, w: Array, mask: np.ndarray, slope: float) -> float:
    systems, power = systems_of(state, w, slope)
    shifts = sum(float(_backend.read(system.shift**2).sum()) for system in systems)
    objective = Masked.of(systems, mask).objective - shifts / 2
    scale = state.scaling.scale
    with np.errstate(over="ignore", under="ignore"):
        value = np.ldexp(objective * (scale if isinstance(scale, float) else _backend.read(scale)), 2 * power)
    return float(check_range(value, np.asarray(objective), "weights"))


@_backend.outside_graphs
@_backend.in_plain_modes
def exchange(
    weights: Array, inverse: Inverse, mask: Array, *, slope: float = 0.0, groups: Any = None, steps: int = 50
) -> Array:
    """Return a mask of as many weights whose joint objective is lower, by its dual and by exchanges of weights.

    The objective is what `joint_update` reaches: min α ḡᵀδ + ½ δᵀFδ under δ_S = −w_S. First come Newton steps in its
    dual, which has m unknowns and bounds the objective of all masks from below. Each meets a mask, that of the weights
    that are largest after compensation; the best counts. Where that is noticeably above the bound, a further step
    exchanges as many pairs as lower the objective: the removed weights whose return saves most for the kept ones whose
    removal costs least, each by itself; half as many where they do not, down to the best single pair.

    Parameters
    ----------
    weights : array, shape (d,)
        As in `obs_scores`.
    inverse : Inverse
        As in `obs_scores`.
    mask : array of bool, shape (d,)
        True where a weight stays: where the search starts.
    slope : float
        α ≥ 0 of `obs_scores`.
    groups : int or array of int, shape (k, B), optional
        Weights that may be exchanged for one another, as in `group_scores`: each group keeps its number. Weights in no
        group stay as they are. All weights are one group unless given.
    steps : int
        The largest number of steps.

    Returns
    -------
    array of bool, shape (d,)
        The objective is not above that of `mask`.

    Raises
    ------
    TypeError, IndexError, ValueError
        As `joint_update` and `group_scores`; steps below 1.

    Notes
    -----
    Cost: a Gram matrix of the columns that stay. A step in the dual takes two passes over S, the Gram matrices of the
    columns that change and of at most a twentieth of all, and two m × m factorisations. One of exchanges takes a
    triangular solve with all columns, dm² flops, and a factorisation for each trial. S is read in float64.

    Accuracy: either the objective is within 1e-3 of itself of the bound, and so of the best of all masks, as usual
    where d is much larger than m; or no exchange of one of the 64 best of each kind, of the 4 best in each of several
    groups, for another lowers it; or the last step lowered it by less than 1e-4 of itself.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.pruning import exchange, obs_scores
    >>> rng = np.random.default_rng(1)
    >>> inverse = ml.WoodburyRankOneInverse(rng.standard_normal((3, 8)), damping=0.01)
    >>> w = rng.standard_normal(8)
    >>> start = obs_scores(w, inverse) >= np.median(obs_scores(w, inverse))
    >>> found = exchange(w, inverse, start)
    >>> start.astype(int), found.astype(int)
    (array([1, 1, 0, 0, 0, 0, 1, 1]), array([1, 0, 0, 0, 1, 0, 1, 1]))
    """
    w, mask = check_weights_and_mask(weights, inverse, mask, are_read=True)
    alpha, steps = check_slope(slope), check.size("steps", steps)
    labels = np.zeros(inverse.dim, np.int64)
    if groups is not None:
        groups = _backend.read(check_groups(groups, inverse))
        labels[:] = -1
        labels[groups.reshape(-1)] = np.repeat(np.arange(len(groups)), groups.shape[1])
    return exchanged(w, inverse, mask, labels, slope=alpha, steps=steps)


def exchanged(w: Array, inverse: Inverse, mask: Array, labels: np.ndarray, *, slope: float, steps: int) -> Array:
    """The same for the group of each weight, −1 for one that stays as it is."""
    found = _backend.with_x64(_search, inverse._unchanged, w, _backend.read(mask), labels, slope, steps)
    return _backend.asarray(found, like=mask)


def _search(state: State, w: Array, mask: np.ndarray, labels: np.ndarray, slope: float, steps: int) -> np.ndarray:
    found = by_dual(Masked.of(systems_of(state, w, slope)[0], mask), Quotas(mask, labels), steps)
    now, taken = found.best, found.steps
    while taken < steps and not found.is_within(CLOSE):
        after = _after_step(now, labels)
        if after is None:
            break
        is_last = now.objective - after.objective <= NOTICEABLE * now.objective
        now, taken = after, taken + 1
        if is_last:
            break
        found = replace(found, best=now)
    return now.mask


def _after_step(now: Masked, labels: np.ndarray) -> Masked | None:
    """After as many exchanges as lower the objective, or after the best one; None if none does."""
    mask, moment, curvature = now.mask, now.concatenated("moment"), now.concatenated("curvature")
    singles = 0.5 * moment**2 / curvature
    pairs = _matched(singles, mask, labels)
    while len(pairs):
        if after := now.lower(pairs):
            return after
        pairs = pairs[: len(pairs) // 2]
    pairs = _candidates(singles, mask, labels)
    if len(pairs) == 0:
        return None
    changes = now.changes(pairs, moment, curvature)
    return now.lower(pairs[[np.argmin(changes)]])


def _matched(singles: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pairs of a removed weight and one of its group, best with cheapest and so on, that save more than they cost."""
    (back, first), (away, second) = _ranked(singles, mask, labels)
    keys = labels[back] * (len(mask) + 1) + first, labels[away] * (len(mask) + 1) + second
    _, first, second = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    return _by_savings(np.stack([back[first], away[second]], axis=1), singles, least=0.0)


def _candidates(singles: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pairs (k, 2) of the best removed weights and the cheapest others of each group."""
    count = WIDEST if len(np.unique(labels[labels >= 0])) == 1 else FEWEST
    back, away = (index[rank < count] for index, rank in _ranked(singles, mask, labels))
    starts, stops = (np.searchsorted(labels[away], labels[back], side=side) for side in ("left", "right"))
    lengths = stops - starts
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pairs = np.stack([np.repeat(back, lengths), away[np.repeat(starts, lengths) + within]], axis=1)
    return _by_savings(pairs, singles, least=-np.inf)[:PAIRS]


def _ranked(singles: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Removed weights from the best and others from the cheapest on, group by group, and their ranks in the groups."""
    return [ranked(chosen, order, labels) for chosen, order in ((~mask, -singles), (mask, singles))]


def _by_savings(pairs: np.ndarray, singles: np.ndarray, *, least: float) -> np.ndarray:
    """The pairs that save more than `least`, those that save most first."""
    saved = singles[pairs[:, 0]] - singles[pairs[:, 1]]
    order = np.argsort(-saved, kind="stable")
    return pairs[order][saved[order] > least]
