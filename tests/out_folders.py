"""Builds which the tests of `out` share."""

import os

import numpy as np

import mfac_linalg as ml

G = np.random.default_rng(0).standard_normal((4, 3000))


def build(path, **options):
    return ml.WoodburyRankOneInverse(G, 0.1, out=path, **options)


def snapshot(path):
    """All that is in a folder, links as links."""
    return {p.name: os.readlink(p) if p.is_symlink() else p.read_bytes() for p in sorted(path.iterdir())}
