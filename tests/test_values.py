"""A window's values use memory that it writes in place: nothing else may read it or write to it.

Copies of every kind, with changes to both sides after them; rollback; read-only arguments; returned arrays.
"""

import copy
import pickle
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

import mfac_linalg as ml
from mfac_linalg import SlidingWindowInverse, TopK
from mfac_linalg.testing import Oracle
from tests.backends import AVAILABLE, NUMPY
from tests.window_copies import (
    CHANGES,
    DIM,
    OPTIONS,
    WINDOW,
    answers,
    apply_changes,
    assert_same,
    random_gradients,
    slid_window,
)


def saved_and_loaded(window, tmp_path):
    place = {}
    if not isinstance(window.gradients, np.ndarray):
        place = {"xp": sys.modules[type(window.gradients).__module__.partition(".")[0]], "device": window.device}
        place["xp"] = getattr(place["xp"], "numpy", place["xp"])  # of JAX
    window.save(tmp_path / "window.npz")
    return ml.load(tmp_path / "window.npz", **place)


COPIES = {
    "copy": lambda window, _: copy.copy(window),
    "deepcopy": lambda window, _: copy.deepcopy(window),
    "copy of a copy": lambda window, _: copy.copy(copy.copy(window)),
    "in a list": lambda window, _: copy.deepcopy([window, window])[1],
    "pickle": lambda window, _: pickle.loads(pickle.dumps(window)),
    "dictionary": lambda window, _: SlidingWindowInverse.from_state_dict(window.state_dict()),
    "file": saved_and_loaded,
    "to_device": lambda window, _: window.to_device(window.device),
    "astype": lambda window, _: window.astype(window.dtype),
    "with_damping": lambda window, _: window.with_damping(0.1),
}

# --- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_and_its_window_go_their_own_ways(how, options, tmp_path):
    if "compression" in options and how in ("to_device", "astype"):
        options = {**options, "compression": TopK(1.0)}  # what is not kept is compressed again on the way
    first, alone = slid_window(**options), slid_window(**options)
    second = COPIES[how](first, tmp_path)
    before = answers(second)
    assert_same(before, answers(first))
    names = ["append", "append_matvec", "append", "replace", "append", "extend", "append"]
    apply_changes(first, 1, names)
    assert_same(answers(second), before, rtol=0)
    other = COPIES["dictionary"](alone, tmp_path)
    apply_changes(second, 2, names)
    apply_changes(alone, 1, names)
    apply_changes(other, 2, names)
    assert_same(answers(first), answers(alone))
    assert_same(answers(second), answers(other))


@given(
    how=st.sampled_from(["copy", "deepcopy", "pickle", "dictionary"]),
    options=st.sampled_from(list(OPTIONS.values())),
    turns=st.lists(st.tuples(st.booleans(), st.sampled_from(list(CHANGES))), max_size=8),
)
@example(how="copy", options={}, turns=[(False, "append"), (True, "append")])
@example(how="copy", options={}, turns=[(False, "remove"), (True, "append"), (False, "append")])
@example(how="copy", options={}, turns=[(True, "damping"), (False, "append"), (True, "append"), (False, "append")])
def test_any_changes_to_both_sides_are_their_own(how, options, turns):
    """Two windows that share their past answer as two that never met."""
    first = slid_window(**options)
    pair = (first, COPIES[how](first, None))
    strangers = (slid_window(**options), slid_window(**options))
    for seed, (which, name) in enumerate(turns):
        for window in (pair[which], strangers[which]):
            apply_changes(window, seed, [name])
    for window, stranger in zip(pair, strangers, strict=True):
        assert_same(answers(window), answers(stranger))


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b is not NUMPY and "readonly" not in b.name], ids=repr)
@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "dictionary", "to_device"])
def test_copies_are_deep_in_every_library(backend, how, tmp_path):
    first = slid_window(backend, "float32")
    second = COPIES[how](first, tmp_path)
    held = backend.to_numpy(first.gradients)
    for a, b in zip(random_gradients(3, 1, "float32"), random_gradients(3, 2, "float32"), strict=True):
        first.append(backend.asarray(a))
        second.append(backend.asarray(b))
    v = np.ones(DIM, "float32")
    for window, seed in ((first, 1), (second, 2)):
        rows = np.concatenate([held, random_gradients(3, seed, "float32")])[-WINDOW:]
        assert np.array_equal(backend.to_numpy(window.gradients), rows)
        x = backend.to_numpy(window @ backend.asarray(v))
        assert Oracle(rows, 0.1).backward_ratio(v, x, float(np.finfo("float32").eps)) <= 30


