"""The handwritten digits of scikit-learn."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TRAINING_IMAGES = 1000


class Images(NamedTuple):
    """Pixels in [0, 1], shape (n, 64), and their labels, shape (n,)."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.intp]

    def take(self, rows: NDArray[np.intp] | slice) -> "Images":
        """Return some of the images."""
        return Images(self.pixels[rows], self.labels[rows])


def load(seed: int) -> tuple[Images, Images]:
    """Return 1,000 images to train on and the other 797 to test on, drawn by `seed`."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    everything = Images((pixels / 16).astype(np.float32), labels.astype(np.intp))
    shuffled = everything.take(np.random.default_rng(seed).permutation(len(labels)))
    return shuffled.take(slice(TRAINING_IMAGES)), shuffled.take(slice(TRAINING_IMAGES, None))
