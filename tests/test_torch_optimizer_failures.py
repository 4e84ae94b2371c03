"""A step of PyTorch's optimizer that fails changes no weight, window, momentum or moment."""

import re

import numpy as np
import pytest

import mfac_linalg as ml
from tests.torch_optimizer import CONFIGURATIONS, MFAC, OPTIONS, copies, parameters, run_steps, same, set_gradients

torch = pytest.importorskip("torch")
nn = torch.nn


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
@pytest.mark.parametrize("momentum_of", ["steps", "gradients"])
@pytest.mark.parametrize(("steps", "beta2"), [(0, None), (1, 0.9), (2, None), (4, None), (5, 0.9)])
def test_a_step_that_fails_in_the_last_group_changes_nothing_in_any(fail, steps, beta2, momentum_of):
    error, words = FAILURES[fail]
    kept, options = (parameters(), parameters()), {"momentum": 0.5, "momentum_of": momentum_of, "beta2": beta2}
    optimizers = [MFAC([{"params": p[:2]}, {"params": p[2:]}], **options, **OPTIONS) for p in kept]
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, steps)
    options = [dict(group) for group in optimizers[0].param_groups]
    for attempt in range(2):
        set_gradients(kept[0], 100 + attempt)
        fail(optimizers[0], kept[0])
        with pytest.raises(error, match=words):
            optimizers[0].step()
    assert same(*kept)
    for window, other in zip(optimizers[0].windows, optimizers[1].windows, strict=True):
        assert not steps or torch.equal(window.diagonal(), other.diagonal())
    for group, before in zip(optimizers[0].param_groups, options, strict=True):
        group.update(before)
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, 4, start=steps)
    assert same(*kept)


def expanded_parameter():
    return nn.Parameter(torch.zeros(1).double().expand(3))


def of_inference():
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(3).double(), requires_grad=False)


@pytest.mark.parametrize(
    ("make", "words"), [(expanded_parameter, "that was expanded"), (of_inference, "created in torch.infer")]
)
@pytest.mark.parametrize("beta2", [None, 0.9])
def test_a_parameter_that_cannot_be_written_is_refused_before_another_is(make, words, beta2):
    params = [*parameters()[:2], make()]
    optimizer = MFAC([{"params": params[:2]}, {"params": params[2:]}], momentum=0.5, beta2=beta2, **OPTIONS)
    before = copies(params)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match=f"`params` must .* one of shape \\(3,\\).*{words}"):
        optimizer.step()
    assert same(params, before)
    assert [len(window) for window in optimizer.windows] == [0, 0]
    assert all(optimizer.state[p].get("momentum_buffer") is None for p in params)
    params[2].grad = None
    run_steps(optimizer, params[:2], 1)
    assert [len(window) for window in optimizer.windows] == [1, 0]


@pytest.mark.parametrize("make", [CONFIGURATIONS[name] for name in ("one group", "beta2", "compressed")])
def test_a_write_that_fails_leaves_windows_momenta_and_moments(make, monkeypatch):
    kept = parameters(), parameters()
    optimizers = [make(params) for params in kept]
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, 4)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_add_", lambda *_, **__: pytest.fail("out of memory"))
        for step in (4, 5):
            set_gradients(kept[0], step)
            with pytest.raises(pytest.fail.Exception, match="out of memory"):
                optimizers[0].step()
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, 4, start=4)
    assert same(*kept)


def test_compressed_windows_keep_their_error_where_a_step_fails():
    kept = parameters(), parameters()
    optimizers = [
        MFAC([{"params": p[:2]}, {"params": p[2:]}], compression=ml.TopK(0.4, block_size=4), **OPTIONS) for p in kept
    ]
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, 4)
    set_gradients(kept[0], 100)
    overflow(optimizers[0], kept[0])
    with pytest.raises(ValueError, match="must have finite gradients"):
        optimizers[0].step()
    for optimizer, params in zip(optimizers, kept, strict=True):
        run_steps(optimizer, params, 4, start=4)
    assert same(*kept)
