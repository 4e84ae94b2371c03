"""Fingerprints of arrays: a change of the whole array is detected, and few entries are read."""

import gc
import weakref

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mfac_linalg._rows.fingerprint import COUNT, Fingerprint
from tests.ambient_queries import QUERIES, Asked, gradients
from tests.backends import BACKENDS, NUMPY
from tests.shared_memory import WITHOUT_VALUES, blocks, limited, overwritten, referenced


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(2, 600)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    order=st.sampled_from("CF"),
    share=st.sampled_from([1.0, 0.3, 0.05]),
    change=st.sampled_from(["drawn anew", "doubled", "negated", "rows turned", "zeros"]),
    seed=st.integers(0, 99),
)
def test_any_filling_is_another(shape, dtype, order, share, change, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape) * (rng.random(shape) < share)
    rows[0, 0] = 1.0
    memory = np.asarray(rows, dtype, order)
    found = Fingerprint.of(memory)
    found.require_same()
    new = {
        "drawn anew": rng.standard_normal(shape) * (rng.random(shape) < share),
        "doubled": 2 * memory,
        "negated": -memory,
        "rows turned": np.roll(memory, 1, axis=0) + (shape[0] == 1),
        "zeros": 0,
    }
    memory[...] = new[change]
    with pytest.raises(ValueError, match="must not change"):
        found.require_same()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (64, 1000), (300, 3000)])
def test_some_dozens_of_entries_are_looked_at_whatever_the_size(shape, order):
    memory = np.asarray(np.random.default_rng(0).standard_normal(shape), order=order)
    found = Fingerprint.of(memory)
    assert len(found.positions[0]) == min(COUNT, memory.size)
    assert {0, shape[1] - 1, memory.size - shape[1], memory.size - 1} <= set(found.positions[0].tolist())
    others = np.ones(memory.size, dtype=bool)
    others[found.positions[0]] = False
    memory[others.reshape(shape)] = np.nan
    found.require_same()  # no other entry is read


def test_a_view_is_not_copied_to_be_looked_at():
    """NumPy's `take` copies what is not contiguous as a whole: 160 MB here for a few entries."""
    import tracemalloc

    found = Fingerprint.of(np.zeros((100, 400_000))[:, ::2])
    tracemalloc.start()
    found.require_same()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**5


def test_entries_that_are_not_zero_are_looked_at_first():
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((20, 5000)) * (rng.random((20, 5000)) < 0.02)
    (positions,) = Fingerprint.of(rows).positions
    assert np.count_nonzero(rows.ravel()[positions]) > 10


@pytest.mark.parametrize("build", [referenced, overwritten, blocks, limited])
def test_each_query_looks_once(build, monkeypatch):
    inverse, looks = build(gradients()), []
    look = Fingerprint.require_same
    monkeypatch.setattr(Fingerprint, "require_same", lambda self: looks.append(self) or look(self))
    asked = Asked(inverse, NUMPY)
    names = [n for n in QUERIES if not n.startswith(("save", "prune", "with_damping", "to_device", "astype", "joint"))]
    for name in set(names) - WITHOUT_VALUES:
        looks.clear()
        QUERIES[name](asked)
        assert (name, len(looks)) == (name, 1)


def test_an_array_does_not_outlive_its_inverse():
    memory = gradients()
    inverse, alive = referenced(memory), weakref.ref(memory)
    inverse.logdet()
    gc.disable()
    try:
        del inverse, memory
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["jax", "dask", "strict:device1"])
def test_nothing_is_remembered_of_what_is_not_in_the_host_s_memory_or_never_changes(name):
    backend = next(backend for backend in BACKENDS if backend.name == name)
    if backend.missing:
        pytest.skip(backend.missing)
    assert Fingerprint.of(backend.asarray(gradients())) is None
