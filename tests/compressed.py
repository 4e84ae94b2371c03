"""Compressed windows and their gradients, which several files of tests share."""

import numpy as np

from mfac_linalg import SlidingWindowInverse, TopK

DIM = 40


def random_rows(count, dim=DIM, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def filled_window(count=6, window=4, dtype="float64", compression=None, **options):
    compression = compression or TopK(0.3, block_size=16)
    window = SlidingWindowInverse(window, DIM, 0.1, compression=compression, **options)
    for g in random_rows(count, dtype=dtype):
        window.append(g)
    return window


def feedback_error(window):
    """The vector that the next gradient meets."""
    error = window.state_dict().get("error")
    return np.zeros(window.dim) if error is None else error
