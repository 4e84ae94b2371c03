"""Batches that the model reaches: they are drawn once and in order while its rows start from the same model."""

import pytest

from tests import torch_state
from tests.torch_state import LOSS, SAMPLES, Loader, Shift, Trainer, make_model

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
written = pytest.importorskip("tests.written_models")
model_state = pytest.importorskip("mfac_linalg.torch.model_state")
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an LSTM
data = torch_state.data


def in_attribute(model, loader):
    model.loader = loader
    return LOSS


def in_trainer(model, loader):
    trainer = Trainer()
    trainer.batches = loader
    return trainer.loss


def in_hook(model, loader):
    model.layer.register_forward_hook(lambda *_: loader.count and None)
    return LOSS


def in_loss_module(model, loader):
    loss = nn.CrossEntropyLoss()
    loss.loader = loader
    return loss


def generate_batches(loader):
    yield from loader


BY_PLACE = pytest.mark.parametrize("put", [in_attribute, in_trainer, in_hook, in_loss_module])


@BY_PLACE
@pytest.mark.parametrize("batches_of", [lambda loader: loader, generate_batches])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_loader_that_the_model_reaches_goes_on_between_rows(data, put, batches_of, per_sample):
    model, loader = make_model(written.Written), Loader(data)
    expected = list(adapter.iter_gradients(model, LOSS, list(Loader(data)), per_sample=per_sample))
    loss = put(model, loader)
    rows = adapter.iter_gradients(model, loss, batches_of(loader), per_sample=per_sample)
    found = [next(rows) for _ in expected]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    assert next(rows, None) is None
    assert loader.given == [0, 1, 2, 3, 4, 5]


@BY_PLACE
@pytest.mark.parametrize("count", [None, 4])
def test_pruning_asks_a_loader_that_the_model_reaches_for_each_batch_once(data, put, count):
    def prune(model, loss, batches, validation):
        choice = {"steps": 2, "damping": [1e-2, 1.0], "num_gradients": count}
        return adapter.prune_model(model, loss, batches, 0.4, validation=validation, **choice)

    expected = prune(make_model(written.Written), LOSS, list(Loader(data)), list(Loader(data)))
    model, loader, other = make_model(written.Written), Loader(data), Loader(data)
    loss = put(model, loader)
    model.validation = other
    found = prune(model, loss, loader, other)
    torch.testing.assert_close(found.weights, expected.weights)
    passes = [0, 1, 2, 3, 4, 5]
    assert loader.given == (passes * 2 if count is None else (passes * 2)[:8])
    assert other.given == passes * 4
    assert loader.pos == (6 if count is None else 2)


def test_what_batches_change_in_a_model_stays_and_counts_for_the_next_row(data):
    def batches(model):
        for index in range(3):
            model.epoch = index + 1
            model.shift = torch.full((3,), float(index))
            model.layer.weight.data.mul_(0.5)
            yield data

    found = list(adapter.iter_gradients(model := make_model(Shift), LOSS, batches(model)))
    assert (model.epoch, model.shift.tolist(), model.seen) == (3, [2.0] * 3, [])
    other = make_model(Shift)
    for row, _ in zip(found, batches(other), strict=True):
        torch.testing.assert_close(row, adapter.mean_gradients(other, LOSS, *data, batch_size=SAMPLES)[0][0])


def test_batches_may_change_a_model_that_is_pruned(data):
    class Epochs:
        def __init__(self, model):
            self.model, self.seen = model, []

        def __iter__(self):
            for _ in range(3):
                self.seen.append(self.model.epoch)
                self.model.epoch += 1
                yield data

    model = make_model(Shift)
    batches, other = Epochs(model), Epochs(model)
    adapter.prune_model(model, LOSS, batches, 0.4, damping=1e-2, validation=other)
    assert (batches.seen, other.seen, model.epoch, model.seen) == ([1, 2, 3], [4, 5, 6], 7, [])


def test_what_batches_reach_is_not_put_back_while_a_row_is_computed(data):
    model, loader = make_model(written.Written), Loader(data)
    model.loader = loader

    def loss(outputs, targets):  # as a thread that reads ahead
        loader.given.append("ahead")
        return LOSS(outputs, targets)

    for batches in (loader, generate_batches(loader)):
        loader.given.clear()
        next(adapter.iter_gradients(model, loss, batches))
        assert loader.given[:2] == [0, "ahead"]


def test_batches_are_not_looked_through_without_end(data):
    model, loader = make_model(written.Written), Loader(data)
    loader.tree = [[[[i, j]] for j in range(300)] for i in range(300)]
    excluded = model_state.reachable_objects(loader)
    assert id(loader.given) in excluded
    assert len(excluded) <= model_state.NEAREST
    assert len(list(adapter.iter_gradients(model, LOSS, loader))) == 6
