"""A model and batches which the tests of pruning PyTorch models share."""

import pytest

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


def failing(after):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            msg = "out of luck"
            raise RuntimeError(msg)
        return LOSS(outputs, targets)

    return loss
