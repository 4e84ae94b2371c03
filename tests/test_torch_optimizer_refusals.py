"""Arguments, groups and gradients that PyTorch's optimizer refuses by name."""

import functools
import re

import numpy as np
import pytest

import mfac_linalg as ml
from tests.torch_optimizer import (
    DIM,
    MFAC,
    OPTIONS,
    copies,
    make_optimizer,
    parameters,
    run_steps,
    same,
    set_gradients,
    start_optimizer,
)

torch = pytest.importorskip("torch")
nn = torch.nn
SPARSE = torch.eye(3).to_sparse()
REFUSALS = {
    "lr": (ValueError, "`lr` must be in [0, inf); got -1", lambda: make_optimizer(lr=-1)),
    "lr nan": (ValueError, "`lr` must be in [0, inf); got nan", lambda: make_optimizer(lr=np.nan)),
    "lr word": (TypeError, "`lr` must be a number; got '0.1' (str)", lambda: make_optimizer(lr="0.1")),
    "lr vector": (
        TypeError,
        "`lr` must be a number; got an array of shape (2,)",
        lambda: make_optimizer(lr=torch.ones(2)),
    ),
    "momentum": (ValueError, "`momentum` must be in [0, 1); got 1", lambda: make_optimizer(momentum=1.0)),
    "momentum_of": (
        ValueError,
        "`momentum_of` must be one of 'steps', 'gradients'; got 'weights'",
        lambda: make_optimizer(momentum_of="weights"),
    ),
    "momentum_of flag": (TypeError, "`momentum_of` must be one of", lambda: make_optimizer(momentum_of=True)),
    "weight_decay": (
        ValueError,
        "`weight_decay` must be in [0, inf); got -0.1",
        lambda: make_optimizer(weight_decay=-0.1),
    ),
    "beta2": (ValueError, "`beta2` must be in [0, 1); got 1", lambda: make_optimizer(beta2=1.0)),
    "beta2 word": (TypeError, "`beta2` must be a number; got 'adam'", lambda: make_optimizer(beta2="adam")),
    "damping": (ValueError, "`damping` must be in (0, inf); got 0", lambda: make_optimizer(damping=0.0)),
    "damping vector": (TypeError, "`damping` must be a number", lambda: make_optimizer(damping=torch.ones(DIM))),
    "damping flag": (TypeError, "`damping` must be a number", lambda: make_optimizer(damping=True)),
    "window": (ValueError, "`window` must be at least 1", lambda: make_optimizer(window=0)),
    "window float": (TypeError, "`window` must be a whole number", lambda: make_optimizer(window=3.0)),
    "maximize": (TypeError, "`maximize` must be True or False", lambda: make_optimizer(maximize=1)),
    "decoupled": (TypeError, "`decoupled_weight_decay` must be", lambda: make_optimizer(decoupled_weight_decay="yes")),
    "shared_window": (TypeError, "`shared_window` must be True or False", lambda: make_optimizer(shared_window=None)),
    "normalization": (ValueError, "`normalization` must be one of", lambda: make_optimizer(normalization="max")),
    "compression": (TypeError, "`compression` must be None or a TopK", lambda: make_optimizer(compression=0.01)),
    "complex": (
        TypeError,
        "got torch.complex64. Pass real and",
        lambda: make_optimizer([torch.zeros(2, dtype=torch.complex64)]),
    ),
    "integers": (TypeError, "must be float16, bfloat16", lambda: make_optimizer([torch.zeros(2, dtype=torch.int64)])),
    "dtypes": (
        TypeError,
        "one dtype on one device; got torch.float32 on cpu, torch.float64 on cpu",
        lambda: make_optimizer([torch.zeros(2), torch.zeros(2).double()]),
    ),
    "devices": (
        TypeError,
        "got torch.float32 on cpu, torch.float32 on meta. Make them groups",
        lambda: make_optimizer([torch.zeros(2), torch.zeros(2, device="meta")]),
    ),
    "meta": (ValueError, "got some on the device meta", lambda: make_optimizer([torch.zeros(2, device="meta")])),
    "shared dtypes": (
        TypeError,
        "one dtype on one device",
        lambda: make_optimizer(
            [{"params": [torch.zeros(2)]}, {"params": [torch.zeros(2).double()]}], shared_window=True
        ),
    ),
    "shared damping": (
        ValueError,
        "`damping` must be one for all groups of a shared window; got [0.3, 0.5]",
        lambda: make_optimizer(
            [{"params": [torch.zeros(2)]}, {"params": [torch.ones(2)], "damping": 0.5}], shared_window=True
        ),
    ),
    "a rule in a group": (
        ValueError,
        "`compression` must be the same for all groups",
        lambda: make_optimizer([{"params": parameters(), "compression": ml.TopK(0.1)}]),
    ),
    "masks in a group": (
        ValueError,
        "`masks` must be the same for all groups",
        lambda: make_optimizer([{"params": parameters(), "masks": {}}]),
    ),
    "added to a shared window": (
        ValueError,
        "`param_group` must come before the first step of a shared window",
        lambda: start_optimizer(shared_window=True)[0].add_param_group({"params": parameters()}),
    ),
    "masks": (TypeError, "`masks` must be a mapping", lambda: make_optimizer(masks=[torch.ones(2)])),
    "mask names": (
        TypeError,
        "`masks` must map parameters to tensors",
        lambda: make_optimizer(masks={"weight": torch.ones(2)}),
    ),
    "mask shape": (
        ValueError,
        "`masks` must have their parameters' shapes; got (2,) for (3,)",
        lambda: make_optimizer((p := parameters()), masks={p[1]: torch.ones(2)}),
    ),
    "mask values": (
        ValueError,
        "`masks` must be True where",
        lambda: make_optimizer((p := parameters()), masks={p[1]: torch.full((3,), 0.5)}),
    ),
    "mask of another": (
        ValueError,
        "`masks` must be for parameters of the optimizer; got one of shape (3,)",
        lambda: make_optimizer(masks={torch.zeros(3): torch.ones(3)}),
    ),
    "no params": (TypeError, "`params` must be an ordered iterable of parameters or of groups", lambda: MFAC(None)),
    "a tensor": (TypeError, "groups; got a Parameter. Pass", lambda: make_optimizer(nn.Parameter(torch.zeros(2)))),
    "a mapping": (TypeError, "`params` must be an ordered iterable", lambda: make_optimizer({"params": parameters()})),
    "a set": (TypeError, "`params` must be an ordered iterable", lambda: make_optimizer(set(parameters()))),
    "a module": (TypeError, "groups; got a Linear. Pass model.parameters()", lambda: make_optimizer(nn.Linear(2, 2))),
    "an empty list": (ValueError, "`params` must hold at least one parameter; got none", lambda: make_optimizer([])),
    "a used generator": (
        ValueError,
        "`params` must hold at least one parameter",
        lambda: make_optimizer(p for p in ()),
    ),
    "numbers": (TypeError, "`params` must hold tensors; got 3 (int)", lambda: make_optimizer([3])),
    "parameters and groups": (
        TypeError,
        "`params` must be all parameters or all groups; got 1 groups among 2",
        lambda: make_optimizer([nn.Parameter(torch.zeros(2)), {"params": parameters()}]),
    ),
    "some names": (
        ValueError,
        "`params` must all have names or none; got 1 names for 2",
        lambda: make_optimizer([("a", nn.Parameter(torch.zeros(2))), nn.Parameter(torch.zeros(2))]),
    ),
    "computed": (ValueError, "`params` must be leaves", lambda: make_optimizer([2 * nn.Parameter(torch.zeros(2))])),
    "twice": (
        ValueError,
        "got one of shape (3,) twice",
        lambda: make_optimizer([(p := nn.Parameter(torch.zeros(3))), p]),
    ),
    "in two groups": (
        ValueError,
        "`params` must hold each parameter once",
        lambda: make_optimizer([{"params": (p := parameters())}, {"params": p[1:]}]),
    ),
    "no params in a group": (
        ValueError,
        "`param_group` must be a dictionary with",
        lambda: make_optimizer([{"lr": 0.1}]),
    ),
    "a group that is a list": (
        TypeError,
        "`param_group` must be a dictionary with the entry params; got a list",
        lambda: start_optimizer()[0].add_param_group([nn.Parameter(torch.zeros(2))]),
    ),
    "params of a group": (TypeError, "`params` of a group must be", lambda: make_optimizer([{"params": None}])),
    "a set in a group": (
        TypeError,
        "`params` of a group must be",
        lambda: make_optimizer([{"params": set(parameters())}]),
    ),
    "an option of others": (
        ValueError,
        "`betas` must be left out of a group; got (0.9, 0.99). MFAC has lr",
        lambda: make_optimizer([{"params": parameters(), "betas": (0.9, 0.99)}]),
    ),
    "lazy": (ValueError, "`params` must be initialised", lambda: make_optimizer(nn.LazyLinear(3).parameters())),
    "sparse": (
        TypeError,
        "`params` must be dense tensors; got one in torch.sparse_coo",
        lambda: make_optimizer([SPARSE]),
    ),
    "lr on meta": (TypeError, "`lr` must be a number", lambda: make_optimizer(lr=torch.tensor(0.1, device="meta"))),
    "lr of flags": (TypeError, "`lr` must be a number", lambda: make_optimizer(lr=torch.tensor(True))),
    "lr beyond floats": (ValueError, "`lr` must be in [0, inf); got inf", lambda: make_optimizer(lr=10**400)),
    "closure": (TypeError, "`closure` must be a function without arguments; got 5", lambda: make_optimizer().step(5)),
    "not pruned": (ValueError, "has pruned; got Linear without", lambda: make_optimizer(masks=nn.Linear(2, 2))),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_is_refused_by_name(case):
    error, words, call = REFUSALS[case]
    with pytest.raises(error, match=re.escape(words)):
        call()


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one device."""
    dist, mesh = pytest.importorskip("torch.distributed"), pytest.importorskip("torch.distributed.device_mesh")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_parameters_and_gradients_are_refused(mesh):
    tensor = pytest.importorskip("torch.distributed.tensor")
    sharded = nn.Parameter(tensor.distribute_tensor(torch.ones(4, 3), mesh, [tensor.Shard(0)]))
    with pytest.raises(TypeError, match="`params` must be plain tensors; got a DTensor"):
        make_optimizer([sharded])
    optimizer = make_optimizer([p := nn.Parameter(torch.ones(4, 3))])
    with pytest.raises(TypeError, match="`params` must be plain tensors; got a DTensor"):
        optimizer.add_param_group({"params": [sharded]})
    p.grad = sharded.detach()
    with pytest.raises(TypeError, match="`params` must have gradients that are plain tensors; got a DTensor"):
        optimizer.step()
    p.grad = torch.ones(4, 3)
    optimizer.step()
    assert len(optimizer.windows[0]) == 1


GROUP = ("params", "lr", "window", "damping", "beta2", "momentum", "momentum_of", "weight_decay")
GROUP += ("decoupled_weight_decay", "maximize")
BROKEN_GROUPS = {
    "no dictionary": (TypeError, "`param_groups` must hold dictionaries", lambda groups: groups.__setitem__(0, None)),
    "params that are none": (TypeError, "got params=None (NoneType)", lambda groups: groups[0].update(params=None)),
    "no groups": (ValueError, "`param_groups` must be those of the constructor", lambda groups: groups.clear()),
    "a group past add_param_group": (
        ValueError,
        "`param_groups` must have lr in each group; got params. Put it back",
        lambda groups: groups.append({"params": parameters(1)}),
    ),
    "an option of others": (ValueError, "`betas` must be left out", lambda groups: groups[0].update(betas=(0.9, 0.9))),
    "an option of all": (
        ValueError,
        "`normalization` must be the same for all groups",
        lambda groups: groups[0].update(normalization="sum"),
    ),
    "a parameter that is none": (
        TypeError,
        "must stay tensors; got None",
        lambda groups: groups[0].update(params=[None]),
    ),
    **{
        f"without {name}": (
            ValueError,
            f"`param_groups` must have {name} in each group",
            functools.partial(lambda name, groups: groups[0].pop(name), name),
        )
        for name in GROUP
    },
}


@pytest.mark.parametrize("case", BROKEN_GROUPS)
def test_groups_that_were_broken_are_refused_by_name_before_anything_moves(case):
    error, words, spoil = BROKEN_GROUPS[case]
    optimizer, params = start_optimizer()
    before, group = copies(params), dict(optimizer.param_groups[0])
    spoil(optimizer.param_groups)
    set_gradients(params, 1)
    with pytest.raises(error, match=re.escape(words)):
        optimizer.step()
    assert same(params, before)
    if case.startswith("without"):
        for call in (
            optimizer.state_dict,
            lambda: optimizer.windows,
            lambda: optimizer.add_param_group({"params": []}),
        ):
            with pytest.raises(error, match=re.escape(words)):
                call()
    optimizer.param_groups[:] = [group]
    optimizer.step()
    assert len(optimizer.windows[0]) == 2


def test_a_group_that_is_refused_is_not_added():
    optimizer, params = start_optimizer()
    with pytest.raises(ValueError, match="`momentum`"):
        optimizer.add_param_group({"params": params[2:], "momentum": 2.0})
    assert len(optimizer.param_groups) == len(optimizer.windows) == 1
    optimizer.add_param_group({"params": params[2:]})


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_parameter_of_another_shape_is_refused_before_anything_moves(momentum):
    params = parameters()
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=momentum, **OPTIONS)
    run_steps(optimizer, params, 2)
    state, before = optimizer.state_dict(), copies(params[:2])
    shape = (-1,) if momentum else (params[2].numel() + 1,)
    params[2].data = params[2].data.reshape(shape) if momentum else torch.zeros(shape).double()
    set_gradients(params, 2)
    with pytest.raises(ValueError, match="`params` must stay as they were at construction"):
        optimizer.step()
    assert same(params[:2], before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[k]["window"]["rows"], state["state"][k]["window"]["rows"]) for k in (0, 2))


def test_a_model_of_another_dtype_is_refused():
    optimizer, params = start_optimizer()
    for p in params:
        p.data = p.data.float()
    set_gradients(params, 1)
    with pytest.raises(ValueError, match=r"`params` must stay as they were.*torch.float32 for a window"):
        optimizer.step()


def test_gradients_of_two_dtypes_are_refused_not_promoted():
    params = parameters(dtype=torch.float32)
    optimizer = make_optimizer(params)
    set_gradients(params, 0)
    params[1].data = params[1].data.double()
    params[1].grad = None
    with pytest.raises(TypeError, match="one dtype on one device"):
        optimizer.step()
