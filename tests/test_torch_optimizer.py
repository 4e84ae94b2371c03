"""M-FAC as an optimizer of PyTorch: the steps of a dense computation, and what users of optimizers expect."""

import copy
import functools
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from tests.source import ROOT

torch = pytest.importorskip("torch")
nn, prune = torch.nn, pytest.importorskip("torch.nn.utils.prune")
Optimizer = pytest.importorskip("mfac_linalg.torch").MFAC
MFAC = functools.partial(Optimizer, beta2=None, momentum=0.0, normalization="mean")
"""The plain method; the defaults have a test of their own."""
SHAPES = ((2, 3), (3,), (), (2, 1, 2))
DIM = 14
OPTIONS = {"lr": 0.1, "window": 3, "damping": 0.3}


def parameters(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def leave_gradients(params, step, *, missing=()):
    """Gradients of step `step`, the same whatever the parameters are; None for some."""
    generator = torch.Generator().manual_seed(1000 + step)
    for k, p in enumerate(params):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = None if k in missing else g


def taken(optimizer, params, steps, *, start=0):
    for step in range(start, start + steps):
        leave_gradients(params, step)
        optimizer.step()


def values(tensors):
    return np.concatenate([x.detach().double().numpy().reshape(-1) for x in tensors])


def copies(params):
    return [p.detach().clone() for p in params]


def same(some, others):
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


CONFIGURATIONS = {
    "one group": lambda p: MFAC(p, momentum=0.5, weight_decay=0.1, **OPTIONS),
    "two groups": lambda p: MFAC([{"params": p[:2], "window": 7}, {"params": p[2:]}], momentum=0.5, **OPTIONS),
    "shared window": lambda p: MFAC(
        [{"params": p[:2]}, {"params": p[2:]}], momentum=0.5, shared_window=True, **OPTIONS
    ),
    "compressed": lambda p: MFAC(p, compression=ml.TopK(0.3), **OPTIONS),
    "masked": lambda p: MFAC(p, momentum=0.5, masks={p[0]: torch.eye(2, 3)}, **OPTIONS),
    "beta2": lambda p: MFAC(p, momentum=0.5, beta2=0.9, masks={p[0]: torch.eye(2, 3)}, **OPTIONS),
}


class Dense:
    """The optimizer of one group with F⁻¹ by np.linalg.inv, in float64."""

    def __init__(
        self, start, *, lr, window, damping, beta2=None, momentum=0.0, weight_decay=0.0, decoupled=True, sign=1.0
    ):
        self.p, self.rows, self.v = start.copy(), [], np.zeros_like(start)
        self.squares, self.beta2 = [], beta2
        self.options = lr, window, damping, momentum, weight_decay, decoupled, sign

    def step(self, g):
        lr, window, damping, momentum, weight_decay, decoupled, sign = self.options
        g = sign * g + (0 if decoupled else weight_decay) * self.p
        root = np.ones_like(g) if self.beta2 is None else np.sqrt(self.deviation(g))
        self.rows = [*self.rows, g / root][-window:]
        rows = root * np.array(self.rows)
        fisher = damping * np.diag(root**2) + rows.T @ rows / len(rows)
        self.v = momentum * self.v + np.linalg.inv(fisher) @ g
        self.p = self.p - lr * (self.v + (weight_decay if decoupled else 0) * self.p)

    def deviation(self, g):
        """The root of Adam's mean of squared gradients."""
        self.squares.append(g**2)
        weights = self.beta2 ** np.arange(len(self.squares))[::-1]
        return np.sqrt(np.average(self.squares, axis=0, weights=weights)) + 1e-8


# --- the same path as a dense computation ---------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    window=st.integers(1, 17),
    steps=st.integers(1, 8),
    momentum=st.sampled_from([0.0, 0.6]),
    weight_decay=st.sampled_from([0.0, 0.4]),
    decoupled=st.booleans(),
    maximize=st.booleans(),
    damping=st.sampled_from([0.01, 0.3, 20.0]),
    beta2=st.sampled_from([None, 0.0, 0.9, 0.999]),
)
def test_its_path_is_that_of_a_dense_inverse(
    window, steps, momentum, weight_decay, decoupled, maximize, damping, beta2
):
    shared = {"lr": 0.1, "window": window, "momentum": momentum, "weight_decay": weight_decay}
    shared |= {"damping": damping, "beta2": beta2}
    params = parameters()
    dense = Dense(values(params), decoupled=decoupled, sign=-1.0 if maximize else 1.0, **shared)
    optimizer = MFAC(params, decoupled_weight_decay=decoupled, maximize=maximize, **shared)
    for step in range(steps):
        leave_gradients(params, step)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
    np.testing.assert_allclose(values(params), dense.p, rtol=1e-9, atol=1e-10)


@settings(max_examples=15)
@given(
    cut=st.integers(1, 3),
    windows=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rates=st.tuples(st.sampled_from([0.0, 0.1]), st.sampled_from([0.01, 0.5])),
    steps=st.integers(1, 5),
)
def test_each_group_has_a_window_and_options_of_its_own(cut, windows, rates, steps):
    params = parameters()
    groups = [params[:cut], params[cut:]]
    options = [{"lr": lr, "window": m, "damping": 0.3, "momentum": 0.5} for lr, m in zip(rates, windows, strict=True)]
    dense = [Dense(values(group), **own) for group, own in zip(groups, options, strict=True)]
    optimizer = MFAC([{"params": group, **own} for group, own in zip(groups, options, strict=True)])
    for step in range(steps):
        leave_gradients(params, step)
        for one, group in zip(dense, groups, strict=True):
            one.step(values([p.grad for p in group]))
        optimizer.step()
    for one, group in zip(dense, groups, strict=True):
        np.testing.assert_allclose(values(group), one.p, rtol=1e-9, atol=1e-10)


