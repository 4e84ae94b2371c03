"""Weights that a mask does not reach: they are refused by name, and the model is unchanged."""

import copy

import pytest

from tests import torch_pruning
from tests.torch_pruning import LOSS, failing

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("mfac_linalg.torch")
nn = torch.nn

# --- modules that are not called ------------------------------------------------------------------------------------

batches = torch_pruning.batches
model = torch_pruning.model


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
