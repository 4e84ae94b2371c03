"""Hooks on models and on gradients, and parameters that have no real gradient."""

from functools import partial

import pytest

from tests import torch_rows
from tests.torch_rows import BY_CALL, CALLS, LOSS, Recomputing, one_by_one

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
data = torch_rows.data
model = torch_rows.model


@BY_CALL
@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_the_gradient_of_a_chosen_parameter_are_refused(model, data, call, kind):
    handle = getattr(model[4].weight, kind)(lambda _: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"`model` must have no hooks on gradients .* one of {kind} on '4.weight"):
        call(model, LOSS, *data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    call(model, LOSS, *data, params=["0.weight"])
    handle.remove()
    call(model, LOSS, *data)


class Hooked(nn.Module):
    """A model that puts hooks on what it computes."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(4, 4), nn.Linear(4, 3), kind

    def forward(self, x):
        hidden = self.first(x)
        if hidden.requires_grad and self.kind == "tensor":
            hidden.register_hook(lambda g: -3 * g)
        if hidden.requires_grad and self.kind == "node":
            hidden.grad_fn.register_prehook(lambda gradients: tuple(-3 * g for g in gradients))
        return self.last(torch.tanh(hidden))


@pytest.mark.parametrize("call", [CALLS[name] for name in ("samples", "chunks", "means")])
@pytest.mark.parametrize("kind", ["tensor", "node"])
def test_hooks_on_what_a_model_computes_take_effect(call, kind):
    torch.manual_seed(0)
    model, x, y = Hooked(kind), torch.randn(4, 4), torch.arange(4) % 3
    rows, unravel = call(model, LOSS, x, y)
    model.kind = None
    plain, _ = call(model, LOSS, x, y)
    for name, part in unravel(rows).items():
        torch.testing.assert_close(part, unravel(plain)[name] * (-3 if name.startswith("first") else 1))


@pytest.mark.parametrize("call", [CALLS[name] for name in ("samples", "means", "batches", "pruning")])
def test_checkpoints_that_enter_autograd_anew_are_refused_with_the_cure(call):
    class Reentrant(Recomputing):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.second, self.first(x), use_reentrant=True)

    model, x, y = Reentrant(), torch.randn(6, 4), torch.arange(6) % 4
    with pytest.raises(RuntimeError, match=r"got a call of torch\.utils\.checkpoint .*Pass use_reentrant=False there"):
        call(model, LOSS, x, y, params=["first.weight"])


@BY_CALL
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_floating_are_refused(data, call, dtype):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.ones(3, 3, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match=r"must choose real floating parameters; got '1\.weight' in torch"):
        call(model, LOSS, torch.ones(6, 4), data[1], params=["1.weight"])


@pytest.mark.parametrize("call", [CALLS[name] for name in ("samples", "chunks", "means", "batches", "pruning")])
def test_complex_losses_are_refused(model, data, call):
    with pytest.raises(TypeError, match="`loss_fn` must return real numbers; got"):
        call(model, lambda outputs, targets: LOSS(outputs, targets) * 1j, *data)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.int64])
def test_logits_that_are_not_real_floating_are_refused(model, data, dtype):
    class Cast(nn.Sequential):
        def forward(self, x):
            return super().forward(x).to(dtype)

    with pytest.raises(TypeError, match="`model` must return logits that are real and floating; got"):
        adapter.fisher_gradients(Cast(model), data[0])


@pytest.fixture(params=["forward_hook", "forward_pre_hook", "full_backward_hook", "module_registration_hook"])
def hook_of_all(request):
    """A hook of all modules there are, which doubles what it is shown, and the classes of those that it has seen."""
    seen = set()

    def doubled(module, *given):
        seen.add(type(module))
        return tuple(2 * x if x.is_floating_point() else x for x in given[0])

    hooks = {
        "forward_hook": lambda module, _, outputs: seen.add(type(module)) or 2 * outputs,
        "module_registration_hook": lambda module, *_: seen.add(type(module)),
        "full_backward_hook": lambda module, gradients, _: doubled(module, [g for g in gradients if g is not None]),
    }
    register = getattr(nn.modules.module, f"register_module_{request.param}")
    handle = register(hooks.get(request.param, doubled))
    yield seen
    handle.remove()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("call", [adapter.per_sample_gradients, partial(adapter.mean_gradients, batch_size=1)])
def test_hooks_of_all_modules_see_those_of_the_model_alone(model, data, call, hook_of_all):
    expected = one_by_one(model, data)
    hook_of_all.clear()
    torch.testing.assert_close(call(model, LOSS, *data)[0], expected)
    assert hook_of_all <= {type(module) for module in [*model.modules(), LOSS]}
