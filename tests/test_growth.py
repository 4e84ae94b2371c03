"""How work and memory grow with d and m: by counts of flops, of passes over G and of bytes, not by time."""

import tracemalloc

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg._rows import dense

KAPPA = 5e4


def problem(m, d):
    """Gradients around a common mean, and the damping for a κ of real gradients."""
    rng = np.random.default_rng((m, d))
    rows = rng.standard_normal((m, d), dtype="float32") + 0.5 * rng.standard_normal(d, dtype="float32")
    return rows, d * (1 + m / 4) / (m * KAPPA)


class Work:
    """Flops of d-sized operations, and the numbers of G that they read."""

    def __init__(self):
        self.flops = self.read = 0

    def count(self, monkeypatch):
        gram, widened_gram = dense.gram, dense.add_widened_gram
        project, combine = dense.long_product, dense.combination

        def counted_gram(panel):
            self.add(panel.size, panel.shape[0])
            return gram(panel)

        def counted_widened_gram(total, panel, convert):
            self.add(panel.size, panel.shape[0])
            return widened_gram(total, panel, convert)

        def counted_project(rows, v, convert=None):
            self.add(rows.size, 2 * v.shape[1])
            return project(rows, v, convert)

        def counted_combine(rows, a):
            self.add(rows.size, 2 * a.shape[1])
            return combine(rows, a)

        for name, function in [
            ("gram", counted_gram),
            ("add_widened_gram", counted_widened_gram),
            ("long_product", counted_project),
            ("combination", counted_combine),
        ]:
            monkeypatch.setattr(dense, name, function)
        return self

    def add(self, size, flops_per_number):
        self.read += size
        self.flops += size * flops_per_number

    def of(self, function):
        """Flops and reads of a call."""
        self.flops = self.read = 0
        function()
        return self.flops, self.read


@pytest.fixture
def work(monkeypatch):
    return Work().count(monkeypatch)


def test_a_build_is_one_pass_and_dm2_flops(work):
    for m, d in [(16, 20_000), (16, 40_000), (32, 20_000)]:
        rows, damping = problem(m, d)
        assert work.of(lambda rows=rows, damping=damping: ml.WoodburyRankOneInverse(rows, damping)) == (
            d * m * m,
            d * m,
        )


@pytest.mark.parametrize(("m", "d"), [(16, 20_000), (64, 20_000), (16, 80_000)])
def test_products_take_their_passes_at_every_size(m, d, work):
    rows, damping = problem(m, d)
    inverse = ml.WoodburyRankOneInverse(rows, damping)
    v = np.random.default_rng(0).standard_normal(d, dtype="float32")
    unit = np.eye(m, 1, dtype="float32")[:, 0]
    passes = {
        "random": work.of(lambda: inverse.matvec(v))[1],
        "row": work.of(lambda: inverse.matvec(rows[1]))[1],
        "push-through": work.of(lambda: inverse.matvec_gradients(unit))[1],
    }
    passes["push-through"] -= 16 * d  # a sample of rows in which the residual is computed
    assert {name: read / (m * d) for name, read in passes.items()} == {"random": 2, "row": 4, "push-through": 1}


@pytest.mark.parametrize(("m", "d"), [(64, 20_000), (64, 80_000)])
def test_a_small_residual_saves_a_pass(m, d, work):
    """A row at a small κ: its first sweep may amplify rounding, and the residual shows that it did not."""
    rows, damping = problem(m, d)
    inverse = ml.WoodburyRankOneInverse(rows, damping * KAPPA / 1e2)
    assert work.of(lambda: inverse.matvec(rows[1]))[1] == 3 * m * d


@pytest.mark.parametrize(("m", "d"), [(16, 20_000), (64, 20_000), (16, 80_000)])
@pytest.mark.parametrize("kappa", [1e2, 5e4, 5e5])
def test_a_step_of_a_window_is_two_passes(m, d, kappa, work):
    rows, damping = problem(m, d)
    window = ml.SlidingWindowInverse.from_gradients(rows, damping * KAPPA / kappa)
    g = rows[0].copy()
    flops, read = work.of(lambda: window.append_matvec(g))
    sample = 16 + 1  # rows in which the residual is computed
    assert read <= (2 * (m + 1) + sample) * d  # one slot is spare
    assert flops == 2 * read


@pytest.mark.parametrize("d", [100_000, 200_000])
def test_a_build_takes_a_panel_and_m2_of_memory(d):
    m = 32
    rows, damping = problem(m, d)
    ml.WoodburyRankOneInverse(rows, damping)
    tracemalloc.start()
    try:
        inverse = ml.WoodburyRankOneInverse(rows, damping)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert inverse.shape == (d, d)
    panel = rows[:, dense.column_slices(m, d, "float32")[0]]
    assert peak <= panel.nbytes + 50 * 8 * m * m


@pytest.mark.parametrize("d", [100_000, 200_000])
def test_a_product_takes_vectors_of_memory(d):
    rows, damping = problem(32, d)
    inverse, v = ml.WoodburyRankOneInverse(rows, damping), rows[1]
    inverse.matvec(v)
    tracemalloc.start()
    try:
        inverse.matvec(v)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 4 * v.nbytes
