"""Pruned PyTorch models: what is removed, the masks that are left, what happens to the model when it fails."""

import copy

import pytest

import mfac_linalg as ml
from mfac_linalg.pruning import joint_update, obs_scores

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("mfac_linalg.torch")
nn = torch.nn
LOSS = nn.functional.cross_entropy
NAMES = ["0.weight", "3.weight"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


class Recorded(list):
    """Batches that write down which of them were asked for."""

    def __init__(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(count, 4, 1, 4, 4, dtype=torch.float64, generator=generator)
        targets = torch.randint(3, (count, 4), generator=generator)
        super().__init__(zip(inputs, targets, strict=True))
        self.asked = []

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            self.asked.append(index)
            yield batch


@pytest.fixture
def batches():
    return Recorded(5)


def weights_of(model):
    return torch.cat([model.get_submodule(name[0]).weight.detach().reshape(-1) for name in NAMES])


def test_a_model_is_pruned_as_its_rows_say(model, batches):
    before = weights_of(model)
    rows = torch.stack(list(adapter.iter_gradients(model, LOSS, batches, params=NAMES)))
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    inverse = ml.WoodburyRankOneInverse(rows, 1e-2)
    gone = torch.argsort(obs_scores(before, inverse))[:21]
    assert torch.equal(torch.nonzero(~found.mask)[:, 0], gone.sort()[0])
    torch.testing.assert_close(weights_of(model), before + joint_update(before, inverse, found.mask))


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
    torch.testing.assert_close(weights_of(model), before + joint_update(before, inverse, found.mask))


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


# --- modules that are not called ------------------------------------------------------------------------------------


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.last(self.attention(x, x, x)[0].mean(dim=1))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 16)])

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.weights[0])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterDict({"0": torch.randn(3, 16)})

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.weights["0"])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.last.weight)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Attentive, "attention.out_proj.weight"),
        (Listed, "weights.0"),
        (Named, "weights.0"),
        (Functional, "last.weight"),
    ],
)
def test_a_weight_whose_module_is_not_called_is_refused_by_name_and_the_model_is_as_it_was(batches, make, name):
    model = make().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"`params` must choose .* got '{name}'.* Leave the parameter out by `params`"
    ):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_is_pruned_without_the_weight_whose_module_is_not_called(batches):
    model = Attentive().double()
    others = ["attention.in_proj_weight", "last.weight"]
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=others, steps=2)
    assert torch.equal(found.mask[-12:], model.last.weight_mask.reshape(-1) > 0)


class Sometimes(nn.Module):
    """A model that passes over one of its modules for some of the batches."""

    def __init__(self):
        super().__init__()
        self.main, self.other = nn.Linear(16, 3), nn.Linear(3, 3)

    def forward(self, x):
        outputs = self.main(x.flatten(1))
        return outputs if x.sum() > 0 else self.other(outputs)


@pytest.mark.parametrize("first", [True, False], ids=["the first ones", "the last ones"])
def test_a_module_that_some_batches_pass_over_is_pruned_further(batches, first):
    model = Sometimes().double()
    ordered = sorted(batches, key=lambda batch: (batch[0].sum() > 0).item() == first, reverse=True)
    assert 0 < sum((x.sum() > 0).item() for x, _ in ordered) < len(ordered)
    for sparsity in (0.2, 0.4):
        found = adapter.prune_model(model, LOSS, ordered, sparsity, damping=1e-2)
    assert torch.equal(found.mask[-9:], model.other.weight_mask.reshape(-1) > 0)