class Named(SlidingWindowInverse):
    """A window with more to it."""


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copy_has_the_class_and_the_attributes_of_a_subclass(how):
    window = Named(WINDOW, DIM, 0.1)
    window.tags = ["first"]
    window.append(random_gradients(1)[0])
    found = COPIES[how](window, None)
    assert (type(found), found.tags, found.tags is window.tags) == (Named, ["first"], how == "copy")


def test_a_window_that_contains_itself_can_be_copied():
    window = Named(WINDOW, DIM, 0.1)
    window.me = window
    found = copy.deepcopy(window)
    assert found.me is found


@pytest.mark.parametrize("way", ["forward", "as_linear_operator"])
def test_an_operator_follows_its_own_window_and_no_copy_of_it(way):
    window = slid_window()
    operators = [getattr(w, way) for w in (window, copy.copy(window))]
    operators = [operator() if callable(operator) else operator for operator in operators]
    first = operators[1] @ np.ones(DIM)
    apply_changes(window, 1, ["append"] * 3)
    dense = Oracle(window.gradients, 0.1)
    now = (dense.forward if way == "forward" else dense.inverse) @ np.ones(DIM)
    np.testing.assert_allclose(operators[0] @ np.ones(DIM), np.asarray(now, float), rtol=1e-9)
    assert np.array_equal(operators[1] @ np.ones(DIM), first)


# --- rollback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("names", [[], ["append"], ["damping", "append"], ["damping", "append", "damping"], ["extend"]])
def test_a_snapshot_survives_one_change_of_the_rows_and_any_dampings(options, names):
    for count in (7, 8):  # the factor of a full window is in one of two arrays
        window = slid_window(count=count, **options)
        before, wanted = window._snapshot(), answers(window)
        apply_changes(window, 1, names)
        window._restore(before)
        assert_same(answers(window), wanted, rtol=0)
        apply_changes(window, 2, ["append"] * 5)
        control = slid_window(count=count, **options)
        apply_changes(control, 2, ["append"] * 5)
        assert_same(answers(window), answers(control))


@pytest.mark.parametrize("names", [["append", "append"], ["remove", "append"], ["clear", "append"]])
def test_a_snapshot_that_was_written_over_is_refused(names):
    window = slid_window()
    before = window._snapshot()
    apply_changes(window, 1, names)
    with pytest.raises(RuntimeError, match="one change"):
        window._restore(before)


# --- what is handed out, and what comes in ---------------------------------------------------------------------------


def scribble(x):
    """Write over an array of NumPy or PyTorch, or the arrays in a dictionary."""
    for part in x.values() if isinstance(x, dict) else [x]:
        if not (hasattr(part, "shape") and part.shape):
            continue
        if not isinstance(part, np.ndarray):
            part.fill_(7)
        elif part.flags.writeable:
            part.fill(7)


def arrays_of(window):
    """All that the next steps depend on."""
    return [x for x in window.state_dict().values() if hasattr(x, "shape") and x.shape]


HANDED_OUT = {
    "state_dict": lambda window, v: window.state_dict(),
    "gradients": lambda window, v: window.gradients,
    "damping": lambda window, v: window.damping,
    "matvec": lambda window, v: window @ v,
    "append_matvec": lambda window, v: window.append_matvec(v),
    "matvec_gradients": lambda window, v: window.matvec_gradients(v[:WINDOW]),
    "diagonal": lambda window, v: window.diagonal(),
    "columns": lambda window, v: window.columns([0, 1]),
    "forward diagonal": lambda window, v: window.forward.diagonal(),
    "eigenvalues": lambda window, v: window.dual_coefficients(v),
    "argument": lambda window, v: v,
}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("options", [{}, {"compression": TopK(0.5)}, {"compression": TopK(1.0)}], ids=str)
@pytest.mark.parametrize("what", HANDED_OUT)
def test_nothing_that_a_window_hands_out_or_takes_in_is_its_own_memory(library, what, options):
    """Each is overwritten, and the window remains equal to one whose answers are not."""
    xp = pytest.importorskip(library)
    windows = [SlidingWindowInverse(WINDOW, DIM, xp.asarray(np.full(DIM, 0.1)), **options) for _ in range(2)]
    for window in windows:
        for g in random_gradients(7):
            window.append(xp.asarray(g))
    vectors = [xp.asarray(g) for g in random_gradients(2, 1)[[0, 0]]]
    scribble(HANDED_OUT[what](windows[0], vectors[0]))
    HANDED_OUT[what](windows[1], vectors[1])
    assert_same(*([np.asarray(x) for x in arrays_of(window)] for window in windows), rtol=0)
    for g in random_gradients(2, 2):
        for window in windows:
            window.append(xp.asarray(g))
        assert_same(*map(answers, windows), rtol=0)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("options", [{}, {"compression": TopK(0.5)}], ids=str)