@settings(max_examples=15)
@given(cut=st.integers(1, 3), window=st.integers(1, 5), steps=st.integers(1, 5))
def test_a_shared_window_takes_the_gradients_of_all_groups_as_one(cut, window, steps):
    params, whole = parameters(), parameters()
    groups = [{"params": params[:cut]}, {"params": params[cut:], "lr": 0.02, "weight_decay": 0.5}]
    optimizer = MFAC(groups, 0.1, window=window, damping=0.3, shared_window=True)
    dense = Dense(values(whole), lr=1.0, window=window, damping=0.3)
    lr = np.repeat([0.1, 0.02], [values(params[:cut]).size, values(params[cut:]).size])
    decay = np.where(lr == 0.02, 0.5, 0.0)
    for step in range(steps):
        leave_gradients(params, step)
        before = dense.p = values(params)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
        expected = before - lr * (before - dense.p + decay * before)
        np.testing.assert_allclose(values(params), expected, rtol=1e-9, atol=1e-10)
    assert len(optimizer.windows) == 1


def test_groups_of_a_shared_window_may_differ_in_beta2():
    params, cut = parameters(), 9
    optimizer = MFAC(
        [{"params": params[:2]}, {"params": params[2:], "beta2": 0.9}], shared_window=True, **(OPTIONS | {"lr": 1.0})
    )
    leave_gradients(params, 0)
    g, before = values([p.grad for p in params]), values(params)
    optimizer.step()
    shape = np.where(np.arange(DIM) < cut, 1.0, np.abs(g) + 1e-8)  # of one gradient √v̂ = |g|
    expected = np.linalg.solve(OPTIONS["damping"] * np.diag(shape) + np.outer(g, g), g)
    np.testing.assert_allclose(before - values(params), expected, rtol=1e-9)


def test_squares_are_those_of_gradients_there_were():
    params, others = parameters(), parameters()
    optimizer, other = (MFAC(p, beta2=0.9, **(OPTIONS | {"window": 1})) for p in (params, others))
    for step in range(4):
        leave_gradients(params, step, missing={2} if step < 3 else ())
        optimizer.step()
    leave_gradients(others, 3)
    other.step()
    assert torch.equal(*(one.state[p[2]]["root_mean_square"] for one, p in ((optimizer, params), (other, others))))


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_beyond_the_range_of_the_dtype_do_no_harm(size):
    p = nn.Parameter(torch.zeros(2))
    optimizer = MFAC([p], 1.0, window=1, damping=size, beta2=0.9)
    p.grad = torch.tensor([size, -size])
    optimizer.step()
    expected = -1.0 / (3 * size) if size > 1 else -size / (size * 1e-8)  # √v̂ = size = 1e25, or far below 1e-8
    np.testing.assert_allclose(p.detach(), [expected, -expected], rtol=1e-5)


def test_with_beta2_damping_and_rate_have_the_unit_of_gradients():
    ends = []
    for scale in (1.0, 1024.0):
        params = parameters()
        optimizer = MFAC(params, 0.1 * scale, window=3, beta2=0.9, damping=0.5 * scale)
        for step in range(5):
            leave_gradients(params, step)
            for p in params:
                p.grad *= scale
            optimizer.step()
        ends.append(values(params))
    np.testing.assert_allclose(*ends, rtol=1e-6)


@pytest.mark.parametrize("normalization", ["mean", "sum", "window"])
def test_normalization_is_that_of_the_window(normalization):
    params = parameters()
    window = ml.SlidingWindowInverse(3, DIM, 0.3, normalization=normalization)
    optimizer = MFAC(params, **OPTIONS, normalization=normalization)
    for step in range(4):
        leave_gradients(params, step)
        expected = values(params) - 0.1 * window.append_matvec(values([p.grad for p in params]))
        optimizer.step()
        np.testing.assert_allclose(values(params), expected, rtol=1e-9)


def test_compression_is_that_of_the_window():
    params, compression = parameters(), ml.TopK(0.3)
    window = ml.SlidingWindowInverse(3, DIM, 0.3, compression=compression)
    optimizer = MFAC(params, **OPTIONS, compression=compression)
    for step in range(5):
        leave_gradients(params, step)
        expected = values(params) - 0.1 * window.append_matvec(values([p.grad for p in params]))
        optimizer.step()
        np.testing.assert_allclose(values(params), expected, rtol=1e-9)


def test_high_precision_is_that_of_the_window():
    def end(dtype, precision):
        params = parameters(dtype=dtype)
        optimizer = MFAC(params, 0.1, window=3, damping=1e-4, precision=precision)
        for step in range(6):
            leave_gradients(params, step)
            for p in params:
                p.grad = (1 + 1e-2 * p.grad.float()).to(dtype)
            optimizer.step()
        return values(params)

    exact = end(torch.float64, "default")
    default, high = (np.abs(end(torch.float32, precision) - exact).max() for precision in ("default", "high"))
    assert high < default / 2


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_short_parameters_follow_the_dense_path_to_their_precision(dtype, digits):
    params = parameters(dtype=dtype)
    dense = Dense(values(params), momentum=0.5, weight_decay=0.2, **OPTIONS)
    optimizer = MFAC(params, momentum=0.5, weight_decay=0.2, **OPTIONS)
    for step in range(5):
        leave_gradients(params, step)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
    assert {p.dtype for p in params} == {dtype}
    assert optimizer.state[params[0]]["momentum_buffer"].dtype == torch.float32
    np.testing.assert_allclose(values(params), dense.p, rtol=digits, atol=digits)


