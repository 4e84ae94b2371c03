"""Optimal brain surgeon against magnitude, at the same sparsities."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import WoodburyRankOneInverse
from .digits import Images
from .network import Array, accuracy, per_sample_gradients, weight_mask
from .progress import with_progress

TARGETS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)

Mask = NDArray[np.bool_]


class Curves(NamedTuple):
    """Test accuracy of each method at each sparsity of a schedule."""

    sparsity: Array
    magnitude: Array
    one_shot: Array
    recomputed: Array


def schedule(steps: int) -> Array:
    """Sparsities up to each of `TARGETS` in `steps` steps that keep the same fraction of the weights each."""
    densities = 1 - np.array([0.0, *TARGETS])
    positions = np.arange(1, len(TARGETS) * steps + 1) / steps
    logarithms: Array = np.interp(positions, np.arange(len(densities)), np.log(densities))
    return 1 - np.exp(logarithms)


def lowest(scores: Array, removable: Mask, count: int) -> Mask:
    """The mask of the `count` lowest scores among the removable parameters."""
    order = np.argsort(np.where(removable, scores, np.inf), kind="stable")
    mask = np.zeros_like(removable)
    mask[order[:count]] = True
    return mask


def prune_by_magnitude(parameters: Array, removable: Mask, count: int) -> Array:
    """Set the `count` smallest weights to zero."""
    return np.where(lowest(abs(parameters), removable, count), 0, parameters)


def prune_by_curvature(
    parameters: Array, removable: Mask, count: int, inverse: WoodburyRankOneInverse
) -> tuple[Array, Mask]:
    """Remove the `count` weights that cost least under F, and update the others to compensate.

    Weight i costs w_i² / (2 [F⁻¹]_ii). The update is -F⁻¹u with u_i = w_i / [F⁻¹]_ii on the removed weights,
    the sum of the best updates for removing each alone (M-FAC, arXiv 2107.03356).
    """
    diagonal = inverse.diagonal()
    removed = lowest(parameters**2 / (2 * diagonal), removable, count)
    update = inverse @ np.where(removed, parameters / diagonal, 0)
    return np.where(removed, 0, parameters - update), removed


def prune_gradually(parameters: Array, images: Images, counts: Sequence[int], *, damping: float) -> Iterator[Array]:
    """Remove weights up to each of `counts`, with new gradients of the remaining parameters before each step."""
    weights, alive = weight_mask(), np.arange(len(parameters))
    for count in with_progress(counts, "pruning"):
        gradients = per_sample_gradients(parameters, images)[:, alive]
        inverse = WoodburyRankOneInverse(gradients, damping)
        more = count - (len(parameters) - len(alive))
        remaining, removed = prune_by_curvature(parameters[alive], weights[alive], more, inverse)
        parameters = np.zeros_like(parameters)
        parameters[alive] = remaining
        alive = alive[~removed]
        yield parameters


def compare(parameters: Array, inverse: WoodburyRankOneInverse, images: Images, test: Images, *, steps: int) -> Curves:
    """Prune by magnitude, by `inverse` in one shot, and with F recomputed at every sparsity."""
    sparsities, weights = schedule(steps), weight_mask()
    counts = [round(sparsity * weights.sum()) for sparsity in sparsities]
    networks = (
        (prune_by_magnitude(parameters, weights, count) for count in counts),
        (prune_by_curvature(parameters, weights, count, inverse)[0] for count in counts),
        prune_gradually(parameters, images, counts, damping=inverse.damping),
    )
    return Curves(sparsities, *(np.array([accuracy(each, test) for each in pruned]) for pruned in networks))
