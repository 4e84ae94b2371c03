"""A build does what a product needs; what other queries need is computed by the first of them, once."""

import tracemalloc

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg._rows import dense, whitened

M, D = 24, 6000
EASY, HARD = 1.0, 1e-3  # dampings: κ of about 30 and 3e4


@pytest.fixture
def gradients():
    rows = np.random.default_rng(0).standard_normal((M, D), dtype="float32")
    return rows * np.geomspace(0.03, 1, M, dtype="float32")[:, None]


@pytest.fixture
def passes(monkeypatch):
    """The dtype of every Gram matrix of panels that is computed from here on."""
    dtypes, gram, add_widened_gram = [], dense.gram, dense.add_widened_gram

    def recording_gram(panel):
        dtypes.append(panel.dtype.name)
        return gram(panel)

    def recording_widened_gram(total, panel, convert):
        dtypes.append(total.dtype.name)
        return add_widened_gram(total, panel, convert)

    monkeypatch.setattr(dense, "gram", recording_gram)
    monkeypatch.setattr(dense, "add_widened_gram", recording_widened_gram)
    return dtypes


@pytest.fixture
def whitenings(monkeypatch):
    """A list that grows with every W that is computed."""
    made, whiten = [], whitened.whiten
    for module in ("_static.assemble", "_forms.dual"):
        monkeypatch.setattr(f"mfac_linalg.{module}.whiten", lambda *a, **k: made.append(1) or whiten(*a, **k))
    return made


def indices(count):
    return tuple(np.random.default_rng(1).integers(0, D, (2, D))[:, :count])


@pytest.mark.parametrize("damping", [EASY * 100, EASY, HARD])
def test_a_build_and_products_read_the_gradients_in_their_dtype(gradients, damping, passes, whitenings):
    inverse = ml.WoodburyRankOneInverse(gradients, damping)
    inverse.matvec(gradients[0])
    inverse.matvec_gradients(np.ones(M, "float32"))
    inverse.quadratic_form(gradients[1])
    assert set(passes) == {"float32"}
    assert not whitenings


def test_a_build_takes_no_memory_of_the_size_of_the_gradients(gradients):
    ml.WoodburyRankOneInverse(gradients, HARD)
    tracemalloc.start()
    try:
        inverse = ml.WoodburyRankOneInverse(gradients, HARD)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert inverse.num_gradients == M
    assert peak < gradients.nbytes / 4


ENTRIES = {
    "diagonal": lambda inverse: inverse.diagonal(),
    "element": lambda inverse: inverse.element([1, 2], [2, 2]),
    "submatrix": lambda inverse: inverse.submatrix([1, 2]),
    "logdet": lambda inverse: inverse.logdet(),
    "trace": lambda inverse: inverse.trace(),
    "eigenvalues": lambda inverse: inverse.forward.eigenvalues(),
    "sqrt_matvec": lambda inverse: inverse.sqrt_matvec(np.ones(D, "float32")),
    "sample": lambda inverse: inverse.sample(1, seed=0),
}


@pytest.mark.parametrize("query", ENTRIES)
@pytest.mark.parametrize("damping", [EASY * 100, HARD], ids=["easy", "hard"])
def test_the_first_query_that_needs_a_float64_gram_matrix_computes_it_once(query, damping, gradients, passes):
    inverse = ml.WoodburyRankOneInverse(gradients, damping)
    in_build = len(passes)
    first = ENTRIES[query](inverse)
    needed = len(passes) - in_build
    assert passes[in_build:] == ["float64"] * needed
    assert (needed > 0) == (damping == HARD)
    assert np.array_equal(ENTRIES[query](inverse), first)
    for other in ENTRIES.values():
        other(inverse)
    assert len(passes) == in_build + needed