def test_a_window_can_be_asked():
    params = parameters()
    optimizer = MFAC(params, **OPTIONS)
    (window,) = optimizer.windows
    taken(optimizer, params, 5)
    assert window is optimizer.windows[0]
    assert len(window) == 3
    assert torch.equal(window.gradients[-1], torch.cat([p.grad.reshape(-1) for p in params]))


# --- what users of optimizers do ------------------------------------------------------------------------------------


def test_a_schedule_of_the_rate_takes_effect():
    params = parameters()
    optimizer = MFAC(params, 0.1, window=3, damping=0.3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    dense = Dense(values(params), lr=1.0, window=3, damping=0.3)
    for step in range(5):
        leave_gradients(params, step)
        before = dense.p = values(params)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
        schedule.step()
        rate = 0.1 ** (1 + step // 2)
        np.testing.assert_allclose(values(params), before - rate * (before - dense.p), rtol=1e-9)


def test_a_cyclic_schedule_sets_momentum():
    params = parameters()
    optimizer = MFAC(params, 0.1, window=3, damping=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
    leave_gradients(params, 0)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] < 0.95


@pytest.mark.parametrize("shared", [False, True])
def test_a_damping_set_between_steps_takes_effect(shared):
    params = parameters()
    optimizer = MFAC([{"params": params}], 0.1, window=3, damping=0.3, shared_window=shared)
    taken(optimizer, params, 4)
    optimizer.param_groups[0]["damping"] = 2.0
    rows = optimizer.windows[0].gradients[1:].numpy()
    leave_gradients(params, 4)
    before, g = values(params), values([p.grad for p in params])
    optimizer.step()
    rows = np.vstack([rows, g])
    expected = before - 0.1 * np.linalg.inv(2.0 * np.eye(DIM) + rows.T @ rows / 3) @ g
    np.testing.assert_allclose(values(params), expected, rtol=1e-9)


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_returned():
    p = nn.Parameter(torch.ones(3))
    optimizer = MFAC([p], **OPTIONS)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 3.0
    assert not torch.equal(p, torch.ones(3))


def test_a_closure_may_return_nothing():
    params = parameters()
    assert MFAC(params, **OPTIONS).step(lambda: leave_gradients(params, 0)) is None


def test_parameters_may_come_from_a_generator():
    params = parameters()
    taken(MFAC((p for p in params), **OPTIONS), params, 1)


def test_a_rate_may_be_a_tensor():
    params, others = parameters(), parameters()
    taken(MFAC(params, torch.tensor(0.25), window=3, damping=0.3, weight_decay=0.1), params, 2)
    taken(MFAC(others, 0.25, window=3, damping=0.3, weight_decay=0.1), others, 2)
    assert same(params, others)


def test_a_parameter_without_a_gradient_is_zero_in_the_row_and_left_alone():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, weight_decay=0.1, **OPTIONS)
    taken(optimizer, params, 2)
    before, buffer = copies(params), optimizer.state[params[1]]["momentum_buffer"].clone()
    leave_gradients(params, 2, missing=[1])
    optimizer.step()
    assert torch.equal(params[1], before[1])
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], buffer)
    assert not torch.equal(params[0], before[0])
    assert optimizer.windows[0].gradients[-1, 6:9].tolist() == [0, 0, 0]


def test_a_group_without_gradients_takes_no_step():
    params = parameters()
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, weight_decay=0.1, **OPTIONS)
    taken(optimizer, params, 2)
    before = copies(params)
    leave_gradients(params, 2, missing=[2, 3])
    optimizer.step()
    assert same(params[2:], before[2:])
    assert [len(window) for window in optimizer.windows] == [3, 2]


def test_a_step_without_any_gradient_does_nothing():
    params = parameters()
    optimizer = MFAC(params, **OPTIONS)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert same(params, parameters())
    assert len(optimizer.windows[0]) == 0


def test_an_empty_group_is_passed_over():
    params, alone = parameters(), parameters()
    optimizer = MFAC([{"params": []}, {"params": params}], **OPTIONS)
    taken(optimizer, params, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    taken(optimizer, params, 2, start=2)
    taken(MFAC(alone, **OPTIONS), alone, 4)
    assert same(params, alone)


@pytest.mark.parametrize("masked", [False, True])
def test_a_group_without_weights_that_may_move_can_be_saved_and_loaded(masked):
    p = nn.Parameter(torch.ones(2 if masked else 0))
    optimizer = MFAC([p], masks={p: torch.zeros(2)} if masked else None, **OPTIONS)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert p.tolist() == ([1.0, 1.0] if masked else [])


def test_a_rate_that_is_a_tensor_is_copied_into_a_state():
    params = parameters()
    optimizer = MFAC(params, **(OPTIONS | {"lr": torch.tensor(0.1)}))
    state = optimizer.state_dict()
    optimizer.param_groups[0]["lr"].fill_(7.0)
    assert float(state["param_groups"][0]["lr"]) == pytest.approx(0.1)


def test_a_state_made_in_inference_mode_is_written_to_outside():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, **OPTIONS)
    with torch.inference_mode():
        taken(optimizer, params, 1)
    taken(optimizer, params, 1)
    with torch.inference_mode():
        optimizer.load_state_dict(optimizer.state_dict())
    taken(optimizer, params, 1)
    assert len(optimizer.windows[0]) == 3


def test_hooks_of_a_step_run_around_it():
    params = parameters()
    optimizer, seen = MFAC(params, **OPTIONS), []
    optimizer.register_step_pre_hook(lambda one, arguments, options: seen.append(len(one.windows[0])))
    optimizer.register_step_post_hook(lambda one, arguments, options: seen.append(len(one.windows[0])))
    taken(optimizer, params, 2)
    assert seen == [0, 1, 1, 2]


def test_a_gradient_of_zeros_takes_a_place_in_the_window():
    params = parameters()
    optimizer = MFAC(params, **OPTIONS)
    taken(optimizer, params, 1)
    before = copies(params)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert same(params, before)
    assert len(optimizer.windows[0]) == 2


