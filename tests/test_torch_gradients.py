"""Rows of gradients of PyTorch models, against autograd one loss at a time."""

import re
from collections import UserDict
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

import mfac_linalg as ml

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
SAMPLES = 6
LOSS = nn.CrossEntropyLoss()


class Tied(nn.Module):
    """A network whose first and last layer share a weight, of two inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.last.weight = self.first.weight

    def forward(self, x, scale):
        return self.last(torch.tanh(self.first(x) * scale))


class Attentive(nn.Module):
    """Attention, which uses the weight of its output layer without calling it."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0].mean(dim=1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    network = nn.Sequential(*layers).double().eval()
    network[1].running_mean += 0.3
    return network


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 1, 4, 4, dtype=torch.float64, generator=generator)
    return inputs, torch.tensor([0, 1, 2, 0, 1, 2])


def gradient(model, inputs, targets, names=None):
    """The gradient of one batch's loss by autograd, (d,)."""
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    parts = torch.autograd.grad(LOSS(model(*arguments), targets), chosen)
    return torch.cat([part.reshape(-1) for part in parts])


def one_by_one(model, data, size=1, names=None):
    inputs, targets = data
    starts = range(0, len(targets), size)
    return torch.stack([gradient(model, inputs[i : i + size], targets[i : i + size], names) for i in starts])


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


# --- those of other libraries ---------------------------------------------------------------------------------------


def left_by_others(model, data, attribute, factor):
    """Per-sample gradients on the parameters, as BackPACK and Opacus leave them."""
    rows, unravel = adapter.per_sample_gradients(model, LOSS, *data)
    for name, tensor in unravel(rows).items():
        setattr(model.get_parameter(name), attribute, tensor * factor)
    return rows


@pytest.mark.parametrize(
    ("attribute", "factor", "reduction"),
    [("grad_batch", 1 / SAMPLES, "mean"), ("grad_batch", 1.0, "sum"), ("grad_sample", 1.0, "mean")],
    ids=["BackPACK, mean", "BackPACK, sum", "Opacus"],
)
def test_gradients_of_other_libraries_are_those_of_the_samples(model, data, attribute, factor, reduction):
    rows = left_by_others(model, data, attribute, factor)
    torch.testing.assert_close(adapter.gathered_gradients(model, reduction=reduction)[0], rows)


def test_opacus_lists_of_several_passes_are_joined(model, data):
    rows = left_by_others(model, data, "grad_sample", 1.0)
    for parameter in model.parameters():
        parameter.grad_sample = [parameter.grad_sample[:2], parameter.grad_sample[2:]]
    torch.testing.assert_close(adapter.gathered_gradients(model)[0], rows)


@pytest.mark.parametrize("attribute", ["grad_batch", "grad_sample"])
@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            torch.ones(2, 3, dtype=torch.float64),
            "of as many samples on every chosen parameter; got 6 on '0.weight' and 2",
        ),
        (torch.ones(6, 4, dtype=torch.float64), "of shape (m, 3) on '4.bias'"),
        (torch.ones((), dtype=torch.float64), "of shape (m, 3) on '4.bias'"),
        (5, "of shape (m, 3) on '4.bias'; got int"),
        ([], "on '4.bias'; got an empty list"),
        ([torch.ones(6, 4)], "of shape (m, 3) on '4.bias'"),
    ],
)
def test_gradients_of_other_libraries_that_do_not_fit_are_refused(model, data, attribute, left, words):
    left_by_others(model, data, attribute, 1.0)
    setattr(model[4].bias, attribute, left)
    if attribute == "grad_batch" and isinstance(left, list):
        words = "of shape (m, 3) on '4.bias'; got list"
    with pytest.raises(ValueError, match=re.escape(words)):
        adapter.gathered_gradients(model)


# --- the Fisher matrix of a classifier --------------------------------------------------------------------------------


