"""The state dictionary of PyTorch's optimizer: training is resumed to the bit, and what does not fit is refused."""

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import mfac_linalg as ml
from tests.source import REPOSITORY
from tests.torch_optimizer import CONFIGURATIONS, MFAC, OPTIONS, copies, parameters, run_steps, same, start_optimizer

torch = pytest.importorskip("torch")
nn = torch.nn


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_resumed_training_is_the_same_to_the_bit(make, steps, dtype, tmp_path):
    params = parameters(dtype=dtype)
    optimizer = make(params)
    run_steps(optimizer, params, steps)
    state = through_a_file({"params": copies(params), "optimizer": optimizer.state_dict()}, tmp_path)
    run_steps(optimizer, params, 4, start=steps)
    again = [nn.Parameter(p) for p in state["params"]]
    resumed = make(again)
    resumed.load_state_dict(state["optimizer"])
    run_steps(resumed, again, 4, start=steps)
    assert same(params, again)


def test_training_resumed_in_another_process_is_the_same_to_the_bit(tmp_path):
    from tests.resumed import train

    train(tmp_path, 0, 6)
    code = f"from tests.resumed import train; train({str(tmp_path)!r}, 6, 9)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    resumed = torch.load(tmp_path / "9.pt", weights_only=True)["model"]
    assert same(train(tmp_path, 0, 9).values(), resumed.values())


def test_a_loaded_optimizer_shares_no_memory_with_the_saved_one():
    params, others = parameters(), parameters()
    optimizer, other = (MFAC(p, momentum=0.5, **OPTIONS) for p in (params, others))
    run_steps(optimizer, params, 3)
    state = optimizer.state_dict()
    rows = state["state"][0]["window"]["rows"].clone()
    other.load_state_dict(state)
    buffer = other.state[others[0]]["momentum_buffer"].clone()
    run_steps(optimizer, params, 2, start=3)
    assert torch.equal(other.state[others[0]]["momentum_buffer"], buffer)
    assert torch.equal(state["state"][0]["window"]["rows"], rows)


def test_a_state_is_that_of_one_step_whatever_comes_after():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, beta2=0.9, **OPTIONS)
    run_steps(optimizer, params, 2)
    state, at_the_time = optimizer.state_dict(), copies(params)
    run_steps(optimizer, params, 3, start=2)
    others = [nn.Parameter(p) for p in at_the_time]
    other = MFAC(others, momentum=0.5, beta2=0.9, **OPTIONS)
    other.load_state_dict(state)
    run_steps(other, others, 3, start=2)
    assert same(params, others)


def test_the_factor_stays_float64_beside_short_parameters(tmp_path):
    params = parameters(dtype=torch.bfloat16)
    optimizer = MFAC(params, momentum=0.5, beta2=0.9, **OPTIONS)
    run_steps(optimizer, params, 3)
    state = through_a_file(optimizer.state_dict(), tmp_path)
    optimizer.load_state_dict(state)
    window = optimizer.state_dict()["state"][0]["window"]
    assert {window[name].dtype for name in ("gram", "factor")} == {torch.float64}
    assert window["rows"].dtype == torch.bfloat16
    kept = optimizer.state[params[0]]
    assert kept["momentum_buffer"].dtype == kept["root_mean_square"].dtype == torch.float32


@pytest.mark.parametrize("number", [np.float32, np.float64, lambda x: torch.tensor(x)], ids=["32", "64", "tensor"])
def test_numbers_of_other_libraries_are_kept_as_pytorch_takes_them(number, tmp_path):
    params = parameters()
    optimizer = MFAC(params, number(0.1), window=np.int64(3), damping=number(0.5), momentum=number(0.5))
    run_steps(optimizer, params, 2)
    assert through_a_file(optimizer.state_dict(), tmp_path)["param_groups"][0]["damping"] == 0.5


def test_loaded_options_take_the_place_of_those_constructed_with():
    params, others = parameters(), parameters()
    optimizer = MFAC(params, **OPTIONS)
    other = MFAC(others, 7.0, window=9, damping=5.0)
    other.load_state_dict(optimizer.state_dict())
    run_steps(optimizer, params, 5)
    run_steps(other, others, 5)
    assert same(params, others)
    assert other.windows[0].window == 3


def test_numbers_set_between_steps_are_kept_as_pytorch_takes_them(tmp_path):
    optimizer, _ = start_optimizer()
    optimizer.param_groups[0]["damping"] = np.float64(0.3)
    assert through_a_file(optimizer.state_dict(), tmp_path)["param_groups"][0]["damping"] == 0.3