def test_a_group_can_be_added_after_the_start():
    params, fresh = parameters(), parameters()
    optimizer = MFAC(params[:2], **OPTIONS)
    taken(optimizer, params, 3)
    optimizer.add_param_group({"params": params[2:], "window": 2})
    taken(optimizer, params, 2, start=3)
    assert [len(window) for window in optimizer.windows] == [3, 2]
    for step in (3, 4):
        leave_gradients(fresh, step)
        if step == 3:
            late = MFAC(fresh[2:], 0.1, window=2, damping=0.3)
        late.step()
    assert same(params[2:], fresh[2:])


def test_a_group_can_be_added_to_a_shared_window_before_the_start():
    params, whole = parameters(), parameters()
    optimizer = MFAC(params[:2], **OPTIONS, shared_window=True)
    optimizer.add_param_group({"params": params[2:]})
    taken(optimizer, params, 4)
    taken(MFAC(whole, **OPTIONS), whole, 4)
    assert same(params, whole)


def test_named_parameters_are_accepted_where_pytorch_accepts_them():
    model = nn.Linear(3, 2)
    optimizer = MFAC(model.named_parameters(), **OPTIONS)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_weights_in_another_memory_order_move_as_others():
    plain = nn.Parameter(torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)))
    strided = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    masks = [torch.rand(plain.shape, generator=torch.Generator().manual_seed(1)) < 0.5, None]
    for mask in masks:
        for p in (plain, strided):
            optimizer = MFAC([p], momentum=0.5, **OPTIONS, masks=None if mask is None else {p: mask})
            taken(optimizer, [p], 3)
        assert torch.equal(plain, strided)


def test_a_gradient_scaler_skips_a_step_that_overflowed():
    params = parameters(dtype=torch.float32)
    optimizer = MFAC(params, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    leave_gradients(params, 0)
    params[0].grad[0, 0] = np.inf
    scaler.step(optimizer)
    scaler.update()
    assert len(optimizer.windows[0]) == 0
    assert scaler.get_scale() == 2.0


def test_a_step_reads_the_gradients_and_leaves_them():
    params = parameters()
    leave_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    MFAC(params, maximize=True, weight_decay=0.1, decoupled_weight_decay=False, **OPTIONS).step()
    assert same([p.grad for p in params], before)


# --- sparse models --------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([0.0, 0.3, 0.8]),
    decoupled=st.booleans(),
    steps=st.integers(1, 5),
    window=st.integers(1, 4),
    beta2=st.sampled_from([None, 0.9]),
)
def test_a_masked_model_is_trained_as_if_its_other_weights_were_all(seed, share, decoupled, steps, window, beta2):
    params = parameters()
    masks = [torch.rand(p.shape, generator=torch.Generator().manual_seed(seed + p.ndim)) < share for p in params[:3]]
    kept = np.concatenate([*(mask.numpy().reshape(-1) for mask in masks), np.ones(4, bool)])
    shared = {"lr": 0.1, "window": window, "damping": 0.3, "momentum": 0.5, "weight_decay": 0.2, "beta2": beta2}
    start = values(params)
    dense = Dense(start[kept], decoupled=decoupled, **shared)
    optimizer = MFAC(params, decoupled_weight_decay=decoupled, masks=dict(zip(params, masks, strict=False)), **shared)
    for step in range(steps):
        leave_gradients(params, step)
        dense.step(values([p.grad for p in params])[kept])
        optimizer.step()
    np.testing.assert_allclose(values(params)[kept], dense.p, rtol=1e-9, atol=1e-10)
    assert np.array_equal(values(params)[~kept], start[~kept])


def test_windows_and_momenta_of_a_masked_model_hold_what_may_move_only():
    params = parameters()
    mask = torch.tensor([[True, False, False], [False, True, False]])
    optimizer = MFAC(params[:1], momentum=0.5, beta2=0.9, masks={params[0]: mask}, **OPTIONS)
    taken(optimizer, params, 2)
    assert optimizer.windows[0].dim == 2
    assert {optimizer.state[params[0]][name].shape for name in ("momentum_buffer", "root_mean_square")} == {(2,)}


def test_masked_weights_stay_whatever_they_and_their_gradients_are():
    p = nn.Parameter(torch.tensor([1.0, np.nan, -0.0, 2.0]))
    optimizer = MFAC([p], weight_decay=0.5, masks={p: torch.tensor([1, 0, 0, 1])}, **OPTIONS)
    p.grad = torch.tensor([1.0, np.nan, np.inf, 1.0])
    optimizer.step()
    assert p[1].isnan()
    assert torch.signbit(p[2])
    assert p[0] < 1


def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[2], "bias", amount=1)
    return model


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_steps_are_the_same_where_pytorch_refuses_what_is_not_deterministic(make):
    kept = parameters(), parameters()
    taken(make(kept[0]), kept[0], 5)
    torch.use_deterministic_algorithms(True)
    try:
        taken(make(kept[1]), kept[1], 5)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(*kept)


@pytest.mark.parametrize("layout", ["transposed", "channels last", "strided"])
def test_a_masked_parameter_may_have_any_layout(layout):
    plain = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    laid = {
        "transposed": plain.transpose(0, 3).contiguous().transpose(0, 3),
        "channels last": plain.to(memory_format=torch.channels_last),
        "strided": torch.stack([plain, plain], dim=-1)[..., 0],
    }[layout]
    kept = nn.Parameter(plain.clone()), nn.Parameter(laid)
    for p in kept:
        mask = torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        taken(MFAC([p], masks={p: mask}, **OPTIONS), [p], 3)
    assert not kept[1].is_contiguous()
    assert same(kept[:1], kept[1:])


