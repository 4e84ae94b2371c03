"""Rows of gradients of PyTorch models that other libraries left, or that make the Fisher matrix of a classifier."""

import re

import pytest

import mfac_linalg as ml
from tests import torch_rows
from tests.torch_rows import LOSS, SAMPLES, Recurrent

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")

# --- those of other libraries ---------------------------------------------------------------------------------------

data = torch_rows.data
model = torch_rows.model


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
    """A model with a parameter that is in a list too."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 3)
        self.also = [self.last.weight]

    def forward(self, x):
        return self.last(x.flatten(1)) + x.flatten(1) @ self.also[0].T


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("make", [Recurrent, Listed])
def test_rows_of_the_fisher_matrix_are_made_one_by_one_where_samples_cannot_be_batched(data, make, chunk_size):
    model = make().double()
    with pytest.raises(RuntimeError, match="Use mean_gradients with batch_size=1"):
        adapter.per_sample_gradients(model, LOSS, *data)
    rows, _ = adapter.fisher_gradients(model, data[0], reduction="sum", chunk_size=chunk_size)
    torch.testing.assert_close(rows.T @ rows, dense_fisher(model, data[0]))
