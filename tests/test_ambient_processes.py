"""What a process or a thread decides: interpreter flags, environment, generators that others use, reading threads."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg._backend import read_ahead
from tests.backends import NUMPY
from tests.modes import Asked, answer, gradients, inverses, queries, same
from tests.source import ROOT

SOME = ("static", "static, vector damping", "tall", "window", "compressed window", "blocks", "streamed", "sparse")
UNASKED = ("repr", "gradients")  # a repr names nothing else, and gradients are those of the other process

PROGRAM = """
import pickle, sys
from tests.test_ambient_processes import all_answers
pickle.dump(all_answers(), sys.stdout.buffer)
"""


def all_answers():
    """Every query of some classes of NumPy, as a dictionary that can be pickled."""
    found = {}
    for kind in SOME:
        asked = Asked(inverses(NUMPY)[kind](), NUMPY)
        for name, query in queries(asked.inverse).items():
            if name not in UNASKED:
                found[kind, name] = answer(query, asked)
    return found


def in_a_process(*flags, **environment):
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM],
        cwd=ROOT.parent,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert not done.returncode, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.parametrize(
    ("flags", "environment"),
    [(("-O", "-W", "error"), {"PYTHONHASHSEED": "1"}), ((), {"SCIPY_ARRAY_API": "1", "PYTHONHASHSEED": "2"})],
    ids=["-O -W error", "SCIPY_ARRAY_API"],
)
def test_no_flag_of_a_process_changes_an_answer(flags, environment):
    wanted, found = all_answers(), in_a_process(*flags, **environment)
    assert wanted.keys() == found.keys()
    assert not [name for name, value in wanted.items() if not same(value, found[name])]


def test_generators_that_others_use_are_left_alone():
    np.random.seed(3)
    random.seed(3)
    before = (np.random.get_state()[1].tolist(), random.getstate())
    all_answers()
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_settings_of_numpy_are_left_as_they_were():
    before = np.geterr(), np.get_printoptions(), np.getbufsize()
    all_answers()
    assert (np.geterr(), np.get_printoptions(), np.getbufsize()) == before


def test_a_reading_thread_has_the_error_state_of_its_caller():
    with np.errstate(over="raise"):
        assert [state["over"] for _, state in read_ahead(lambda _: np.geterr(), [0, 1])] == ["raise"] * 2


def test_a_reading_thread_has_the_settings_of_jax_of_its_caller():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.default_device(jax.devices()[0]):
        seen = list(read_ahead(lambda _: _settings(jax), [0, 1]))
        assert [found for _, found in seen] == [_settings(jax)] * 2
    assert not jax.config.jax_enable_x64


def _settings(jax):
    config = jax.config
    return config.jax_enable_x64, config.jax_numpy_dtype_promotion, str(config.jax_default_device)


def test_rows_of_float64_are_read_as_such_under_jax():
    jax = pytest.importorskip("jax")
    rows = gradients().astype("float64")
    v = np.random.default_rng(3).standard_normal(rows.shape[1])
    wanted = WoodburyRankOneInverse(rows, 0.1) @ v
    with jax.enable_x64(True):
        inverse = WoodburyRankOneInverse(rows, 0.1, xp=jax.numpy, memory_limit=10**5)
        found = inverse @ jax.numpy.asarray(v)
    assert found.dtype == np.float64
    assert np.allclose(found, wanted, rtol=1e-9)


def test_a_reading_thread_records_where_its_caller_does():
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        assert [yes for _, yes in read_ahead(lambda _: torch.is_grad_enabled(), [0, 1])] == [False] * 2
    assert [yes for _, yes in read_ahead(lambda _: torch.is_grad_enabled(), [0, 1])] == [True] * 2


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_tasks_of_dask_know_of_no_error_state(scheduler):
    """Where powers of two scale entries down to nothing."""
    dask = pytest.importorskip("dask.array")
    rows = gradients() * np.float32(1e-20)
    v = np.full(rows.shape[1], 1e-30, "float32")
    v[3] = 1e-12
    inverse = WoodburyRankOneInverse(dask.from_array(rows, chunks=(-1, 15)), 1e-30)
    lazy = dask.from_array(v, chunks=15)
    wanted = [x.compute(scheduler="threads") for x in (inverse @ lazy, inverse.forward @ lazy)]
    with np.errstate(all="raise"):
        found = [x.compute(scheduler=scheduler) for x in (inverse @ lazy, inverse.forward @ lazy)]
    assert all(map(np.array_equal, found, wanted))
