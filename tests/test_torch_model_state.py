"""What a call of a model writes: every row starts from the same model, which is returned unchanged."""

import copy
from functools import partial

import pytest

from tests import torch_state
from tests.torch_state import (
    BY_CALL,
    CALLS,
    LOSS,
    SAMPLES,
    Trainer,
    make_model,
    one_by_one,
    prune_model,
    rows_or_refusal,
)

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
written = pytest.importorskip("tests.written_models")
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an LSTM
data = torch_state.data
BY_MODEL = pytest.mark.parametrize("make", written.MODELS)


def autograd_rows(make, x, y):
    """The gradients of single samples, each by a model of its own."""
    rows = []
    for i in range(len(y)):
        model = make_model(make)
        parameters = list(model.parameters())
        outputs = model(x[i : i + 1].clone())
        parts = torch.autograd.grad(LOSS(outputs, y[i : i + 1]), parameters)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


@BY_MODEL
@BY_CALL
def test_every_row_starts_from_the_same_model(make, call, data):
    rows = rows_or_refusal(call, make_model(make), data)
    if rows is not None:
        torch.testing.assert_close(rows, autograd_rows(make, *data))
    else:
        assert call in (CALLS["samples"], CALLS["chunks"])


@BY_MODEL
@BY_CALL
def test_a_model_is_given_back_as_it_was_and_can_be_used(make, call, data):
    model = make_model(make)
    before, inputs = written.contents_of(model), data[0].clone()
    rows_or_refusal(call, model, data)
    assert written.contents_of(model) == before
    assert torch.equal(data[0], inputs)
    copy.deepcopy(model)
    model(inputs[:1])


@BY_MODEL
def test_gradients_on_a_model_are_left_alone(make, data):
    model = make_model(make)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = written.contents_of(model)
    adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert written.contents_of(model) == before
    gradients = {id(parameter): parameter.grad for parameter in model.parameters()}
    prune_model(model, data, 0.3, params=["layer"])
    for parameter in model.parameters():
        assert parameter.grad is gradients[id(parameter)]
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


@BY_MODEL
@pytest.mark.parametrize("after", [0, 1])
def test_a_model_is_as_it_was_when_the_loss_fails(make, data, after):
    model, calls = make_model(make), []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            msg = "out of luck"
            raise RuntimeError(msg)
        return LOSS(outputs, targets)

    before = written.contents_of(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        adapter.mean_gradients(model, loss, *data, batch_size=2)
    assert written.contents_of(model) == before


@BY_MODEL
def test_a_model_is_as_it_was_while_its_gradients_are_asked_for_one_by_one(make, data):
    model = make_model(make)
    before = written.contents_of(model)
    gradients = adapter.iter_gradients(model, LOSS, [data, data])
    next(gradients)
    assert written.contents_of(model) == before
    gradients.close()
    assert written.contents_of(model) == before


@BY_MODEL
def test_pruning_changes_weights_and_masks_alone(make, data):
    model, other = make_model(make), make_model(make)
    found = prune_model(model, data, params=["layer"])
    before = dict(other.named_buffers())
    for name, tensor in model.named_buffers():
        assert name.endswith("_mask") or torch.equal(tensor, before[name])
    skipped = ("_", "training")
    plain = {name: written.contents_of(value) for name, value in vars(model).items() if not name.startswith(skipped)}
    fresh = {name: written.contents_of(value) for name, value in vars(other).items() if not name.startswith(skipped)}
    assert plain.keys() == fresh.keys()
    assert model.training == other.training
    assert found.steps[0].loss is not None


@BY_MODEL
def test_candidates_are_judged_by_the_model_as_it_was(make, data):
    model = make_model(make)
    found = prune_model(model, data, params=["layer"], damping=1e-2, lengths=(1.0,))
    losses = []
    for shift in (0, 1, -1):
        fresh = copy.deepcopy(model)
        losses.append(float(LOSS(fresh(data[0] + shift), data[1]).detach()))
    assert found.steps[0].loss == pytest.approx(sum(losses) / 3, rel=1e-5)


@BY_MODEL
def test_a_model_is_as_it_was_when_pruning_fails(make, data):
    model = make_model(make)
    before = written.contents_of(model)
    with pytest.raises(TypeError, match="`validation` must be pairs"):
        prune_model(model, data, validation=[data, data[0]])
    assert written.contents_of(model) == before


class Energy(nn.Module):
    """A model whose outputs are a gradient by its inputs, which needs a graph to be called."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 8), nn.Linear(4, 3)

    def forward(self, x):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(self.layer(x)).sum(), x, create_graph=True)
        return self.last(slope)


def test_a_model_that_differentiates_may_be_judged_on_other_batches(data):
    torch.manual_seed(0)
    model = Energy()
    found = prune_model(model, data, steps=2)
    expected = [float(LOSS(model(data[0] + shift), data[1]).detach()) for shift in (0, 1, -1)]
    assert found.steps[-1].loss == pytest.approx(sum(expected) / 3, rel=1e-5)


class Running(nn.Module):
    """A loss that keeps a mean of itself, and divides by it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, outputs, targets):
        loss = LOSS(outputs, targets)
        self.mean.mul_(0.5).add_(loss.detach())
        return loss / self.mean


@pytest.mark.parametrize("loss_of", [lambda loss: loss, lambda loss: loss.forward], ids=["module", "method"])
def test_a_loss_that_writes_to_itself_starts_anew_for_every_row(data, loss_of):
    model, state, (x, y) = make_model(written.Written), Running(), data
    loss = loss_of(state)
    rows = adapter.mean_gradients(model, loss, x[:1].expand(3, -1), y[:1].expand(3), batch_size=1)[0]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert state.mean == 1


def test_objects_that_are_hooks_start_anew_for_every_row(data):
    hook = written.Recorder()
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(hook)
    expected = adapter.mean_gradients(nn.Sequential(model[0]), LOSS, *data, batch_size=1)[0]
    for call in CALLS.values():
        torch.testing.assert_close(call(model, LOSS, *data), expected)
        assert not hook.outputs
        copy.deepcopy(model)


@pytest.mark.parametrize("loss_of", [lambda t: t.loss, lambda t: t, lambda t: partial(t.loss)])
def test_what_the_object_of_a_loss_holds_is_the_users(data, loss_of):
    model, trainer = make_model(written.Written), Trainer()
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(one_by_one(model, loss_of(trainer), *data), expected)
    assert trainer.losses == list(range(SAMPLES))
