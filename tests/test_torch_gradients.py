"""Rows of gradients of PyTorch models, against autograd one loss at a time."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

import mfac_linalg as ml
from tests import torch_rows
from tests.torch_rows import LOSS, SAMPLES, Tied, gradient, one_by_one

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
data = torch_rows.data
model = torch_rows.model


class Attentive(nn.Module):
    """Attention, which uses the weight of its output layer without calling it."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0].mean(dim=1))


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_a_row_is_the_gradient_of_one_sample(model, data, chunk_size):
    rows, _ = adapter.per_sample_gradients(model, LOSS, *data, chunk_size=chunk_size)
    torch.testing.assert_close(rows, one_by_one(model, data))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_mean_row_is_the_gradient_of_one_batch(model, data, size):
    rows, _ = adapter.mean_gradients(model, LOSS, *data, batch_size=size)
    torch.testing.assert_close(rows, one_by_one(model, data, size))


def test_the_mean_of_the_rows_of_samples_is_the_row_of_their_batch(model, data):
    rows, _ = adapter.per_sample_gradients(model, LOSS, *data)
    row, _ = adapter.mean_gradients(model, LOSS, *data, batch_size=SAMPLES)
    torch.testing.assert_close(rows.mean(dim=0, keepdim=True), row)


@pytest.mark.parametrize("make", [tuple, dict], ids=["positional", "keyword"])
def test_a_model_of_several_inputs_and_shared_weights(make):
    torch.manual_seed(0)
    model, x, scale = Tied(), torch.randn(SAMPLES, 5), torch.rand(SAMPLES, 1)
    inputs = (x, scale) if make is tuple else {"x": x, "scale": scale}
    targets = torch.arange(SAMPLES) % 5
    rows, unravel = adapter.per_sample_gradients(model, LOSS, inputs, targets)
    each = [gradient(model, (x[i : i + 1], scale[i : i + 1]), targets[i : i + 1]) for i in range(SAMPLES)]
    assert unravel.names == ["first.weight", "first.bias", "last.bias"]
    torch.testing.assert_close(rows, torch.stack(each))


def test_dropout_in_train_mode_draws_for_each_sample(data):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3).double())
    inputs, targets = torch.ones_like(data[0]), torch.zeros(SAMPLES, dtype=torch.int64)
    rows, _ = adapter.per_sample_gradients(model, LOSS, inputs, targets)
    assert not torch.equal(rows[0], rows[1])


# --- the way back ---------------------------------------------------------------------------------------------------


def test_unravel_gives_what_autograd_leaves_on_the_parameters(model, data):
    row, unravel = adapter.mean_gradients(model, LOSS, *data, batch_size=SAMPLES)
    LOSS(model(data[0]), data[1]).backward()
    tensors = unravel(row[0])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(tensors[name], parameter.grad)


def test_unravel_keeps_leading_axes_and_ravel_is_the_way_back(model, data):
    rows, unravel = adapter.per_sample_gradients(model, LOSS, *data)
    tensors = unravel(rows)
    assert tensors["0.weight"].shape == (SAMPLES, 2, 1, 3, 3)
    assert torch.equal(unravel.ravel(tensors), rows)