def test_a_window_shares_nothing_with_the_state_that_it_was_made_from(library, options):
    xp = pytest.importorskip(library)
    window = SlidingWindowInverse.from_gradients(
        xp.asarray(random_gradients(4)), xp.asarray(np.full(DIM, 0.1)), **options
    )
    state = window.state_dict()
    found = SlidingWindowInverse.from_state_dict(state)
    scribble(state)
    assert_same(map(np.asarray, arrays_of(found)), map(np.asarray, arrays_of(window)), rtol=0)
    assert_same(answers(found), answers(window), rtol=0)


# --- arguments that later calls use again, and results --------------------------------------------------------------


def inverse_of(kind, xp, damping, weights):
    g = xp.asarray(random_gradients(4))
    return {
        "static": lambda: ml.WoodburyRankOneInverse(g, damping, weights=weights),
        "referenced": lambda: ml.WoodburyRankOneInverse(g, damping, weights=weights, whiten=False),
        "tall": lambda: ml.WoodburyRankOneInverse(g[:, :3], damping[:3], weights=weights),
        "blocks": lambda: ml.BlockDiagonalInverse(g, damping, weights=weights, block_sizes=DIM),
        "a damping per block": lambda: ml.BlockDiagonalInverse(g, damping[:4], weights=weights, block_sizes=3),
        "sizes in a list": lambda: ml.BlockDiagonalInverse(g, damping, weights=weights, block_sizes=[5, 7]),
        "streamed": lambda: ml.WoodburyRankOneInverse(g, damping, weights=weights, memory_limit=10**8),
    }[kind]()


AGAIN = {
    "itself": lambda inverse, path: inverse,
    "with_damping": lambda inverse, path: inverse.with_damping(0.3),
    "its own damping": lambda inverse, path: inverse.with_damping(inverse.damping),
    "astype": lambda inverse, path: inverse.astype("float32").astype("float64"),
    "to_device": lambda inverse, path: inverse.to_device(inverse.device),
    "copy": lambda inverse, path: copy.copy(inverse).with_damping(0.2),
    "deepcopy": lambda inverse, path: copy.deepcopy(inverse).with_damping(copy.deepcopy(inverse).damping),
    "pickle": lambda inverse, path: (found := pickle.loads(pickle.dumps(inverse))).with_damping(found.damping),
    "file": lambda inverse, path: (inverse.save(path / "inverse.npz"), ml.load(path / "inverse.npz"))[1],
}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize(
    "kind", ["static", "referenced", "tall", "blocks", "a damping per block", "sizes in a list", "streamed"]
)
def test_what_is_written_to_arguments_and_results_later_changes_nothing(kind, again, library, tmp_path):
    if kind == "streamed" and again in ("astype", "to_device", "file"):
        return  # refused, or of gradients in a file
    xp = pytest.importorskip(library)
    damping, weights = (np.random.default_rng(0).uniform(1, 2, size) for size in (DIM, 4))
    wanted = inverse_of(kind, xp, xp.asarray(damping.copy()), xp.asarray(weights.copy()))
    given = [xp.asarray(damping), xp.asarray(weights)]
    inverse = inverse_of(kind, xp, *given)
    scribble(dict(enumerate(given)))
    scribble(inverse.damping)
    for x in (inverse.diagonal(), inverse @ given[0][: inverse.dim], inverse.forward.diagonal()):
        scribble(x)
    found, right = (AGAIN[again](x, tmp_path) for x in (inverse, wanted))
    assert_same([np.asarray(found.to_dense())], [np.asarray(right.to_dense())], rtol=1e-6)
    assert np.array_equal(np.asarray(found.damping), np.asarray(right.damping))


@pytest.mark.parametrize("kind", ["list", "array"])
def test_block_sizes_are_the_inverses_own(kind):
    sizes = [5, 7] if kind == "list" else np.array([5, 7], np.uint8)
    inverse = ml.BlockDiagonalInverse(random_gradients(4), 0.1, block_sizes=sizes)
    sizes[0] = 6
    assert inverse.with_damping(0.2).block_sizes == inverse.block_sizes == (5, 7)


def test_derivatives_by_a_damping_flow_through_its_copy():
    torch = pytest.importorskip("torch")
    for damping in (torch.full((DIM,), 0.5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)):
        damping.requires_grad_(True)
        inverse = ml.WoodburyRankOneInverse(torch.asarray(random_gradients(4)), damping)
        with torch.no_grad():
            damping.mul_(2)  # a step of an optimizer, before the next call
        inverse.with_damping(0.5).logdet()
        inverse.logdet().backward()
        dense = Oracle(random_gradients(4), 0.5)
        wanted = -np.asarray(np.diag(dense.inverse), float)
        np.testing.assert_allclose(damping.grad.sum(), wanted.sum(), rtol=1e-9)
