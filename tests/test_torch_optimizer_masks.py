"""PyTorch's optimizer on sparse models: masked weights stay zero and take no part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torch_optimizer import (
    CONFIGURATIONS,
    MFAC,
    OPTIONS,
    Dense,
    parameters,
    run_steps,
    same,
    set_gradients,
    values,
)

torch = pytest.importorskip("torch")
nn, prune = torch.nn, pytest.importorskip("torch.nn.utils.prune")


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
        set_gradients(params, step)
        dense.step(values([p.grad for p in params])[kept])
        optimizer.step()
    np.testing.assert_allclose(values(params)[kept], dense.p, rtol=1e-9, atol=1e-10)
    assert np.array_equal(values(params)[~kept], start[~kept])


def test_windows_and_momenta_of_a_masked_model_hold_what_may_move_only():
    params = parameters()
    mask = torch.tensor([[True, False, False], [False, True, False]])
    optimizer = MFAC(params[:1], momentum=0.5, beta2=0.9, masks={params[0]: mask}, **OPTIONS)
    run_steps(optimizer, params, 2)
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


def pruned_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[2], "bias", amount=1)
    return model


@pytest.mark.parametrize("make", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_steps_are_the_same_where_pytorch_refuses_what_is_not_deterministic(make):
    kept = parameters(), parameters()
    run_steps(make(kept[0]), kept[0], 5)
    torch.use_deterministic_algorithms(True)
    try:
        run_steps(make(kept[1]), kept[1], 5)
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
        run_steps(MFAC([p], masks={p: mask}, **OPTIONS), [p], 3)
    assert not kept[1].is_contiguous()
    assert same(kept[:1], kept[1:])


def test_a_pruned_module_stands_for_its_masks():
    model = pruned_model()
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
    models = pruned_model(), pruned_model()
    for model, masks in zip(models, (None, models[1]), strict=True):
        optimizer = MFAC(model.parameters(), momentum=0.5, weight_decay=0.1, masks=masks, **OPTIONS)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(5, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(models[0](torch.ones(5, 4)), models[1](torch.ones(5, 4)))
