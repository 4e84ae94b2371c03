"""State of M-FAC for PyTorch in distributed checkpoints, hooks, wrappers and files of earlier versions."""

import copy

import pytest

from tests.torch_checkpoints import FIRST, Model, start_optimizer
from tests.torch_optimizer import (
    CONFIGURATIONS,
    MFAC,
    OPTIONS,
    copies,
    parameters,
    run_steps,
    same,
    set_gradients,
)

torch = pytest.importorskip("torch")
pytest.importorskip("mfac_linalg.torch")
dist = pytest.importorskip("torch.distributed")
dcp = pytest.importorskip("torch.distributed.checkpoint")
api = pytest.importorskip("torch.distributed.checkpoint.state_dict")
nn = torch.nn


@pytest.fixture
def group(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# --- ways to travel: from an optimizer of a model into a new one of another -------------------------------------------


def by_helpers(**options):
    def travel(model, optimizer, other, new, folder):
        options_ = api.StateDictOptions(**options)
        state = api.get_optimizer_state_dict(model, optimizer, options=options_)
        api.set_optimizer_state_dict(other, new, copy.deepcopy(state), options=options_)

    return travel


def by_distributed_files(**options):
    def travel(model, optimizer, other, new, folder):
        options_ = api.StateDictOptions(**options)
        dcp.save({"o": api.get_optimizer_state_dict(model, optimizer, options=options_)}, checkpoint_id=folder)
        state = {"o": api.get_optimizer_state_dict(other, new, options=options_)}
        dcp.load(state, checkpoint_id=folder)
        api.set_optimizer_state_dict(other, new, state["o"], options=options_)

    return travel


def by_wrapping_hooks(model, optimizer, other, new, folder):
    optimizer.register_state_dict_post_hook(lambda _, state: {"of": state}, prepend=True)
    new.register_load_state_dict_pre_hook(lambda _, state: state["of"], prepend=True)
    torch.save(optimizer.state_dict(), folder / "state.pt")
    new.load_state_dict(torch.load(folder / "state.pt", weights_only=True))


def by_state_itself(model, optimizer, other, new, folder):
    """As torch.distributed.optim.ZeroRedundancyOptimizer loads."""
    state = copy.deepcopy(optimizer.state_dict())
    keys = [key for group in state["param_groups"] for key in group["params"]]
    for key, p in zip(keys, (p for group in new.param_groups for p in group["params"]), strict=True):
        new.state[p] = state["state"][key]


def without_words(model, optimizer, other, new, folder):
    state = optimizer.state_dict()
    new.load_state_dict({name: state[name] for name in ("state", "param_groups")})


TRAVELS = {
    "helpers": by_helpers(),
    "helpers, flat": by_helpers(flatten_optimizer_state_dict=True),
    "helpers, full, on the host": by_helpers(full_state_dict=True, cpu_offload=True),
    "files": by_distributed_files(),
    "files, flat": by_distributed_files(flatten_optimizer_state_dict=True),
    "hooks": by_wrapping_hooks,
    "state": by_state_itself,
    "no words": without_words,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of PyTorch's checkpoints
@pytest.mark.parametrize(("steps", "dtype"), [(0, torch.float64), (2, torch.float64), (5, torch.bfloat16)])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
@pytest.mark.usefixtures("group")
def test_training_goes_on_to_the_bit(travel, make, steps, dtype, tmp_path):
    params = parameters(dtype=dtype)
    optimizer = make(params)
    run_steps(optimizer, params, steps)
    optimizer.zero_grad()
    again = [nn.Parameter(p) for p in copies(params)]
    new = make(again)
    travel(Model(params), optimizer, Model(again), new, tmp_path)
    run_steps(optimizer, params, 4, start=steps)
    run_steps(new, again, 4, start=steps)
    assert same(params, again)


@pytest.mark.parametrize("case", FIRST)
def test_a_state_of_version_1_goes_on_as_it_would_have(case):
    held = FIRST[case]
    dtype = getattr(torch, held["dtype"])
    params = [nn.Parameter(p) for p in held["before"]]
    optimizer = CONFIGURATIONS[held["name"]](params)
    optimizer.load_state_dict(held["optimizer"])
    run_steps(optimizer, params, 4, start=held["steps"])
    for p, expected in zip(params, held["after"], strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 1e-2  # other machines round differently
        torch.testing.assert_close(p, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_shapes_of_a_state_do_not_change_as_windows_fill(make):
    def shapes(entry):
        return {
            name: shapes(x) if isinstance(x, dict) else tuple(x.shape) if isinstance(x, torch.Tensor) else type(x)
            for name, x in entry.items()
        }

    params = parameters()
    optimizer = make(params)
    found = []
    for steps in (0, 1, 5):
        run_steps(optimizer, params, steps)
        found.append(shapes(optimizer.state_dict()["state"]))
    assert found[0] == found[1] == found[2]
    assert all(isinstance(x, torch.Tensor | int | float | dict) for x in found[0].values())


# --- a state is not made by steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_checkpoint_is_no_step(make, steps):
    params, others = parameters(), parameters()
    optimizer, other = make(params), make(others)
    for one, p in ((optimizer, params), (other, others)):
        run_steps(one, p, steps)
        one.zero_grad()
    for _ in range(2):
        api.get_optimizer_state_dict(Model(params), optimizer)
        assert [len(window) for window in optimizer.windows] == [len(window) for window in other.windows]
    run_steps(optimizer, params, 3, start=steps)
    run_steps(other, others, 3, start=steps)
    assert same(params, others)


def test_a_state_that_is_cleared_starts_anew():
    params, others = parameters(), parameters()
    optimizer = MFAC(params, momentum=0.5, **OPTIONS)
    run_steps(optimizer, params, 4)
    optimizer.state.clear()
    with torch.no_grad():
        for p, start in zip(params, others, strict=True):
            p.copy_(start)
    run_steps(optimizer, params, 4)
    run_steps(MFAC(others, momentum=0.5, **OPTIONS), others, 4)
    assert same(params, others)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("frozen", ["before", "after"])
def test_the_window_is_kept_where_checkpoints_look(frozen, flat):
    """They pass over the state of parameters that are not trained."""
    options = api.StateDictOptions(flatten_optimizer_state_dict=flat)
    params, results = parameters(), []
    if frozen == "before":
        params[0].requires_grad_(False)
    optimizer = MFAC(params, momentum=0.5, **OPTIONS)
    run_steps(optimizer, params, 4)
    again = [nn.Parameter(p) for p in copies(params)]
    for some in (params, again):
        some[0].requires_grad_(False)
    new = MFAC(again, momentum=0.5, **OPTIONS)
    api.set_optimizer_state_dict(
        Model(again), new, api.get_optimizer_state_dict(Model(params), optimizer, options=options), options=options
    )
    for one, some in ((optimizer, params), (new, again)):
        for step in (4, 5):
            set_gradients(some, step, missing=[0])
            one.step()
        results.append(some)
    assert same(*results)


def test_two_optimizers_share_a_checkpoint():
    params = parameters()
    pair = [MFAC(params[:2], **OPTIONS), MFAC(params[2:], **OPTIONS)]
    for optimizer in pair:
        run_steps(optimizer, params, 4)
    again = [nn.Parameter(p) for p in copies(params)]
    new = [MFAC(again[:2], **OPTIONS), MFAC(again[2:], **OPTIONS)]
    api.set_optimizer_state_dict(Model(again), new, api.get_optimizer_state_dict(Model(params), pair))
    for one, other in zip(pair, new, strict=True):
        assert torch.equal(one.windows[0].gradients, other.windows[0].gradients)


# --- hooks ------------------------------------------------------------------------------------------------------------


def count(optimizer):
    return sum(len(hooks) for name, hooks in vars(optimizer).items() if name.endswith("_hooks"))


@pytest.mark.parametrize("prepend", [False, True])
def test_a_hook_sees_the_whole_dictionary_and_tensors_of_its_own(prepend):
    optimizer, seen = start_optimizer(parameters()), {}
    optimizer.register_state_dict_post_hook(lambda _, state: seen.update(state), prepend=prepend)
    state = optimizer.state_dict()
    assert seen.keys() == state.keys()
    assert seen["state"][0]["window"]["count"] == 3
    seen["state"][0]["momentum_buffer"].fill_(7.0)
    seen["state"][0]["window"]["rows"].fill_(7.0)
    assert not torch.any(optimizer.windows[0].gradients == 7)
    assert not torch.any(optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"] == 7)


def test_hooks_run_around_what_they_are_named_for():
    params = parameters()
    optimizer, other = start_optimizer(params), start_optimizer(parameters(seed=1), 1)
    optimizer.register_state_dict_pre_hook(lambda one: run_steps(one, params, 1, start=4))
    rows = optimizer.state_dict()["state"][0]["window"]["rows"]
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in optimizer.windows[0].gradients.tolist()}
    lengths = []
    for prepend in (False, True):
        hook = lambda one: lengths.append(len(one.windows[0]))  # noqa: E731
        other.register_load_state_dict_post_hook(hook, prepend=prepend)
    other.load_state_dict(optimizer.state_dict())
    assert lengths == [3, 3]


def test_a_hook_may_change_what_is_loaded():
    optimizer, other = start_optimizer(parameters()), start_optimizer(parameters(seed=1), 1)

    def faster(_, state):
        state["param_groups"] = [{**group, "lr": 0.5} for group in state["param_groups"]]

    other.register_load_state_dict_pre_hook(faster)
    state = optimizer.state_dict()
    other.load_state_dict(state)
    assert other.param_groups[0]["lr"] == 0.5
    assert state["param_groups"][0]["lr"] == 0.1
    assert torch.equal(other.windows[0].gradients, optimizer.windows[0].gradients)


def test_no_hook_is_left_behind_also_where_one_fails():
    optimizer = start_optimizer(parameters())
    before = count(optimizer)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="`state_dict`"):
        optimizer.load_state_dict({})
    assert count(optimizer) == before
    handle = optimizer.register_state_dict_pre_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.state_dict()
    handle.remove()
    assert count(optimizer) == before
