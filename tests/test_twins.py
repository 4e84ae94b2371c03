"""Tensors of PyTorch and arrays of JAX in the host's memory are computed by NumPy, and their users see only the speed.

Answers are NumPy's to the bit, the library's own otherwise; derivatives are the library's.
"""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg._rows import whitened
from tests.backends import AVAILABLE

LIBRARIES = [backend for backend in AVAILABLE if backend.name in ("torch:cpu", "jax")]
M, D = 24, 3000
RNG = np.random.default_rng(0)
G, V = RNG.standard_normal((3 * M, D), dtype="float32"), RNG.standard_normal((D, 3), dtype="float32")
DAMPINGS = {"one λ": 0.1, "a λ per parameter": RNG.random(D, dtype="float32") + 0.5}


@pytest.fixture(params=LIBRARIES, ids=repr)
def backend(request):
    return request.param


def converter(backend):
    return lambda x: x if isinstance(x, float) else backend.asarray(np.array(x))


@pytest.fixture
def convert(backend):
    """The way from NumPy to a library."""
    return converter(backend)


def answers(inverse, convert):
    """One answer of every kind."""
    i, j = np.arange(D), np.arange(D)[::-1].copy()
    yield inverse @ convert(V[:, 0])
    yield inverse.matmat(convert(V))
    yield inverse.matvec_gradients(convert(np.arange(inverse.num_gradients, dtype="float32")))
    yield inverse.dual_coefficients(convert(V[:, 0]))
    yield inverse.sqrt_matvec(convert(V[:, 0]))
    yield inverse.quadratic_form(convert(V))
    yield inverse.diagonal()
    yield inverse.element(1, 2)
    yield inverse.element(i, j)
    yield inverse.element(i[:4, None], i[None, :3])
    yield inverse.submatrix([0, 5], [1, 2, 3])
    yield inverse.columns([3, 1])
    yield inverse.logdet()
    yield inverse.trace()
    yield inverse.forward @ convert(V[:, 1])
    yield inverse.forward.diagonal()
    yield inverse.gradients


def static(convert, damping, **options):
    return answers(ml.WoodburyRankOneInverse(convert(G[:M]), convert(damping), **options), convert)


def blocks(convert, damping):
    return answers(ml.BlockDiagonalInverse(convert(G[:M]), convert(damping), block_sizes=[20, 20, 960, 2000]), convert)


def window(convert, damping):
    """Every change, then every query."""
    found = ml.SlidingWindowInverse(M, D, convert(damping))
    for g in G[: M + 5]:
        yield found.append_matvec(convert(g))
    found.replace(2, convert(G[-1]))
    found.remove(0)
    found.extend(convert(G[M : M + 3]))
    found.append(convert(G[-2]))
    yield from answers(found, convert)
    restored = pickle.loads(pickle.dumps(found)), ml.SlidingWindowInverse.from_state_dict(found.state_dict())
    for other in (found, *restored, found.with_damping(0.3)):
        yield other.append_matvec(convert(G[-3]))


KINDS = {
    "static": static,
    "whitened": lambda convert, damping: static(convert, damping, whiten=True),
    "high": lambda convert, damping: static(convert, damping, precision="high"),
    "blocks": blocks,
    "window": window,
}