def test_write_moves_a_vector_into_the_model(model, data):
    _, unravel = adapter.per_sample_gradients(model, LOSS, *data, params=["4.bias"])
    before = model[4].weight.clone()
    unravel.write(model, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert model[4].bias.tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(model[4].weight, before)


def test_sizes_are_the_blocks_of_an_inverse_by_layers(model, data):
    rows, unravel = adapter.per_sample_gradients(model, LOSS, *data)
    blocks = ml.BlockDiagonalInverse(rows, 0.1, block_sizes=unravel.sizes)
    first = ml.WoodburyRankOneInverse(rows[:, :18].contiguous(), 0.1)
    torch.testing.assert_close((blocks @ rows[0])[:18], first @ rows[0, :18])


# --- masks ----------------------------------------------------------------------------------------------------------


def attentive(masked):
    """An attentive model of which one module is masked, and data."""
    torch.manual_seed(0)
    model = Attentive()
    nn.utils.prune.l1_unstructured(model.get_submodule(masked), "weight", 0.5)
    return model, torch.randn(SAMPLES, 3, 4), torch.arange(SAMPLES) % 3


BY_FUNCTION = pytest.mark.parametrize(
    "call",
    [adapter.per_sample_gradients, lambda *args, **options: adapter.mean_gradients(*args, batch_size=2, **options)],
    ids=["per sample", "mean"],
)


@BY_FUNCTION
def test_a_masked_weight_that_is_used_without_a_call_is_refused_by_name(call):
    model, x, y = attentive("attention.out_proj")
    with pytest.raises(ValueError, match=r"`model` must call .*; got 'attention\.out_proj\.weight_orig'.*by `params`"):
        call(model, LOSS, x, y)


@BY_FUNCTION
def test_a_masked_weight_that_alone_is_chosen_is_refused_too(call):
    model, x, y = attentive("attention.out_proj")
    with pytest.raises(ValueError, match=r"got 'attention\.out_proj\.weight_orig'"):
        call(model, LOSS, x, y, params=["attention.out_proj.weight_orig"])


@BY_FUNCTION
def test_a_refused_masked_weight_is_as_it_was(call):
    model, x, y = attentive("attention.out_proj")
    before = model.attention.out_proj.weight
    values = before.detach().clone()
    with pytest.raises(ValueError, match="out_proj"):
        call(model, LOSS, x, y)
    assert model.attention.out_proj.weight is before
    assert torch.equal(before, values)


@BY_FUNCTION
def test_a_masked_weight_that_was_not_chosen_may_be_used_without_a_call(call):
    model, x, y = attentive("attention.out_proj")
    _, unravel = call(model, LOSS, x, y, params=["last"])
    assert unravel.names == ["last.weight", "last.bias"]


@BY_FUNCTION
def test_a_masked_weight_that_is_not_used_at_all_has_zeros(call):
    model, x, y = attentive("last")
    model.idle = nn.Linear(2, 2)
    nn.utils.prune.l1_unstructured(model.idle, "weight", 0.5)
    rows, unravel = call(model, LOSS, x, y)
    assert not torch.any(unravel(rows)["idle.weight_orig"])


def test_rows_of_masked_weights_are_those_of_autograd():
    model, x, y = attentive("last")
    rows, _ = adapter.per_sample_gradients(model, LOSS, x, y)
    torch.testing.assert_close(rows, one_by_one(model, (x, y)))


# --- which parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (["4.bias", "0.weight"], ["0.weight", "4.bias"]),
        (["4"], ["4.weight", "4.bias"]),
        (lambda name, parameter: parameter.ndim > 1, ["0.weight", "4.weight"]),
    ],
    ids=["names", "layer", "function"],
)
def test_rows_are_of_the_chosen_parameters_in_the_models_order(model, data, params, names):
    rows, unravel = adapter.per_sample_gradients(model, LOSS, *data, params=params)
    assert unravel.names == names
    torch.testing.assert_close(rows, one_by_one(model, data, names=names))


def test_frozen_parameters_are_left_out(model, data):
    model[0].requires_grad_(False)
    _, unravel = adapter.per_sample_gradients(model, LOSS, *data)
    assert unravel.names == ["1.weight", "1.bias", "4.weight", "4.bias"]


# --- nothing else happens -------------------------------------------------------------------------------------------


def test_rows_carry_no_graph_and_the_model_no_gradients(model, data):
    rows = [
        adapter.per_sample_gradients(model, LOSS, *data)[0],
        adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0],
    ]
    rows += list(adapter.iter_gradients(model, LOSS, [data]))
    assert not any(row.requires_grad for row in rows)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "call", [adapter.per_sample_gradients, lambda *args: adapter.mean_gradients(*args, batch_size=2)]
)
def test_a_module_of_two_names_keeps_its_parameters(call):
    twice = nn.Linear(3, 3)
    before = twice.weight
    call(nn.Sequential(twice, nn.Tanh(), twice), LOSS, torch.randn(SAMPLES, 3), torch.arange(SAMPLES) % 3)
    assert twice.weight is before


def test_rows_of_a_module_of_two_names_are_those_of_autograd():
    twice = nn.Linear(3, 3)
    model, data = nn.Sequential(twice, nn.Tanh(), twice), (torch.randn(SAMPLES, 3), torch.arange(SAMPLES) % 3)
    rows, _ = adapter.per_sample_gradients(model, LOSS, *data)
    torch.testing.assert_close(rows, one_by_one(model, data))


def test_rows_have_the_parameters_dtype(model, data):
    rows, _ = adapter.per_sample_gradients(model.float(), LOSS, data[0].float(), data[1])
    assert rows.dtype == torch.float32


def test_rows_are_the_same_where_gradients_are_switched_off(model, data):
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0]
    with torch.no_grad():
        assert torch.equal(adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0], expected)


def test_a_parameter_that_the_loss_does_not_see_has_zeros(model, data):
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    for rows, unravel in (
        adapter.per_sample_gradients(model, LOSS, *data),
        adapter.mean_gradients(model, LOSS, *data, batch_size=2),
    ):
        assert not torch.any(unravel(rows)["unused"])


@pytest.mark.parametrize("make", [adapter.per_sample_gradients, partial(adapter.mean_gradients, batch_size=2)])
def test_no_samples_are_refused(model, data, make):
    with pytest.raises(ValueError, match="`inputs` and `targets` must have at least one sample; got none"):
        make(model, LOSS, data[0][:0], data[1][:0])


