"""Rows of weights that PyTorch casts, computes, shares or hooks are those of the weights themselves."""

from functools import partial

import pytest

from tests import torch_state
from tests.torch_state import LOSS, SAMPLES, make_model, prune_model

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
written = pytest.importorskip("tests.written_models")
parametrize = pytest.importorskip("torch.nn.utils.parametrize")
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an LSTM

# --- parameters that are referenced elsewhere too ---------------------------------------------------------------------

data = torch_state.data


class Listed(nn.Module):
    """A model that uses a weight past its module as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.weights = [self.layer.weight]

    def forward(self, x):
        return self.layer(x) + x @ self.weights[0]


def test_the_part_of_a_parameter_that_is_held_elsewhere_is_in_its_gradient(data):
    model = make_model(Listed)
    penalised = model.layer.bias

    def loss(outputs, targets):
        return LOSS(outputs, targets) + penalised.square().sum()

    expected = torch.autograd.grad(loss(model(data[0]), data[1]), list(model.parameters()))
    row = adapter.mean_gradients(model, loss, *data, batch_size=SAMPLES)[0][0]
    torch.testing.assert_close(row, torch.cat([part.reshape(-1) for part in expected]))
    with pytest.raises(RuntimeError, match=r"must use its parameters by their modules.*Use mean_gradients"):
        adapter.per_sample_gradients(model, loss, *data)


def test_another_model_in_the_loss_is_no_parameter_of_this_one(data):
    model, teacher = make_model(written.Written), nn.Linear(4, 3)

    def loss(outputs, inputs):
        return (outputs - teacher(inputs)).square().sum()

    rows = adapter.per_sample_gradients(model, loss, data[0], data[0])[0]
    torch.testing.assert_close(rows, adapter.mean_gradients(model, loss, data[0], data[0], batch_size=1)[0])


# --- weights that PyTorch has cast or computed ------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def in_bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("call", [adapter.per_sample_gradients, partial(adapter.mean_gradients, batch_size=2)])
@pytest.mark.parametrize("params", [None, ["2"]])
def test_rows_in_an_autocast_region_are_those_of_the_weights_as_they_are(data, call, params):
    model = network()
    with in_bfloat16():
        model(data[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()
        found = call(model, LOSS, *data, params=params)[0]
    with in_bfloat16():
        assert torch.equal(found, call(model, LOSS, *data, params=params)[0])


def test_a_vector_that_is_written_in_an_autocast_region_takes_effect(data):
    model = network()
    unravel = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[1]
    with in_bfloat16():
        model(data[0])
        unravel.write(model, torch.zeros(unravel.dim))
        assert not torch.any(model(data[0]))


def test_a_step_of_the_optimizer_in_an_autocast_region_takes_effect(data):
    model = network()
    optimizer = adapter.MFAC(model.parameters(), lr=1.0, window=4, damping=0.1)
    with in_bfloat16():
        LOSS(model(data[0]), data[1]).backward()
        optimizer.step()
        found = model(data[0])
    with in_bfloat16():
        assert torch.equal(found, model(data[0]))


@pytest.mark.parametrize("region", [in_bfloat16, parametrize.cached], ids=["autocast", "cached"])
def test_candidates_are_judged_by_their_own_weights(data, region):
    def losses(damping, lengths):
        model = network()
        model[0] = nn.utils.parametrizations.weight_norm(model[0])
        with region():
            model(data[0])
            return [step.loss for step in prune_model(model, data, 0.2, damping=damping, lengths=lengths).steps]

    alone = [losses(damping, (length,)) for damping in (1e-6, 1.0) for length in (300.0, 1.0)]
    assert losses([1e-6, 1.0], (300.0, 1.0)) == min(alone)
    assert min(alone) != alone[0]


def test_a_model_is_trained_in_the_autocast_region_in_which_it_was_pruned(data):
    model = network()
    with in_bfloat16():
        prune_model(model, data)
        LOSS(model(data[0]), data[1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_of_parametrised_weights_are_those_of_the_weights_as_they_are(data):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0]
    with parametrize.cached():
        model(data[0])
        torch.testing.assert_close(adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0], expected)
        samples = adapter.per_sample_gradients(model, LOSS, *data)[0]
    torch.testing.assert_close(samples[:2].mean(dim=0), expected[0])


def test_rows_in_an_autocast_region_leave_no_casts_behind(data, monkeypatch):
    model, kept = network(), []
    with in_bfloat16():
        cleared = torch.clear_autocast_cache
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (kept.append(1), cleared()))
        for _ in adapter.iter_gradients(model, LOSS, [data] * 3):
            assert kept
            kept.clear()


def test_models_and_samples_made_in_inference_mode_have_rows(data):
    with torch.inference_mode():
        model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval(), data[0].clone()
    everything = {"params": lambda *_: True}
    rows = adapter.per_sample_gradients(model, LOSS, x, data[1], **everything)[0]
    torch.testing.assert_close(rows, adapter.mean_gradients(model, LOSS, x, data[1], batch_size=1, **everything)[0])
    with pytest.raises(ValueError, match=r"`model` must have parameters that can be written; got '0\.weight'"):
        adapter.prune_model(model, LOSS, [data], 0.5, damping=1e-2)


def test_a_compiled_model_has_the_rows_of_the_model(data):
    model = network()
    compiled = torch.compile(model, backend="eager")
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(adapter.mean_gradients(compiled, LOSS, *data, batch_size=1)[0], expected)
    torch.testing.assert_close(adapter.per_sample_gradients(compiled, LOSS, *data)[0], expected)


def test_a_lazy_model_is_refused_with_the_cure(data):
    with pytest.raises(ValueError, match=r"`model` must have all its parameters; got 'weight'.*Call the model once"):
        adapter.per_sample_gradients(nn.LazyLinear(3), LOSS, *data)


# --- hooks on backward passes -----------------------------------------------------------------------------------------


def with_backward_hooks(model):
    """A model that keeps what passes through it both ways, as BackPACK's do."""

    def keep(module, inputs, outputs):
        module.input0, module.output = inputs[0], outputs

    def extend(module, _, gradients):
        for parameter in module.parameters():
            parameter.grad_batch = gradients[0] * module.output

    for layer in (model[0], model[2]):
        layer.register_forward_hook(keep)
        layer.register_full_backward_hook(extend)
    return model


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_a_model_with_hooks_on_its_backward_passes_has_the_same_rows(data):
    expected = adapter.per_sample_gradients(network(), LOSS, *data)[0]
    model = with_backward_hooks(network())
    before = written.contents_of(model)
    torch.testing.assert_close(adapter.per_sample_gradients(model, LOSS, *data)[0], expected)
    torch.testing.assert_close(adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0], expected)
    assert written.contents_of(model) == before
    assert not any(hasattr(parameter, "grad_batch") for parameter in model.parameters())
    assert prune_model(model, data).mask.sum() < 56


def test_a_wrapper_that_takes_gradients_itself_is_refused_with_the_cure(data):
    model = network()
    model.hooks_enabled = True  # as of Opacus
    with pytest.raises(TypeError, match=r"got Sequential\. Call model\.disable_hooks\(\)"):
        adapter.per_sample_gradients(model, LOSS, *data)