def dense_fisher(model, inputs):
    """Σ_i Σ_y p_iy ∇log p_iy ∇log p_iyᵀ, one gradient at a time."""
    parameters, total = list(model.parameters()), 0.0
    for i in range(len(inputs)):
        for log_p in torch.log_softmax(model(inputs[i : i + 1]), dim=1)[0]:
            parts = torch.autograd.grad(log_p, parameters, retain_graph=True)
            g = torch.cat([part.reshape(-1) for part in parts])
            total = total + log_p.exp().detach() * torch.outer(g, g)
    return total


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1 / SAMPLES), ("sum", 1.0)])
def test_rows_of_the_fisher_matrix_make_the_dense_one(model, data, reduction, factor, chunk_size):
    rows, unravel = adapter.fisher_gradients(model, data[0], reduction=reduction, chunk_size=chunk_size)
    assert rows.shape == (SAMPLES * 3, unravel.dim)
    torch.testing.assert_close(rows.T @ rows, dense_fisher(model, data[0]) * factor)
    inverse = ml.WoodburyRankOneInverse(rows, 0.1, normalization="sum")
    dense = 0.1 * torch.eye(unravel.dim, dtype=torch.float64) + dense_fisher(model, data[0]) * factor
    torch.testing.assert_close(inverse.forward.to_dense(), dense)


def test_a_row_of_the_fisher_matrix_is_that_of_its_sample_and_class(model, data):
    rows, _ = adapter.fisher_gradients(model, data[0], reduction="sum")
    log_p = torch.log_softmax(model(data[0][2:3]), dim=1)[0]
    parts = torch.autograd.grad(log_p[1], list(model.parameters()))
    expected = (log_p[1] / 2).exp() * torch.cat([part.reshape(-1) for part in parts])
    torch.testing.assert_close(rows[2 * 3 + 1], expected.detach())


def test_a_class_that_is_ruled_out_has_rows_of_zeros(model, data):
    class RuledOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x)
            return torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], dim=1)

    rows, _ = adapter.fisher_gradients(RuledOut(), data[0])
    expected, _ = adapter.fisher_gradients(model, data[0])
    each = rows.reshape(SAMPLES, 4, -1)
    torch.testing.assert_close(each[:, :3], expected.reshape(SAMPLES, 3, -1))
    assert not torch.any(each[:, 3])


class Listed(nn.Module):
    """A model that a list holds a parameter of too."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)
        self.also = [self.last.weight]

    def forward(self, x):
        return self.last(x.flatten(1)) + x.flatten(1) @ self.also[0].T


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("make", ["Recurrent", "Listed"])
def test_rows_of_the_fisher_matrix_are_made_one_by_one_where_samples_cannot_be_batched(data, make, chunk_size):
    model = globals()[make]().double()
    with pytest.raises(RuntimeError, match="Use mean_gradients with batch_size=1"):
        adapter.per_sample_gradients(model, LOSS, *data)
    rows, _ = adapter.fisher_gradients(model, data[0], reduction="sum", chunk_size=chunk_size)
    torch.testing.assert_close(rows.T @ rows, dense_fisher(model, data[0]))


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


# --- refusals -------------------------------------------------------------------------------------------------------


def test_batch_normalisation_in_train_mode_is_refused_with_the_reason(model, data):
    model[1].train()
    before = model[1].running_mean.clone()
    with pytest.raises(ValueError, match=r"`model` must have its batch normalisation in eval mode; got '1'.*others of"):
        adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert torch.equal(model[1].running_mean, before)


def test_batch_normalisation_without_running_statistics_is_refused(model, data):
    model[1] = nn.BatchNorm2d(2, track_running_stats=False).double().eval()
    with pytest.raises(ValueError, match="running statistics"):
        adapter.per_sample_gradients(model, LOSS, *data)


def with_instance_norm(**options):
    layers = nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True, **options), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def test_running_statistics_that_gradients_would_change_are_refused_with_the_reason(data):
    model = with_instance_norm(track_running_stats=True)
    with pytest.raises(
        ValueError, match=r"`model` must have .* got '1' in train mode\. There every forward pass chang"
    ):
        adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert not torch.any(model[1].running_mean)


@pytest.mark.parametrize("model", [with_instance_norm(), with_instance_norm(track_running_stats=True).eval()])
def test_instance_normalisation_that_changes_no_statistics_is_differentiated(model, data):
    rows, _ = adapter.per_sample_gradients(model, LOSS, *data)
    torch.testing.assert_close(rows, one_by_one(model, data))


class Recurrent(nn.Module):
    """A recurrent network, which PyTorch can not batch by vmap."""

    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.cells(x[:, 0])[0][:, -1])


def test_a_model_that_cannot_be_batched_is_refused_with_what_can_be_done(data):
    model = Recurrent().double()
    with pytest.raises(
        RuntimeError, match=r"vmap can batch; got output with shape.*Use mean_gradients with batch_size=1"
    ):
        adapter.per_sample_gradients(model, LOSS, *data)
    rows, _ = adapter.mean_gradients(model, LOSS, *data, batch_size=1)
    torch.testing.assert_close(rows, one_by_one(model, data))


def test_an_error_of_the_model_itself_is_raised_as_it_is(data):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        adapter.per_sample_gradients(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).double(), LOSS, *data)


def test_a_loss_that_asks_the_model_is_differentiated_through_it_too(model, data):
    def loss(outputs, targets):
        return LOSS(outputs, targets) + 0.1 * sum(p.square().sum() for p in model.parameters())

    def of(x, y):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model(x), y), list(model.parameters()))])

    inputs, targets = data
    expected = torch.stack([of(inputs[i : i + 1], targets[i : i + 1]) for i in range(SAMPLES)])
    torch.testing.assert_close(adapter.per_sample_gradients(model, loss, *data)[0], expected)
    torch.testing.assert_close(adapter.mean_gradients(model, loss, *data, batch_size=1)[0], expected)


@pytest.mark.parametrize("make", [adapter.per_sample_gradients, partial(adapter.mean_gradients, batch_size=2)])
def test_a_loss_without_a_graph_is_refused(model, data, make):
    with pytest.raises(ValueError, match="`loss_fn` must return a loss with a graph"):
        make(model, lambda outputs, _: outputs.detach().sum(), *data)


class Flagged(nn.Module):
    """A model of keyword arguments, some of which are not tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3).double()

    def forward(self, x, mask, as_tuple):
        outputs = self.layer(x.flatten(1) if mask is None else x.flatten(1) * mask)
        return (outputs,) if as_tuple else outputs


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_flags_and_none_are_the_same_for_all_samples(data, kind):
    model, (x, y) = Flagged(), data
    rows, _ = adapter.per_sample_gradients(
        model, lambda out, y: LOSS(out[0], y), kind(x=x, mask=None, as_tuple=True), y
    )
    torch.testing.assert_close(rows, one_by_one(nn.Sequential(nn.Flatten(), model.layer), data))