@pytest.mark.parametrize("damping", DAMPINGS.values(), ids=DAMPINGS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_answers_are_those_of_numpy_to_the_bit(backend, convert, kind, damping):
    like = convert(V)
    for found, wanted in zip(kind(convert, damping), kind(lambda x: x, damping), strict=True):
        assert type(found) is type(like)
        assert found.device == like.device
        values = backend.to_numpy(found)
        assert values.dtype == np.asarray(wanted).dtype
        np.testing.assert_array_equal(values, wanted)


def test_gradients_are_not_copied(convert):
    """Neither by a build nor by products; a product of vectors needs a few of their size."""
    gradients, v = convert(G), convert(V[:, 0])
    ml.WoodburyRankOneInverse(gradients, 0.1) @ v  # imports, and what is cached by class
    tracemalloc.start()
    inverse = ml.WoodburyRankOneInverse(gradients, 0.1)
    inverse @ v
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert inverse.gradients is gradients
    assert peak < G.nbytes / 3


def test_whitened_rows_stand_once(convert, monkeypatch):
    made, whiten = [], whitened.whiten
    monkeypatch.setattr("mfac_linalg._forms.dual.whiten", lambda *a, **k: made.append(1) or whiten(*a, **k))
    inverse, index = ml.WoodburyRankOneInverse(convert(G[:M]), 0.1), np.arange(D)
    first = inverse.element(index, index)
    inverse @ convert(V[:, 0])
    second = inverse.element(index, index)
    assert len(made) == 1
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_a_pickle_has_nothing_of_what_numpy_uses(convert):
    inverse = ml.WoodburyRankOneInverse(convert(G[:M]), 0.1)
    before = len(pickle.dumps(inverse))
    inverse.element(np.arange(D), np.arange(D))
    assert len(pickle.dumps(inverse)) == before


def test_a_step_of_a_window_copies_no_rows(convert):
    found, g = ml.SlidingWindowInverse.from_gradients(convert(G), 0.1), convert(G[0])
    found.append_matvec(g)
    tracemalloc.start()
    found.append_matvec(g)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < G.nbytes / 2


def test_a_window_of_jax_keeps_no_rows_by_jax():
    jax = pytest.importorskip("jax")
    found = ml.SlidingWindowInverse.from_gradients(jax.numpy.asarray(G), 0.1)
    found.append_matvec(jax.numpy.asarray(G[0]))
    found.sample(1, seed=0)
    assert not any(x.ndim == 2 and x.shape[0] > M and x.shape[1] == D for x in jax.live_arrays())


def test_draws_are_those_of_the_librarys_generator(backend, convert):
    inverse = ml.WoodburyRankOneInverse(convert(G[:M]), 0.1)
    if backend.library == "torch":
        torch = backend.namespace
        draws = torch.randn((D, 2), generator=torch.Generator().manual_seed(7))
    else:
        jax = pytest.importorskip("jax")
        draws = jax.random.normal(jax.random.wrap_key_data(np.array([0, 7], np.uint32), impl="threefry2x32"), (D, 2))
    for column, draw in zip(draws.T, inverse.sample(2, seed=7), strict=True):
        scale = float(np.abs(np.asarray(column)).max())
        np.testing.assert_allclose(np.asarray(draw), np.asarray(inverse.sqrt_matvec(column)), atol=1e-6 * scale)


# --- memory of answers ----------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["static", "whitened", "blocks", "window"])
def test_an_answer_that_is_overwritten_changes_no_other(torch, kind):
    gradients = torch.from_numpy(G[:M].copy())
    inverse = {
        "static": lambda: ml.WoodburyRankOneInverse(gradients, 0.1),
        "whitened": lambda: ml.WoodburyRankOneInverse(gradients, 0.1, whiten=True),
        "blocks": lambda: ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=100),
        "window": lambda: ml.SlidingWindowInverse.from_gradients(gradients, 0.1),
    }[kind]()
    wanted = [x.clone() for x in answers(inverse, torch.from_numpy)]
    for x in answers(inverse, torch.from_numpy):
        if x.data_ptr() != gradients.data_ptr():  # the caller's own, which is returned as it came
            x.mul_(3.0)
    for found, before in zip(answers(inverse, torch.from_numpy), wanted, strict=True):
        assert torch.equal(found, before)


def test_arguments_are_not_written_to(torch):
    v = torch.from_numpy(V.copy())
    inverse = ml.WoodburyRankOneInverse(torch.from_numpy(G[:M]), torch.from_numpy(DAMPINGS["a λ per parameter"]))
    for _ in (inverse @ v, inverse @ v[:, 0], inverse.forward @ v, inverse.sqrt_matvec(v[:, 0])):
        pass
    np.testing.assert_array_equal(v.numpy(), V)


def test_memory_that_is_exchanged_is_read_no_longer(torch):
    gradients = torch.from_numpy(G[:M].copy())
    inverse, v = ml.WoodburyRankOneInverse(gradients, 0.1), torch.from_numpy(V[:, 0])
    before = inverse @ v
    gradients.data = gradients.data.clone()  # the same values elsewhere: legal
    assert torch.equal(inverse @ v, before)
    gradients.data = 2 * gradients.data
    with pytest.raises(ValueError, match="must not change"):
        inverse @ v


# --- derivatives ----------------------------------------------------------------------------------------------------


def test_derivatives_by_vectors_are_recorded(torch):
    inverse = ml.WoodburyRankOneInverse(torch.from_numpy(G[:M]), 0.1)
    v, other = (torch.from_numpy(x.copy()) for x in (V[:, 0], V[:, 1]))
    (inverse @ v.requires_grad_() @ other).backward()
    np.testing.assert_allclose(v.grad.numpy(), (inverse @ other).numpy(), rtol=1e-3, atol=1e-4)


