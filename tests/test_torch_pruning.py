"""Pruned PyTorch models: what is removed, the masks that are left, what happens to the model when it fails."""

import copy

import pytest

import mfac_linalg as ml
from mfac_linalg.pruning import joint_update, obs_scores
from tests import torch_pruning
from tests.torch_pruning import LOSS, NAMES, Recorded, weights_of

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("mfac_linalg.torch")
nn = torch.nn
batches = torch_pruning.batches
model = torch_pruning.model


def test_a_model_is_pruned_as_its_rows_say(model, batches):
    before = weights_of(model)
    rows = torch.stack(list(adapter.iter_gradients(model, LOSS, batches, params=NAMES)))
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    inverse = ml.WoodburyRankOneInverse(rows, 1e-2)
    gone = torch.argsort(obs_scores(before, inverse))[:21]
    assert torch.equal(torch.nonzero(~found.mask)[:, 0], gone.sort()[0])
    change = joint_update(before, inverse, found.mask, compensation_damping="auto")
    torch.testing.assert_close(weights_of(model), before + change)


def test_the_masks_are_those_of_pytorch(model, batches):
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert nn.utils.prune.is_pruned(model)
    assert torch.equal(model[0].weight_mask.reshape(-1) > 0, found.mask[:18])
    nn.utils.prune.remove(model[0], "weight")
    assert torch.equal(model[0].weight.reshape(-1) != 0, found.mask[:18])


def test_masked_weights_stay_zero_in_training(model, batches):
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in batches:
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        optimizer.step()
    assert torch.all(weights_of(model)[~found.mask] == 0)


def test_a_pruned_model_can_be_copied(model, batches):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert torch.equal(weights_of(copy.deepcopy(model)), weights_of(model))


def test_other_parameters_are_left_as_they_are(model, batches):
    before = model[3].bias.clone()
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert torch.equal(model[3].bias, before)


def test_a_pruned_model_is_pruned_further(model, batches):
    first = adapter.prune_model(model, LOSS, batches, 0.3, damping=1e-2)
    second = adapter.prune_model(model, LOSS, batches, 0.6, damping=1e-2)
    assert not torch.any(second.mask & ~first.mask)
    assert torch.equal(weights_of(model) != 0, second.mask)
    assert second.mask.sum() == 42 - 25


def test_each_step_goes_on_where_the_last_one_stopped(model, batches):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, steps=3, num_gradients=3)
    assert batches.asked == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_all_batches_serve_each_step_unless_told_otherwise(model, batches):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, steps=2)
    assert batches.asked == [*range(5), *range(5)]


def test_every_layer_keeps_its_share(model, batches):
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, by_layer=True)
    assert [int(model[i].weight_mask.sum()) for i in (0, 3)] == [9, 12]


@pytest.mark.parametrize(("named", "sizes"), [("layers", [18, 24]), ("filters", [9, 9, 8, 8, 8])])
def test_named_blocks_are_those_of_the_block_diagonal_inverse(named, sizes, model, batches):
    before = weights_of(model)
    rows = torch.stack(list(adapter.iter_gradients(model, LOSS, batches, params=NAMES)))
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, block_sizes=named)
    inverse = ml.BlockDiagonalInverse(rows, 1e-2, block_sizes=sizes)
    change = joint_update(before, inverse, found.mask, compensation_damping="auto")
    torch.testing.assert_close(weights_of(model), before + change)


class Stream(torch.utils.data.IterableDataset):
    """Samples without a length, as they come from a file."""

    def __iter__(self):
        yield from ((x, y) for inputs, targets in Recorded(2, seed=1) for x, y in zip(inputs, targets, strict=True))


def test_other_batches_may_come_from_a_stream(model, batches):
    other = torch.utils.data.DataLoader(Stream(), batch_size=4)
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=[1e-4, 1.0], validation=other)
    expected = sum(LOSS(model(x), y).item() for x, y in Recorded(2, seed=1)) / 2
    assert found.steps[0].loss == pytest.approx(expected)


def test_other_batches_choose_the_damping(model, batches):
    other = Recorded(3, seed=1)
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=[1e-4, 1.0], validation=other, lengths=[0.5, 1.0])
    expected = sum(LOSS(model(x), y).item() for x, y in other) / 3
    assert found.steps[0].loss == pytest.approx(expected)
    assert len(other.asked) == (4 + 1) * 3


# --- what divides by the norm of weights ------------------------------------------------------------------------------


def standardised_layer():
    class Standardised(nn.Linear):
        def forward(self, x):
            weight = self.weight / self.weight.norm(dim=1, keepdim=True)
            return nn.functional.linear(x, weight, self.bias)

    return Standardised(16, 16)


NORMALISED = {
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "old": lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
    "in the forward": standardised_layer,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", NORMALISED.values(), ids=NORMALISED)
@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"damping": [1e-2, 1.0], "validation": Recorded(2, seed=1)}])
def test_a_model_that_would_be_nan_is_refused_and_is_as_it_was(batches, make, options):
    model = nn.Sequential(nn.Flatten(), make(), nn.Tanh(), nn.Linear(16, 3)).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(batches[0][0])
    with pytest.raises(ValueError, match=r"`sparsity` must leave the model defined; got .* or prune less"):
        adapter.prune_model(model, LOSS, batches, 0.95, **{"damping": 1e-2} | options)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(model(batches[0][0]), expected)


def test_a_candidate_that_is_nan_loses(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), NORMALISED["parametrised"](), nn.Tanh(), nn.Linear(16, 3)).double()
    options = {"damping": 1e-2, "validation": Recorded(2, seed=1)}
    found = adapter.prune_model(model, LOSS, batches, 0.3, lengths=(1e200, 1.0), **options)
    assert found.steps[0].length == 1.0


# --- modules that share a weight ------------------------------------------------------------------------------------


def tied_model():
    first, second, last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last).double()


def test_a_weight_that_two_modules_share_is_refused_by_name(batches):
    with pytest.raises(ValueError, match=r"`params` must choose .* got 1\.weight = 3\.weight\..*out by `params`"):
        adapter.prune_model(tied_model(), LOSS, batches, 0.5, damping=1e-2)


def test_the_weights_of_a_refused_model_are_still_shared(batches):
    model = tied_model()
    with pytest.raises(ValueError, match="untie"):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert model[1].weight is model[3].weight


def test_a_model_is_pruned_without_the_weight_that_two_modules_share(batches):
    model = tied_model()
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=["5.weight"])
    assert model[5].weight_mask.sum() == 24


def test_a_module_that_is_called_at_two_places_is_pruned(batches):
    twice, last = nn.Linear(16, 16), nn.Linear(16, 3)
    model = nn.Sequential(nn.Flatten(), twice, nn.ReLU(), twice, nn.ReLU(), last).double()
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert torch.equal(found.mask[:256], twice.weight_mask.reshape(-1) > 0)
