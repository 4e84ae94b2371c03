"""A build does what a product needs; what other queries need is computed by the first of them, once."""

import pickle
import tracemalloc

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg._rows import dense, whitened, whitener

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


def test_a_diagonal_keeps_nothing_of_the_size_of_the_gradients(gradients, whitenings):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    before = inverse.diagonal()
    assert not whitenings
    inverse.element(*indices(D))
    assert np.array_equal(inverse.diagonal(), before)


@pytest.mark.parametrize("whiten", [None, True])
def test_a_diagonal_is_computed_once(whiten, gradients, monkeypatch):
    computed, column_squares = [], whitener._backend.column_squares
    monkeypatch.setattr(whitener._backend, "column_squares", lambda x: computed.append(1) or column_squares(x))
    inverse = ml.WoodburyRankOneInverse(gradients, HARD, whiten=whiten)
    first = inverse.diagonal()
    computed.clear()
    assert np.array_equal(inverse.diagonal(), first)
    assert np.isclose(inverse.trace(), np.sum(first, dtype=float))
    assert not computed
    copy = pickle.loads(pickle.dumps(inverse))
    assert np.array_equal(copy.diagonal(), first)
    assert computed


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_diagonal_that_was_written_to_changes_no_answer(library, gradients):
    rows = gradients if library == "numpy" else pytest.importorskip("torch").from_numpy(gradients)
    inverse = ml.WoodburyRankOneInverse(rows, HARD)
    first, trace = inverse.diagonal(), float(inverse.trace())
    wanted = first.tolist()
    first[:] = 0
    assert inverse.diagonal().tolist() == wanted
    assert float(inverse.trace()) == trace


def test_a_new_damping_and_new_rows_of_a_window_have_a_diagonal_of_their_own(gradients):
    inverse = ml.WoodburyRankOneInverse(gradients, HARD)
    before = inverse.diagonal()
    assert np.max(inverse.with_damping(10 * HARD).diagonal()) < np.max(before)
    window = ml.SlidingWindowInverse.from_gradients(gradients, HARD, window=M)
    window.diagonal()
    window.append(10 * gradients[0])
    rows = np.concatenate([gradients[1:], 10 * gradients[:1]])
    assert np.allclose(window.diagonal(), ml.WoodburyRankOneInverse(rows, HARD).diagonal(), rtol=1e-3)


@pytest.mark.parametrize(("damping", "wanted"), [(60.0, {"float32"}), (0.2, {"float64"})])
def test_whitening_takes_one_pass_whatever_the_condition_number(damping, wanted, passes, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((M, 2**17), dtype="float32")
    read, gram, add_widened_gram = [], dense.gram, dense.add_widened_gram
    monkeypatch.setattr(dense, "gram", lambda panel: read.append(panel.size) or gram(panel))
    monkeypatch.setattr(
        dense, "add_widened_gram", lambda total, panel, c: read.append(panel.size) or add_widened_gram(total, panel, c)
    )
    inverse = ml.WoodburyRankOneInverse(rows, damping, whiten=True)
    assert set(passes) == wanted
    assert sum(read) == rows.size
    i, j = np.random.default_rng(1).integers(0, 2**17, (2, 200))
    exact = ml.WoodburyRankOneInverse(rows.astype(float), damping)
    assert np.max(np.abs(inverse.element(i, j) - exact.element(i, j))) <= 10 * np.finfo("float32").eps / damping


@pytest.mark.parametrize("height", [1, 20])
def test_rows_are_whitened_in_float32_where_no_column_is_long(height, gradients):
    rows = gradients.copy()
    rows[:, 5] *= np.float32(height)
    inverse = ml.WoodburyRankOneInverse(rows, HARD)
    form = inverse._state.form
    assert inverse.kappa > 1e4  # float64, if it were for κ alone
    maker = whitener.Whitener.of(form.rows, form.float64_capacitance, np.float32, wide_rows=form.rows.astype_float64())
    assert maker.rows.dtype == (np.float32 if height == 1 else np.float64)
    exact = ml.WoodburyRankOneInverse(rows.astype(float), HARD)
    bound = 10 * np.finfo("float32").eps / HARD
    assert np.max(np.abs(inverse.diagonal() - exact.diagonal())) <= bound
    i, j = indices(D)
    assert np.max(np.abs(inverse.element(i, j) - exact.element(i, j))) <= bound


def test_elements_are_the_same_in_any_number_of_threads(gradients, monkeypatch):
    monkeypatch.setattr(whitened, "RUN", 1000)
    inverse = ml.WoodburyRankOneInverse(gradients, HARD, whiten=True)
    answers = []
    for count in (1, 2):
        monkeypatch.setattr(whitened._backend, "thread_count", lambda count=count: count)
        answers.append(inverse.element(*indices(D)))
    assert np.array_equal(*answers)


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
