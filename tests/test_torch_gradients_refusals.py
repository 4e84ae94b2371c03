"""Models, losses, batches and vectors whose gradients are refused by name, with the cure."""

import re
from collections import UserDict
from functools import partial

import numpy as np
import pytest

from tests import torch_rows
from tests.torch_rows import BY_CALL, CALLS, LOSS, SAMPLES, Recomputing, Recurrent, Tied, gradient, one_by_one

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")

# --- refusals -------------------------------------------------------------------------------------------------------

data = torch_rows.data
model = torch_rows.model


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


def embedding_model(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 3, **options), nn.Flatten(), nn.Linear(12, 3)), torch.arange(24).reshape(
        6, 4
    ) % 7


def test_sparse_gradients_become_rows(data):
    model, words = embedding_model(sparse=True)
    dense, _ = embedding_model()
    rows, _ = adapter.mean_gradients(model, LOSS, words, data[1], batch_size=2)
    torch.testing.assert_close(rows, one_by_one(dense, (words, data[1]), size=2))


def test_an_embedding_kept_within_a_norm_is_as_it_was(data):
    model, words = embedding_model(max_norm=0.5)
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