def test_many_elements_at_once_whiten_once_and_few_do_not(gradients, whitenings):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    few = inverse.element(*indices(D // 2 - 1))
    assert not whitenings
    many = inverse.element(*indices(D // 2))
    inverse.element(*indices(D))
    assert len(whitenings) == 1
    assert np.allclose(many[:-1], few, atol=30 * np.finfo("float32").eps / HARD)
    assert np.array_equal(inverse.element(*indices(D // 2 - 1)), few)  # whatever was asked before


def test_a_diagonal_keeps_nothing(gradients, whitenings):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    before = inverse.diagonal()
    assert not whitenings
    inverse.element(*indices(D))
    assert np.array_equal(inverse.diagonal(), before)


def test_without_whitening_there_is_no_w(gradients, whitenings):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD, whiten=False)
    inverse.element(*indices(D))
    inverse.with_damping(EASY).element(*indices(D))
    assert not whitenings


@pytest.mark.parametrize("derive", ["with_damping", "astype", "file"])
def test_a_derived_inverse_whitens_on_demand_too(derive, gradients, whitenings, tmp_path):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    if derive == "file":
        inverse.save(tmp_path / "inverse.npz")
    derived = {
        "with_damping": lambda: inverse.with_damping(EASY),
        "astype": lambda: inverse.astype("float64"),
        "file": lambda: ml.load(tmp_path / "inverse.npz"),
    }[derive]()
    assert not whitenings
    derived.element(*indices(D))
    derived.element(*indices(D))
    assert len(whitenings) == 1


def test_pruning_in_parts_is_one_query(gradients, whitenings, monkeypatch):
    monkeypatch.setattr("mfac_linalg.pruning.groups.ENTRIES_AT_A_TIME", 100)
    from mfac_linalg import pruning

    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    pruning.group_scores(gradients[0], inverse, np.arange(D).reshape(-1, 4))
    assert len(whitenings) == 1


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("query", ["diagonal", "trace", "logdet"])
def test_what_is_kept_without_recording_serves_no_derivative(mode, query):
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((80, 1100), dtype="float32")).requires_grad_()
    fresh, asked = (ml.WoodburyRankOneInverse(rows, 1e-4) for _ in range(2))
    with getattr(torch, mode)():
        for other in ("diagonal", "trace", "logdet"):
            getattr(asked, other)()
        asked.sqrt_matvec(torch.ones(1100))
    (wanted,), (found,) = (torch.autograd.grad(getattr(x, query)().sum(), rows) for x in (fresh, asked))
    assert torch.equal(found, wanted)


def test_jax_differentiates_products_with_rows_that_need_two_sweeps():
    jax = pytest.importorskip("jax")
    rows = np.random.default_rng(0).standard_normal((12, 300), dtype="float32")
    for inverse in (ml.WoodburyRankOneInverse, ml.SlidingWindowInverse.from_gradients):
        inverse = inverse(jax.numpy.asarray(rows), 1e-2)
        v, ones = jax.numpy.asarray(rows[0]), jax.numpy.ones(300, "float32")
        derivative = jax.grad(lambda v, inverse=inverse: inverse.matvec(v).sum())(v)
        assert np.allclose(derivative, inverse.matvec(ones), rtol=1e-3)


def test_vmap_takes_one_element_of_many():
    torch = pytest.importorskip("torch")
    inverse = ml.WoodburyRankOneInverse(torch.randn(8, 300, generator=torch.Generator().manual_seed(0)), 0.1)
    index = torch.arange(0, 300, 7)
    found = torch.func.vmap(lambda j: inverse.element(j, j))(index)
    assert torch.allclose(found, inverse.diagonal()[index], rtol=1e-5)


def test_a_traced_inverse_has_a_float64_gram_matrix_for_entries():
    jax = pytest.importorskip("jax")
    rows = np.ones((80, 1100), "float32")
    rows += 1e-3 * np.random.default_rng(0).standard_normal(rows.shape).astype("float32")
    inverse = ml.WoodburyRankOneInverse(jax.numpy.asarray(rows), 2e-3)
    wanted = ml.WoodburyRankOneInverse(rows.astype(float), 2e-3).diagonal()
    found = jax.jit(lambda inverse: inverse.diagonal())(inverse)
    assert np.max(np.abs(found - wanted)) <= 30 * np.finfo("float32").eps / 2e-3


def test_never_whitened_is_never_whitened_after_a_file(gradients, whitenings, tmp_path):
    ml.WoodburyRankOneInverse(gradients, HARD, whiten=False).save(tmp_path / "inverse.npz")
    ml.load(tmp_path / "inverse.npz").element(*indices(D))
    assert not whitenings
