"""Pruning that fails or is refused leaves the model unchanged."""

import pytest

from tests import torch_pruning
from tests.torch_pruning import LOSS, Recorded, failing, weights_of

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("mfac_linalg.torch")
nn = torch.nn
batches = torch_pruning.batches
model = torch_pruning.model


def test_a_model_whose_pruning_fails_is_as_it_was(model, batches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of luck"):
        adapter.prune_model(model, failing(7), batches, 0.5, damping=1e-2, steps=2)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("after", [7, 10], ids=["gradients", "validation"])
def test_masked_weights_are_as_they_were_when_further_pruning_fails(model, batches, after):
    adapter.prune_model(model, LOSS, batches, 0.3, damping=1e-2)
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        adapter.prune_model(model, failing(after), batches, 0.6, damping=[1e-2, 1.0], steps=2, validation=Recorded(3))
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize("function", ["per_sample_gradients", "mean_gradients"])
def test_a_masked_weight_is_a_plain_tensor_after_its_gradients_have_failed(model, batches, function):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    options = {"batch_size": 4} if function == "mean_gradients" else {}
    with pytest.raises(RuntimeError, match="out of luck"):
        getattr(adapter, function)(model, failing(0), *batches[0], **options)
    assert not model[0].weight.requires_grad
    assert "GradTracking" not in repr(model[0].weight)


def test_a_masked_weight_is_a_plain_tensor_after_its_gradients_are_taken(model, batches):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    before = model[0].weight.clone()
    rows, _ = adapter.per_sample_gradients(model, LOSS, *batches[0])
    assert torch.equal(model[0].weight, before)
    assert "GradTracking" not in repr(model[0].weight)  # what torch.func leaves of the values that it was given
    assert rows.shape == (4, 47)


def test_pruning_under_inference_mode_is_refused_before_the_batches_are_asked_for(model, batches):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"`model` must .*torch\.inference_mode\(\)"):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert not batches.asked


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_16_bits_is_refused_with_the_cure(model, batches, dtype):
    with pytest.raises(TypeError, match=rf"`model` must be float32 or float64 .* got {dtype}\. Call model\.float\(\)"):
        adapter.prune_model(model.to(dtype), LOSS, batches, 0.5, damping=1e-2)


def nan_batches():
    return [(x * torch.nan, y) for x, y in Recorded(2)]


def root_loss(outputs, targets):
    """A loss whose derivative is nan where it is finite."""
    return LOSS(outputs, targets) + torch.sqrt((outputs - outputs).square()).sum()


@pytest.mark.parametrize("options", [{"steps": 2}, {"damping": [1e-2, 1.0], "validation": None}])
def test_an_iterator_that_would_not_do_is_refused_before_it_is_used(model, options):
    batches, validation = iter(Recorded(3)), iter(Recorded(3))
    arguments = {"damping": 1e-2} | options
    if "validation" in arguments:
        arguments["validation"] = validation
    with pytest.raises(ValueError, match="an iterator, which is exhausted after one"):
        adapter.prune_model(model, LOSS, batches, 0.5, **arguments)
    assert len(list(batches)) == len(list(validation)) == 3


def test_an_iterator_will_do_for_as_long_as_it_lasts(model):
    adapter.prune_model(model, LOSS, iter(Recorded(3)), 0.3, damping=1e-2)
    found = adapter.prune_model(model, LOSS, iter(Recorded(6)), 0.6, damping=1e-2, steps=3, num_gradients=2)
    assert found.mask.sum() == 42 - 25


def test_steps_are_shown(model, batches, capsys):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, steps=3, progress=True)
    assert "0/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batches": iter(Recorded(3)), "steps": 2}, ValueError, "`batches` must have batches in each"),
        ({"batches": []}, ValueError, "`batches` must have batches"),
        ({"batches": [], "num_gradients": 2}, ValueError, "`batches` must have batches"),
        ({"batches": iter(Recorded(3)), "steps": 2}, ValueError, "2 passes; got generator, an iterator, which is"),
        (
            {"damping": [1e-2, 1.0], "validation": iter(Recorded(3))},
            ValueError,
            "`validation` must have batches in each of 2 passes; got generator",
        ),
        ({"batches": None}, TypeError, "`batches` must be an iterable"),
        ({"batches": {"x": 1}}, TypeError, "`batches` must be an iterable"),
        ({"damping": [1e-2, 1.0], "validation": 5}, TypeError, "`validation` must be an iterable"),
        ({"loss_fn": None}, TypeError, "`loss_fn` must be a function"),
        ({"progress": "yes"}, TypeError, "`progress` must be True or False"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"damping": [1e-2, 1.0], "validation": nan_batches()}, ValueError, "`validation` must have finite losses"),
        ({"validation": nan_batches()}, ValueError, "`validation` must have finite losses"),
        ({"validation": nan_batches(), "steps": 2}, ValueError, "`validation` must have finite losses"),
        ({"batches": nan_batches()}, ValueError, "`loss_fn` must return finite losses; got nan"),
        (
            {"loss_fn": root_loss},
            ValueError,
            "`model` must have finite gradients where its losses are; .* '0.weight'",
        ),
        ({"num_gradients": 0}, ValueError, "`num_gradients` must be at least 1"),
        ({"by_layer": "yes"}, TypeError, "`by_layer`"),
        ({"block_sizes": "rows"}, ValueError, "`block_sizes` must be one of 'layers', 'filters'"),
        ({"params": ["4"]}, ValueError, "`params` must name"),
        (
            {"damping": [1e-2, 1e-1]},
            TypeError,
            "`validation` must be given to choose among several values of `damping`",
        ),
        ({"lengths": (0.5, 1.0)}, TypeError, "several values of `lengths`"),
        ({"sparsity": [0.5, 0.9]}, TypeError, "Pass by_layer=True"),
        ({"batches": (torch.ones(2, 1), torch.ones(2))}, TypeError, "`batches` must be pairs"),
        ({"damping": [1e-2, 1e-1], "validation": []}, ValueError, "`validation` must have batches"),
        ({"damping": [1e-2, 1e-1], "validation": [torch.ones(3)]}, TypeError, "`validation` must be pairs"),
        ({"sparsity": 1.5}, ValueError, "`sparsity`"),
    ],
)
def test_what_is_wrong_is_refused_by_name_and_the_model_is_as_it_was(model, batches, options, error, words):
    before = weights_of(model)
    arguments = {"loss_fn": LOSS, "batches": batches, "sparsity": 0.5, "damping": 1e-2} | options
    with pytest.raises(error, match=words):
        adapter.prune_model(model, **arguments)
    assert torch.equal(weights_of(model), before)
    assert not nn.utils.prune.is_pruned(model)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_models_that_cannot_be_pruned_are_refused_by_name():
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    traced = nn.Sequential(torch.jit.trace(nn.Linear(4, 3), x))
    with pytest.raises(TypeError, match=r"modules of Python where it is pruned; got '0\.weight' of TopLevelTraced"):
        adapter.prune_model(traced, nn.functional.cross_entropy, [(x, y)], 0.5, damping=1e-2)
    with pytest.raises(ValueError, match=r"`model` must have values; got 'weight' on the device meta"):
        adapter.prune_model(nn.Linear(4, 3, device="meta"), LOSS, [(x, y)], 0.5, damping=1e-2)
