"""What users of PyTorch's optimizers expect of M-FAC: closures, schedules, groups, hooks, scalers."""

import numpy as np
import pytest

from tests.torch_optimizer import DIM, MFAC, OPTIONS, Dense, copies, parameters, run_steps, same, set_gradients, values

torch = pytest.importorskip("torch")
nn = torch.nn


def test_a_schedule_of_the_rate_takes_effect():
    params = parameters()
    optimizer = MFAC(params, 0.1, window=3, damping=0.3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    dense = Dense(values(params), lr=1.0, window=3, damping=0.3)
    for step in range(5):
        set_gradients(params, step)
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
    set_gradients(params, 0)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["momentum"] < 0.95


@pytest.mark.parametrize("shared", [False, True])
def test_a_damping_set_between_steps_takes_effect(shared):
    params = parameters()
    optimizer = MFAC([{"params": params}], 0.1, window=3, damping=0.3, shared_window=shared)
    run_steps(optimizer, params, 4)
    optimizer.param_groups[0]["damping"] = 2.0
    rows = optimizer.windows[0].gradients[1:].numpy()
    set_gradients(params, 4)
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
    assert MFAC(params, **OPTIONS).step(lambda: set_gradients(params, 0)) is None


def test_parameters_may_come_from_a_generator():
    params = parameters()
    run_steps(MFAC((p for p in params), **OPTIONS), params, 1)


def test_a_rate_may_be_a_tensor():
    params, others = parameters(), parameters()
    run_steps(MFAC(params, torch.tensor(0.25), window=3, damping=0.3, weight_decay=0.1), params, 2)
    run_steps(MFAC(others, 0.25, window=3, damping=0.3, weight_decay=0.1), others, 2)
    assert same(params, others)


def test_a_parameter_without_a_gradient_is_zero_in_the_row_and_left_alone():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, weight_decay=0.1, **OPTIONS)
    run_steps(optimizer, params, 2)
    before, buffer = copies(params), optimizer.state[params[1]]["momentum_buffer"].clone()
    set_gradients(params, 2, missing=[1])
    optimizer.step()
    assert torch.equal(params[1], before[1])
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], buffer)
    assert not torch.equal(params[0], before[0])
    assert optimizer.windows[0].gradients[-1, 6:9].tolist() == [0, 0, 0]


def test_a_group_without_gradients_takes_no_step():
    params = parameters()
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, weight_decay=0.1, **OPTIONS)
    run_steps(optimizer, params, 2)
    before = copies(params)
    set_gradients(params, 2, missing=[2, 3])
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
    run_steps(optimizer, params, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    run_steps(optimizer, params, 2, start=2)
    run_steps(MFAC(alone, **OPTIONS), alone, 4)
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
        run_steps(optimizer, params, 1)
    run_steps(optimizer, params, 1)
    with torch.inference_mode():
        optimizer.load_state_dict(optimizer.state_dict())
    run_steps(optimizer, params, 1)
    assert len(optimizer.windows[0]) == 3


def test_hooks_of_a_step_run_around_it():
    params = parameters()
    optimizer, seen = MFAC(params, **OPTIONS), []
    optimizer.register_step_pre_hook(lambda one, arguments, options: seen.append(len(one.windows[0])))
    optimizer.register_step_post_hook(lambda one, arguments, options: seen.append(len(one.windows[0])))
    run_steps(optimizer, params, 2)
    assert seen == [0, 1, 1, 2]


def test_a_gradient_of_zeros_takes_a_place_in_the_window():
    params = parameters()
    optimizer = MFAC(params, **OPTIONS)
    run_steps(optimizer, params, 1)
    before = copies(params)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert same(params, before)
    assert len(optimizer.windows[0]) == 2


def test_a_group_can_be_added_after_the_start():
    params, fresh = parameters(), parameters()
    optimizer = MFAC(params[:2], **OPTIONS)
    run_steps(optimizer, params, 3)
    optimizer.add_param_group({"params": params[2:], "window": 2})
    run_steps(optimizer, params, 2, start=3)
    assert [len(window) for window in optimizer.windows] == [3, 2]
    for step in (3, 4):
        set_gradients(fresh, step)
        if step == 3:
            late = MFAC(fresh[2:], 0.1, window=2, damping=0.3)
        late.step()
    assert same(params[2:], fresh[2:])


def test_a_group_can_be_added_to_a_shared_window_before_the_start():
    params, whole = parameters(), parameters()
    optimizer = MFAC(params[:2], **OPTIONS, shared_window=True)
    optimizer.add_param_group({"params": params[2:]})
    run_steps(optimizer, params, 4)
    run_steps(MFAC(whole, **OPTIONS), whole, 4)
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
            run_steps(optimizer, [p], 3)
        assert torch.equal(plain, strided)


def test_a_gradient_scaler_skips_a_step_that_overflowed():
    params = parameters(dtype=torch.float32)
    optimizer = MFAC(params, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    set_gradients(params, 0)
    params[0].grad[0, 0] = np.inf
    scaler.step(optimizer)
    scaler.update()
    assert len(optimizer.windows[0]) == 0
    assert scaler.get_scale() == 2.0


def test_a_step_reads_the_gradients_and_leaves_them():
    params = parameters()
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    MFAC(params, maximize=True, weight_decay=0.1, decoupled_weight_decay=False, **OPTIONS).step()
    assert same([p.grad for p in params], before)
