"""Derivatives in ambient modes: those that PyTorch computes under autocast later on, and JAX's under its settings."""

import contextlib
import copy

import numpy as np
import pytest

from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, WoodburyRankOneInverse
from tests.ambient_queries import gradients

torch = pytest.importorskip("torch")

G, V = torch.from_numpy(gradients() / 3), torch.linspace(-1, 1, 40)
BUILDS = {
    "whitened": lambda g, damping: WoodburyRankOneInverse(g, damping),
    "by reference": lambda g, damping: WoodburyRankOneInverse(g, damping, whiten=False),
    "tall": lambda g, damping: WoodburyRankOneInverse(g.T, damping),
    "equal blocks": lambda g, damping: BlockDiagonalInverse(g, damping, block_sizes=8),
    "blocks": lambda g, damping: BlockDiagonalInverse(g, damping, block_sizes=(3, 17, 20)),
}
SOME = torch.arange(3)
ASK = {
    "matvec": lambda inverse, v: inverse @ v,
    "matmat": lambda inverse, v: inverse @ torch.stack([v, v * v], dim=1),
    "matvec_gradients": lambda inverse, v: inverse.matvec_gradients(v.repeat(7)[: inverse.num_gradients]),
    "dual_coefficients": lambda inverse, v: inverse.dual_coefficients(v),
    "sqrt_matvec": lambda inverse, v: inverse.sqrt_matvec(v),
    "damping_path": lambda inverse, v: inverse.damping_path(v, [0.1, 1.0]),
    "diagonal": lambda inverse, v: inverse.diagonal() * v,
    "element": lambda inverse, v: inverse.element(SOME, SOME + 1),
    "submatrix": lambda inverse, v: inverse.submatrix(SOME),
    "columns": lambda inverse, v: inverse.columns(SOME),
    "quadratic_form": lambda inverse, v: inverse.quadratic_form(v),
    "logdet": lambda inverse, v: inverse.logdet(),
    "trace": lambda inverse, v: inverse.trace(),
    "forward": lambda inverse, v: inverse.forward @ v,
}


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def derivatives(build, ask, context):
    """First and second derivatives by v, and by G and λ too; the answer itself is computed without the mode."""
    g, damping = G.clone().requires_grad_(), torch.tensor(0.1, requires_grad=True)
    v = V[: 6 if build is BUILDS["tall"] else 40].clone().requires_grad_()
    answer = ask(build(g, damping), v)
    with context():
        first = torch.autograd.grad((answer**2).sum(), (v, g), create_graph=True, allow_unused=True)
        total = sum((x**2).sum() for x in first if x is not None)
        second = torch.autograd.grad(total, (v, g), allow_unused=True)
    return [x.detach() for x in (*first, *second) if x is not None]


@pytest.mark.parametrize("query", ASK)
@pytest.mark.parametrize("build", BUILDS)
def test_a_backward_pass_under_autocast_is_of_float32(build, query):
    wanted = derivatives(BUILDS[build], ASK[query], contextlib.nullcontext)
    for one, other in zip(derivatives(BUILDS[build], ASK[query], autocast), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", BUILDS)
def test_so_is_one_by_the_vector_alone_for_a_cotangent_without_a_graph(build):
    def derivative(context):
        v = V[: 6 if build == "tall" else 40].clone().requires_grad_()
        answer = BUILDS[build](G, 0.1) @ v
        with context():
            return torch.autograd.grad(answer.sum(), v)[0]

    assert torch.equal(derivative(autocast), derivative(contextlib.nullcontext))


TRANSFORMS = {
    "vmap": lambda inverse: torch.func.vmap(inverse.matvec)(torch.stack([V, V * V])),
    "grad": lambda inverse: torch.func.grad(inverse.quadratic_form)(V),
    "hessian": lambda inverse: torch.func.hessian(inverse.quadratic_form)(V),
    "jvp": lambda inverse: torch.func.jvp(inverse.matvec, (V,), (V * V,))[1],
    "vmap of grad": lambda inverse: torch.func.vmap(torch.func.grad(inverse.quadratic_form))(torch.stack([V, V * V])),
    "jvp by G": lambda _: torch.func.jvp(lambda g: BUILDS["by reference"](g, 0.1) @ V, (G,), (G**2,))[1],
    "grad by λ": lambda _: torch.func.grad(lambda x: (BUILDS["whitened"](G, x) @ V).sum())(torch.tensor(0.1)),
    "jacrev by G": lambda _: torch.func.jacrev(lambda g: BUILDS["whitened"](g, 0.1).element(SOME, SOME))(G),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, of jvp
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_under_autocast_are_of_float32(transform):
    inverse = WoodburyRankOneInverse(G, 0.1, whiten=False)
    wanted = TRANSFORMS[transform](inverse)
    with autocast():
        assert torch.equal(TRANSFORMS[transform](inverse), wanted)


def test_transforms_of_torch_func_differentiate():
    """By the derivative that there is in closed form: of vᵀF⁻¹v it is 2F⁻¹v."""
    inverse = WoodburyRankOneInverse(G, 0.1)
    found = torch.func.grad(inverse.quadratic_form)(V)
    assert torch.allclose(found, 2 * (inverse @ V), rtol=1e-4)


OTHERS = {
    "grad": lambda f: torch.func.grad(f)(torch.ones(())),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(()),), (torch.ones(()),)),
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f))(torch.ones(2)),
}
KEPT = BUILDS | {"window": lambda g, damping: SlidingWindowInverse.from_gradients(g, damping)}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, of jvp
@pytest.mark.parametrize("build", KEPT)
def test_what_a_transform_is_not_applied_to_knows_nothing_of_it(build):
    """What an inverse keeps from its first queries, and what is built within, serve afterwards."""

    def asked(inverse):
        return inverse @ v, inverse.diagonal(), inverse.sqrt_matvec(v), inverse.element(1, 2), inverse.quadratic_form(v)

    def within(x, made):
        made.append((inverse, asked(inverse)))
        made.append((built := KEPT[build](G, 0.1), asked(built)))
        return sum(answer.sum() for answer in made[0][1]) * x

    v = V[: KEPT[build](G, 0.1).dim]
    wanted = asked(KEPT[build](G, 0.1))
    for transform in OTHERS:
        inverse, made = KEPT[build](G, 0.1), []
        OTHERS[transform](lambda x, made=made: within(x, made))
        for kept, answers in made:
            for found in (answers, asked(kept)):
                assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_draws_within_a_transform_are_of_their_seed_alone(randomness):
    inverse, vectors = WoodburyRankOneInverse(G, 0.1), torch.stack([V, V * V])
    drawn = inverse.sample(2, seed=3)
    found = torch.func.vmap(lambda v: inverse.sample(2, seed=3) @ v, randomness=randomness)(vectors)
    assert torch.allclose(found, vectors @ drawn.T, rtol=1e-4, atol=1e-4)
    of_each = torch.func.vmap(
        lambda g: WoodburyRankOneInverse(g, 0.1, whiten=False).sample(2, seed=3), randomness=randomness
    )(torch.stack([G, G]))
    assert torch.allclose(of_each, drawn.expand(2, 2, 40), rtol=1e-3, atol=1e-4)