def test_a_pruned_module_stands_for_its_masks():
    model = pruned()
    before, mask = model[0].weight_orig.detach().clone(), model[0].weight_mask.bool()
    optimizer = MFAC(model.parameters(), momentum=0.5, weight_decay=0.1, masks=model, **OPTIONS)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(5, 4)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight_orig[~mask], before[~mask])
    assert not torch.any(model[0].weight_orig[mask] == before[mask])


def test_a_buffer_that_is_only_named_like_a_mask_is_none():
    layer = nn.Linear(3, 2)
    layer.register_parameter("weight_orig", nn.Parameter(torch.ones(2, 3)))
    layer.register_buffer("weight_mask", torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`masks` must be a module that torch.nn.utils.prune has pruned; got Linear"):
        MFAC(layer.parameters(), masks=layer, **OPTIONS)
    prune.random_unstructured(layer, "bias", 1)
    optimizer = MFAC(layer.parameters(), masks=layer, **OPTIONS)
    assert optimizer.windows[0].dim == 6 + 6 + 1


def test_a_pruned_module_without_masks_given_is_the_same_model():
    models = pruned(), pruned()
    for model, masks in zip(models, (None, models[1]), strict=True):
        optimizer = MFAC(model.parameters(), momentum=0.5, weight_decay=0.1, masks=masks, **OPTIONS)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(models[0](torch.ones(5, 4)), models[1](torch.ones(5, 4)))


# --- kept and resumed -----------------------------------------------------------------------------------------------


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_resumed_training_is_the_same_to_the_bit(make, steps, dtype, tmp_path):
    params = parameters(dtype=dtype)
    optimizer = make(params)
    taken(optimizer, params, steps)
    state = through_a_file({"params": copies(params), "optimizer": optimizer.state_dict()}, tmp_path)
    taken(optimizer, params, 4, start=steps)
    again = [nn.Parameter(p) for p in state["params"]]
    resumed = make(again)
    resumed.load_state_dict(state["optimizer"])
    taken(resumed, again, 4, start=steps)
    assert same(params, again)


def test_training_resumed_in_another_process_is_the_same_to_the_bit(tmp_path):
    from tests.resumed import train

    train(tmp_path, 0, 6)
    code = f"from tests.resumed import train; train({str(tmp_path)!r}, 6, 9)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, check=True)
    resumed = torch.load(tmp_path / "9.pt", weights_only=True)["model"]
    assert same(train(tmp_path, 0, 9).values(), resumed.values())


def test_a_loaded_optimizer_shares_no_memory_with_the_saved_one():
    params, others = parameters(), parameters()
    optimizer, other = (MFAC(p, momentum=0.5, **OPTIONS) for p in (params, others))
    taken(optimizer, params, 3)
    state = optimizer.state_dict()
    rows = state["state"][0]["window"]["rows"].clone()
    other.load_state_dict(state)
    buffer = other.state[others[0]]["momentum_buffer"].clone()
    taken(optimizer, params, 2, start=3)
    assert torch.equal(other.state[others[0]]["momentum_buffer"], buffer)
    assert torch.equal(state["state"][0]["window"]["rows"], rows)


def test_a_state_is_that_of_one_step_whatever_comes_after():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, beta2=0.9, **OPTIONS)
    taken(optimizer, params, 2)
    state, at_the_time = optimizer.state_dict(), copies(params)
    taken(optimizer, params, 3, start=2)
    others = [nn.Parameter(p) for p in at_the_time]
    other = MFAC(others, momentum=0.5, beta2=0.9, **OPTIONS)
    other.load_state_dict(state)
    taken(other, others, 3, start=2)
    assert same(params, others)


def test_the_factor_stays_float64_beside_short_parameters(tmp_path):
    params = parameters(dtype=torch.bfloat16)
    optimizer = MFAC(params, momentum=0.5, beta2=0.9, **OPTIONS)
    taken(optimizer, params, 3)
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
    taken(optimizer, params, 2)
    assert through_a_file(optimizer.state_dict(), tmp_path)["param_groups"][0]["damping"] == 0.5


def test_loaded_options_take_the_place_of_those_constructed_with():
    params, others = parameters(), parameters()
    optimizer = MFAC(params, **OPTIONS)
    other = MFAC(others, 7.0, window=9, damping=5.0)
    other.load_state_dict(optimizer.state_dict())
    taken(optimizer, params, 5)
    taken(other, others, 5)
    assert same(params, others)
    assert other.windows[0].window == 3


def test_numbers_set_between_steps_are_kept_as_pytorch_takes_them(tmp_path):
    optimizer, _ = started()
    optimizer.param_groups[0]["damping"] = np.float64(0.3)
    assert through_a_file(optimizer.state_dict(), tmp_path)["param_groups"][0]["damping"] == 0.3


