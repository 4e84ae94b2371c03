"""Derivatives through the inverse: PyTorch's gradcheck, and JAX's grad, jit and vmap."""

from functools import partial

import numpy as np
import pytest

from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse
from mfac_linalg.pruning import prune, relative_damping
from mfac_linalg.testing import LIMIT, Oracle, make_problem
from tests.backends import eps

PROBLEM = make_problem(11, shape=(3, 6), kappa=30.0)
TALL = make_problem(11, shape=(6, 3), kappa=30.0)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs torch")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="needs jax")


def leaves(torch, problem, damping):
    """Gradients, damping and a vector as float64 leaves."""
    v = np.random.default_rng(0).standard_normal(problem.gradients.shape[1])
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (problem.gradients, damping, v)]


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("problem", [PROBLEM, TALL], ids=["wide", "tall"])
def test_torch_differentiates_by_gradients_and_vector(torch, problem, whiten):
    gradients, _, v = leaves(torch, problem, problem.damping)

    def product(gradients, v):
        return WoodburyRankOneInverse(gradients, problem.damping, whiten=whiten).matvec(v)

    assert torch.autograd.gradcheck(product, (gradients, v))


@pytest.mark.parametrize("kind", ["scalar", "vector"])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("problem", [PROBLEM, TALL], ids=["wide", "tall"])
def test_torch_differentiates_by_the_damping(torch, problem, whiten, kind):
    d = problem.gradients.shape[1]
    damping = problem.damping * (np.linspace(1, 2, d) if kind == "vector" else 1.0)
    gradients, damping, v = leaves(torch, problem, damping)

    def product(damping):
        return WoodburyRankOneInverse(gradients.detach(), damping, whiten=whiten).matvec(v.detach())

    assert torch.autograd.gradcheck(product, (damping,))


def test_torch_differentiates_by_everything_at_once(torch):
    def product(gradients, damping, v):
        return WoodburyRankOneInverse(gradients, damping).matvec(v)

    assert torch.autograd.gradcheck(product, leaves(torch, PROBLEM, PROBLEM.damping))


