"""No product waits for a device: array-api-strict's second device with a guard on every way to the host."""

import numpy as np
import pytest

from mfac_linalg import SlidingWindowInverse, TopK
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.testing import make_problem
from tests.backends import BACKENDS
from tests.cases import CASES, build, construct

DEVICE = next(backend for backend in BACKENDS if backend.name == "strict:device1")
ON_DEVICE = [case for case in CASES if case.options.get("form", "rows") in ("rows", "panelled rows")]
WAYS = ("__float__", "__bool__", "__int__", "__index__", "__complex__", "__iter__")
WAYS += ("__dlpack__", "__array__", "__buffer__", "to_device")


@pytest.fixture
def reads(monkeypatch):
    """A list that grows by the name of the way each time a value on the device goes to the host."""
    taken = []
    array = DEVICE.asarray([0.0])

    def guard(way, original):
        def guarded(self, *args, **kwargs):
            if self.device == array.device:
                taken.append(way)
            return original(self, *args, **kwargs)

        return guarded

    for way in WAYS:
        if hasattr(type(array), way):
            monkeypatch.setattr(type(array), way, guard(way, getattr(type(array), way)))
    return taken


def test_the_guard_counts_every_way(reads):
    array = DEVICE.asarray([1.0])
    float(array[0])
    bool(array[0])
    list(array)
    DEVICE.to_numpy(array)
    assert reads == ["__float__", "__bool__", "__iter__", "to_device"]


@pytest.mark.parametrize("dtype", DEVICE.dtypes)
@pytest.mark.parametrize("case", ON_DEVICE, ids=repr)
def test_a_build_reads_the_device_once_at_most(reads, case, dtype):
    construct(make_problem(3, dtype=dtype, **case.problem), DEVICE, **case.options)
    assert len(reads) <= 1, reads


@pytest.mark.parametrize("method", ["matvec", "matmat", "matvec_gradients", "dual_coefficients", "diagonal"])
@pytest.mark.parametrize("dtype", DEVICE.dtypes)
@pytest.mark.parametrize("case", ON_DEVICE, ids=repr)
def test_a_product_never_reads_the_device(reads, case, dtype, method):
    built = build(DEVICE, dtype, case)
    shape = {"matmat": (built.inverse.dim, 2), "matvec_gradients": (built.inverse.num_gradients,)}
    arguments = [] if method == "diagonal" else [built.send(built.vectors(*shape.get(method, (built.inverse.dim,))))]
    del reads[:]
    getattr(built.inverse, method)(*arguments)
    assert reads == []


@pytest.mark.parametrize("dtype", DEVICE.dtypes)
@pytest.mark.parametrize("case", ON_DEVICE, ids=repr)
def test_influence_never_reads_the_device(reads, case, dtype):
    built = build(DEVICE, dtype, case)
    few, many = (built.send(built.vectors(count, built.inverse.dim)) for count in (2, 20))
    del reads[:]
    for tests in (few, many):
        influence(built.inverse, tests)
        influence(built.inverse, few, tests)
    self_influence(built.inverse)
    self_influence(built.inverse, few)
    assert not reads


@pytest.mark.parametrize("method", ["matvec", "matvec_gradients", "dual_coefficients", "diagonal"])
@pytest.mark.parametrize("dtype", DEVICE.dtypes)
@pytest.mark.parametrize("compression", [None, TopK(0.3, block_size=8)], ids=repr)
def test_a_product_of_a_window_never_reads_the_device(reads, compression, dtype, method):
    rows = np.random.default_rng(0).standard_normal((5, 20)).astype(dtype)
    window = SlidingWindowInverse.from_gradients(DEVICE.asarray(rows), 0.1, compression=compression)
    arguments = {"diagonal": [], "matvec_gradients": [DEVICE.asarray(rows[0, :5])]}
    del reads[:]
    getattr(window, method)(*arguments.get(method, [DEVICE.asarray(rows[0])]))
    assert reads == []


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_a_text_never_reads_the_device(reads, method):
    inverse = build(DEVICE, "float64", CASES[0]).inverse
    del reads[:]
    getattr(inverse, method)()
    assert reads == []