@pytest.mark.parametrize("copied", [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_state_can_be_loaded_again(copied):
    optimizer, _ = started()
    state, loaded = optimizer.state_dict(), copied(optimizer)
    for _ in range(2):
        taken(loaded, loaded.param_groups[0]["params"], 1, start=1)
        loaded.load_state_dict(state)
    assert loaded.windows[0].num_gradients == 1
    assert np.array_equal(loaded.windows[0].gradients, optimizer.windows[0].gradients[:1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("steps", [0, 4])
def test_a_copy_takes_the_same_steps_and_none_of_the_others(make, copied, steps):
    params = parameters()
    optimizer = make(params)
    taken(optimizer, params, steps)
    other = copied(optimizer)
    others = [p for group in other.param_groups for p in group["params"]]
    before = copies(params)
    taken(other, others, 2, start=steps)
    assert same(params, before)
    taken(optimizer, params, 2, start=steps)
    assert same(params, others)


def unfitting():
    """States that do not fit an optimizer of two groups that has taken steps, with the words of the refusal."""

    def groups(params, **options):
        return MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, **{**OPTIONS, **options})

    def state_of(make, dtype=torch.float64):
        params = parameters(dtype=dtype)
        optimizer = make(params)
        taken(optimizer, params, 2)
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
    made = [MFAC([{"params": p[:2]}, {"params": p[2:]}], momentum=0.5, **OPTIONS) for p in (params, untouched)]
    for optimizer, p in zip(made, (params, untouched), strict=True):
        taken(optimizer, p, 4)
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        made[0].load_state_dict(state)
    for optimizer, p in zip(made, (params, untouched), strict=True):
        taken(optimizer, p, 2, start=4)
    assert same(params, untouched)


def test_a_state_of_other_masks_of_as_many_weights_is_refused():
    states = []
    for mask in (torch.eye(2, 3), torch.eye(2, 3).flip(0)):
        params = parameters()
        states.append(MFAC(params, masks={params[0]: mask}, **OPTIONS))
    with pytest.raises(ValueError, match="same masks"):
        states[0].load_state_dict(states[1].state_dict())


# --- a step that fails ----------------------------------------------------------------------------------------------


def overflow(optimizer, params):
    params[-1].grad[0] = np.nan


def infinity(optimizer, params):
    params[-1].grad[0] = -np.inf


def sparse(optimizer, params):
    params[-1].grad = params[-1].grad.to_sparse()


def negative_damping(optimizer, params):
    optimizer.param_groups[-1]["damping"] = -1.0


def beta2_of_one(optimizer, params):
    optimizer.param_groups[-1]["beta2"] = 1.0


def toggled_beta2(optimizer, params):
    first, *_, last = optimizer.param_groups
    last["beta2"] = 0.5 if first["beta2"] is None else None


def another_window(optimizer, params):
    optimizer.param_groups[-1]["window"] = 5


def rate(optimizer, params):
    optimizer.param_groups[-1]["lr"] = np.nan


def word(optimizer, params):
    optimizer.param_groups[-1]["weight_decay"] = "x"


def overflow_after_a_new_damping(optimizer, params):
    optimizer.param_groups[0]["damping"] *= 0.5  # a change more before the gradient that the first window takes in
    overflow(optimizer, params)


def warning(optimizer, params):
    optimizer.param_groups[-1]["damping"] = 1e-30


FAILURES = {
    overflow: (ValueError, "`params` must have finite gradients"),
    infinity: (ValueError, "`params` must have finite gradients"),
    overflow_after_a_new_damping: (ValueError, "`params` must have finite gradients"),
    sparse: (TypeError, "`params` must have gradients that are dense tensors; got one in torch.sparse_coo"),
    negative_damping: (ValueError, re.escape("`damping` must be in (0, inf); got -1")),
    beta2_of_one: (ValueError, re.escape("`beta2` must be in [0, 1); got 1")),
    toggled_beta2: (ValueError, "`beta2` must stay None, or a number"),
    another_window: (ValueError, "`window` must stay 3; got 5"),
    rate: (ValueError, re.escape("`lr` must be in [0, inf); got nan")),
    word: (TypeError, "`weight_decay` must be a number; got 'x'"),
    warning: (ml.IllConditionedWarning, "kappa"),  # an error in this suite
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
@pytest.mark.parametrize(("steps", "beta2"), [(0, None), (1, 0.9), (2, None), (4, None), (5, 0.9)])
def test_a_step_that_fails_in_the_last_group_changes_nothing_in_any(fail, steps, beta2):
    error, words = FAILURES[fail]
    kept = parameters(), parameters()
    made = [MFAC([{"params": p[:2]}, {"params": p[2:]}], momentum=0.5, beta2=beta2, **OPTIONS) for p in kept]
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, steps)
    options = [dict(group) for group in made[0].param_groups]
    for attempt in range(2):
        leave_gradients(kept[0], 100 + attempt)
        fail(made[0], kept[0])
        with pytest.raises(error, match=words):
            made[0].step()
    assert same(*kept)
    for window, other in zip(made[0].windows, made[1].windows, strict=True):
        assert not steps or torch.equal(window.diagonal(), other.diagonal())
    for group, before in zip(made[0].param_groups, options, strict=True):
        group.update(before)
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, 4, start=steps)
    assert same(*kept)


def expanded():
    return nn.Parameter(torch.zeros(1).double().expand(3))


def of_inference():
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(3).double(), requires_grad=False)


@pytest.mark.parametrize(("make", "words"), [(expanded, "that was expanded"), (of_inference, "created in torch.infer")])
@pytest.mark.parametrize("beta2", [None, 0.9])
def test_a_parameter_that_cannot_be_written_is_refused_before_another_is(make, words, beta2):
    params = [*parameters()[:2], make()]
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, beta2=beta2, **OPTIONS)
    before = copies(params)
    leave_gradients(params, 0)
    with pytest.raises(ValueError, match=f"`params` must .* one of shape \\(3,\\).*{words}"):
        optimizer.step()
    assert same(params, before)
    assert [len(window) for window in optimizer.windows] == [0, 0]
    assert all(optimizer.state[p].get("momentum_buffer") is None for p in params)
    params[2].grad = None
    taken(optimizer, params[:2], 1)
    assert [len(window) for window in optimizer.windows] == [1, 0]


@pytest.mark.parametrize("make", [CONFIGURATIONS[name] for name in ("one group", "beta2", "compressed")])
def test_a_write_that_fails_leaves_windows_momenta_and_moments(make, monkeypatch):
    kept = parameters(), parameters()
    made = [make(params) for params in kept]
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, 4)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_add_", lambda *_, **__: pytest.fail("out of memory"))
        for step in (4, 5):
            leave_gradients(kept[0], step)
            with pytest.raises(pytest.fail.Exception, match="out of memory"):
                made[0].step()
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, 4, start=4)
    assert same(*kept)


