"""F⁻¹ and influences by rows that are kept as factors: answers, accuracy, memory."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.testing import LIMIT, check_inverse, check_rows, default_problems
from mfac_linalg.testing.strategies import problems, seeds
from tests.backends import BACKENDS
from tests.cases import INPUTS
from tests.contract import decades, measure
from tests.torch_factored import CASES, LOSS, as_outer_products, columns_of, factored_rows, outer_products

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
TorchDispatchMode = pytest.importorskip("torch.utils._python_dispatch").TorchDispatchMode
TORCH = next(backend for backend in BACKENDS if backend.library == "torch")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
USED = ["mlp", "sequence", "convolutions", "tied", "words"]
BY_CASE = pytest.mark.parametrize("case", [CASES[name] for name in USED], ids=USED)
ASKED = {
    "matvec": lambda inverse, v: inverse.matvec(v),
    "matmat": lambda inverse, v: inverse.matmat(torch.stack([v, v.flip(0)], dim=1)),
    "combination": lambda inverse, v: inverse.matvec_gradients(v[: inverse.num_gradients]),
    "combinations": lambda inverse, v: inverse.matvec_gradients(torch.eye(inverse.num_gradients, dtype=v.dtype)),
    "dual coefficients": lambda inverse, v: inverse.dual_coefficients(v),
    "diagonal": lambda inverse, v: inverse.diagonal(),
    "submatrix": lambda inverse, v: inverse.submatrix([0, 301, 301, -1], [1, 2]),
    "columns": lambda inverse, v: inverse.columns([5, -1, 300]),
    "quadratic form": lambda inverse, v: inverse.quadratic_form(v),
    "logdet": lambda inverse, v: inverse.logdet(),
    "trace": lambda inverse, v: inverse.trace(),
    "square root": lambda inverse, v: inverse.sqrt_matvec(v),
    "F": lambda inverse, v: inverse.forward @ v,
    "another damping": lambda inverse, v: inverse.with_damping(3e-3) @ v,
}


def both_rows(case, dtype=torch.float64):
    """Rows as factors, and the same as an array."""
    model, *data = case.model_in(dtype)
    factored, explicit = (
        call(model, LOSS, *data)[0] for call in (adapter.factored_gradients, adapter.per_sample_gradients)
    )
    return factored, explicit


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@BY_CASE
def test_an_inverse_answers_as_by_explicit_rows(case, vector):
    factored, explicit = both_rows(case)
    damping = torch.linspace(1e-3, 1e-2, explicit.shape[1], dtype=torch.float64) if vector else 1e-3
    v = explicit[0] + explicit[1]
    inverses = [ml.WoodburyRankOneInverse(rows, damping) for rows in (factored, explicit)]
    for name, ask in ASKED.items():
        found, expected = (torch.as_tensor(ask(inverse, v)) for inverse in inverses)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)


@BY_CASE
def test_influences_are_those_of_explicit_rows(case):
    factored, explicit = both_rows(case)
    tests = explicit.flip(0)[:2] - explicit[:2]
    by_factors, by_rows = (ml.WoodburyRankOneInverse(rows, 1e-3) for rows in (factored, explicit))
    torch.testing.assert_close(influence(by_factors, tests), influence(by_rows, tests), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(influence(by_factors, explicit), influence(by_rows, explicit), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        influence(by_factors, tests, explicit), influence(by_rows, tests, explicit), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(self_influence(by_factors), self_influence(by_rows), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("trains", [False, True], ids=["stored", "given"])
def test_influences_take_factored_gradients(count, trains):
    model, x, y = CASES["words"].model_in(torch.float64)
    some = x[:count], y[:count].flip(1)
    train, tests = (adapter.factored_gradients(model, LOSS, *data)[0] for data in ((x[1:5], y[1:5]), some))
    explicit, expected = (adapter.per_sample_gradients(model, LOSS, *data)[0] for data in ((x[1:5], y[1:5]), some))
    inverse = ml.WoodburyRankOneInverse(explicit[:3], 1e-3)
    given = ((train, explicit) if trains else (None, None), (tests, expected))
    found, right = (influence(inverse, test, train, block_size=3) for train, test in zip(*given, strict=True))
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        self_influence(inverse, tests, block_size=3), self_influence(inverse, expected), rtol=1e-9, atol=1e-12
    )


def test_blocks_by_layers_are_inverses_of_rows_of_some_parameters():
    model, *data = CASES["mlp"].model_in(torch.float64)
    explicit, unravel = adapter.per_sample_gradients(model, LOSS, *data)
    blocks = ml.BlockDiagonalInverse(explicit, 1e-3, block_sizes=unravel.sizes)
    parts = [adapter.factored_gradients(model, LOSS, *data, params=[name])[0] for name in unravel.names]
    products = [
        ml.WoodburyRankOneInverse(part, 1e-3) @ v
        for part, v in zip(parts, explicit[0].split(unravel.sizes), strict=True)
    ]
    torch.testing.assert_close(torch.cat(products), blocks @ explicit[0])
    with pytest.raises(TypeError, match="Build one WoodburyRankOneInverse for each block"):
        ml.BlockDiagonalInverse(parts[0], 1e-3, block_sizes=10)


# --- accuracy ---------------------------------------------------------------------------------------------------------


def as_rows(array):
    """Any rows as factors."""
    return factored_rows.FactoredRows([as_outer_products(torch.as_tensor(array))])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_answer_keeps_the_contract(dtype, monkeypatch):
    monkeypatch.setitem(INPUTS, "factors", as_rows)

    @settings(max_examples=40, deadline=None)
    @given(problems(dtype, decades(dtype, "default"), largest=40))
    def check_contract(problem):
        for answer in measure(problem, TORCH, form="factors"):
            assert max(answer.backward, answer.forward) <= LIMIT, answer

    check_contract()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_checks_of_an_inverse_pass(dtype):
    def make(problem):
        return ml.WoodburyRankOneInverse(as_rows(problem.gradients), problem.damping)

    refusals = {"refusal": "rows are a user's, and checked by their answers"}
    check_inverse(make, default_problems(dtype), asarray=torch.as_tensor, expected_failures=refusals)


@pytest.mark.parametrize("kappa", [1e2, 1e4, 5e5])
@BY_CASE
def test_products_in_the_span_of_a_models_rows_keep_the_contract_in_float32(case, kappa):
    factored, _ = both_rows(case, torch.float32)
    exact = columns_of(factored).double()
    m = len(exact)
    damping = float(torch.linalg.matrix_norm(exact, 2) ** 2) / m / kappa
    inverse = ml.WoodburyRankOneInverse(factored, damping)
    norm = damping * (1 + kappa)
    for v in (exact[0], exact[1] - exact[2], exact.sum(dim=0), torch.linalg.svd(exact, full_matrices=False)[2][-1]):
        x = (inverse @ v.float()).double()
        residual = v.float().double() - damping * x - exact.T @ (exact @ x) / m
        assert float(residual.norm() / (norm * x.norm())) <= LIMIT * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_whose_outer_products_cancel_keep_the_contract(dtype):
    """Each position is followed by one that takes nearly all of it away: ‖Σ b aᵀ‖ is a thousandth of their norms."""
    generator, m, n, eps = torch.Generator().manual_seed(0), 8, 32, torch.finfo(dtype).eps
    a, b, c = (torch.randn(1, m, 2, n, dtype=dtype, generator=generator) for _ in range(3))
    inputs, gradients = torch.cat([a, a + 1e-3 * c], dim=2), torch.cat([b, -b], dim=2)
    rows = factored_rows.FactoredRows([outer_products.OuterProducts(inputs, gradients, dtype)])
    exact = columns_of(rows).double()
    norm = float(torch.linalg.matrix_norm(exact, 2) ** 2) / m
    inverse = ml.WoodburyRankOneInverse(rows, norm / 1e5)
    for v in (exact[0], exact[0] - exact[1], exact.sum(dim=0)):
        x = inverse @ v.to(dtype)
        assert inverse.backward_error(v.to(dtype), x) <= LIMIT * eps
        residual = v.to(dtype).double() - norm / 1e5 * x.double() - exact.T @ (exact @ x.double()) / m
        assert float(residual.norm() / (norm * x.double().norm())) <= LIMIT * eps
    torch.testing.assert_close(rows.gram(), exact @ exact.T, rtol=30 * eps, atol=30 * eps * norm)


# --- products of factors ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    limits=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.integers(1, 64)),
    seed=seeds(),
)
def test_the_methods_are_those_of_one_matrix_for_any_cuts(sizes, dtype, limits, seed):
    groups, m, positions, p, q = sizes
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(groups, m, positions, n, dtype=dtype, generator=generator) for n in (q, p))
    part = outer_products.OuterProducts(a, b, dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(("RUN", "TERMS", "TILE", "WEIGHTED"), limits, strict=True):
            patch.setattr(outer_products, name, limit)
        patch.setattr(outer_products, "panel_width", lambda *_: limits[2])
        rows = factored_rows.FactoredRows([part, part])
        check_rows(rows, asarray=torch.as_tensor, seed=seed)
        formed = torch.einsum("gmtp,gmtq->mgpq", b.double(), a.double()).reshape(m, -1)
        torch.testing.assert_close(columns_of(rows), torch.cat([formed, formed], dim=1).to(dtype))
        torch.testing.assert_close(part._gram_of_factors(), formed @ formed.T)
        v = torch.randn(part.shape[1], 1, dtype=dtype, generator=generator)
        torch.testing.assert_close(part.project(v), formed @ v.double(), rtol=1e-4, atol=1e-4)


# --- memory -----------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves(result)
        self.numel = max([self.numel, *(x.numel() for x in tensors if isinstance(x, torch.Tensor))])
        return result


@pytest.mark.parametrize("positions", [1, 4])
def test_the_matrix_is_never_formed(positions):
    m, n = 256, 512
    model, x, y = nn.Linear(n, n), torch.randn(m, positions, n), torch.randn(m, positions, n)
    loss = nn.functional.mse_loss
    tracemalloc.start()
    try:
        with LargestTensor() as largest:
            rows, _ = adapter.factored_gradients(model, loss, x, y)
            inverse = ml.WoodburyRankOneInverse(rows, 1e-6)
            v = rows.combine(torch.ones(m, 1))[:, 0]
            inverse @ v, inverse.matvec_gradients(torch.eye(m)[:, :2]), inverse.diagonal()
            influence(inverse, v[None, :])
            self_influence(inverse)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    formed = m * rows.shape[1]
    assert rows.nbytes == 4 * m * (2 * positions + 1) * n
    assert largest.numel <= formed / 16
    assert peak <= 4 * formed / 4  # of NumPy, in bytes