def test_elements_of_blocks_have_derivatives_by_the_damping():
    def elements(damping):
        return BUILDS["blocks"](G, damping).element([0, 5], [0, 6]).sum()

    damping = torch.tensor(0.1, dtype=torch.float64)
    step = 1e-3
    wanted = (elements(damping + step) - elements(damping - step)) / (2 * step)
    assert torch.allclose(torch.func.grad(elements)(damping).to(wanted.dtype), wanted, rtol=1e-2)


def test_a_window_copied_in_inference_mode_takes_in_gradients_outside_of_it():
    window = SlidingWindowInverse.from_gradients(G, 0.1)
    with torch.inference_mode():
        other = copy.deepcopy(window)
    for one in (window, other):
        one.append(V)
    assert torch.equal(window @ V, other @ V)


def test_a_step_of_the_optimizer_is_the_same_under_autocast():
    from mfac_linalg.torch import MFAC

    def weights_after(context):
        weights = torch.nn.Parameter(V.clone())
        optimizer = MFAC([weights], lr=0.1, window=3, damping=0.1, momentum=0.9, beta2=0.9, weight_decay=0.1)
        for row in G:
            weights.grad = row.clone()
            with context():
                optimizer.step()
        return weights.detach()

    assert torch.equal(weights_after(autocast), weights_after(contextlib.nullcontext))


JAX_SETTINGS = {
    "strict promotion": lambda jax: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda jax: jax.numpy_rank_promotion("raise"),
    "infs": lambda jax: jax.debug_infs(True),
    "x64": lambda jax: jax.enable_x64(True),
}


@pytest.fixture(scope="module")
def jax_inverse():
    jax = pytest.importorskip("jax")
    rows, vector = jax.numpy.asarray(G.numpy()), jax.numpy.asarray(V.numpy())
    inverse = WoodburyRankOneInverse(rows, jax.numpy.full(40, 0.1, "float32"), whiten=False)

    def ask():
        return jax.jit(jax.grad(lambda v: inverse.quadratic_form(v)))(vector)

    return jax, ask, ask()


@pytest.mark.parametrize("mode", JAX_SETTINGS)
def test_a_derivative_of_jax_is_the_same_in_every_mode(jax_inverse, mode):
    jax, ask, wanted = jax_inverse
    with JAX_SETTINGS[mode](jax):
        found = ask()
    assert found.dtype == wanted.dtype
    assert np.allclose(found, wanted, rtol=1e-6)


def test_updates_of_optax_are_the_same_in_every_mode():
    jax = pytest.importorskip("jax")
    from mfac_linalg.jax import scale_by_mfac

    transform = scale_by_mfac(window=3, damping=0.1, beta2=0.9)
    rows = [jax.numpy.asarray(row) for row in G.numpy()[:, :6]]

    def updates(context):
        with context:
            state, found = transform.init(rows[0]), []
            for row in rows:
                update, state = transform.update(row, state)
                found.append(update)
        return np.stack(found)

    wanted = updates(contextlib.nullcontext())
    for mode in [*JAX_SETTINGS.values(), lambda jax: jax.transfer_guard("disallow")]:
        assert np.array_equal(updates(mode(jax)), wanted)
