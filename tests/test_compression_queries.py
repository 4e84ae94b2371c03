"""Queries of a window that stores the largest entries: the answers are those of the stored entries."""

import numpy as np
import pytest

from mfac_linalg import SlidingWindowInverse, TopK
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import AVAILABLE, FLAVOURS, eps, flavour_name
from tests.compressed import DIM, random_rows

AT_ONCE = [flavour for flavour in FLAVOURS if flavour[0].name not in ("strict:no_x64", "jax")]
"""All but one without integers to look entries up, and JAX, which compiles for each number of rows: see `KEPT`."""


def ask(window, v, send=lambda x: x):
    """Every query that reads the rows, by name."""
    columns = send(np.array([0, 17, DIM - 1]))
    return {
        "matvec": window @ send(v),
        "diagonal": window.diagonal(),
        "columns": window.columns(columns),
        "submatrix": window.submatrix(columns),
        "logdet": window.logdet(),
        "quadratic_form": window.quadratic_form(send(v)),
        "forward": window.forward @ send(v),
        "forward diagonal": window.forward.diagonal(),
        "gradients": window.matvec_gradients(send(np.ones(len(window), v.dtype))),
    }


def expected(oracle, v):
    exact = np.asarray(oracle.inverse, float)
    index = np.array([0, 17, DIM - 1])
    return {
        "matvec": exact @ v,
        "diagonal": np.diag(exact),
        "columns": exact[:, index],
        "submatrix": exact[np.ix_(index, index)],
        "logdet": np.linalg.slogdet(exact)[1],
        "quadratic_form": v @ exact @ v,
        "forward": oracle.forward @ v,
        "forward diagonal": np.diag(oracle.forward),
        "gradients": exact @ np.asarray(oracle.gradients, float).sum(0),
    }


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("flavour", AT_ONCE, ids=flavour_name)
def test_every_query_is_of_the_rows_that_are_kept(flavour, vector):
    backend, dtype = flavour
    damping = np.linspace(0.1, 0.4, DIM).astype(dtype) if vector else 0.1
    compression = TopK(0.3, block_size=16)
    window = SlidingWindowInverse(5, DIM, backend.asarray(damping) if vector else damping, compression=compression)
    stream = random_rows(9, dtype=dtype)
    for g in stream[:3]:
        window.append(backend.asarray(g))
    window.extend(backend.asarray(stream[3:]))
    window.replace(1, backend.asarray(stream[0]))
    window.remove(0)
    held = backend.to_numpy(window.gradients)
    oracle = Oracle(held, damping)
    wanted, found = expected(oracle, stream[0].astype(float)), ask(window, stream[0], backend.asarray)
    for name, x in found.items():
        limit = LIMIT * eps(dtype) * oracle.kappa * np.linalg.norm(wanted[name])
        assert np.linalg.norm(backend.to_numpy(x) - wanted[name]) <= limit, name
    assert np.count_nonzero(held, axis=1).max() <= 13