# --- one after the other --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_come_one_after_the_other(model, data, per_sample):
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=2)
    found = torch.stack(list(adapter.iter_gradients(model, LOSS, batches, per_sample=per_sample)))
    torch.testing.assert_close(found, one_by_one(model, data, 1 if per_sample else 2))


def test_gradients_follow_a_model_that_is_trained(model, data):
    found = []
    for g in adapter.iter_gradients(model, LOSS, [data, data]):
        torch.testing.assert_close(g, gradient(model, *data))
        with torch.no_grad():
            model[4].bias += torch.tensor([0.5, -0.5, 0.0])
        found.append(g)
    assert not torch.allclose(*found)


def test_rows_written_to_a_file_make_the_same_inverse(model, data, tmp_path):
    rows, _ = adapter.per_sample_gradients(model, LOSS, *data)
    file = np.memmap(tmp_path / "rows", dtype=np.float64, mode="w+", shape=tuple(rows.shape))
    for i, g in enumerate(adapter.iter_gradients(model, LOSS, [data], per_sample=True)):
        file[i] = g.numpy()
    found = ml.WoodburyRankOneInverse(file, 0.1) @ rows[0].numpy()
    assert np.allclose(found, (ml.WoodburyRankOneInverse(rows, 0.1) @ rows[0]).numpy())


# --- what a loss divides by -------------------------------------------------------------------------------------------


def test_a_mean_drops_the_class_weight_of_a_sample_and_a_sum_keeps_it(model, data):
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    plain, _ = adapter.per_sample_gradients(model, LOSS, *data)
    for kind in (nn.CrossEntropyLoss, lambda **options: log_probabilities(nn.NLLLoss(**options))):
        mean, _ = adapter.per_sample_gradients(model, kind(weight=weight), *data)
        total, _ = adapter.per_sample_gradients(model, kind(weight=weight, reduction="sum"), *data)
        torch.testing.assert_close(mean, plain)
        torch.testing.assert_close(total, plain * weight[data[1]][:, None])


def log_probabilities(loss):
    return lambda outputs, targets: loss(torch.log_softmax(outputs, dim=1), targets)


def test_a_mean_over_tokens_divides_by_those_of_its_sample(model, data):
    targets = torch.stack([data[1], torch.where(data[1] == 0, data[1], -100)], dim=1)  # one token or two

    def loss(reduction):
        return lambda outputs, y: nn.functional.cross_entropy(
            torch.stack([outputs, 2 * outputs], dim=2), y, reduction=reduction
        )

    mean, _ = adapter.per_sample_gradients(model, loss("mean"), data[0], targets)
    total, _ = adapter.per_sample_gradients(model, loss("sum"), data[0], targets)
    counts = (targets != -100).sum(dim=1)
    torch.testing.assert_close(total, mean * counts[:, None])
    batch, _ = adapter.mean_gradients(model, loss("mean"), data[0], targets, batch_size=SAMPLES)
    torch.testing.assert_close(batch[0], total.sum(dim=0) / counts.sum())


# --- what a DataLoader makes of samples -------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: object
    second: object


class Summed(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3).double()

    def forward(self, first, second):
        return self.layer((first + second).flatten(1))


@pytest.mark.parametrize(
    "inputs",
    [lambda x: (x, x), lambda x: [x, x], lambda x: Pair(x, x), lambda x: {"first": x, "second": x}],
    ids=["tuple", "list", "named tuple", "dictionary"],
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_samples_of_two_inputs_are_the_models_arguments(data, inputs, per_sample):
    model, samples = Summed(), [(inputs(x), y) for x, y in zip(*data, strict=True)]
    loader = torch.utils.data.DataLoader(samples, batch_size=2)
    rows = torch.stack(list(adapter.iter_gradients(model, LOSS, loader, per_sample=per_sample)))
    each = [gradient(model, (x, x), y) for x, y in zip(*(t.split(1 if per_sample else 2) for t in data), strict=True)]
    torch.testing.assert_close(rows, torch.stack(each))
    found = adapter.prune_model(model, LOSS, loader, 0.5, damping=[1e-3, 0.1], validation=loader)
    assert found.mask.sum() == 24


def test_a_model_of_one_list_is_given_it_in_a_tuple(data):
    class Listed(Summed):
        def forward(self, both):
            return super().forward(*both)

    rows, _ = adapter.per_sample_gradients(Listed(), LOSS, ([data[0], data[0]],), data[1])
    assert rows.shape == (SAMPLES, 51)


def test_names_that_come_from_an_iterator_serve_every_batch(model, data):
    rows = list(adapter.iter_gradients(model, LOSS, [data, data], params=iter(["4.bias"])))
    assert [row.shape for row in rows] == [(3,), (3,)]
