"""States of PyTorch's optimizer that are broken, short or of another kind: refused by name, and nothing changes."""

import copy
import functools
import operator

import numpy as np
import pytest

import mfac_linalg as ml
from tests.torch_checkpoints import FIRST, Model, start_optimizer
from tests.torch_optimizer import (
    CONFIGURATIONS,
    MFAC,
    OPTIONS,
    parameters,
    run_steps,
    same,
)

torch = pytest.importorskip("torch")
pytest.importorskip("mfac_linalg.torch")
api = pytest.importorskip("torch.distributed.checkpoint.state_dict")


def one_of(**options):
    return lambda p: MFAC(p, **{**OPTIONS, "momentum": 0.5, **options})


OTHERS = {
    "normalization": one_of(normalization="sum"),
    "precision": one_of(precision="high"),
    "compression": one_of(compression=ml.TopK(0.5)),
    "masks": lambda p: one_of(masks={p[0]: torch.eye(2, 3)})(p),
    "order": lambda p: one_of()([*p[2:], *p[:2]]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_without_words_too_a_state_of_another_kind_is_refused(name):
    params, others = parameters(), parameters()
    optimizer, other = one_of()(params), OTHERS[name](others)
    run_steps(other, others, 4)
    state = api.get_optimizer_state_dict(Model(others), other)
    with pytest.raises(ValueError, match="must be of the same parameters in the same order, masks, normalization"):
        api.set_optimizer_state_dict(Model(params), optimizer, state)


def window_of(state):
    return state["state"][0]["window"]


def cast(state):
    state["state"] = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x, state["state"]
    )


def without(name):
    return lambda state: window_of(state).pop(name)


def set_entry(name, value):
    return lambda state: window_of(state).update({name: value})


def shorten_entry(name):
    return lambda state: window_of(state).update({name: window_of(state)[name][:1]})


BROKEN = {
    "cast": (cast, "Keep it out of casts"),
    **{
        f"no {name}": (without(name), name)
        for name in ("rows", "gram", "factor", "slots", "count", "placed", "norm", "fingerprint", "damping", "version")
    },
    **{
        f"{name} as a list": (set_entry(name, [1]), name)
        for name in ("rows", "gram", "factor", "slots", "ages", "exponents", "direction", "count", "norm", "sharp")
    },
    **{f"{name} as None": (set_entry(name, None), name) for name in ("rows", "gram", "ages", "count", "damping")},
    **{f"short {name}": (shorten_entry(name), name) for name in ("rows", "factor", "slots", "direction")},
    "a count beyond": (lambda state: window_of(state).update(count=9), "count of gradients in [0, 3]"),
    "slots twice": (lambda state: window_of(state)["slots"].fill_(1), "slots"),
    "window": (lambda state: state["state"][0].update(window=[1]), "got [1] (list)"),
    "no window": (lambda state: state["state"][0].pop("window"), "must have a window in the state of a parameter"),
    "None for a state": (lambda state: state.update(state=None), "as a dictionary; got None"),
    "a list for a state": (lambda state: state["state"].update({1: [1]}), "as a dictionary"),
    "no groups": (lambda state: state.update(param_groups=None), "1 groups of parameters; got None"),
    "a group that is none": (lambda state: state.update(param_groups=[3]), "must have the entries lr"),
    "no parameters": (lambda state: state["param_groups"][0].update(params=None), "4 parameters in a group; got None"),
    "momentum as a list": (
        lambda state: state["state"][1].update(momentum_buffer=[1.0]),
        "momentum_buffer as a tensor",
    ),
    "momentum as None": (
        lambda state: state["state"][1].update(momentum_buffer=None),
        "must have momentum_buffer in the state",
    ),
    "half a moment": (lambda state: state["state"][1].update(share=0.5), "root_mean_square and share together"),
    "a share": (
        lambda state: state["state"][1].update(share=-1.0, root_mean_square=torch.zeros(3).double()),
        "a share in [0, 1]; got -1.0",
    ),
    "words": (lambda state: state.update(windows="x"), "of 1 windows; got 'x'"),
    "a word": (lambda state: state["windows"][0].pop("normalization"), "normalization"),
    "no kept": (lambda state: state["windows"][0].update(kept=None), "same masks"),
    "kept as numbers": (lambda state: state["windows"][0].update(kept=[1, 2, 3, 4]), "same masks"),
    "a kind of compression": (lambda state: state["windows"][0].update(compression=4), "compression None; got 4"),
    "another optimizer": (lambda state: state.update(torch.optim.SGD(parameters(), 0.1).state_dict()), "entries lr"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_state_is_refused_by_name_and_changes_nothing(case):
    change, words = BROKEN[case]
    params, untouched = parameters(), parameters()
    optimizers = [start_optimizer(p) for p in (params, untouched)]
    state = copy.deepcopy(optimizers[0].state_dict())
    change(state)
    with pytest.raises((TypeError, ValueError)) as refused:
        optimizers[0].load_state_dict(state)
    assert words in str(refused.value)
    assert "`state" in str(refused.value)
    for optimizer, p in zip(optimizers, (params, untouched), strict=True):
        run_steps(optimizer, p, 2, start=4)
    assert same(params, untouched)


def paths(part, path=()):
    """The ways to all entries of a state, also of those in entries."""
    within = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [path, *(way for key, x in within for way in paths(x, (*path, key)))]


NOWHERE = {
    "two numbers": torch.ones(2),
    "without values": torch.ones((), device="meta"),
    "several without values": torch.ones(2, device="meta"),
    "sparse": torch.ones(2).to_sparse(),
    "no tensor": np.ones(2),
    "a list": [1],
    "a set": {1},
    "an object": object(),
    "nan": np.nan,
    "huge": 10**400,
}


@pytest.mark.parametrize("compression", [None, ml.TopK(0.5, block_size=2, error_feedback=True)])
@pytest.mark.parametrize("kind", NOWHERE)
def test_what_an_entry_cannot_be_is_refused_by_name_wherever_it_is(kind, compression):
    options = {**OPTIONS, "momentum": 0.5, "beta2": 0.9, "compression": compression}
    kept = parameters()[:2], parameters()[:2]
    optimizers = [MFAC(p, masks={p[0]: torch.eye(2, 3)}, **options) for p in kept]
    for optimizer, p in zip(optimizers, kept, strict=True):
        run_steps(optimizer, p, 2)
    for *way, last in paths(whole := optimizers[0].state_dict())[1:]:
        state = copy.deepcopy(whole)
        functools.reduce(operator.getitem, way, state)[last] = NOWHERE[kind]
        with pytest.raises((TypeError, ValueError), match=r"^`"):
            optimizers[0].load_state_dict(state)
    for optimizer, p in zip(optimizers, kept, strict=True):
        run_steps(optimizer, p, 2, start=2)
    assert same(*kept)


LAYOUTS = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x]),
    "nan": lambda x: x * np.nan,
    "inf": lambda x: x + np.inf,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["momentum_buffer", "root_mean_square", "rows", "gram", "factor", "direction"])