def test_compressed_windows_keep_their_error_where_a_step_fails():
    kept = parameters(), parameters()
    made = [
        MFAC([{"params": p[:2]}, {"params": p[2:]}], compression=ml.TopK(0.4, block_size=4), **OPTIONS) for p in kept
    ]
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, 4)
    leave_gradients(kept[0], 100)
    overflow(made[0], kept[0])
    with pytest.raises(ValueError, match="must have finite gradients"):
        made[0].step()
    for optimizer, params in zip(made, kept, strict=True):
        taken(optimizer, params, 4, start=4)
    assert same(*kept)


# --- refusals -------------------------------------------------------------------------------------------------------


def made(params=None, **options):
    return MFAC(parameters() if params is None else params, **{**OPTIONS, **options})


def started(**options):
    params = parameters()
    optimizer = made(params[:2], **options)
    taken(optimizer, params, 1)
    return optimizer, params


SPARSE = torch.eye(3).to_sparse()
REFUSALS = {
    "lr": (ValueError, "`lr` must be in [0, inf); got -1", lambda: made(lr=-1)),
    "lr nan": (ValueError, "`lr` must be in [0, inf); got nan", lambda: made(lr=np.nan)),
    "lr word": (TypeError, "`lr` must be a number; got '0.1' (str)", lambda: made(lr="0.1")),
    "lr vector": (TypeError, "`lr` must be a number; got an array of shape (2,)", lambda: made(lr=torch.ones(2))),
    "momentum": (ValueError, "`momentum` must be in [0, 1); got 1", lambda: made(momentum=1.0)),
    "weight_decay": (ValueError, "`weight_decay` must be in [0, inf); got -0.1", lambda: made(weight_decay=-0.1)),
    "beta2": (ValueError, "`beta2` must be in [0, 1); got 1", lambda: made(beta2=1.0)),
    "beta2 word": (TypeError, "`beta2` must be a number; got 'adam'", lambda: made(beta2="adam")),
    "damping": (ValueError, "`damping` must be in (0, inf); got 0", lambda: made(damping=0.0)),
    "damping vector": (TypeError, "`damping` must be a number", lambda: made(damping=torch.ones(DIM))),
    "damping flag": (TypeError, "`damping` must be a number", lambda: made(damping=True)),
    "window": (ValueError, "`window` must be at least 1", lambda: made(window=0)),
    "window float": (TypeError, "`window` must be a whole number", lambda: made(window=3.0)),
    "maximize": (TypeError, "`maximize` must be True or False", lambda: made(maximize=1)),
    "decoupled": (TypeError, "`decoupled_weight_decay` must be", lambda: made(decoupled_weight_decay="yes")),
    "shared_window": (TypeError, "`shared_window` must be True or False", lambda: made(shared_window=None)),
    "normalization": (ValueError, "`normalization` must be one of", lambda: made(normalization="max")),
    "compression": (TypeError, "`compression` must be None or a TopK", lambda: made(compression=0.01)),
    "complex": (TypeError, "got torch.complex64. Pass real and", lambda: made([torch.zeros(2, dtype=torch.complex64)])),
    "integers": (TypeError, "must be float16, bfloat16", lambda: made([torch.zeros(2, dtype=torch.int64)])),
    "dtypes": (
        TypeError,
        "one dtype on one device; got torch.float32 on cpu, torch.float64 on cpu",
        lambda: made([torch.zeros(2), torch.zeros(2).double()]),
    ),
    "devices": (
        TypeError,
        "got torch.float32 on cpu, torch.float32 on meta. Make them groups",
        lambda: made([torch.zeros(2), torch.zeros(2, device="meta")]),
    ),
    "meta": (ValueError, "got some on the device meta", lambda: made([torch.zeros(2, device="meta")])),
    "shared dtypes": (
        TypeError,
        "one dtype on one device",
        lambda: made([{"params": [torch.zeros(2)]}, {"params": [torch.zeros(2).double()]}], shared_window=True),
    ),
    "shared damping": (
        ValueError,
        "`damping` must be one for all groups of a shared window; got [0.3, 0.5]",
        lambda: made([{"params": [torch.zeros(2)]}, {"params": [torch.ones(2)], "damping": 0.5}], shared_window=True),
    ),
    "a rule in a group": (
        ValueError,
        "`compression` must be the same for all groups",
        lambda: made([{"params": parameters(), "compression": ml.TopK(0.1)}]),
    ),
    "masks in a group": (
        ValueError,
        "`masks` must be the same for all groups",
        lambda: made([{"params": parameters(), "masks": {}}]),
    ),
    "added to a shared window": (
        ValueError,
        "`param_group` must come before the first step of a shared window",
        lambda: started(shared_window=True)[0].add_param_group({"params": parameters()}),
    ),
    "masks": (TypeError, "`masks` must be a mapping", lambda: made(masks=[torch.ones(2)])),
    "mask names": (TypeError, "`masks` must map parameters to tensors", lambda: made(masks={"weight": torch.ones(2)})),
    "mask shape": (
        ValueError,
        "`masks` must have their parameters' shapes; got (2,) for (3,)",
        lambda: made((p := parameters()), masks={p[1]: torch.ones(2)}),
    ),
    "mask values": (
        ValueError,
        "`masks` must be True where",
        lambda: made((p := parameters()), masks={p[1]: torch.full((3,), 0.5)}),
    ),
    "mask of another": (
        ValueError,
        "`masks` must be for parameters of the optimizer; got one of shape (3,)",
        lambda: made(masks={torch.zeros(3): torch.ones(3)}),
    ),
    "no params": (TypeError, "`params` must be an ordered iterable of parameters or of groups", lambda: MFAC(None)),
    "a tensor": (TypeError, "groups; got a Parameter. Pass", lambda: made(nn.Parameter(torch.zeros(2)))),
    "a mapping": (TypeError, "`params` must be an ordered iterable", lambda: made({"params": parameters()})),
    "a set": (TypeError, "`params` must be an ordered iterable", lambda: made(set(parameters()))),
    "a module": (TypeError, "groups; got a Linear. Pass model.parameters()", lambda: made(nn.Linear(2, 2))),
    "an empty list": (ValueError, "`params` must hold at least one parameter; got none", lambda: made([])),
    "a used generator": (ValueError, "`params` must hold at least one parameter", lambda: made(p for p in ())),
    "numbers": (TypeError, "`params` must hold tensors; got 3 (int)", lambda: made([3])),
    "parameters and groups": (
        TypeError,
        "`params` must be all parameters or all groups; got 1 groups among 2",
        lambda: made([nn.Parameter(torch.zeros(2)), {"params": parameters()}]),
    ),
    "some names": (
        ValueError,
        "`params` must all have names or none; got 1 names for 2",
        lambda: made([("a", nn.Parameter(torch.zeros(2))), nn.Parameter(torch.zeros(2))]),
    ),
    "computed": (ValueError, "`params` must be leaves", lambda: made([2 * nn.Parameter(torch.zeros(2))])),
    "twice": (ValueError, "got one of shape (3,) twice", lambda: made([(p := nn.Parameter(torch.zeros(3))), p])),
    "in two groups": (
        ValueError,
        "`params` must hold each parameter once",
        lambda: made([{"params": (p := parameters())}, {"params": p[1:]}]),
    ),
    "no params in a group": (ValueError, "`param_group` must be a dictionary with", lambda: made([{"lr": 0.1}])),
    "a group that is a list": (
        TypeError,
        "`param_group` must be a dictionary with the entry params; got a list",
        lambda: started()[0].add_param_group([nn.Parameter(torch.zeros(2))]),
    ),
    "params of a group": (TypeError, "`params` of a group must be", lambda: made([{"params": None}])),
    "a set in a group": (TypeError, "`params` of a group must be", lambda: made([{"params": set(parameters())}])),
    "an option of others": (
        ValueError,
        "`betas` must be left out of a group; got (0.9, 0.99). MFAC has lr",
        lambda: made([{"params": parameters(), "betas": (0.9, 0.99)}]),
    ),
    "lazy": (ValueError, "`params` must be initialised", lambda: made(nn.LazyLinear(3).parameters())),
    "sparse": (TypeError, "`params` must be dense tensors; got one in torch.sparse_coo", lambda: made([SPARSE])),
    "lr on meta": (TypeError, "`lr` must be a number", lambda: made(lr=torch.tensor(0.1, device="meta"))),
    "lr of flags": (TypeError, "`lr` must be a number", lambda: made(lr=torch.tensor(True))),
    "lr beyond floats": (ValueError, "`lr` must be in [0, inf); got inf", lambda: made(lr=10**400)),
    "closure": (TypeError, "`closure` must be a function without arguments; got 5", lambda: made().step(5)),
    "not pruned": (ValueError, "has pruned; got Linear without", lambda: made(masks=nn.Linear(2, 2))),
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
        made([sharded])
    optimizer = made([p := nn.Parameter(torch.ones(4, 3))])
    with pytest.raises(TypeError, match="`params` must be plain tensors; got a DTensor"):
        optimizer.add_param_group({"params": [sharded]})
    p.grad = sharded.detach()
    with pytest.raises(TypeError, match="`params` must have gradients that are plain tensors; got a DTensor"):
        optimizer.step()
    p.grad = torch.ones(4, 3)
    optimizer.step()
    assert len(optimizer.windows[0]) == 1


GROUP = ("params", "lr", "window", "damping", "beta2", "momentum", "weight_decay", "decoupled_weight_decay", "maximize")
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
    optimizer, params = started()
    before, group = copies(params), dict(optimizer.param_groups[0])
    spoil(optimizer.param_groups)
    leave_gradients(params, 1)
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
    optimizer, params = started()
    with pytest.raises(ValueError, match="`momentum`"):
        optimizer.add_param_group({"params": params[2:], "momentum": 2.0})
    assert len(optimizer.param_groups) == len(optimizer.windows) == 1
    optimizer.add_param_group({"params": params[2:]})


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_parameter_of_another_shape_is_refused_before_anything_moves(momentum):
    params = parameters()
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=momentum, **OPTIONS)
    taken(optimizer, params, 2)
    state, before = optimizer.state_dict(), copies(params[:2])
    shape = (-1,) if momentum else (params[2].numel() + 1,)
    params[2].data = params[2].data.reshape(shape) if momentum else torch.zeros(shape).double()
    leave_gradients(params, 2)
    with pytest.raises(ValueError, match="`params` must stay as they were at construction"):
        optimizer.step()
    assert same(params[:2], before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[k]["window"]["rows"], state["state"][k]["window"]["rows"]) for k in (0, 2))


def test_a_model_of_another_dtype_is_refused():
    optimizer, params = started()
    for p in params:
        p.data = p.data.float()
    leave_gradients(params, 1)
    with pytest.raises(ValueError, match=r"`params` must stay as they were.*torch.float32 for a window"):
        optimizer.step()


def test_gradients_of_two_dtypes_are_refused_not_promoted():
    params = parameters(dtype=torch.float32)
    optimizer = made(params)
    leave_gradients(params, 0)
    params[1].data = params[1].data.double()
    params[1].grad = None
    with pytest.raises(TypeError, match="one dtype on one device"):
        optimizer.step()
