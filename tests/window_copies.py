"""Windows, with ways to copy and to change them."""

import numpy as np

from mfac_linalg import SlidingWindowInverse, TopK
from tests.backends import NUMPY

DIM, WINDOW = 12, 4


def random_gradients(count, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(dtype)


OPTIONS = {
    "plain": {},
    "decay": {"decay": 0.9},
    "sum": {"normalization": "sum"},
    "high": {"precision": "high"},
    "top-k": {"compression": TopK(0.5, block_size=4)},
    "top-k in float16": {"compression": TopK(0.25, block_size=6, dtype="float16")},
    "no feedback": {"compression": TopK(0.5, error_feedback=False)},
    "as many rows as parameters": {"window": DIM + 1},
}


def slid_window(backend=NUMPY, dtype="float64", *, count=7, **options):
    """A window that has slid: its slots are not in the order of age."""
    options = {"window": WINDOW, **options}
    window = SlidingWindowInverse(dim=DIM, damping=0.1, **options)
    for g in random_gradients(max(count, options["window"] + 3), dtype=dtype):
        window.append(backend.asarray(g))
    return window


CHANGES = {
    "append": lambda window, g: window.append(g),
    "append_matvec": lambda window, g: window.append_matvec(g),
    "replace": lambda window, g: window.replace(len(window) // 2, g) if len(window) else window.append(g),
    "remove": lambda window, g: window.remove(0) if len(window) else window.append(g),
    "extend": lambda window, g: window.extend(np.stack([g, -2 * g[::-1]])),
    "damping": lambda window, g: setattr(window, "damping", float(abs(g[0])) + 0.01),
    "clear": lambda window, g: window.clear(),
}


def apply_changes(window, seed, names):
    for name, g in zip(names, random_gradients(len(names), seed), strict=True):
        CHANGES[name](window, g)


def answers(window, fetch=np.asarray):
    """All that F⁻¹ and the rows are, as NumPy's."""
    return fetch(window.gradients), fetch(window.to_dense()), fetch(window.forward.to_dense())


def assert_same(found, wanted, rtol=1e-9):
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * max(1e-300, abs(y).max(initial=0.0)))