def test_tensors_of_their_shape_and_dtype_need_finite_values(name, layout):
    params, untouched = parameters(), parameters()
    optimizers = [MFAC(p, beta2=0.9, **OPTIONS, momentum=0.5) for p in (params, untouched)]
    for optimizer, p in zip(optimizers, (params, untouched), strict=True):
        run_steps(optimizer, p, 2)
    state = optimizers[0].state_dict()
    held = state["state"][0] if name in state["state"][0] else window_of(state)
    held[name] = LAYOUTS[layout](held[name])
    with pytest.raises((TypeError, ValueError), match=f"^`state.*(window|{name})"):
        optimizers[0].load_state_dict(state)
    for optimizer, p in zip(optimizers, (params, untouched), strict=True):
        run_steps(optimizer, p, 2, start=2)
    assert same(params, untouched)


def test_a_negative_root_mean_square_is_refused():
    optimizer = MFAC(params := parameters(), beta2=0.9, **OPTIONS)
    run_steps(optimizer, params, 2)
    state = optimizer.state_dict()
    state["state"][0]["root_mean_square"].neg_()
    with pytest.raises(ValueError, match="`state_dict` must have a root_mean_square that is finite and ≥ 0"):
        optimizer.load_state_dict(state)


BROKEN_FIRST = {
    "a window": lambda entry: entry.update(window=4),
    "host": lambda entry: entry.update(host=["nothing"]),
    "rows": lambda entry: entry["window"].pop("rows"),
    "factor": lambda entry: entry["window"].update(factor=[1]),
    **{
        f"{name} without values": lambda entry, name=name: entry["window"].update({name: torch.ones(3, device="meta")})
        for name in ("rows", "factor")
    },
    "half": lambda entry: entry["window"].update(factor=entry["window"]["factor"].float()),
}


@pytest.mark.parametrize("case", BROKEN_FIRST)
def test_a_broken_state_of_version_1_is_refused(case):
    state = copy.deepcopy(FIRST["one group, float64, 5 steps"]["optimizer"])
    BROKEN_FIRST[case](state["windows"][0])
    optimizer = CONFIGURATIONS["one group"](parameters())
    with pytest.raises((TypeError, ValueError), match="`state"):
        optimizer.load_state_dict(state)
    assert len(optimizer.windows[0]) == 0


@pytest.mark.parametrize("lost", ["entry", "momentum_buffer", "offset"])
def test_a_state_without_what_a_step_goes_on_from_is_refused(lost):
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = MFAC(parameters, lr=0.1, window=4, damping=0.1, momentum=0.9)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    if lost == "entry":
        state["state"][1] = None
    else:
        del state["state"][1][lost]
    with pytest.raises(ValueError, match=rf"`state_dict` must have .*{'offset' if lost == 'entry' else lost}"):
        optimizer.load_state_dict(state)
    optimizer.step()
