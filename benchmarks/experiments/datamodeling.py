"""The linear datamodelling score: how well sums of attributions rank the outputs of retrained networks."""

from __future__ import annotations

import numpy as np

from benchmarks.experiments.influence import ranks, spearman

RESAMPLES = 200


def predictions(scores: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """The sum of each image's scores (images, n) over each subset (subsets, n), (images, subsets)."""
    return scores @ subsets.T.astype(scores.dtype)


def lds(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Of each image: Spearman's rank correlation over the subsets between what is predicted and the actual output.

    Both are (images, subsets). The linear datamodelling score is the mean.
    """
    return spearman(predicted, actual)


def over_images(correlations: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over images."""
    count = len(correlations)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    return quantiles(correlations[drawn].mean(axis=1))


def resampled(predicted: np.ndarray, actual: np.ndarray, seed: int = 0) -> np.ndarray:
    """The score in bootstrap samples of images and of subsets, (RESAMPLES,); the same samples for every method."""
    rng, (images, subsets) = np.random.default_rng(seed), predicted.shape
    found = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        image, subset = rng.integers(images, size=images), rng.integers(subsets, size=subsets)
        each = np.sum(ranks(predicted[:, subset]) * ranks(actual[:, subset]), axis=1)
        found[index] = each[image].mean()
    return found


def quantiles(found: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
