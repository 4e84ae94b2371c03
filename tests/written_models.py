"""Models that write to themselves when they are called, and the contents of a model, for comparisons."""

from collections import UserDict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn


class Cache:
    """An object of the kind that models keep between calls."""

    def __init__(self):
        self.outputs, self.calls = [], torch.zeros(())


class Recorder:
    """A hook that keeps what it sees, and a loss that counts its calls."""

    def __init__(self):
        self.outputs = []

    def __call__(self, layer, inputs, outputs):
        self.outputs.append(outputs)
        return outputs * len(self.outputs)

    def loss(self, outputs, targets):
        self.outputs.append(outputs)
        return nn.functional.cross_entropy(outputs * len(self.outputs), targets)


class Written(nn.Module):
    """A linear layer whose outputs depend on what earlier calls have left; subclasses say where they leave it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.state = torch.zeros(1, 3)

    def forward(self, x):
        return self.layer(x)


class Buffers(Written):
    """Written in place, replaced, and made out of None."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.ones(3), persistent=False)
        self.register_buffer("late", None)

    def forward(self, x):
        self.calls += 1
        self.mean = self.mean + self.layer(x).detach().mean(dim=0)
        self.late = self.mean if self.late is None else self.late + self.mean
        return self.layer(x) * self.calls * self.late


class Attribute(Written):
    """A hidden state, with its graph."""

    def forward(self, x):
        self.state = torch.tanh(self.layer(x) + self.state)
        return self.state


class InPlace(Written):
    """A plain tensor, written in place."""

    def forward(self, x):
        self.state.add_(1)
        return self.layer(x) * self.state


class PastVersions(Written):
    """A plain tensor and a weight, written where PyTorch does not count it."""

    def forward(self, x):
        self.state.data.add_(1)
        self.layer.bias.data.mul_(0.5)
        return self.layer(x) * self.state


class GraphInPlace(Written):
    """A plain tensor that becomes part of a graph."""

    def forward(self, x):
        self.state.add_(self.layer(x).mean())
        return self.layer(x) + self.state


class Containers(Written):
    """Lists, dictionaries, sets, queues, one in the other, and a number."""

    def __init__(self):
        super().__init__()
        self.nested, self.queue, self.seen, self.calls = {"outputs": []}, deque(maxlen=3), set(), 0

    def forward(self, x):
        self.calls += 1
        self.nested["outputs"].append(self.layer(x))
        self.nested[self.calls] = x
        self.queue.append(self.layer(x))
        self.seen.add(self.calls)
        return sum(self.nested["outputs"]) * len(self.seen) + sum(self.queue)


class Object(Written):
    """Objects: of a class of the model's own, a namespace, a dictionary by another name."""

    def __init__(self):
        super().__init__()
        self.cache, self.space, self.known = Cache(), SimpleNamespace(calls=0), UserDict()

    def forward(self, x):
        self.cache.outputs.append(self.layer(x))
        self.cache.calls = self.cache.calls + 1
        self.space.calls += 1
        self.known[self.space.calls] = x
        return sum(self.cache.outputs) * self.cache.calls * self.space.calls * len(self.known)


class Unregistered(Written):
    """A module in a list, of which PyTorch does not know."""

    def __init__(self):
        super().__init__()
        self.others = [Attribute()]

    def forward(self, x):
        return self.layer(x) * self.others[0](x).detach().mean()


class Hooked(Written):
    """Hooks that write: a method, and a function that writes to the layer."""

    def __init__(self):
        super().__init__()
        self.outputs = []
        self.layer.register_forward_hook(self.keep)
        self.layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "calls", getattr(layer, "calls", 0) + 1))

    def keep(self, _, inputs, outputs):
        self.outputs.append(outputs)
        return outputs * len(self.outputs)

    def forward(self, x):
        return self.layer(x) * self.layer.calls


class HookObject(Written):
    """An object as a hook, on the model itself."""

    def __init__(self):
        super().__init__()
        self.register_forward_hook(Recorder())


class Clipped(Written):
    """Weights that every call shrinks, in place."""

    def forward(self, x):
        with torch.no_grad():
            self.layer.weight.mul_(0.5)
        return self.layer(x)