class Unrouted(nn.Module):
    """A mixture of experts, to the second of which nothing is routed, and a layer of which the weight is only read."""

    def __init__(self):
        super().__init__()
        self.experts, self.read = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)]), nn.Linear(16, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.experts[0](x) + nn.functional.linear(x, self.read.weight.detach())


@pytest.mark.parametrize(
    ("name", "options"), [("experts.1.weight", {}), ("read.weight", {}), ("experts.1.weight", {"num_gradients": 2})]
)
def test_a_weight_of_a_module_that_no_batch_calls_is_refused_with_the_true_reason(batches, name, options):
    model = Unrouted().double()
    before = copy.deepcopy(model.state_dict())
    chosen = ["experts.0.weight", name]
    words = rf"got '{name}', of a module that none of the batches calls. Its gradients are all zero.* Leave the param"
    with pytest.raises(ValueError, match=words):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=chosen, **options)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=chosen[:1], **options)
    assert torch.equal(found.mask, model.experts[0].weight_mask.reshape(-1) > 0)


# --- attributes that are only named like masks ------------------------------------------------------------------------


class Scored(nn.Linear):
    """A layer with something of its own where the mask of its weight, or the weight without it, would go."""

    def __init__(self, name, kind):
        super().__init__(16, 3)
        self.name = name
        if kind == "parameter":
            setattr(self, name, nn.Parameter(torch.rand(3, 16)))
        elif kind == "module":
            setattr(self, name, nn.Identity())
        else:
            given = {"soft": torch.full((3, 16), 0.5), "binary": torch.ones(3, 16), "no": None, "words": "soft"}[kind]
            setattr(self, name, given) if kind == "words" else self.register_buffer(name, given)

    def forward(self, x):
        own = getattr(self, self.name)
        return nn.functional.linear(x, self.weight * own if isinstance(own, torch.Tensor) else self.weight)


@pytest.mark.parametrize("kind", ["parameter", "soft", "binary", "no", "words", "module"])
@pytest.mark.parametrize("name", ["weight_mask", "weight_orig"])
def test_a_weight_beside_an_attribute_that_is_named_like_its_mask_is_refused(batches, name, kind):
    model = nn.Sequential(nn.Flatten(), Scored(name, kind), nn.Linear(3, 3)).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"`params` must .* have no '{name}' of their own; got '1.weight' of a Score"):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=["2.weight"])
    own = {key: value for key, value in before.items() if key.startswith("1.")}
    torch.testing.assert_close({key: model.state_dict()[key] for key in own}, own, rtol=0, atol=0)


def test_a_parameter_that_is_named_like_one_with_a_mask_is_pruned_as_any_other(batches):
    model = nn.Sequential(nn.Flatten(), Scored("weight_orig", "parameter")).double()
    before = model[1].weight_orig.detach().clone()
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=["1.weight_orig"])
    assert found.mask.sum() == 24
    assert torch.equal(model[1].weight_orig_mask.reshape(-1) > 0, found.mask)
    assert torch.equal(model[1].weight_orig == 0, model[1].weight_orig_mask == 0)
    assert not torch.equal(model[1].weight_orig, before)
    again = adapter.prune_model(model, LOSS, batches, 0.75, damping=1e-2, params=["1.weight_orig_orig"])
    assert again.mask.sum() == 12
    assert not torch.any(again.mask & ~found.mask)


def test_no_hook_stays_where_gradients_fail(model, batches):
    with pytest.raises(RuntimeError, match="out of luck"):
        adapter.prune_model(model, failing(0), batches, 0.5, damping=1e-2)
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- weights that are used past their masks -------------------------------------------------------------------------


