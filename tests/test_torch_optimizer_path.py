"""The steps of PyTorch's optimizer, against those of a dense computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mfac_linalg as ml
from tests.torch_optimizer import DIM, MFAC, OPTIONS, Dense, parameters, run_steps, set_gradients, values

torch = pytest.importorskip("torch")
nn = torch.nn


@settings(max_examples=25)
@given(
    window=st.integers(1, 17),
    steps=st.integers(1, 8),
    momentum=st.sampled_from([0.0, 0.6]),
    momentum_of=st.sampled_from(["steps", "gradients"]),
    weight_decay=st.sampled_from([0.0, 0.4]),
    decoupled=st.booleans(),
    maximize=st.booleans(),
    damping=st.sampled_from([0.01, 0.3, 20.0]),
    beta2=st.sampled_from([None, 0.0, 0.9, 0.999]),
)
def test_its_path_is_that_of_a_dense_inverse(
    window, steps, momentum, momentum_of, weight_decay, decoupled, maximize, damping, beta2
):
    shared = {"lr": 0.1, "window": window, "momentum": momentum, "weight_decay": weight_decay}
    shared |= {"momentum_of": momentum_of, "damping": damping, "beta2": beta2}
    params = parameters()
    dense = Dense(values(params), decoupled=decoupled, sign=-1.0 if maximize else 1.0, **shared)
    optimizer = MFAC(params, decoupled_weight_decay=decoupled, maximize=maximize, **shared)
    for step in range(steps):
        set_gradients(params, step)
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
        set_gradients(params, step)
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
        set_gradients(params, step)
        before = dense.p = values(params)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
        expected = before - lr * (before - dense.p + decay * before)
        np.testing.assert_allclose(values(params), expected, rtol=1e-9, atol=1e-10)
    assert len(optimizer.windows) == 1


@pytest.mark.parametrize("name", ["momentum", "momentum_of"])
def test_groups_with_a_shared_window_have_one_momentum_of_gradients(name):
    params = parameters()
    other = {"momentum": 0.25, "momentum_of": "steps"}[name]
    groups, before = [{"params": params[:2]}, {"params": params[2:]}], values(params)
    shared = {"shared_window": True, "momentum": 0.5, "momentum_of": "gradients", **OPTIONS}
    words = f"`{name}` must be one for all groups of a shared window; got .*{other}"
    with pytest.raises(ValueError, match=words):
        MFAC([groups[0], {**groups[1], name: other}], **shared)
    optimizer = MFAC(groups, **shared)
    agreed, optimizer.param_groups[1][name] = optimizer.param_groups[1][name], other
    set_gradients(params, 0)
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    np.testing.assert_array_equal(values(params), before)
    optimizer.param_groups[1][name] = agreed
    dense = Dense(before, momentum=0.5, momentum_of="gradients", **OPTIONS)
    for step in range(4):
        set_gradients(params, step)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
    np.testing.assert_allclose(values(params), dense.p, rtol=1e-9, atol=1e-10)


def test_groups_of_a_shared_window_may_differ_in_beta2():
    params, cut = parameters(), 9
    optimizer = MFAC(
        [{"params": params[:2]}, {"params": params[2:], "beta2": 0.9}], shared_window=True, **(OPTIONS | {"lr": 1.0})
    )
    set_gradients(params, 0)
    g, before = values([p.grad for p in params]), values(params)
    optimizer.step()
    shape = np.where(np.arange(DIM) < cut, 1.0, np.abs(g) + 1e-8)  # of one gradient √v̂ = |g|
    expected = np.linalg.solve(OPTIONS["damping"] * np.diag(shape) + np.outer(g, g), g)
    np.testing.assert_allclose(before - values(params), expected, rtol=1e-9)


def test_squares_are_those_of_gradients_there_were():
    params, others = parameters(), parameters()
    optimizer, other = (MFAC(p, beta2=0.9, **(OPTIONS | {"window": 1})) for p in (params, others))
    for step in range(4):
        set_gradients(params, step, missing={2} if step < 3 else ())
        optimizer.step()
    set_gradients(others, 3)
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
            set_gradients(params, step)
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
        set_gradients(params, step)
        expected = values(params) - 0.1 * window.append_matvec(values([p.grad for p in params]))
        optimizer.step()
        np.testing.assert_allclose(values(params), expected, rtol=1e-9)


def test_compression_is_that_of_the_window():
    params, compression = parameters(), ml.TopK(0.3)
    window = ml.SlidingWindowInverse(3, DIM, 0.3, compression=compression)
    optimizer = MFAC(params, **OPTIONS, compression=compression)
    for step in range(5):
        set_gradients(params, step)
        expected = values(params) - 0.1 * window.append_matvec(values([p.grad for p in params]))
        optimizer.step()
        np.testing.assert_allclose(values(params), expected, rtol=1e-9)


def test_high_precision_is_that_of_the_window():
    def end(dtype, precision):
        params = parameters(dtype=dtype)
        optimizer = MFAC(params, 0.1, window=3, damping=1e-4, precision=precision)
        for step in range(6):
            set_gradients(params, step)
            for p in params:
                p.grad = (1 + 1e-2 * p.grad.float()).to(dtype)
            optimizer.step()
        return values(params)

    exact = end(torch.float64, "default")
    default, high = (np.abs(end(torch.float32, precision) - exact).max() for precision in ("default", "high"))
    assert high < default / 2


@pytest.mark.parametrize("momentum_of", ["steps", "gradients"])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_short_parameters_follow_the_dense_path_to_their_precision(dtype, digits, momentum_of):
    params = parameters(dtype=dtype)
    dense = Dense(values(params), momentum=0.5, momentum_of=momentum_of, weight_decay=0.2, **OPTIONS)
    optimizer = MFAC(params, momentum=0.5, momentum_of=momentum_of, weight_decay=0.2, **OPTIONS)
    for step in range(5):
        set_gradients(params, step)
        dense.step(values([p.grad for p in params]))
        optimizer.step()
    assert {p.dtype for p in params} == {dtype}
    if momentum_of == "steps":
        assert optimizer.state[params[0]]["momentum_buffer"].dtype == torch.float32
    np.testing.assert_allclose(values(params), dense.p, rtol=digits, atol=digits)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_momentum_of_gradients_is_that_of_the_compressed_ones_in_the_window(momentum):
    params, lr, damping = parameters(), 0.1, 0.3
    optimizer = MFAC(
        params, lr, window=3, damping=damping, momentum=momentum, momentum_of="gradients", compression=ml.TopK(0.3)
    )
    run_steps(optimizer, params, 4)
    before = values(params)
    run_steps(optimizer, params, 1, start=4)
    rows = optimizer.windows[0].gradients.numpy()
    fisher = damping * np.eye(DIM) + rows.T @ rows / 3
    step = np.linalg.solve(fisher, rows.T @ [momentum**2, momentum, 1.0])
    assert np.count_nonzero(rows) < rows.size / 2
    np.testing.assert_allclose(values(params), before - lr * step, rtol=1e-9, atol=1e-10)


def test_powers_of_a_momentum_near_one_lose_no_digits():
    from mfac_linalg.torch.descent import _powers_by_age

    powers = _powers_by_age(0.999, 256, like=torch.zeros(0, dtype=torch.bfloat16))
    assert powers.dtype == torch.float32
    np.testing.assert_allclose(powers.numpy(), 0.999 ** np.arange(255, -1, -1), rtol=1e-7)


def test_momentum_of_gradients_has_no_buffers_and_leaves_those_of_steps_behind():
    params = parameters()
    optimizer = MFAC(params, momentum=0.5, momentum_of="gradients", **OPTIONS)
    run_steps(optimizer, params, 2)
    assert all(optimizer.state[p]["momentum_buffer"] is None for p in params)
    assert not any("momentum_buffer" in entry for entry in optimizer.state_dict()["state"].values())
    optimizer.param_groups[0]["momentum_of"] = "steps"  # from now on, with a sum that starts at zero
    before = values(params)
    run_steps(optimizer, params, 1, start=2)
    buffers = values([optimizer.state[p]["momentum_buffer"] for p in params])
    np.testing.assert_allclose(values(params), before - 0.1 * buffers, rtol=1e-12)


def test_a_window_can_be_asked():
    params = parameters()
    optimizer = MFAC(params, **OPTIONS)
    (window,) = optimizer.windows
    run_steps(optimizer, params, 5)
    assert window is optimizer.windows[0]
    assert len(window) == 3
    assert torch.equal(window.gradients[-1], torch.cat([p.grad.reshape(-1) for p in params]))