class Flags(Written):
    """Modes, flags and submodules that a call changes."""

    def forward(self, x):
        self.train(not self.training)
        self.layer.bias.requires_grad_(False)
        self.layer.bias.requires_grad_(True)
        self.extra = nn.Linear(2, 2)
        self.register_forward_hook(lambda *_: None)
        return self.layer(x) * (2 if self.training else 1)


class Differentiating(Written):
    """A model that differentiates on its way, and leaves gradients on its weights."""

    def forward(self, x):
        with torch.enable_grad():
            self.layer(x.detach()).sum().backward()
        return self.layer(x) * 2


class Inputs(Written):
    """A model that writes to its inputs."""

    def forward(self, x):
        x.mul_(2)
        return self.layer(x)


class Recurrent(Written):
    """A recurrent network that keeps its state."""

    def __init__(self):
        super().__init__()
        self.cells, self.hidden = nn.LSTM(4, 4, batch_first=True), None

    def forward(self, x):
        outputs, self.hidden = self.cells(x[:, None], self.hidden)
        return self.layer(outputs[:, 0])


class Spectral(Written):
    """Vectors of a power iteration."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(self.layer)


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("calls", "late", "outputs")

    def __init__(self):
        self.calls, self.outputs = 0, []

    def count(self, outputs):
        self.calls += 1
        self.outputs.append(outputs)
        self.late = getattr(self, "late", 0) + 1
        return outputs * (self.calls + len(self.outputs) + self.late)


@dataclass(slots=True, frozen=True)
class Frozen:
    """A value of slots, which is written past its methods."""

    calls: int = 0

    def count(self, outputs):
        object.__setattr__(self, "calls", self.calls + 1)
        return outputs * self.calls


class Slots(Written):
    """Objects with slots, of which one is not filled at first."""

    def __init__(self):
        super().__init__()
        self.slotted, self.frozen = Slotted(), Frozen()

    def forward(self, x):
        return self.frozen.count(self.slotted.count(self.layer(x)))


class Limited(dict):
    """A dictionary with attributes that forgets, whatever is done with it, all but its newest entry."""

    def __init__(self):
        super().__init__(first=0)
        self.calls = 0

    def __setitem__(self, key, value):
        self.clear()
        super().__setitem__(key, value)


class Counted(list):
    """A list with an attribute."""

    calls = 0


class DerivedContainers(Written):
    """Containers of classes of one's own, with attributes."""

    def __init__(self):
        super().__init__()
        self.limited, self.counted = Limited(), Counted()

    def forward(self, x):
        self.limited.calls += 1
        self.limited[self.limited.calls] = self.layer(x)
        self.counted.calls += 1
        self.counted.append(self.counted.calls)
        return self.layer(x) * sum(self.counted) + sum(self.limited.values()) * self.limited.calls


class Named(torch.Tensor):
    """A tensor of a class of one's own."""

    def __deepcopy__(self, memo):
        return self.clone()


class DerivedTensor(Written):
    """A plain tensor of a class of one's own, written in place."""

    def __init__(self):
        super().__init__()
        self.state = torch.zeros(1, 3).as_subclass(Named)

    def forward(self, x):
        self.state.add_(1)
        return (self.layer(x) * self.state).as_subclass(torch.Tensor)


MODELS = list(Written.__subclasses__())


def contents_of(item):
    """The contents of a model: the very objects, and the values of tensors."""
    if isinstance(item, torch.Tensor):
        gradient = None if not item.is_leaf or item.grad is None else item.grad.tolist()
        return id(item), item.detach().tolist(), item.requires_grad, gradient
    if isinstance(item, Slotted | Frozen):
        return [contents_of(getattr(item, name, None)) for name in item.__slots__]
    if isinstance(item, Limited | Counted):
        return [
            contents_of(vars(item)),
            contents_of(list(item.items() if isinstance(item, dict) else item)),
        ]
    if isinstance(item, dict):
        return [(key, contents_of(value)) for key, value in item.items()]
    if isinstance(item, list | tuple | deque | set):
        return [contents_of(value) for value in item]
    if isinstance(item, nn.Module | Cache | Recorder | SimpleNamespace | UserDict):
        return contents_of(vars(item))
    return item if isinstance(item, int | float | str) else id(item)
