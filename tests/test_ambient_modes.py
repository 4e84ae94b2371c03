"""No ambient mode of any library changes an answer: modes x classes x queries, each as it is without the mode."""

import functools

import numpy as np
import pytest

import mfac_linalg as ml
from tests.ambient_queries import ALONE, CHEAP, Asked, answer, inverses, queries, same
from tests.backends import PRESENT
from tests.modes import DEAR, MODES, SELDOM, SINGLE, agree, at_once

BACKENDS = {b.library: b for b in PRESENT if b.name in ("numpy", "strict:CPU_DEVICE", "torch:cpu", "jax", "dask")}


def rows_of_the_table():
    """Library, mode and class: every mode by itself for some classes, all that go together at once for all of them."""
    for library, backend in BACKENDS.items():
        kinds, modes = inverses(backend), MODES[library]()
        for kind in kinds:
            left_out = DEAR.get(library, set()) | (SELDOM.get(library, set()) if kind != SINGLE[library][0] else set())
            alone = [mode for mode in modes if mode not in left_out] if kind in SINGLE[library] else []
            yield from ((library, mode, kind) for mode in [*alone, *at_once(library)])


def context_of(library, mode):
    return (MODES[library]() | at_once(library))[mode]


def asked_of(library, kind):
    chosen = inverses(BACKENDS[library])[kind]()
    found = queries(chosen)
    return Asked(chosen, BACKENDS[library]), {
        n: f for n, f in found.items() if library not in CHEAP or n in CHEAP[library]
    }


@functools.cache
def plain(library, kind):
    """An inverse built without a mode, its queries, and its answers."""
    asked, found = asked_of(library, kind)
    return asked, found, {name: answer(query, asked) for name, query in found.items()}


@pytest.mark.parametrize(("library", "mode", "kind"), list(rows_of_the_table()), ids=str)
def test_no_mode_changes_an_answer(library, mode, kind):
    """Neither that it is built in, nor that it is asked in."""
    asked, found, wanted = plain(library, kind)
    context, build = context_of(library, mode), inverses(BACKENDS[library])[kind]
    with context():
        built = build()
    wrong = []
    names = ALONE.get(library, found) if mode != "all at once" else found
    for name, query in [(name, found[name]) for name in names]:
        before = asked.inverse
        with context():
            inside = answer(query, asked)
        asked.inverse = built
        try:
            outside = answer(query, asked)
        finally:
            asked.inverse = before
        wrong += [(name, got) for got in (inside, outside) if not agree(got, wanted[name], mode, name)]
    assert not wrong


FLOAT64 = ("static, vector damping", "tall", "window", "blocks")


@pytest.mark.parametrize("kind", FLOAT64)
def test_what_jax_holds_in_float64_is_asked_without_float64_too(kind):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        backend = BACKENDS["jax.numpy"]
        asked = Asked(inverses(backend)[kind](), backend)
        inverse = asked.inverse = asked.inverse.astype("float64")
        for name, x in vars(asked).items():
            if name != "inverse" and x.dtype == np.float32:
                setattr(asked, name, x.astype(np.float64))
        found = {name: query for name, query in queries(inverse).items() if name not in ("astype", "save and load")}
        wanted = {name: answer(query, asked) for name, query in found.items()}
    assert [name for name, query in found.items() if not same(answer(query, asked), wanted[name])] == []


def test_no_mode_of_jax_outlasts_its_test():
    jax = pytest.importorskip("jax")
    before = dict(jax.config.values), jax.numpy.zeros(1).dtype
    for context in (MODES["jax.numpy"]() | at_once("jax.numpy")).values():
        with context():
            pass
        assert (dict(jax.config.values), jax.numpy.zeros(1).dtype) == before


def test_what_is_kept_from_inference_mode_serves_outside_of_it():
    torch = pytest.importorskip("torch")
    v = torch.ones(12, requires_grad=True)
    rows = torch.eye(3, 12)
    with torch.inference_mode():
        inverse = ml.WoodburyRankOneInverse(rows, 0.1)
        inverse.sqrt_matvec(torch.ones(12))
    inverse.sqrt_matvec(v).sum().backward()
    assert torch.isfinite(v.grad).all()


@pytest.mark.parametrize("guard", ["disallow", "disallow_explicit"])
def test_a_guard_on_transfers_of_jax_changes_no_answer(guard):
    """Nor that of rows on the host which JAX computes with."""
    jax = pytest.importorskip("jax")
    xp = jax.numpy
    from mfac_linalg.jax import SlidingWindowState

    rows = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    ours, index = xp.asarray(rows), xp.asarray([1, 2])
    v = ours[0]
    makers = [
        lambda: ml.WoodburyRankOneInverse(ours, 0.1),
        lambda: ml.WoodburyRankOneInverse(rows, 0.1, xp=xp),
        lambda: ml.BlockDiagonalInverse(ours, 0.1, block_sizes=4),
        lambda: ml.SlidingWindowInverse.from_gradients(ours, 0.1),
        lambda: SlidingWindowState.from_gradients(ours, 0.1),
    ]
    asked = [
        lambda inverse: inverse @ v,
        lambda inverse: inverse.element(1, 2),
        lambda inverse: inverse.element(index, np.asarray([0, 3])),
        lambda inverse: inverse.columns([1, -1]),
        lambda inverse: inverse.submatrix(index),
        lambda inverse: inverse.diagonal(),
    ]
    for make in makers:
        expected = [np.asarray(query(make())) for query in asked]
        with jax.transfer_guard(guard):
            inverse = make()
            found = [query(inverse) for query in asked]
        assert all(map(np.array_equal, map(np.asarray, found), expected))
    with jax.transfer_guard(guard):
        window = ml.SlidingWindowInverse(3, 8, 0.1, xp=xp)
        window.append_matvec(v)
        SlidingWindowState.from_gradients(ours, 0.1).append_matvec(v)