@pytest.mark.parametrize("method", ["matvec", "matvec_gradients", "quadratic_form", "sqrt_matvec"])
def test_torch_differentiates_every_product_by_its_argument(torch, method):
    inverse = WoodburyRankOneInverse(torch.tensor(PROBLEM.gradients), PROBLEM.damping)
    size = 3 if method == "matvec_gradients" else 6
    v = torch.linspace(-1, 1, size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(getattr(inverse, method), (v,))


KINDS = {
    "whitened": lambda g: WoodburyRankOneInverse(g, 0.1),
    "by reference": lambda g: WoodburyRankOneInverse(g, 0.1, whiten=False),
    "blocks": lambda g: BlockDiagonalInverse(g, 0.1, block_sizes=2),
    "window": lambda g: SlidingWindowInverse.from_gradients(g, 0.1),
}
LINEAR = ("matvec", "matvec_gradients", "sqrt_matvec", "dual_coefficients", "forward")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by PyTorch itself, of its forward mode
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_carries_tangents_forward(torch, kind, method, dtype):
    """A linear map carries the tangent of its argument as it carries the argument."""
    inverse = KINDS[kind](torch.tensor(PROBLEM.gradients, dtype=getattr(torch, dtype)))
    query = inverse.forward.matvec if method == "forward" else getattr(inverse, method)
    size = 3 if method == "matvec_gradients" else 6
    v, tangent = torch.tensor(np.random.default_rng(4).standard_normal((2, size)), dtype=getattr(torch, dtype))
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        got = forward.unpack_dual(query(forward.make_dual(v, tangent)))
    for answer, wanted in ((got.primal, query(v)), (got.tangent, query(tangent))):
        assert (answer - wanted).norm() <= 100 * eps(dtype) * wanted.norm()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by PyTorch itself, of its forward mode
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("problem", [PROBLEM, TALL], ids=["wide", "tall"])
def test_torch_differentiates_forward_by_everything(torch, problem, whiten):
    def product(gradients, damping, v):
        inverse = WoodburyRankOneInverse(gradients, damping, whiten=whiten)
        return inverse @ v, inverse.diagonal(), inverse.logdet()

    given = leaves(torch, problem, problem.damping)
    assert torch.autograd.gradcheck(product, given, check_forward_ad=True)


def test_a_torch_product_without_gradients_carries_none(torch):
    inverse = WoodburyRankOneInverse(torch.tensor(PROBLEM.gradients), PROBLEM.damping)
    assert not inverse.matvec(torch.ones(6, dtype=torch.float64)).requires_grad


def exact(gradients, damping, v):
    """The dense answer."""
    return Oracle(np.asarray(gradients), damping).inverse @ v


def jax_arguments(jax):
    """Gradients, damping and a vector as JAX arrays in float32."""
    v = np.random.default_rng(0).standard_normal(6)
    return [jax.numpy.asarray(x, dtype="float32") for x in (PROBLEM.gradients, PROBLEM.damping, v)]


def objective(gradients, damping, v):
    """A number that depends on everything."""
    return (WoodburyRankOneInverse(gradients, damping).matvec(v) ** 2).sum() / 2


def test_jax_compiles_construction_and_product(jax):
    gradients, damping, v = jax_arguments(jax)
    x = jax.jit(lambda *args: WoodburyRankOneInverse(*args[:2]).matvec(args[2]))(gradients, damping, v)
    assert np.allclose(x, exact(gradients, float(damping), np.asarray(v)), rtol=1e-3, atol=1e-3 / float(damping))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_jax_differentiates_by_the_vector(jax, compiled):
    gradients, damping, v = jax_arguments(jax)
    derivative = jax.grad(objective, argnums=2)
    actual = (jax.jit(derivative) if compiled else derivative)(gradients, damping, v)
    inverse = Oracle(np.asarray(gradients), float(damping)).inverse
    expected = inverse @ inverse @ np.asarray(v)
    assert np.linalg.norm(actual - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_jax_differentiates_by_the_damping(jax, compiled):
    gradients, damping, v = jax_arguments(jax)
    derivative = jax.grad(objective, argnums=1)
    actual = (jax.jit(derivative) if compiled else derivative)(gradients, damping, v)
    inverse = Oracle(np.asarray(gradients), float(damping)).inverse
    x = inverse @ np.asarray(v)
    assert float(actual) == pytest.approx(-x @ inverse @ x, rel=1e-3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_jax_differentiates_by_the_gradients(jax, compiled):
    gradients, damping, v = jax_arguments(jax)
    derivative = jax.grad(objective, argnums=0)
    actual = (jax.jit(derivative) if compiled else derivative)(gradients, damping, v)
    inverse = Oracle(np.asarray(gradients), float(damping)).inverse
    x, rows = inverse @ np.asarray(v), np.asarray(gradients, np.float64)
    y = inverse @ x
    expected = -(np.outer(rows @ x, y) + np.outer(rows @ y, x)) / len(rows)
    assert np.linalg.norm(actual - expected) <= 1e-3 * np.linalg.norm(expected)


def test_jax_maps_the_product_over_vectors(jax):
    gradients, damping, v = jax_arguments(jax)
    inverse = WoodburyRankOneInverse(gradients, float(damping))
    vectors = jax.numpy.stack([v, 2 * v, -v])
    mapped = jax.vmap(inverse.matvec)(vectors)
    assert np.allclose(mapped, inverse.matmat(vectors.T).T, rtol=1e-4, atol=1e-5 / float(damping))


def test_jax_maps_construction_over_dampings(jax):
    gradients, damping, v = jax_arguments(jax)
    dampings = damping * jax.numpy.asarray([1.0, 10.0])
    mapped = jax.vmap(lambda each: WoodburyRankOneInverse(gradients, each).matvec(v))(dampings)
    for x, each in zip(mapped, np.asarray(dampings), strict=True):
        expected = exact(gradients, float(each), np.asarray(v))
        assert np.linalg.norm(x - expected) <= 1e-3 * np.linalg.norm(expected)


def test_jax_maps_construction_over_gradients(jax):
    gradients, damping, v = jax_arguments(jax)
    batch = jax.numpy.stack([gradients, 2 * gradients])
    mapped = jax.vmap(lambda each: WoodburyRankOneInverse(each, float(damping)).matvec(v))(batch)
    for x, each in zip(mapped, np.asarray(batch), strict=True):
        expected = exact(each, float(damping), np.asarray(v))
        assert np.linalg.norm(x - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("whiten", [True, False])
def test_an_inverse_may_be_an_argument_of_a_compiled_function(jax, whiten):
    gradients, damping, v = jax_arguments(jax)
    inverse = WoodburyRankOneInverse(gradients, float(damping), whiten=whiten)
    x = jax.jit(lambda inverse, v: inverse.matvec(v))(inverse, v)
    expected = np.asarray(inverse.matvec(v))
    assert np.linalg.norm(x - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("inside", ["construction", "product"])
def test_compiled_answers_keep_the_accuracy_contract(jax, inside):
    problem = make_problem(2, kind="common mean", shape=(3, 6), kappa=1e5, dtype="float32")
    gradients, v = jax.numpy.asarray(problem.gradients), jax.numpy.asarray(problem.gradients[0])
    if inside == "construction":
        x = jax.jit(lambda g, v: WoodburyRankOneInverse(g, problem.damping).matvec(v))(gradients, v)
    else:
        x = jax.jit(lambda inverse, v: inverse.matvec(v))(WoodburyRankOneInverse(gradients, problem.damping), v)
    assert problem.oracle.backward_ratio(problem.gradients[0], np.asarray(x), eps("float32")) <= LIMIT


def test_an_inverse_survives_flattening(jax):
    gradients, damping, v = jax_arguments(jax)
    inverse = WoodburyRankOneInverse(gradients, float(damping))
    values, structure = jax.tree_util.tree_flatten(inverse)
    again = jax.tree_util.tree_unflatten(structure, values)
    assert np.array_equal(again.matvec(v), inverse.matvec(v))


def test_jax_keeps_its_own_precision_switch(jax):
    gradients, damping, v = jax_arguments(jax)
    before = jax.config.jax_enable_x64
    WoodburyRankOneInverse(gradients, float(damping)).matvec(v)
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("name", ["matvec", "diagonal", "logdet"])
def test_a_new_damping_may_be_traced(jax, name, whiten):
    gradients, v = PROBLEM.gradients.astype("float32"), np.ones(6, "float32")
    inverse = WoodburyRankOneInverse(jax.numpy.asarray(gradients), 0.1, whiten=whiten)

    def ask(damping):
        again = inverse.with_damping(damping)
        return again.matvec(jax.numpy.asarray(v)) if name == "matvec" else getattr(again, name)()

    assert np.allclose(jax.jit(ask)(0.3), ask(0.3), rtol=1e-4)
    assert np.allclose(jax.vmap(ask)(jax.numpy.asarray([0.3, 0.4]))[0], ask(0.3), rtol=1e-4)


def test_a_path_of_dampings_may_start_from_a_traced_one(jax):
    gradients, v = jax.numpy.asarray(PROBLEM.gradients.astype("float32")), jax.numpy.ones(6, "float32")
    path = jax.jit(lambda damping: WoodburyRankOneInverse(gradients, damping).damping_path(v, [0.1, 0.2]))(0.3)
    exact = [Oracle(PROBLEM.gradients, damping).solve(np.ones(6)) for damping in (0.1, 0.2)]
    assert np.allclose(path, np.stack(exact, axis=1).astype(float), rtol=1e-4)


def test_jax_differentiates_twice(jax):
    gradients = PROBLEM.gradients.astype("float32")
    inverse = WoodburyRankOneInverse(jax.numpy.asarray(gradients), 0.1)
    hessian = jax.jacrev(jax.grad(inverse.quadratic_form))(jax.numpy.ones(6, "float32"))
    assert np.allclose(hessian, 2 * Oracle(gradients, 0.1).inverse, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 6), (6, 3)])
def test_torch_differentiates_the_diagonal(torch, shape):
    gradients = torch.tensor(make_problem(11, shape=shape).gradients, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: WoodburyRankOneInverse(g, 0.3).diagonal(), gradients)


def test_a_compiled_product_can_be_batched_with_float64_switched_on(jax):
    gradients = jax.numpy.asarray(PROBLEM.gradients.astype("float32"))
    inverse = WoodburyRankOneInverse(gradients, 0.1)
    with jax.enable_x64(True):
        together = jax.vmap(jax.jit(inverse.matvec))(gradients)
    assert np.allclose(together, inverse.matmat(gradients.T).T, rtol=1e-5)


def test_an_inverse_of_constants_may_be_built_in_what_jax_compiles():
    jax = pytest.importorskip("jax")
    g, damping = jax.random.normal(jax.random.key(0), (4, 12)), jax.numpy.full(12, 0.1)
    made = lambda: WoodburyRankOneInverse(g, damping, weights=jax.numpy.ones(4))  # noqa: E731
    assert np.allclose(jax.jit(lambda v: made() @ v)(g[0]), made() @ g[0], rtol=1e-5, atol=1e-5)


GRADIENTS = PROBLEM.gradients.astype("float32")
WINDOW = SlidingWindowInverse.from_gradients(GRADIENTS, 0.1)
ASK_VALUES = {
    "dampings": lambda make, x: make(WoodburyRankOneInverse).damping_path(x[:1].repeat(6), x),
    "dampings of a list": lambda make, x: make(WoodburyRankOneInverse).damping_path(x[:1].repeat(6), [x[0], 0.1]),
    "damping of a window": lambda make, x: WINDOW.with_damping(x[0]),
    "gradients of a window": lambda make, x: SlidingWindowInverse.from_gradients(GRADIENTS * x[0], 0.1),
    "gradients of a file": lambda make, x: WoodburyRankOneInverse(GRADIENTS * x[0], 0.1).save("never.npz"),
    "gradients of a ratio": lambda make, x: relative_damping(GRADIENTS * x[0], 0.1),
    "ratio": lambda make, x: relative_damping(GRADIENTS, x[0]),
    "block_sizes": lambda make, x: BlockDiagonalInverse(GRADIENTS, 0.1, block_sizes=x[0].astype(int)),
    "i of blocks": lambda make, x: make(partial(BlockDiagonalInverse, block_sizes=2)).element(x[0].astype(int), 0),
    "size": lambda make, x: make(WoodburyRankOneInverse).sample(x[0], seed=0),
    "weights": lambda make, x: prune(GRADIENTS[0] * x[0], lambda w, step: GRADIENTS, 0.5, damping=0.1),
}


@pytest.mark.parametrize("ask", ASK_VALUES)
def test_what_has_to_have_values_is_refused_by_name_where_jax_traces_it(jax, ask):
    gradients = jax.numpy.asarray(GRADIENTS)
    query = partial(ASK_VALUES[ask], lambda cls: cls(gradients, 0.1))
    with pytest.raises(TypeError, match=f"`{ask.split()[0]}`.* must (be|have)"):
        jax.make_jaxpr(query)(jax.numpy.ones(2))


def test_dampings_of_a_path_have_values_and_no_derivatives(torch):
    inverse, v = WoodburyRankOneInverse(torch.tensor(GRADIENTS), 0.1), torch.ones(6)
    one = torch.tensor([1.0])
    for dampings in (one.to("meta"), one.clone().requires_grad_(), [one[0].clone().requires_grad_()]):
        with pytest.raises(TypeError, match=r"`dampings` must (be|have)"):
            inverse.damping_path(v, dampings)
    with pytest.raises(TypeError, match="`dampings` must have values"):
        torch.func.vmap(lambda x: inverse.damping_path(v, x))(torch.ones(1, 2))


def test_a_window_of_constants_may_be_built_in_what_jax_compiles(jax):
    g, v = jax.numpy.asarray(GRADIENTS), jax.numpy.ones(6)
    made = lambda: SlidingWindowInverse.from_gradients(g, 0.1)  # noqa: E731
    assert np.allclose(jax.jit(lambda v: made() @ v)(v), made() @ v, rtol=1e-5, atol=1e-5)