def test_derivatives_by_gradients_that_are_asked_for_later_are_recorded(torch):
    gradients = torch.from_numpy(G[:M].copy())
    inverse, v = ml.WoodburyRankOneInverse(gradients, 0.1), torch.from_numpy(V[:, 0])
    assert not (inverse @ v).requires_grad
    gradients.requires_grad_()
    assert (inverse @ v).requires_grad
    gradients.requires_grad_(False)
    assert not (inverse @ v).requires_grad


def test_a_derivative_of_a_window_that_changed_is_refused(torch):
    found, v = ml.SlidingWindowInverse.from_gradients(torch.from_numpy(G[:M]), 0.1), torch.from_numpy(V[:, 0].copy())
    total = ((found @ v.requires_grad_()) ** 2).sum()
    found.append(torch.from_numpy(G[M]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_derivative_of_a_window_by_jax_outlives_its_changes():
    jax = pytest.importorskip("jax")
    rows, v = jax.numpy.asarray(G[:M]), jax.numpy.asarray(V[:, 0])
    found = ml.SlidingWindowInverse.from_gradients(rows, 0.1)
    _, pullback = jax.vjp(lambda v: found @ v, v)
    before = np.array(pullback(v)[0])
    for g in G[M : 2 * M]:
        found.append(jax.numpy.asarray(g))
    np.testing.assert_array_equal(pullback(v)[0], before)


def test_transforms_of_a_window_are_the_librarys(torch):
    found = ml.SlidingWindowInverse.from_gradients(torch.from_numpy(G[:M]), 0.1)
    columns = torch.func.vmap(lambda v: found @ v)(torch.from_numpy(V.T.copy()))
    np.testing.assert_allclose(columns.T.numpy(), (found @ torch.from_numpy(V)).numpy(), rtol=1e-3, atol=1e-4)


# --- what has no twin -----------------------------------------------------------------------------------------------


def test_a_subclass_of_tensors_stays_one(torch):
    class Named(torch.Tensor):
        pass

    inverse = ml.WoodburyRankOneInverse(torch.from_numpy(G[:M]), 0.1)
    assert type(inverse @ torch.from_numpy(V[:, 0]).as_subclass(Named)) is Named


def test_arrays_over_several_devices_stay_there():
    jax = pytest.importorskip("jax")
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), "d")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows, v = (jax.device_put(x, sharding) for x in (G[:M], V[:, 0]))
    x = ml.WoodburyRankOneInverse(rows, 0.1) @ v
    assert x.sharding == sharding
    assert x.committed


def test_no_warning_of_memory_that_is_read_only(torch):
    """`torch.from_numpy` warns of it."""
    inverse = ml.WoodburyRankOneInverse(torch.from_numpy(G[:M]), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in answers(inverse, torch.from_numpy):
            assert x.numpy().flags.writeable


TORCH = [backend for backend in LIBRARIES if backend.name == "torch:cpu"]


@pytest.mark.parametrize("torch_backend", TORCH, ids=repr)
def test_a_tensor_whose_memory_moves_is_found_again(torch_backend):
    """``share_memory_`` does it, and so does whoever sends a tensor, or an inverse, to another process."""
    gradients, v = torch_backend.asarray(G[:M]), torch_backend.asarray(V[:, 0])
    inverses = [ml.WoodburyRankOneInverse(gradients, 0.1), ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=1000)]
    before = [inverse @ v for inverse in inverses]
    place = gradients.data_ptr()
    gradients.share_memory_()
    assert gradients.data_ptr() != place
    for inverse, expected in zip(inverses, before, strict=True):
        twins = [inverse @ v for _ in range(2)]
        assert all(bool((x == expected).all()) for x in twins)


@pytest.mark.parametrize("torch_backend", TORCH, ids=repr)
@pytest.mark.parametrize("change", [lambda win: setattr(win, "damping", 0.5), lambda win: win.clear()])
def test_derivatives_are_refused_when_rows_change_after_a_new_damping(torch_backend, change):
    """What was recorded needs the rows as they were; until one is overwritten it is right."""
    window = ml.SlidingWindowInverse.from_gradients(torch_backend.asarray(G[:M]), 0.1)
    v = torch_backend.asarray(V[:, 0]).requires_grad_()
    early, late = (window @ v).sum(), (window @ v).sum()
    expected = window @ torch_backend.asarray(np.ones(D, "float32"))
    change(window)
    early.backward()
    assert bool((v.grad - expected).norm() <= 1e-3 * expected.norm())
    window.append(torch_backend.asarray(G[-1]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()
