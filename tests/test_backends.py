"""The list of backends itself: what is missing skips here, once, by name."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.backends import BACKENDS, NUMPY, Backend
from tests.conftest import pytest_collection_modifyitems


@pytest.mark.parametrize("candidate", BACKENDS, ids=repr)
def test_a_backend_that_is_listed_is_present(candidate):
    if candidate.missing:
        pytest.skip(candidate.missing)


def left_out(items, *, leave_out=(), passed=None):
    """The names of what is left out, and of what is left."""
    told = []
    hook = SimpleNamespace(pytest_deselected=lambda items: told.extend(items))
    config = SimpleNamespace(getoption={"--leave-out": leave_out, "--passed": passed}.get, hook=hook)
    pytest_collection_modifyitems(config, items)
    return [item.nodeid for item in told], [item.nodeid for item in items]


def test_tests_on_arrays_of_a_library_can_be_left_out():
    def item(name, *parameters):
        return SimpleNamespace(nodeid=name, callspec=SimpleNamespace(params=dict(enumerate(parameters))))

    strict = next(backend for backend in BACKENDS if backend.library == "array_api_strict")
    plain = SimpleNamespace(nodeid="of no backend")
    items = [item("a backend", NUMPY), item("a flavour", (NUMPY, "float32"), 3), item("both", NUMPY, strict), plain]
    assert left_out(items, leave_out=["numpy"]) == (["a backend", "a flavour"], ["both", "of no backend"])


def test_tests_that_passed_elsewhere_can_be_left_out_but_not_those_of_their_surroundings(tmp_path):
    def item(name, mark=None):
        return SimpleNamespace(nodeid=name, get_closest_marker={mark: mark}.get)

    output = tmp_path / "output"
    lines = ["..s. [100%]", "PASSED test_a[λ 1]", "SKIPPED [1] test_b: needs jax", "PASSED test_c"]
    output.write_text("\n".join(lines), encoding="utf-8")
    items = [item("test_a[λ 1]"), item("test_b"), item("test_c", "surroundings"), item("test_d")]
    assert left_out(items, passed=output) == (["test_a[λ 1]"], ["test_b", "test_c", "test_d"])


def test_data_survive_the_way_to_a_backend_and_back(flavour):
    backend, dtype = flavour
    data = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    assert np.array_equal(backend.to_numpy(backend.asarray(data)), data)


def test_an_array_is_recognised_as_its_backends_own(flavour):
    backend, dtype = flavour
    assert backend.is_own(backend.asarray(np.ones(2, dtype)), dtype)


def test_an_array_of_another_device_is_not_its_own():
    first, second = (next(b for b in BACKENDS if b.name == name) for name in ("strict:CPU_DEVICE", "strict:device1"))
    assert not first.is_own(second.asarray(np.ones(2)), "float64")


def test_the_read_only_backend_hands_out_read_only_arrays():
    backend = next(b for b in BACKENDS if b.name == "numpy:readonly")
    assert not backend.asarray(np.ones(2)).flags.writeable


def test_a_missing_library_is_named():
    absent = Backend("absent", "no_such_library", ("float32",), lambda xp, array: array)
    assert absent.missing == "needs no_such_library"


def test_a_tangent_of_jax_does_not_make_numpy_arrays_those_of_jax():
    """Tangents of integers are NumPy arrays of the dtype float0."""
    jax = pytest.importorskip("jax")
    from mfac_linalg._backend.libraries import library

    assert library(np.zeros(3, jax.dtypes.float0)) == library(np.zeros(3)) == "numpy"
    assert library(jax.numpy.zeros(3)) == "jax"