def test_a_tied_parameter_is_known_by_all_its_names():
    model, x, y = Tied(), (torch.randn(6, 5), torch.ones(6, 1)), torch.randint(5, (6,))
    by_name = [adapter.mean_gradients(model, LOSS, x, y, batch_size=3, params=[n])[1].names for n in ("last", "first")]
    assert by_name == [["first.weight", "last.bias"], ["first.weight", "first.bias"]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: nn.DataParallel(m), "got DataParallel. Pass model.module"),
        (lambda m: torch.jit.ScriptModule(), "got ScriptModule. Pass the original"),
        (lambda m: lambda x: x, "`model` must be a torch.nn.Module; got function"),
    ],
    ids=["wrapped", "scripted", "function"],
)
def test_what_cannot_be_called_with_other_parameters_is_refused(model, data, make, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        adapter.per_sample_gradients(make(model), LOSS, *data, params=lambda *_: True)


@pytest.mark.parametrize("batches", [lambda x, y: (x, y), lambda x, y: [(x, y, y)], lambda x, y: [x]])
def test_batches_that_are_no_pairs_are_refused(model, data, batches):
    with pytest.raises(TypeError, match="`batches` must be pairs of inputs and targets"):
        list(adapter.iter_gradients(model, LOSS, batches(*data)))


def embedded(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 3, **options), nn.Flatten(), nn.Linear(12, 3)), torch.arange(24).reshape(
        6, 4
    ) % 7


def test_sparse_gradients_become_rows(data):
    model, words = embedded(sparse=True)
    dense, _ = embedded()
    rows, _ = adapter.mean_gradients(model, LOSS, words, data[1], batch_size=2)
    torch.testing.assert_close(rows, one_by_one(dense, (words, data[1]), size=2))


def test_an_embedding_kept_within_a_norm_is_as_it_was(data):
    model, words = embedded(max_norm=0.5)
    before = model[0].weight.detach().clone()
    rows, _ = adapter.mean_gradients(model, LOSS, words, data[1], batch_size=2)
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(rows, one_by_one(model, (words, data[1]), size=2))


