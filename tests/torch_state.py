"""Calls and samples which the tests of a model's state share."""

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
written = pytest.importorskip("tests.written_models")
model_state = pytest.importorskip("mfac_linalg.torch.model_state")
parametrize = pytest.importorskip("torch.nn.utils.parametrize")
LOSS = nn.functional.cross_entropy
SAMPLES = 4
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an LSTM


def one_by_one(model, loss, x, y):
    return torch.stack(list(adapter.iter_gradients(model, loss, zip(x.split(1), y.split(1), strict=True))))


CALLS = {
    "samples": lambda *args: adapter.per_sample_gradients(*args)[0],
    "chunks": lambda *args: adapter.per_sample_gradients(*args, chunk_size=3)[0],
    "means": lambda *args: adapter.mean_gradients(*args, batch_size=1)[0],
    "batches": one_by_one,
}
BY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 4, generator=generator), torch.arange(SAMPLES) % 3


def make_model(make):
    torch.manual_seed(1)
    return make()


def rows_or_refusal(call, model, data, loss=LOSS):
    """The rows; None where vmap cannot batch a model, which is refused with what can be done."""
    try:
        return call(model, loss, *data)
    except RuntimeError as error:
        if "Use mean_gradients with batch_size=1" not in str(error):
            raise
        return None


def prune_model(model, data, sparsity=0.4, **options):
    batches = [data, (data[0] + 1, data[1]), (data[0] - 1, data[1])]
    choice = {"damping": [1e-2, 1.0], "validation": batches, "lengths": (1.0, 0.5)}
    return adapter.prune_model(model, LOSS, batches, sparsity, **choice | options)


class Trainer:
    """An object with a loss, a stateful list, and a data set."""

    def __init__(self):
        self.losses, self.batches, self.data = [], None, torch.zeros(8)

    def loss(self, outputs, targets):
        self.losses.append(len(self.losses))
        return LOSS(outputs, targets)

    __call__ = loss


class Loader:
    """Batches, by a position and a list of what is to come that are its own."""

    def __init__(self, data, count=6):
        self.data, self.count, self.pos, self.given, self.order = data, count, 0, [], []

    def __iter__(self):
        self.pos, self.order = 0, list(range(self.count))[::-1]
        while self.pos < self.count:
            self.pos += 1
            self.given.append(self.order.pop())
            yield self.data[0] + self.given[-1], self.data[1]


class Shift(written.Written):
    """A model of which others change a buffer, a number and a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(3))
        self.epoch, self.seen = 1, []

    def forward(self, x):
        self.shift += 1
        self.seen.append(x)
        return (self.layer(x) + self.shift) * self.epoch * len(self.seen)
