"""Gradients and windows which several files of tests share."""

import numpy as np

from mfac_linalg import SlidingWindowInverse


def random_rows(count, dim=40, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def filled_window(count=6, window=4, dim=40, damping=0.1, dtype="float64", **options):
    window = SlidingWindowInverse(window, dim, damping, **options)
    for g in random_rows(count, dim, dtype=dtype):
        window.append(g)
    return window
