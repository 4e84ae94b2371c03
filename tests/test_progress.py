"""Progress bars of long calls: which loops they show, in full, and that they change no answer."""

import gc
import io
import sys

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence, self_influence
from mfac_linalg.pruning import prune

M, D = 4, 5000  # five panels of 1,024 columns
G = np.random.default_rng(0).standard_normal((M, D))
V = np.random.default_rng(1).standard_normal(D)
LIMIT = 2_000_000  # bytes


class Bars:
    """In place of tqdm: the arguments of each bar, and the steps that it counted."""

    def __init__(self):
        self.seen = []

    def __call__(self, loop, *, desc, total, leave, file):
        assert not leave
        assert file.isatty() == sys.stderr.isatty()
        bar = {"text": desc, "total": len(loop) if total is None else total, "done": 0}
        self.seen.append(bar)
        return self.counted(loop, bar)

    def counted(self, loop, bar):
        for item in loop:
            yield item
            bar["done"] += 1

    def texts(self):
        """The texts of the bars since the last time, all of which came to their end."""
        seen, self.seen = self.seen, []
        assert all(bar["done"] == bar["total"] > 0 for bar in seen)
        return [bar["text"] for bar in seen]


@pytest.fixture
def bars(monkeypatch):
    tqdm = pytest.importorskip("tqdm.auto", reason="needs tqdm")
    bars = Bars()
    monkeypatch.setattr(tqdm, "tqdm", bars)
    return bars


def streamed_inverse(**options):
    return WoodburyRankOneInverse(G, 0.1, memory_limit=LIMIT, **options)


