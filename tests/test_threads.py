"""Threads that cannot be started: after the end of the main thread, or beyond what the system allows."""

import concurrent.futures
import subprocess
import sys

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg._backend import in_threads, read_ahead
from tests.source import REPOSITORY

LATE = """
import atexit, threading, time
import numpy as np
import mfac_linalg as ml

G, v = np.random.default_rng(0).standard_normal((2, 50)), np.ones(50)
{before}

def late():
    {wait}
    inverse = ml.WoodburyRankOneInverse(G, 0.1, memory_limit=10**9)
    print(np.allclose(inverse @ v, ml.WoodburyRankOneInverse(G, 0.1) @ v))
    print(ml.WoodburyRankOneInverse(np.ones((4, 2**20)), 0.1).diagonal()[0] > 0)
    window = ml.SlidingWindowInverse.from_gradients(G, 0.1)
    print(window.append_matvec(v) is not None)

{start}
"""
STARTS = {
    "thread": ("time.sleep(0.5)", "threading.Thread(target=late).start()  # the main thread ends first"),
    "atexit": ("pass", "atexit.register(late)"),
    "end of threads": ("pass", "threading._register_atexit(late)"),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("before", ["", ", concurrent.futures.thread"], ids=["first use", "used before"])
def test_an_inverse_answers_after_the_end_of_the_main_thread(start, before):
    wait, begin = STARTS[start]
    before = f"import scipy.linalg{before}"  # which itself cannot be imported so late from Python 3.13 on
    code = LATE.format(before=before, wait=wait, start=begin)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["True"] * 3, "")


@pytest.fixture(params=[0, 1, 3], ids=["no thread", "one thread", "three threads"])
def few_threads(request, monkeypatch):
    """A system on which so many calls can be handed to threads."""
    submit, left = concurrent.futures.ThreadPoolExecutor.submit, iter(range(request.param))

    def refusing(self, *arguments):
        if next(left, None) is None:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        return submit(self, *arguments)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", refusing)


def test_pieces_come_in_order_whoever_reads_them(few_threads):
    assert list(read_ahead(lambda piece: piece**2, [3, 1, 2])) == [(3, 9), (1, 1), (2, 4)]
    assert in_threads(lambda piece: piece**2, [3, 1, 2]) == [9, 1, 4]


def test_answers_do_not_depend_on_threads(few_threads):
    gradients = np.random.default_rng(0).standard_normal((4, 5000)).astype("float32")
    streamed = ml.WoodburyRankOneInverse(gradients, 0.1, memory_limit=10**7)
    v = np.ones(5000, "float32")
    assert np.allclose(streamed @ v, ml.WoodburyRankOneInverse(gradients, 0.1) @ v, rtol=1e-4)


@pytest.mark.parametrize("function", [in_threads, lambda f, pieces: list(read_ahead(f, pieces))])
def test_an_error_of_the_call_itself_is_passed_on(function, few_threads):
    def fails(piece):
        msg = f"of {piece}"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="of 1"):
        function(fails, [1])