class Layers(nn.Module):
    """Two layers; subclasses use the weight of the first in ways of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 3)

    def before(self, x):
        return x

    def after(self, x):
        return x

    def forward(self, x):
        return self.last(torch.tanh(self.after(self.first(self.before(x.flatten(1))))))


class ReadBefore(Layers):
    def before(self, x):
        return x @ self.first.weight


class ReadByParent(Layers):
    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(lambda module, inputs: (inputs[0].flatten(1) @ module.first.weight,))


class ReadByAnother(Layers):
    def __init__(self):
        super().__init__()
        self.others = [self.first]

    def before(self, x):
        return nn.functional.linear(x, self.others[0].weight)


class HeldInList(Layers):
    def __init__(self):
        super().__init__()
        self.weights = [self.first.weight]

    def after(self, x):
        return x @ self.weights[0]


class HeldByFunction(Layers):
    def __init__(self):
        super().__init__()
        weight = self.first.weight
        self.product = lambda x: x @ weight

    def after(self, x):
        return self.product(x)


@pytest.mark.parametrize("make", [ReadBefore, ReadByParent, ReadByAnother, HeldInList, HeldByFunction])
def test_a_weight_that_is_used_past_its_mask_is_refused_by_name_and_the_model_is_as_it_was(batches, make):
    model = make().double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"`params` must choose .* got 'first\.weight', which is used without"):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert list(dict(model.named_parameters())) == list(dict(make().named_parameters()))
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=["last"])


class ReadAfter(Layers):
    def after(self, x):
        return x @ self.first.weight


class ReadByHook(Layers):
    def __init__(self):
        super().__init__()
        self.first.register_forward_pre_hook(lambda layer, inputs: (inputs[0] @ layer.weight,))


class OldWeightNorm(Layers):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.weight_norm(self.first)


class WeightNorm(Layers):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(self.first)


class SpectralNorm(Layers):
    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(self.first)


class Lstm(Layers):
    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)[:, None])[0][:, 0])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [ReadAfter, ReadByHook, OldWeightNorm, WeightNorm, SpectralNorm, Lstm])
def test_masks_take_effect_wherever_a_model_is_accepted(batches, make):
    model = make().double().eval()
    adapter.prune_model(model, LOSS, batches, 0.3, damping=[1e-2, 1.0], validation=batches, steps=2)
    x, y = batches[0]
    LOSS(model(x), y).backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("_orig"):
            continue
        mask = model.get_buffer(f"{name.removesuffix('_orig')}_mask")
        direction, values, losses = torch.rand_like(mask) * mask, parameter.detach().clone(), []
        for length in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.copy_(values + length * direction)
                losses.append(float(LOSS(model(x), y)))
                parameter.copy_(values)
        slope = (losses[0] - losses[1]) / 2e-5
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-7)
        with torch.no_grad():
            expected = model(x)
            parameter.add_(1 - mask)  # what is masked has no effect
            torch.testing.assert_close(model(x), expected)
            parameter.copy_(values)


# --- what divides by the norm of weights ------------------------------------------------------------------------------


def standardised():
    class Standardised(nn.Linear):
        def forward(self, x):
            weight = self.weight / self.weight.norm(dim=1, keepdim=True)
            return nn.functional.linear(x, weight, self.bias)

    return Standardised(16, 16)


NORMALISED = {
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
    "old": lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
    "in the forward": standardised,
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


def tied():
    first, second, last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last).double()


def test_a_weight_that_two_modules_share_is_refused_by_name(batches):
    with pytest.raises(ValueError, match=r"`params` must choose .* got 1\.weight = 3\.weight\..*out by `params`"):
        adapter.prune_model(tied(), LOSS, batches, 0.5, damping=1e-2)


def test_the_weights_of_a_refused_model_are_still_shared(batches):
    model = tied()
    with pytest.raises(ValueError, match="untie"):
        adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert model[1].weight is model[3].weight


def test_a_model_is_pruned_without_the_weight_that_two_modules_share(batches):
    model = tied()
    adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2, params=["5.weight"])
    assert model[5].weight_mask.sum() == 24


def test_a_module_that_is_called_at_two_places_is_pruned(batches):
    twice, last = nn.Linear(16, 16), nn.Linear(16, 3)
    model = nn.Sequential(nn.Flatten(), twice, nn.ReLU(), twice, nn.ReLU(), last).double()
    found = adapter.prune_model(model, LOSS, batches, 0.5, damping=1e-2)
    assert torch.equal(found.mask[:256], twice.weight_mask.reshape(-1) > 0)


# --- what fails -----------------------------------------------------------------------------------------------------


def failing(after):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            msg = "out of luck"
            raise RuntimeError(msg)
        return LOSS(outputs, targets)

    return loss


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


def rooted(outputs, targets):
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
        ({"loss_fn": rooted}, ValueError, "`model` must have finite gradients where its losses are; .* '0.weight'"),
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
