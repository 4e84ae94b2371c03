"""Optimal brain surgeon against magnitude, at the same sparsities."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import WoodburyRankOneInverse
from .digits import Images
from .network import Array, accuracy, per_sample_gradients, weight_mask
from .progress import tracked

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
    return 1 - np.exp(np.interp(positions, np.arange(len(densities)), np.log(densities)))


def survivors(scores: Array, kept: Mask, sparsity: float) -> Mask:
    """Keep what the lowest scores leave when `sparsity` of the weights are gone; biases always stay."""
    weights = weight_mask()
    ranked = np.where(weights, np.where(kept, scores, -np.inf), np.inf)
    remaining = np.ones_like(weights)
    remaining[np.argsort(ranked, kind="stable")[: round(sparsity * weights.sum())]] = False
    return remaining


def prune_by_magnitude(parameters: Array, sparsity: float) -> Array:
    """Set the smallest weights to zero."""
    everything = np.ones_like(parameters, dtype=bool)
    return np.where(survivors(abs(parameters), everything, sparsity), parameters, 0)


def prune_by_curvature(
    parameters: Array, kept: Mask, sparsity: float, inverse: WoodburyRankOneInverse
) -> tuple[Array, Mask]:
    """Remove the weights that cost least under F and let the others make up for them.

    Weight i costs w_i² / (2 [F⁻¹]_ii). The update is -F⁻¹u with u_i = w_i / [F⁻¹]_ii on the removed weights,
    which adds up the best updates for removing each alone (M-FAC, arXiv 2107.03356).
    """
    diagonal = inverse.diagonal()
    remaining = survivors(parameters**2 / (2 * diagonal), kept, sparsity)
    update = inverse @ np.where(kept & ~remaining, parameters / diagonal, 0)
    return np.where(remaining, parameters - update, 0), remaining


def compare(parameters: Array, inverse: WoodburyRankOneInverse, images: Images, test: Images, *, steps: int) -> Curves:
    """Prune by magnitude, by `inverse` in one shot, and with F recomputed at every sparsity."""
    sparsities = schedule(steps)
    everything = np.ones_like(parameters, dtype=bool)
    networks = (
        (prune_by_magnitude(parameters, s) for s in sparsities),
        (prune_by_curvature(parameters, everything, s, inverse)[0] for s in sparsities),
        gradually(parameters, images, sparsities, damping=inverse.damping),
    )
    return Curves(sparsities, *(np.array([accuracy(each, test) for each in pruned]) for pruned in networks))


def gradually(parameters: Array, images: Images, sparsities: Sequence[float], *, damping: float) -> Iterator[Array]:
    """Prune to one sparsity after another, with new gradients of the remaining parameters before each."""
    kept = np.ones_like(parameters, dtype=bool)
    for sparsity in tracked(sparsities, "pruning"):
        gradients = per_sample_gradients(parameters, images) * kept
        inverse = WoodburyRankOneInverse(gradients, damping)
        parameters, kept = prune_by_curvature(parameters, kept, sparsity, inverse)
        yield parameters
