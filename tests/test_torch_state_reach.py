"""How far a call's writes are followed: attributes, classes, functions, closures and objects of any kind."""

import weakref
from collections import OrderedDict, deque
from functools import partial
from unittest.mock import MagicMock

import numpy as np
import pytest

from tests import torch_state
from tests.torch_state import BY_CALL, CALLS, LOSS, SAMPLES, Loader, Shift, make_model, rows_or_refusal

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
written = pytest.importorskip("tests.written_models")
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap of an LSTM

# --- contents of classes and functions --------------------------------------------------------------------------------

data = torch_state.data


class Counting(nn.Module):
    """A module that multiplies by the number of its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class OfClass(written.Written):
    """Attributes of the class and of one that it is made of: numbers, containers, tensors."""

    calls, outputs, state = 0, [], torch.zeros(3)

    def forward(self, x):
        type(self).calls += 1
        type(self).late = getattr(self, "late", 0) + 1
        self.outputs.append(self.layer(x))
        OfClass.state += 1
        return self.layer(x) * self.calls * len(self.outputs) * self.state * self.late


class Derived(OfClass):
    """Whose attributes are those of the class above."""


def remembering(outputs, calls=[]):  # noqa: B006  # the list is what a call writes to
    calls.append(1)
    remembering.calls = getattr(remembering, "calls", 0) + 1
    return outputs * len(calls) * remembering.calls


class OfFunction(written.Written):
    """Attributes and defaults of a function."""

    def forward(self, x):
        return remembering(self.layer(x))


class CalledByFunction(written.Written):
    """A module in the closure of a function."""

    def __init__(self):
        super().__init__()
        counting = Counting()
        self.function = lambda outputs: counting(outputs)

    def forward(self, x):
        return self.function(self.layer(x))


class OfClosure(written.Written):
    """Variables of a function: one that is rebound, one that is filled late, containers, one function in another."""

    def __init__(self):
        super().__init__()
        calls, outputs = 0, []

        def inner(x):
            nonlocal late
            outputs.append(x)
            late = calls
            return x * len(outputs) * late

        def outer(x):
            nonlocal calls
            calls += 1
            return inner(x) * calls

        self.function = outer
        if calls:
            late = 0

    def forward(self, x):
        return self.function(self.layer(x))


class OfStaticMethod(written.Written):
    """An attribute of a function that is a static method."""

    @staticmethod
    def scale():
        own = OfStaticMethod.scale
        own.calls = getattr(own, "calls", 0) + 1
        return own.calls

    def forward(self, x):
        return self.layer(x) * self.scale()


COUNTING = Counting()


class Global(written.Written):
    """A module that is global."""

    def forward(self, x):
        return COUNTING(self.layer(x))


class SlottedHook:
    """A hook with slots and a count of its class."""

    __slots__ = ("calls",)
    all_calls = 0

    def __init__(self):
        self.calls = 0

    def __call__(self, module, inputs, outputs):
        self.calls += 1
        type(self).all_calls += 1
        return outputs * self.calls * self.all_calls


def hooked_by_closure():
    model, outputs = nn.Sequential(nn.Linear(4, 3)), []

    def hook(module, inputs, output):
        outputs.append(output)
        return output * len(outputs)

    model[0].register_forward_hook(hook)
    return model


def hooked_model():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(SlottedHook())
    return model


@pytest.mark.parametrize(
    "make",
    [OfClass, Derived, OfClosure, OfStaticMethod, CalledByFunction, Global, hooked_model, hooked_by_closure],
)
@BY_CALL
def test_classes_functions_and_hooks_start_anew_for_every_row(make, call, data):
    expected = adapter.mean_gradients(make_model(make), LOSS, *data, batch_size=1)[0]
    x = data[0][:1].expand(SAMPLES, -1), data[1][:1].expand(SAMPLES)
    for row in adapter.mean_gradients(make_model(make), LOSS, *x, batch_size=1)[0]:
        torch.testing.assert_close(row, expected[0])
    rows = rows_or_refusal(call, make_model(make), data)
    torch.testing.assert_close(expected if rows is None else rows, expected)
    assert (OfClass.calls, OfClass.outputs, OfClass.state.tolist()) == (0, [], [0.0] * 3)
    assert not hasattr(OfClass, "late")
    assert (COUNTING.calls, SlottedHook.all_calls) == (0, 0)


@BY_CALL
def test_attributes_and_defaults_of_functions_start_anew_for_every_row(call, data):
    model = make_model(OfFunction)
    model.function = remembering
    expected = adapter.mean_gradients(model.layer, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(call(model, LOSS, *data), expected)
    assert remembering.__defaults__ == ([],)
    assert not vars(remembering)


def test_modules_that_a_loss_names_start_anew_for_every_row(data):
    criterion, model = Counting(), make_model(written.Written)
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0]

    def in_closure(outputs, targets):
        return sum(LOSS(criterion(each), targets) for each in (outputs,))

    for loss in (in_closure, lambda outputs, targets: LOSS(COUNTING(outputs), targets)):
        for call in CALLS.values():
            rows = rows_or_refusal(call, model, data, loss)
            torch.testing.assert_close(expected if rows is None else rows, expected)
        assert (criterion.calls, COUNTING.calls) == (0, 0)


@pytest.mark.parametrize("wrap", [lambda loss: loss, partial, lambda loss: lambda *args: loss(*args)])
def test_variables_of_a_loss_are_those_of_the_user(data, wrap):
    losses, calls = [], 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        losses.append(LOSS(outputs, targets))
        return losses[-1]

    adapter.mean_gradients(make_model(written.Written), wrap(loss), *data, batch_size=1)
    assert len(losses) == calls == SAMPLES


def test_what_a_method_in_the_closure_of_a_loss_writes_is_the_users(data):
    tracker = written.Recorder()
    keep = tracker.loss

    def loss(outputs, targets):
        keep(outputs.detach(), targets)
        return LOSS(outputs, targets)

    adapter.mean_gradients(make_model(written.Written), loss, *data, batch_size=1)
    assert len(tracker.outputs) == SAMPLES


# --- how far is looked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 2_000, 20_000])
@pytest.mark.parametrize("kind", [list, deque, dict.fromkeys, OrderedDict.fromkeys, set, lambda x: NoTruth(x)])
def test_containers_of_any_length_get_their_entries_back(data, count, kind):
    model = make_model(written.Written)
    model.entries = kind(range(count))
    before = list(model.entries)

    def forward(x):
        entries = model.entries
        if isinstance(entries, dict):
            entries["new"] = entries.pop(0)
        elif isinstance(entries, set):
            entries.add("new")
        else:
            entries.append("new")
            entries.pop() if isinstance(entries, NoTruth) else entries.popleft() if isinstance(entries, deque) else 0
        return model.layer(x)

    model.register_forward_pre_hook(lambda *_: None)
    model.forward = forward
    adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert list(model.entries) == before


def test_what_is_looked_into_is_bounded(data, monkeypatch):
    inner = {"calls": 0}
    model = make_model(written.Written)
    model.entries, model.few = [inner] * 501, [{"calls": 0}] * 500
    monkeypatch.setattr("mfac_linalg.torch.model_state.LARGE", 100)
    model.cache, model.own = {"large": torch.zeros(101), "small": torch.zeros(100)}, torch.zeros(101)
    model.both = [model.layer.weight, nn.Parameter(torch.zeros(101)), np.zeros(101)]
    model.register_parameter("long", model.both[1])
    model.array = model.both[2]

    def forward(x):
        for each in (model.entries[0], model.few[0]):
            each["calls"] += 1
        with torch.no_grad():
            for each in (*model.cache.values(), model.own, *model.both[1:]):
                each += 1
        return model.layer(x)

    model.forward = forward
    adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert (inner["calls"], model.few[0]["calls"]) == (2, 0)
    found = {name: float(each[0]) for name, each in model.cache.items()}
    assert found == {"large": 2, "small": 0}
    assert (float(model.own[0]), float(model.both[1].detach()[0]), float(model.array[0])) == (0, 0, 0)


def test_parameters_and_modules_of_any_number_are_put_back(data):
    model = make_model(written.Written)
    model.many = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(600))
    model.layers = nn.ModuleList(Shift() for _ in range(600))
    hidden = nn.Module()
    hidden.register_buffer("late", torch.zeros(()))
    hidden.layers = nn.ModuleList(Shift() for _ in range(600))
    model.hidden = [hidden]

    def forward(x):
        with torch.no_grad():
            for each in (model.many[599], model.layers[599].shift, hidden.late, hidden.layers[0].shift):
                each += 1
        return model.layer(x)

    model.forward = forward
    adapter.mean_gradients(model, LOSS, *data, batch_size=2, params=["layer"])
    for each in (model.many[599], model.layers[599].shift, hidden.late, hidden.layers[0].shift):
        assert not torch.any(each)


# --- attributes that are not what they say ----------------------------------------------------------------------------


class NoTruth(list):
    """A list that answers nothing."""

    def __bool__(self):
        raise RuntimeError

    __iter__ = list.__iter__


class Raising(dict):
    """A dictionary that answers nothing."""

    def __len__(self):
        raise RuntimeError

    __bool__ = keys = values = items = __iter__ = __getitem__ = __len__


class RaisingList(list):
    def __len__(self):
        raise RuntimeError

    __bool__ = __iter__ = __getitem__ = __len__


class Unnamed:
    __module__ = None


class NoAttributes:
    def __getattribute__(self, name):
        if name != "__class__":
            raise RuntimeError
        return object

    def __bool__(self):
        raise RuntimeError

    __len__ = __eq__ = __bool__
    __hash__ = object.__hash__


class NoDictionary(NoAttributes):
    @property
    def __dict__(self):
        raise RuntimeError


def odd_objects():
    """Those whose class is not what `isinstance` says, and those that answer nothing, by what they are."""
    alive = {"dict": written.Limited(), "list": written.Counted([1]), "tensor": torch.zeros(2)}
    alive |= {"object": written.Cache(), "module": make_model(written.Written)}
    odd = {f"proxy of {name}": (weakref.proxy(each), each) for name, each in alive.items()}
    odd |= {"dead proxy": weakref.proxy(written.Counted()), "reference": weakref.ref(alive["dict"])}
    for kind in (torch.Tensor, nn.Module, nn.Parameter, dict, list, deque, np.ndarray):
        odd[f"mock of {kind.__name__}"] = MagicMock(spec=kind)
    odd |= {"raising": Raising(), "raising dict": Raising(a=1), "raising list": RaisingList([1])}
    odd |= {"no entries": RaisingList(), "no truth": NoTruth([1]), "unnamed": Unnamed()}
    return odd | {"no attributes": NoAttributes(), "no dictionary": NoDictionary()}


@pytest.mark.parametrize("name", odd_objects())
@pytest.mark.parametrize("place", ["attribute", "list", "closure", "batches", "loss"])
def test_attributes_that_are_not_what_they_say_are_left_alone(name, place, data):
    odd, model = odd_objects()[name], make_model(written.Written)
    odd, _kept = odd if type(odd) is tuple else (odd, None)
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0]
    batches, loss = Loader(data, 1), LOSS
    if place == "batches":
        batches.odd = [odd]
    elif place == "closure":
        model.layer.register_forward_hook(lambda *_: type(odd) and None)
    elif place == "loss":
        loss = partial(lambda outputs, targets, odd: LOSS(outputs, targets), odd=odd)
    else:
        vars(model)["odd"] = odd if place == "attribute" else [odd]  # PyTorch itself asks some for what they have not
    torch.testing.assert_close(adapter.mean_gradients(model, loss, *data, batch_size=2)[0], expected)
    assert len(list(adapter.iter_gradients(model, loss, batches))) == 1
    adapter.prune_model(model, loss, Loader(data, 1), 0.4, damping=1e-2)