QUERIES = {
    "matvec": lambda inverse: inverse.matvec(V),
    "matmat": lambda inverse: inverse.matmat(np.stack([V, V], axis=1)),
    "diagonal": lambda inverse: inverse.diagonal(),
    "trace": lambda inverse: inverse.trace(),
    "matvec_gradients": lambda inverse: inverse.matvec_gradients(np.ones(M)),
    "quadratic_form": lambda inverse: inverse.quadratic_form(V),
    "forward": lambda inverse: inverse.forward.matvec(V),
    "backward_error": lambda inverse: inverse.backward_error(V, V),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("out", [False, True], ids=["rows", "folder"])
def test_queries_over_streamed_rows_show_each_pass(query, out, bars, tmp_path):
    places = (tmp_path / "loud", tmp_path / "quiet") if out else (None, None)
    loud, quiet = streamed_inverse(progress=True, out=places[0]), streamed_inverse(out=places[1])
    bars.texts()
    answer = QUERIES[query](loud)
    shown = bars.texts()
    assert shown
    assert set(shown) == {"pass over the rows"}
    assert np.array_equal(answer, QUERIES[query](quiet))
    assert bars.texts() == []


def test_a_build_shows_each_of_its_passes_once(bars, tmp_path):
    streamed_inverse(progress=True)
    assert bars.texts() == ["gram"]
    streamed_inverse(progress=True, out=tmp_path / "folder")
    assert bars.texts() == ["gram", "whiten"]
    streamed_inverse()
    assert bars.texts() == []


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_build_of_lazy_rows_shows_its_tasks(scheduler, bars):
    dask = pytest.importorskip("dask")
    lazy = pytest.importorskip("dask.array").from_array(G, chunks=(-1, 1000))
    with dask.config.set(scheduler=scheduler):
        WoodburyRankOneInverse(lazy, 0.1)
        assert bars.texts() == []
        WoodburyRankOneInverse(lazy, 0.1, progress=True)
        assert bars.texts() == ["gram"]


def test_another_damping_still_shows_its_passes(bars):
    inverse = streamed_inverse(progress=True).with_damping(0.2)
    bars.texts()
    inverse.matvec(V)
    assert set(bars.texts()) == {"pass over the rows"}


def test_pruning_shows_its_steps_and_the_candidates_of_each(bars):
    w, gradients = np.linspace(1, 2, 12), np.random.default_rng(0).standard_normal((4, 12))
    options = {"sparsity": 0.5, "steps": 3, "damping": 0.1}
    quiet = prune(w, lambda w, step: gradients, **options)
    assert bars.texts() == []
    loud = prune(w, lambda w, step: gradients, **options, progress=True)
    assert bars.texts() == ["prune"]
    assert np.array_equal(quiet.weights, loud.weights)
    several = {**options, "damping": [0.1, 1.0], "lengths": (1.0, 0.5), "loss_fn": lambda w: float(w @ w)}
    prune(w, lambda w, step: gradients, **several, progress=True)
    assert bars.texts() == ["prune"] + 3 * ["candidates"]


@pytest.mark.parametrize("tests", [3, 9], ids=["few", "more than the rows"])
@pytest.mark.parametrize("trains", [None, 5, 2])
def test_influences_show_their_blocks(tests, trains, bars):
    inverse, rng = WoodburyRankOneInverse(G[:, :50], 0.1), np.random.default_rng(2)
    given = [rng.standard_normal((tests, 50))] + ([] if trains is None else [rng.standard_normal((trains, 50))])
    quiet = influence(inverse, *given, block_size=2)
    assert bars.texts() == []
    assert np.array_equal(influence(inverse, *given, block_size=2, progress=True), quiet)
    assert bars.texts() == ["influence"]
    assert np.array_equal(self_influence(inverse, given[0], progress=True), self_influence(inverse, given[0]))
    assert bars.texts() == ["influence"]


CALLS = {
    "build": lambda: streamed_inverse(progress=True),
    "prune": lambda: prune(np.ones(4), lambda w, step: np.ones((2, 4)), 0.5, damping=0.1, progress=True),
    "influence": lambda: influence(WoodburyRankOneInverse(G, 0.1), G, progress=True),
    "self_influence": lambda: self_influence(WoodburyRankOneInverse(G, 0.1), G, progress=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_without_tqdm_a_bar_is_refused_with_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"`progress=True` needs tqdm.*pip install"):
        CALLS[call]()


class Broken:
    """A stream that somebody has closed the other end of."""

    encoding = "utf-8"

    def __init__(self, failure, lines=0):
        self.failure, self.lines = failure, lines

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise self.failure
        return len(text)

    flush = bool


def close_stream(stream):
    stream.close()
    return stream


STREAMS = {
    "None": lambda: None,
    "closed": lambda: close_stream(io.StringIO()),
    "closed wrapper": lambda: close_stream(io.TextIOWrapper(io.BytesIO())),
    "nothing to write to": object,
    "broken pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "full disk, later on": lambda: Broken(OSError(28, "No space left on device"), lines=2),
    "window that is gone": lambda: Broken(RuntimeError("wrapped C/C++ object has been deleted")),
}
LAZY = {"lazy": lambda: _lazy(progress=True)}


def _lazy(**options):
    array = pytest.importorskip("dask.array", reason="needs Dask")
    return WoodburyRankOneInverse(array.from_array(G, chunks=(-1, 1000)), 0.1, **options)


FIRST, LATER = next(iter(CALLS)), "full disk, later on"
BROKEN = dict.fromkeys([(stream, FIRST) for stream in STREAMS] + [(LATER, call) for call in CALLS | LAZY])


@pytest.mark.parametrize(("stream", "call"), BROKEN)
def test_a_bar_that_cannot_be_shown_is_none(stream, call, monkeypatch):
    """The call continues; nothing fails when the bar is collected either."""
    pytest.importorskip("tqdm.auto", reason="needs tqdm")
    left = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: left.append(failed.exc_value))
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    (CALLS | LAZY)[call]()
    gc.collect()
    assert left == []


def test_a_failure_of_the_loop_itself_is_not_taken_for_one_of_the_bar(bars):
    class Failing:
        shape, dtype = (M, D), np.dtype("float64")

        def __getitem__(self, part):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        WoodburyRankOneInverse(Failing(), 0.1, memory_limit=LIMIT, progress=True)
    assert [bar["text"] for bar in bars.seen] == ["gram"]
