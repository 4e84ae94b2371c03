"""What reads values refuses arrays without any, by their names, and takes those that are differentiated."""

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg.pruning import exchange, joint_objective, joint_update

RNG = np.random.default_rng(0)
GRADIENTS, W, MASK = RNG.standard_normal((5, 12)), RNG.standard_normal(12), np.arange(12) % 3 > 0
CALLS = {
    "joint_update": lambda w, inverse, mask: joint_update(w, inverse, mask, compensation_damping="auto"),
    "joint_objective": joint_objective,
    "exchange": exchange,
}
BY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
BY_BLOCKS = pytest.mark.parametrize("blocks", [None, 5])


def inverse_of(gradients, blocks):
    if blocks is None:
        return ml.WoodburyRankOneInverse(gradients, 0.1)
    return ml.BlockDiagonalInverse(gradients, 0.1, block_sizes=blocks)


@BY_BLOCKS
@BY_CALL
def test_arrays_that_jax_traces_are_refused_by_name(call, blocks):
    jax = pytest.importorskip("jax")
    w, mask = jax.numpy.asarray(W, "float32"), jax.numpy.asarray(MASK)
    inverse = inverse_of(jax.numpy.asarray(GRADIENTS, "float32"), blocks)
    traced = {
        "weights": lambda transform: transform(lambda x: call(x, inverse, mask))(w),
        "mask": lambda transform: transform(lambda x: call(w, inverse, x))(mask),
        "inverse": lambda transform: transform(lambda x: call(w, x, mask))(inverse),
    }
    for name, under in traced.items():
        with pytest.raises(TypeError, match=f"`{name}` must have values now; got .*Ask outside of jit, grad and vmap"):
            under(jax.jit)
    with pytest.raises(TypeError, match="`weights` must have values now"):
        traced["weights"](lambda function: lambda x: jax.vmap(function)(x[None]))


@BY_BLOCKS
@BY_CALL
def test_tensors_that_torch_batches_are_refused_and_those_that_it_differentiates_are_not(call, blocks):
    torch = pytest.importorskip("torch")
    w, mask = torch.from_numpy(W), torch.from_numpy(MASK)
    inverse = inverse_of(torch.from_numpy(GRADIENTS), blocks)
    expected = torch.as_tensor(call(w, inverse, mask))
    with pytest.raises(TypeError, match=r"`weights` must have values now; got .*Ask outside of jit"):
        torch.func.vmap(lambda x: call(x, inverse, mask))(w[None])
    for x in (w.clone().requires_grad_(), 1 * w.clone().requires_grad_()):
        torch.testing.assert_close(torch.as_tensor(call(x, inverse, mask)).detach(), expected)
    of_w = torch.func.grad_and_value(lambda x: torch.as_tensor(call(x, inverse, mask)).double().sum() + 0 * x.sum())
    torch.testing.assert_close(of_w(w)[1], expected.double().sum())
