"""Models, samples and their gradients by autograd, which the tests of rows of gradients share."""

from functools import partial

import pytest

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


class Recomputing(nn.Module):
    """A model whose backward pass computes a part of it again."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda z: self.third(self.second(z)), self.first(x), use_reentrant=False
        )


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


class Recurrent(nn.Module):
    """A recurrent network, which PyTorch can not batch by vmap."""

    def __init__(self):
        super().__init__()
        self.cells, self.last = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.cells(x[:, 0])[0][:, -1])