@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_state_can_be_loaded_again(copied):
    optimizer, _ = start_optimizer()
    state, loaded = optimizer.state_dict(), copied(optimizer)
    for _ in range(2):
        run_steps(loaded, loaded.param_groups[0]["params"], 1, start=1)
        loaded.load_state_dict(state)
    assert loaded.windows[0].num_gradients == 1
    assert np.array_equal(loaded.windows[0].gradients, optimizer.windows[0].gradients[:1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("steps", [0, 4])
def test_a_copy_takes_the_same_steps_and_none_of_the_others(make, copied, steps):
    params = parameters()
    optimizer = make(params)
    run_steps(optimizer, params, steps)
    other = copied(optimizer)
    others = [p for group in other.param_groups for p in group["params"]]
    before = copies(params)
    run_steps(other, others, 2, start=steps)
    assert same(params, before)
    run_steps(optimizer, params, 2, start=steps)
    assert same(params, others)


def test_words_of_other_kinds_are_stored_as_plain_ones(tmp_path):
    params = parameters()
    words = {"normalization": np.str_("mean"), "precision": np.str_("high"), "momentum_of": np.str_("gradients")}
    optimizer = MFAC(params, momentum=0.5, **words, **OPTIONS)
    run_steps(optimizer, params, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert type(optimizer.param_groups[0]["momentum_of"]) is str


def unfitting():
    """States that do not fit an optimizer of two groups that has taken steps, with the words of the refusal."""

    def groups(params, **options):
        return MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, **{**OPTIONS, **options})

    def state_of(make, dtype=torch.float64):
        params = parameters(dtype=dtype)
        optimizer = make(params)
        run_steps(optimizer, params, 2)
        return optimizer.state_dict()

    def changed(change):
        state = copy.deepcopy(state_of(groups))
        change(state)
        return state

    def cast(state):
        window = state["state"][2]["window"]
        window["factor"] = window["factor"].float()

    def short(state):
        state["state"][3]["momentum_buffer"] = torch.zeros(2).double()

    return {
        "no list": (changed(lambda state: state.update(windows=5)), "of 2 windows; got 5 (int)"),
        "numbers": (changed(lambda state: state.update(windows=[1, 2])), "entries shapes, dtypes, kept; got 1"),
        "nothing": ({}, "entries state, param_groups; got"),
        "a list": ([], "must be a dictionary; got [] (list)"),
        "SGD": (torch.optim.SGD(parameters(), 0.1).state_dict(), "2 groups of parameters; got 1"),
        "one group": (state_of(lambda p: MFAC(p, **OPTIONS)), "2 groups of parameters; got 1"),
        "other shapes": (state_of(lambda p: groups([p[1], p[0], *p[2:]])), "shapes [[2, 3], [3]]; got [[3], [2, 3]]"),
        "another dtype": (state_of(groups, torch.float32), "dtypes ['torch.float64']; got ['torch.float32']"),
        "masks": (state_of(lambda p: groups(p, masks={p[0]: torch.eye(2, 3)})), "of the same masks"),
        "normalization": (state_of(lambda p: groups(p, normalization="sum")), "normalization 'mean'; got 'sum'"),
        "compression": (state_of(lambda p: groups(p, compression=ml.TopK(0.5))), "compression None; got TopK(0.5)"),
        "a cast factor": (changed(cast), "a tensor of torch.float64 as factor of a window; got an array"),
        "a window gone": (
            changed(lambda state: state["state"][2].pop("window")),
            "got none for shapes [[], [2, 1, 2]]",
        ),
        "a momentum": (changed(short), "momentum_buffer of the parameters' shapes; got (2,) for (2, 1, 2)"),
        "no beta2": (
            changed(lambda state: state["param_groups"][1].pop("beta2")),
            "entries lr, momentum, weight_decay, damping, beta2",
        ),
        "a rate": (changed(lambda state: state["param_groups"][0].update(lr=np.nan)), "`lr` must be in [0, inf)"),
        "a window": (changed(lambda state: state["param_groups"][0].update(window=9)), "got 3 and 9"),
        "half a moment": (changed(lambda state: state["state"][0].update(share=0.1)), "root_mean_square and share"),
        "a parameter gone": (
            changed(lambda state: state["param_groups"][1]["params"].pop()),
            "must have 2 parameters in a group; got 1",
        ),
    }


@pytest.mark.parametrize("case", unfitting())
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case):
    state, words = unfitting()[case]
    params, untouched = parameters(), parameters()
    optimizers = [MFAC([{"params": p[:2]}, {"params": p[2:]}], momentum=0.5, **OPTIONS) for p in (params, untouched)]
    for optimizer, p in zip(optimizers, (params, untouched), strict=True):
        run_steps(optimizer, p, 4)
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        optimizers[0].load_state_dict(state)
    for optimizer, p in zip(optimizers, (params, untouched), strict=True):
        run_steps(optimizer, p, 2, start=4)
    assert same(params, untouched)


def test_a_state_of_other_masks_of_as_many_weights_is_refused():
    states = []
    for mask in (torch.eye(2, 3), torch.eye(2, 3).flip(0)):
        params = parameters()
        states.append(MFAC(params, masks={params[0]: mask}, **OPTIONS))
    with pytest.raises(ValueError, match="same masks"):
        states[0].load_state_dict(states[1].state_dict())