def test_a_spectral_norm_in_train_mode_is_as_it_was(data):
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(16, 3))).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, _ = adapter.mean_gradients(model, LOSS, *data, batch_size=SAMPLES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(one[0], gradient(model, *data))


def at_sample(index, x):
    """Samples of which one is nan."""
    x = x.clone()
    x[index] = torch.nan
    return x


def per_sample(model, inputs, targets, loss=LOSS, **options):
    return adapter.per_sample_gradients(model, loss, inputs, targets, **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x, y: per_sample(m, x, y[:2]), ValueError, "as many samples; got [6, 2]"),
        (lambda m, x, y: per_sample(m, [1, 2], y), TypeError, "`inputs` and `targets` must be dense tensors"),
        (
            lambda m, x, y: per_sample(m, x, y, nn.CrossEntropyLoss(reduction="none")),
            ValueError,
            "`loss_fn` must return",
        ),
        (lambda m, x, y: per_sample(m, x, y, params=["fc"]), ValueError, "got 'fc'. It has 0.weight"),
        (lambda m, x, y: per_sample(m, x, y, params="4"), TypeError, "Pass a list of names"),
        (lambda m, x, y: per_sample(m, x, y, params=[m[0].weight]), TypeError, "`params` must hold names"),
        (lambda m, x, y: per_sample(m, x, y, params=[]), ValueError, "at least one parameter"),
        (lambda m, x, y: per_sample(m, x, y, chunk_size=0), ValueError, "`chunk_size` must be at least 1"),
        (lambda m, x, y: adapter.mean_gradients(m, LOSS, x, y, batch_size=0), ValueError, "`batch_size`"),
        (lambda m, x, y: adapter.gathered_gradients(m), ValueError, "neither on '0.weight'"),
        (lambda m, x, y: adapter.gathered_gradients(m, reduction="max"), ValueError, "`reduction`"),
        (lambda m, x, y: per_sample(m, x, y, None), TypeError, "`loss_fn` must be a function; got None"),
        (lambda m, x, y: list(adapter.iter_gradients(m, None, [(x, y)])), TypeError, "`loss_fn` must be a function"),
        (lambda m, x, y: list(adapter.iter_gradients(m, LOSS, None)), TypeError, "`batches` must be an iterable"),
        (lambda m, x, y: list(adapter.iter_gradients(m, LOSS, {"x": y})), TypeError, "`batches` must be an iterable"),
        (lambda m, x, y: per_sample(m, at_sample(3, x), y), ValueError, "finite losses; got nan of sample 3."),
        (lambda m, x, y: per_sample(m, at_sample(5, x), y, chunk_size=4), ValueError, "got nan of sample 5."),
        (lambda m, x, y: adapter.mean_gradients(m, LOSS, at_sample(3, x), y, batch_size=2), ValueError, "got nan."),
        (lambda m, x, y: per_sample(m, x, torch.full_like(y, -100)), ValueError, "for targets that all are ignored"),
        (lambda m, x, y: adapter.fisher_gradients(m[:4], x[:0]), ValueError, "at least one sample"),
        (lambda m, x, y: adapter.fisher_gradients(m, x, reduction="max"), ValueError, "`reduction`"),
        (lambda m, x, y: adapter.fisher_gradients(m[:1], x), ValueError, "`model` must return logits of shape (m, cla"),
        (lambda m, x, y: adapter.fisher_gradients(m[:1], at_sample(0, x)), ValueError, "`model` must return logits"),
        (lambda m, x, y: adapter.fisher_gradients(m, at_sample(2, x)), ValueError, "got nan of sample 2."),
        (lambda m, x, y: per_sample(m, x, y)[1](torch.ones(3)), ValueError, "`vectors` must have shape (…, 51)"),
        (lambda m, x, y: per_sample(m, x, y)[1].ravel({}), ValueError, "got none for '0.weight'"),
        (
            lambda m, x, y: per_sample(m, x, y, params=["4.bias"])[1].ravel({"4.bias": torch.ones(2)}),
            ValueError,
            "'4.bias' of shape (…, 3,); got (2,)",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(model, data, call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call(model, *data)


@pytest.mark.parametrize(
    "call",
    [
        adapter.per_sample_gradients,
        lambda *args: adapter.mean_gradients(*args, batch_size=2),
        lambda model, loss, x, y: list(adapter.iter_gradients(model, loss, [(x, y)])),
    ],
    ids=["per sample", "mean", "iter"],
)
def test_gradients_under_inference_mode_are_refused_with_the_cure(model, data, call):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside of torch\.inference_mode\(\).*no_grad"):
        call(model, LOSS, *data)


def test_parameters_of_two_dtypes_are_refused(model, data):
    model[4].float()
    with pytest.raises(TypeError, match=r"one dtype on one device; got torch\.float32 on cpu, torch\.float64 on cpu"):
        adapter.per_sample_gradients(model, LOSS, *data)


class Recomputing(nn.Module):
    """A model whose backward pass computes a part of it anew."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda z: self.third(self.second(z)), self.first(x), use_reentrant=False
        )


@pytest.mark.parametrize("params", [["first"], ["second"], ["third"], None])
def test_rows_of_a_model_that_recomputes_parts_of_itself(params):
    torch.manual_seed(0)
    model, x, y = Recomputing(), torch.randn(6, 4), torch.arange(6) % 4
    loss = nn.functional.cross_entropy
    rows, unravel = adapter.mean_gradients(model, loss, x, y, batch_size=6, params=params)
    loss(model(x), y).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(rows[0], unravel.ravel(grads))


def test_frozen_parameters_that_a_tuple_holds_too_are_seen():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            self.again = (self.layer.weight,)

        def forward(self, x):
            return x @ self.again[0].T + self.layer(x)

    model, x, y = Twice(), torch.randn(6, 4), torch.arange(6) % 4
    trained, _ = adapter.mean_gradients(model, nn.functional.cross_entropy, x, y, batch_size=6)
    model.requires_grad_(False)
    frozen, _ = adapter.mean_gradients(model, nn.functional.cross_entropy, x, y, batch_size=6, params=["layer"])
    torch.testing.assert_close(frozen, trained)
    assert not model.layer.weight.requires_grad


def test_a_vector_that_does_not_fit_writes_nothing():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    rows, unravel = adapter.mean_gradients(model, lambda o, y: o.sum(), torch.ones(1, 4), torch.ones(1), batch_size=1)
    other = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=r"`model` must have '1\.weight' of shape"):
        unravel.write(other, rows[0])
    with pytest.raises(TypeError, match="`vector` must be of real numbers"):
        unravel.write(model, rows[0] * 1j)
    assert all(map(torch.equal, other.parameters(), before))


# --- hooks on gradients, and what has none ----------------------------------------------------------------------------

CALLS = {
    "samples": adapter.per_sample_gradients,
    "chunks": partial(adapter.per_sample_gradients, chunk_size=2),
    "means": partial(adapter.mean_gradients, batch_size=2),
    "batches": lambda model, loss, x, y, **options: list(adapter.iter_gradients(model, loss, [(x, y)], **options)),
    "fisher": lambda model, loss, x, y, **options: adapter.fisher_gradients(model, x, **options),
    "pruning": lambda model, loss, x, y, **options: adapter.prune_model(
        model, loss, [(x, y)], 0.5, damping=1e-2, **{"params": ["0", "4"]} | options
    ),
}
BY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


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


# --- vectors and parameters: words ------------------------------------------------------------------------------------

UNRAVEL = adapter.Unravel({"a": (2,), "b": ()})
TWO, ONE = torch.ones(2), torch.ones(())


def test_a_parameter_without_axes_comes_back(data):
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    x, y = torch.ones(SAMPLES, 4), data[1]
    rows, unravel = adapter.per_sample_gradients(model, lambda o, t: LOSS(o * model.scale, t), x, y)
    for vectors in (rows[0], rows, rows[None]):
        assert unravel(vectors)["scale"].shape == vectors.shape[:-1]
        assert torch.equal(unravel.ravel(unravel(vectors)), vectors)
    unravel.write(model, rows[0])
    assert torch.equal(model.scale, unravel(rows[0])["scale"])


def test_shapes_are_tuples_of_ones_own():
    shapes = {"a": torch.Size([2]), "b": [1, 2]}
    unravel = adapter.Unravel(shapes)
    shapes["c"] = (3,)
    assert unravel.shapes == {"a": (2,), "b": (1, 2)}
    assert unravel.ravel(unravel(torch.arange(4.0))).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: adapter.Unravel([1, 2]), TypeError, "`shapes` must be a dictionary of names to shapes; got [1, 2]"),
        (lambda: adapter.Unravel({}), TypeError, "`shapes` must be a dictionary"),
        (lambda: adapter.Unravel({1: (2,)}), TypeError, "`shapes` must be a dictionary of names"),
        (lambda: adapter.Unravel({"a": 3}), TypeError, "`shapes` must have a tuple of integers as shape; got 3 (int)"),
        (lambda: adapter.Unravel({"a": "ab"}), TypeError, "`shapes` must have a tuple of integers"),
        (lambda: adapter.Unravel({"a": (2.5,)}), TypeError, "`shapes['a']` must be a whole number; got 2.5"),
        (lambda: adapter.Unravel({"a": (-2,)}), ValueError, "`shapes['a']` must be"),
        (lambda: UNRAVEL.ravel([TWO, ONE]), TypeError, "`tensors` must be a dictionary of tensors by name"),
        (lambda: UNRAVEL.ravel(TWO), TypeError, "`tensors` must be a dictionary of tensors by name"),
        (lambda: UNRAVEL.ravel({"a": np.ones(2), "b": ONE}), TypeError, "`tensors['a']` must be a tensor"),
        (lambda: UNRAVEL.ravel({"a": TWO, "b": 3.0}), TypeError, "`tensors['b']` must be a tensor; got 3.0"),
        (lambda: UNRAVEL.ravel({"a": TWO, "b": TWO}), ValueError, "same leading axes; got (), (2,)"),
        (lambda: UNRAVEL.ravel({"a": ONE, "b": ONE}), ValueError, "have 'a' of shape (…, 2,); got ()"),
        (lambda: UNRAVEL.ravel({"a": TWO, "b": ONE.double()}), TypeError, "one dtype on one device; got torch.float32"),
        (lambda: UNRAVEL.ravel({"a": TWO, "b": ONE.to("meta")}), TypeError, "torch.float32 on meta"),
        (lambda: UNRAVEL(np.ones(3)), TypeError, "`vectors` must be a tensor"),
    ],
)
def test_what_no_vector_can_be_made_of_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


@BY_CALL
@pytest.mark.parametrize(
    ("params", "words"),
    [
        (lambda name, parameter: parameter, "`params` must return True or False for (name, parameter); got an array"),
        (lambda name, parameter: parameter.detach().numpy() > 0, "must return True or False for (name, parameter)"),
        (nn.Linear(2, 2), "`params` must be names or a function of (name, parameter); got Linear"),
    ],
)
def test_answers_and_modules_that_choose_no_parameters_are_refused_by_name(model, data, call, params, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call(model, LOSS, *data, params=params)


def test_a_function_may_answer_with_what_is_true(model, data):
    _, unravel = adapter.per_sample_gradients(model, LOSS, *data, params=lambda name, _: re.search("^4", name))
    assert unravel.names == ["4.weight", "4.bias"]
    _, unravel = adapter.per_sample_gradients(model, LOSS, *data, params=lambda _, p: torch.tensor(p.ndim > 1))
    assert unravel.names == ["0.weight", "4.weight"]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
@BY_CALL
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(SAMPLES).to_sparse(), "got a tensor in torch.sparse_coo"),
        (lambda: torch.eye(SAMPLES).to_sparse_csr(), "got a tensor in torch.sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)] * SAMPLES), "got a nested tensor"),
    ],
)
def test_samples_that_cannot_be_cut_are_refused_by_name(model, data, call, make, words):
    with pytest.raises(TypeError, match=re.escape(f"must be dense tensors of shape (m, …); {words}")):
        call(model, LOSS, make(), data[1])


@pytest.mark.parametrize("call", [CALLS[name] for name in ("samples", "chunks", "means", "fisher")])
def test_rows_of_a_model_without_values_have_their_shape(model, data, call):
    rows, unravel = call(model.to("meta"), LOSS, data[0].to("meta"), data[1].to("meta"))
    assert rows.is_meta
    assert rows.shape[1] == unravel.dim
