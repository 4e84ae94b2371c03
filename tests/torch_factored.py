"""Models, and rows that are kept as factors, which the tests of `factored_gradients` share."""

from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
outer_products = pytest.importorskip("mfac_linalg.torch.outer_products")
factored_rows = pytest.importorskip("mfac_linalg.torch.factored_rows")
SAMPLES = 6
LOSS = nn.functional.cross_entropy


class Model(nn.Module):
    """Modules by name, and a function of the model and its inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def hidden(function, **more):
    """A model of two linear layers, `first` and `last`."""
    return Model(function, first=nn.Linear(16, 16), last=nn.Linear(16, 5), **more)


def tied():
    model = hidden(lambda m, x: m.second(torch.tanh(m.first(x))), second=nn.Linear(16, 16))
    model.second.weight = model.first.weight
    return model


def repeated(model, x):
    for _ in range(3):
        x = torch.tanh(model.first(x))
    return model.last(x)


def language_model(is_tied):
    modules = {"words": nn.Embedding(40, 16), "norm": nn.LayerNorm(16), "up": nn.Linear(16, 64)}
    model = Model(of_words, **modules, down=nn.Linear(64, 16), last=nn.Linear(16, 40, bias=False))
    if is_tied:
        model.last.weight = model.words.weight
    return model


def of_words(model, x):
    z = model.words(x)
    z = z + model.down(nn.functional.relu(model.up(model.norm(z)), inplace=True))
    return model.last(z).transpose(1, 2)


def convolutions():
    layers = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(inplace=True)
    layers += nn.Conv2d(32, 32, 3, padding="same", dilation=2, groups=2), nn.BatchNorm2d(32), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(32, 64, 3, stride=(3, 2)), nn.Flatten(), nn.Linear(64, 5)).eval()


class Case(NamedTuple):
    """A model, the shape of a sample, and the weights that have factors."""

    make: object
    shape: tuple
    factored: tuple
    words: bool = False

    @property
    def data(self):
        """Inputs and targets, from a seed."""
        generator = torch.Generator().manual_seed(1)
        if self.words:
            return tuple(torch.randint(40, (SAMPLES, *self.shape), generator=generator) for _ in range(2))
        return torch.randn(SAMPLES, *self.shape, generator=generator), torch.arange(SAMPLES) % 5

    def model_in(self, dtype):
        """The model with weights from a seed, and the data."""
        torch.manual_seed(0)
        model, (x, y) = self.make().to(dtype), self.data
        return model, (x.to(dtype) if x.is_floating_point() else x), y


BOTH = ("first.weight", "last.weight")
LAST = BOTH[1:]
CASES = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(inplace=True), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 5)),
        (20,),
        ("0.weight", "2.weight", "4.weight"),
    ),
    "without biases": Case(lambda: nn.Sequential(nn.Linear(20, 30, bias=False)), (20,), ("0.weight",)),
    "sequence": Case(lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x))).mean(1)), (3, 16), BOTH),
    "grid": Case(lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x)).mean((1, 2)))), (2, 3, 16), BOTH),
    "long sequence": Case(lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x)).mean(1))), (8, 16), LAST),
    "no axis of samples": Case(lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x[0])))[None]), (16,), BOTH),
    "transposed": Case(
        lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x.mT)).mT.mT).mean(1)), (16, 3), BOTH
    ),
    "constant input": Case(
        lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(torch.ones_like(x))) + x)), (16,), BOTH
    ),
    "convolutions": Case(convolutions, (3, 5, 5), ("0.weight", "2.weight", "5.weight", "7.weight")),
    "circular padding": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 40, 5, stride=3, padding=2, padding_mode="circular"), nn.Flatten(), nn.Linear(360, 5)
        ),
        (3, 7, 7),
        ("0.weight", "2.weight"),
    ),
    "convolution of a signal": Case(
        lambda: nn.Sequential(nn.Conv1d(8, 40, 4, padding="same"), nn.Flatten(), nn.Linear(160, 5)),
        (8, 4),
        ("0.weight", "2.weight"),
    ),
    "convolution of a volume": Case(
        lambda: nn.Sequential(
            nn.Conv3d(8, 40, 3, stride=3, padding=(1, 0, 1), dilation=(1, 2, 1)), nn.Flatten(), nn.Linear(160, 5)
        ),
        (8, 5, 5, 5),
        ("0.weight", "2.weight"),
    ),
    "convolution of each frame": Case(
        lambda: Model(lambda m, x: m.last(m.first(x.flatten(0, 1)).reshape(1, -1)), first=nn.Conv2d(8, 64, 3),
                      last=nn.Linear(512, 5)),
        (2, 8, 4, 4),
        BOTH,
    ),
    "convolution without a batch": Case(
        lambda: Model(lambda m, x: m.last(m.first(x[0]).reshape(1, -1)), first=nn.Conv2d(8, 64, 3),
                      last=nn.Linear(256, 5)),
        (8, 4, 4),
        BOTH,
    ),
    "tied": Case(tied, (16,), ("first.weight",)),
    "used three times": Case(lambda: hidden(repeated), (16,), BOTH),
    "words": Case(lambda: language_model(False), (4,), ("up.weight", "down.weight", "last.weight"), words=True),
    "tied words": Case(lambda: language_model(True), (4,), ("up.weight", "down.weight"), words=True),
    "used by a function": Case(
        lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x)) @ m.first.weight)), (16,), LAST
    ),
    "called past its hooks": Case(
        lambda: hidden(lambda m, x: m.last(m.first.forward(torch.tanh(m.first(input=x))))), (16,), BOTH
    ),
    "no positions": Case(
        lambda: hidden(lambda m, x: m.last(torch.tanh(m.first(x)) + m.second(x[:, None][:, :0]).sum(1)),
                       second=nn.Linear(16, 16)),
        (16,),
        (*BOTH, "second.weight"),
    ),
    "attention": Case(
        lambda: Model(
            lambda m, x: m.last(m.layer(x).mean(1)),
            layer=nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval(),
            last=nn.Linear(16, 5),
        ),
        (3, 16),
        ("layer.linear1.weight", "layer.linear2.weight", "last.weight"),
    ),
}  # fmt: skip
"""By what they test."""


def columns_of(rows):
    """All of G."""
    return rows.columns(np.arange(rows.shape[1]))


def factored_names(rows, unravel):
    """The parameters with factors, by the places of parts that have them."""
    ends = np.cumsum(unravel.sizes)
    names = dict(zip((ends - unravel.sizes).tolist(), unravel.names, strict=True))
    kept = [columns for columns, part in rows._parts if isinstance(part, outer_products.OuterProducts)]
    return tuple(names[columns.start] for columns in kept)


def as_outer_products(array):
    """Any rows (m, d) as factors: d/q positions, the t-th with a unit vector as gradient of its outputs."""
    m, d = array.shape
    p = next(p for p in (3, 2, 1) if d % p == 0)
    units = torch.eye(p, dtype=array.dtype).expand(1, m, p, p)
    return outer_products.OuterProducts(array.reshape(1, m, p, d // p), units, array.dtype)