@pytest.mark.parametrize("vector", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_entries_answer_as_many_do(dtype, vector):
    """Up to one in sixteen, Gram matrix and diagonal go by the entries that rows have in common."""
    dim = 500
    damping = np.linspace(1e-3, 1, dim).astype(dtype) if vector else 1e-3
    window = SlidingWindowInverse(7, dim, damping, compression=TopK(0.05, block_size=100))
    common = np.concatenate([10 * random_rows(1, 5, seed=1), np.zeros((1, dim - 5))], axis=1)
    stream = (common + random_rows(12, dim)).astype(dtype)
    for block in (stream[:1], stream[1:5], stream[5:]):
        window.extend(block)
    oracle = Oracle(window.gradients, damping)
    assert np.count_nonzero(window.gradients) == 7 * 25
    assert oracle.backward_ratio(stream[0], window @ stream[0], eps(dtype)) <= LIMIT
    exact = np.diag(np.asarray(oracle.inverse, float))
    assert np.allclose(window.diagonal(), exact, rtol=1e-3, atol=LIMIT * eps(dtype) * 1e3)
    assert np.isclose(window.logdet(), np.linalg.slogdet(np.asarray(oracle.inverse, float))[1], rtol=1e-5)


@pytest.mark.parametrize("flavour", AT_ONCE, ids=flavour_name)
def test_a_step_answers_for_the_gradient_that_came(flavour):
    backend, dtype = flavour
    window = SlidingWindowInverse(2, DIM, 1e-3, compression=TopK(0.2, block_size=16))
    for g in random_rows(3, dtype=dtype):
        x = backend.to_numpy(window.append_matvec(backend.asarray(g)))
        assert Oracle(backend.to_numpy(window.gradients), 1e-3).backward_ratio(g, x, eps(dtype)) <= LIMIT


def test_torch_differentiates_products_and_leaves_no_trace():
    torch = pytest.importorskip("torch", reason="needs torch")
    with torch.inference_mode():
        window = SlidingWindowInverse.from_gradients(
            torch.tensor(random_rows(4)), 0.1, compression=TopK(0.3, block_size=16)
        )
        window.append_matvec(torch.tensor(random_rows(1, seed=1)[0]))
    window.append(torch.tensor(random_rows(1, seed=2)[0], requires_grad=True))
    v = torch.ones(DIM, dtype=torch.float64, requires_grad=True)
    (window @ v).sum().backward()
    assert np.allclose(v.grad, window @ torch.ones(DIM, dtype=torch.float64), rtol=1e-10)
    batch = torch.tensor(random_rows(3, seed=3))
    assert np.allclose(torch.func.vmap(window.matvec)(batch), window.matmat(batch.T).T, rtol=1e-10)


def test_a_device_without_wide_integers_is_refused():
    backend = next(b for b in AVAILABLE if b.name == "strict:no_x64")
    window = SlidingWindowInverse(4, DIM, 0.1, compression=TopK(0.3))
    with pytest.raises(TypeError, match=r"`compression`.*NumPy, PyTorch, JAX or CuPy"):
        window.append(backend.asarray(random_rows(1, dtype="float32")[0]))


@pytest.mark.parametrize("precision", ["default", "high"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kappa", [1e2, 1e5, 1e7])
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_products_keep_the_contract(density, kappa, dtype, precision):
    """Rows with a common mean: of them, of their differences, and of any vector."""
    kappa = min(kappa, 0.05 / eps(dtype))
    rng = np.random.default_rng(0)
    stream = (5 * rng.standard_normal(3000) + rng.standard_normal((12, 3000))).astype(dtype)
    window = SlidingWindowInverse(12, 3000, 1.0, compression=TopK(density, block_size=256), precision=precision)
    window.extend(stream)
    window.damping = damping = float(np.linalg.norm(window.gradients, 2) ** 2 / 12 / kappa)
    held = window.gradients
    oracle = Oracle(held, damping, wide=np.float64)
    for v in (held[3], held[3] - held[4], rng.standard_normal(3000).astype(dtype), stream[-1], held.sum(0)):
        assert oracle.backward_ratio(v, window @ v, eps(dtype)) <= LIMIT


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_equal_entries_keep_the_contract(dtype):
    """Whose sums round with a bias."""
    dim, entries = 30_000, np.array([[0.1], [0.3], [0.7]], dtype)
    size = dim * float(np.sum(entries.astype(float) ** 2)) / 3
    damping = size / min(1e9, 0.05 / eps(dtype))
    window = SlidingWindowInverse(3, dim, damping, compression=TopK(1.0))
    window.extend(entries * np.ones(dim, dtype))
    v = np.full(dim, 0.1, dtype)
    x = (window @ v).astype(float)
    residual = np.linalg.norm(v - (damping * x + size * x.mean()))
    assert residual <= LIMIT * eps(dtype) * size * np.linalg.norm(x)
