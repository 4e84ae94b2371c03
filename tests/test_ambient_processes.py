"""What a process or a thread decides: interpreter flags, environment, generators that others use, reading threads."""

import contextlib
import functools
import gc
import inspect
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg._backend import read_ahead
from tests.ambient_queries import Asked, answer, gradients, inverses, queries, same
from tests.backends import PRESENT
from tests.modes import setting
from tests.source import REPOSITORY

pytestmark = pytest.mark.surroundings

SOME = ("static", "static, vector damping", "tall", "window", "compressed window", "blocks", "streamed", "sparse")
UNASKED = ("repr", "gradients")  # a repr names nothing else, and gradients are those of the other process

PROGRAM = """
import pickle, sys
from tests.test_ambient_processes import all_answers
pickle.dump(all_answers(sys.argv[1]), sys.stdout.buffer)
"""


def all_answers(library="numpy"):
    """Every query of some classes of a library, as a dictionary that can be pickled."""
    backend, found = next(b for b in PRESENT if b.library == library), {}
    for kind in [kind for kind in SOME if kind in inverses(backend)]:
        asked = Asked(inverses(backend)[kind](), backend)
        for name, query in queries(asked.inverse).items():
            if name not in UNASKED:
                found[kind, name] = answer(query, asked)
    return found


plain_answers = functools.cache(all_answers)


def check_answers(library, found):
    wanted = plain_answers(library)
    assert wanted.keys() == found.keys()
    assert not [name for name, value in wanted.items() if not same(value, found[name])]


def in_a_process(*flags, library="numpy", **environment):
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, library],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert not done.returncode, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (("-O", "-W", "error"), {"PYTHONHASHSEED": "1"}),
        (("-OO", "-X", "dev"), {"PYTHONWARNINGS": "error", "PYTHONUTF8": "0", "LC_ALL": "C"}),
        ((), {"SCIPY_ARRAY_API": "1", "PYTHONHASHSEED": "2"}),
    ],
    ids=["-O -W error", "-OO -X dev PYTHONWARNINGS", "SCIPY_ARRAY_API"],
)
def test_no_flag_of_a_process_changes_an_answer(flags, environment):
    check_answers("numpy", in_a_process(*flags, **environment))


def test_arrays_that_scipy_is_told_to_take_change_no_answer_of_pytorch():
    pytest.importorskip("torch")
    check_answers("torch", in_a_process(library="torch", SCIPY_ARRAY_API="1"))


def test_threads_of_blas_change_no_answer_of_this_size():
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="needs threadpoolctl")
    with threadpoolctl.threadpool_limits(2):
        check_answers("numpy", all_answers())


def test_no_setting_of_the_interpreter_changes_an_answer():
    plain_answers("numpy")
    with contextlib.ExitStack() as stack:
        depth = len(inspect.stack()) + 120
        for get, put, value in (
            (sys.getrecursionlimit, sys.setrecursionlimit, depth),
            (sys.getswitchinterval, sys.setswitchinterval, 1e-5),
            (sys.get_int_max_str_digits, sys.set_int_max_str_digits, 640),
            (gc.get_threshold, lambda counts: gc.set_threshold(*counts), (20, 2, 2)),
            (tracemalloc.is_tracing, lambda on: tracemalloc.start() if on else tracemalloc.stop(), True),
        ):
            stack.enter_context(setting(get, put, value))
        found = all_answers()
    check_answers("numpy", found)


CHILDREN = """
import multiprocessing, sys, warnings
import numpy as np
from tests.ambient_queries import inverses
from tests.backends import NUMPY
inverse, v = inverses(NUMPY)["streamed"](), np.ones(40, "float32")
def ask(queue, *given):
    queue.put((given[0] if given else inverse) @ v)
if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    for given in ((), (inverse,)):
        wanted = inverse @ v  # by threads that have ended
        child = context.Process(target=ask, args=(queue, *given))
        child.start()
        found = queue.get(timeout=300)
        child.join()
        assert not child.exitcode
        assert np.array_equal(found, wanted)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_answers_as_its_parent(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script, method], env=environment, capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()


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
