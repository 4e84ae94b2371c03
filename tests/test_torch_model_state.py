"""What a call of a model writes: every row starts from the same model, which is given back as it was."""

import copy
import weakref
from collections import OrderedDict, deque
from functools import partial
from unittest.mock import MagicMock

import numpy as np
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
BY_MODEL = pytest.mark.parametrize("make", written.MODELS)


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


def made(make):
    torch.manual_seed(1)
    return make()


def autograd_rows(make, x, y):
    """The gradients of single samples, each by a model of its own."""
    rows = []
    for i in range(len(y)):
        model = made(make)
        parameters = list(model.parameters())
        outputs = model(x[i : i + 1].clone())
        parts = torch.autograd.grad(LOSS(outputs, y[i : i + 1]), parameters)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def rows_or_refusal(call, model, data, loss=LOSS):
    """The rows; None where vmap cannot batch a model, which is refused with what can be done."""
    try:
        return call(model, loss, *data)
    except RuntimeError as error:
        if "Use mean_gradients with batch_size=1" not in str(error):
            raise
        return None


@BY_MODEL
@BY_CALL
def test_every_row_starts_from_the_same_model(make, call, data):
    rows = rows_or_refusal(call, made(make), data)
    if rows is not None:
        torch.testing.assert_close(rows, autograd_rows(make, *data))
    else:
        assert call in (CALLS["samples"], CALLS["chunks"])


@BY_MODEL
@BY_CALL
def test_a_model_is_given_back_as_it_was_and_can_be_used(make, call, data):
    model = made(make)
    before, inputs = written.held(model), data[0].clone()
    rows_or_refusal(call, model, data)
    assert written.held(model) == before
    assert torch.equal(data[0], inputs)
    copy.deepcopy(model)
    model(inputs[:1])


@BY_MODEL
def test_gradients_on_a_model_are_left_alone(make, data):
    model = made(make)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = written.held(model)
    adapter.mean_gradients(model, LOSS, *data, batch_size=2)
    assert written.held(model) == before
    gradients = {id(parameter): parameter.grad for parameter in model.parameters()}
    pruned(model, data, 0.3, params=["layer"])
    for parameter in model.parameters():
        assert parameter.grad is gradients[id(parameter)]
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


@BY_MODEL
@pytest.mark.parametrize("after", [0, 1])
def test_a_model_is_as_it_was_when_the_loss_fails(make, data, after):
    model, calls = made(make), []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > after:
            msg = "out of luck"
            raise RuntimeError(msg)
        return LOSS(outputs, targets)

    before = written.held(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        adapter.mean_gradients(model, loss, *data, batch_size=2)
    assert written.held(model) == before


@BY_MODEL
def test_a_model_is_as_it_was_while_its_gradients_are_asked_for_one_by_one(make, data):
    model = made(make)
    before = written.held(model)
    gradients = adapter.iter_gradients(model, LOSS, [data, data])
    next(gradients)
    assert written.held(model) == before
    gradients.close()
    assert written.held(model) == before


def pruned(model, data, sparsity=0.4, **options):
    batches = [data, (data[0] + 1, data[1]), (data[0] - 1, data[1])]
    choice = {"damping": [1e-2, 1.0], "validation": batches, "lengths": (1.0, 0.5)}
    return adapter.prune_model(model, LOSS, batches, sparsity, **choice | options)


@BY_MODEL
def test_pruning_changes_weights_and_masks_alone(make, data):
    model, other = made(make), made(make)
    found = pruned(model, data, params=["layer"])
    before = dict(other.named_buffers())
    for name, tensor in model.named_buffers():
        assert name.endswith("_mask") or torch.equal(tensor, before[name])
    skipped = ("_", "training")
    plain = {name: written.held(value) for name, value in vars(model).items() if not name.startswith(skipped)}
    fresh = {name: written.held(value) for name, value in vars(other).items() if not name.startswith(skipped)}
    assert plain.keys() == fresh.keys()
    assert model.training == other.training
    assert found.steps[0].loss is not None


@BY_MODEL
def test_candidates_are_judged_by_the_model_as_it_was(make, data):
    model = made(make)
    found = pruned(model, data, params=["layer"], damping=1e-2, lengths=(1.0,))
    losses = []
    for shift in (0, 1, -1):
        fresh = copy.deepcopy(model)
        losses.append(float(LOSS(fresh(data[0] + shift), data[1]).detach()))
    assert found.steps[0].loss == pytest.approx(sum(losses) / 3, rel=1e-5)


@BY_MODEL
def test_a_model_is_as_it_was_when_pruning_fails(make, data):
    model = made(make)
    before = written.held(model)
    with pytest.raises(TypeError, match="`validation` must be pairs"):
        pruned(model, data, validation=[data, data[0]])
    assert written.held(model) == before


class Energy(nn.Module):
    """A model whose outputs are a gradient by its inputs, which needs a graph to be called."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 8), nn.Linear(4, 3)

    def forward(self, x):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(self.layer(x)).sum(), x, create_graph=True)
        return self.last(slope)


def test_a_model_that_differentiates_may_be_judged_on_other_batches(data):
    torch.manual_seed(0)
    model = Energy()
    found = pruned(model, data, steps=2)
    expected = [float(LOSS(model(data[0] + shift), data[1]).detach()) for shift in (0, 1, -1)]
    assert found.steps[-1].loss == pytest.approx(sum(expected) / 3, rel=1e-5)


class Running(nn.Module):
    """A loss that keeps a mean of itself, and divides by it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, outputs, targets):
        loss = LOSS(outputs, targets)
        self.mean.mul_(0.5).add_(loss.detach())
        return loss / self.mean


@pytest.mark.parametrize("loss_of", [lambda loss: loss, lambda loss: loss.forward], ids=["module", "method"])
def test_a_loss_that_writes_to_itself_starts_anew_for_every_row(data, loss_of):
    model, state, (x, y) = made(written.Written), Running(), data
    loss = loss_of(state)
    rows = adapter.mean_gradients(model, loss, x[:1].expand(3, -1), y[:1].expand(3), batch_size=1)[0]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert state.mean == 1


def test_objects_that_are_hooks_start_anew_for_every_row(data):
    hook = written.Recorder()
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(hook)
    expected = adapter.mean_gradients(nn.Sequential(model[0]), LOSS, *data, batch_size=1)[0]
    for call in CALLS.values():
        torch.testing.assert_close(call(model, LOSS, *data), expected)
        assert not hook.outputs
        copy.deepcopy(model)


class Trainer:
    """An object with a loss, a stateful list, and a data set."""

    def __init__(self):
        self.losses, self.batches, self.data = [], None, torch.zeros(8)

    def loss(self, outputs, targets):
        self.losses.append(len(self.losses))
        return LOSS(outputs, targets)

    __call__ = loss


@pytest.mark.parametrize("loss_of", [lambda t: t.loss, lambda t: t, lambda t: partial(t.loss)])
def test_what_the_object_of_a_loss_holds_is_the_users(data, loss_of):
    model, trainer = made(written.Written), Trainer()
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(one_by_one(model, loss_of(trainer), *data), expected)
    assert trainer.losses == list(range(SAMPLES))


# --- what classes and functions hold ----------------------------------------------------------------------------------


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
    """Variables of a function: one that is bound anew, one that is filled late, containers, one function in another."""

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


def hooked():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(SlottedHook())
    return model


@pytest.mark.parametrize(
    "make",
    [OfClass, Derived, OfClosure, OfStaticMethod, CalledByFunction, Global, hooked, hooked_by_closure],
)
@BY_CALL
def test_classes_functions_and_hooks_start_anew_for_every_row(make, call, data):
    expected = adapter.mean_gradients(made(make), LOSS, *data, batch_size=1)[0]
    x = data[0][:1].expand(SAMPLES, -1), data[1][:1].expand(SAMPLES)
    for row in adapter.mean_gradients(made(make), LOSS, *x, batch_size=1)[0]:
        torch.testing.assert_close(row, expected[0])
    rows = rows_or_refusal(call, made(make), data)
    torch.testing.assert_close(expected if rows is None else rows, expected)
    assert (OfClass.calls, OfClass.outputs, OfClass.state.tolist()) == (0, [], [0.0] * 3)
    assert not hasattr(OfClass, "late")
    assert (COUNTING.calls, SlottedHook.all_calls) == (0, 0)


@BY_CALL
def test_attributes_and_defaults_of_functions_start_anew_for_every_row(call, data):
    model = made(OfFunction)
    model.function = remembering
    expected = adapter.mean_gradients(model.layer, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(call(model, LOSS, *data), expected)
    assert remembering.__defaults__ == ([],)
    assert not vars(remembering)


def test_modules_that_a_loss_names_start_anew_for_every_row(data):
    criterion, model = Counting(), made(written.Written)
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

    adapter.mean_gradients(made(written.Written), wrap(loss), *data, batch_size=1)
    assert len(losses) == calls == SAMPLES


def test_what_a_method_in_the_closure_of_a_loss_writes_is_the_users(data):
    tracker = written.Recorder()
    keep = tracker.loss

    def loss(outputs, targets):
        keep(outputs.detach(), targets)
        return LOSS(outputs, targets)

    adapter.mean_gradients(made(written.Written), loss, *data, batch_size=1)
    assert len(tracker.outputs) == SAMPLES


# --- batches that the model reaches -----------------------------------------------------------------------------------


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


def generated(loader):
    yield from loader


BY_PLACE = pytest.mark.parametrize("put", [in_attribute, in_trainer, in_hook, in_loss_module])


@BY_PLACE
@pytest.mark.parametrize("batches_of", [lambda loader: loader, generated])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_loader_that_the_model_reaches_goes_on_between_rows(data, put, batches_of, per_sample):
    model, loader = made(written.Written), Loader(data)
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

    expected = prune(made(written.Written), LOSS, list(Loader(data)), list(Loader(data)))
    model, loader, other = made(written.Written), Loader(data), Loader(data)
    loss = put(model, loader)
    model.validation = other
    found = prune(model, loss, loader, other)
    torch.testing.assert_close(found.weights, expected.weights)
    passes = [0, 1, 2, 3, 4, 5]
    assert loader.given == (passes * 2 if count is None else (passes * 2)[:8])
    assert other.given == passes * 4
    assert loader.pos == (6 if count is None else 2)


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


def test_what_batches_change_in_a_model_stays_and_counts_for_the_next_row(data):
    def batches(model):
        for index in range(3):
            model.epoch = index + 1
            model.shift = torch.full((3,), float(index))
            model.layer.weight.data.mul_(0.5)
            yield data

    found = list(adapter.iter_gradients(model := made(Shift), LOSS, batches(model)))
    assert (model.epoch, model.shift.tolist(), model.seen) == (3, [2.0] * 3, [])
    other = made(Shift)
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

    model = made(Shift)
    batches, other = Epochs(model), Epochs(model)
    adapter.prune_model(model, LOSS, batches, 0.4, damping=1e-2, validation=other)
    assert (batches.seen, other.seen, model.epoch, model.seen) == ([1, 2, 3], [4, 5, 6], 7, [])


def test_what_batches_reach_is_not_put_back_while_a_row_is_computed(data):
    model, loader = made(written.Written), Loader(data)
    model.loader = loader

    def loss(outputs, targets):  # as a thread that reads ahead
        loader.given.append("ahead")
        return LOSS(outputs, targets)

    for batches in (loader, generated(loader)):
        loader.given.clear()
        next(adapter.iter_gradients(model, loss, batches))
        assert loader.given[:2] == [0, "ahead"]


def test_batches_are_not_looked_through_without_end(data):
    model, loader = made(written.Written), Loader(data)
    loader.tree = [[[[i, j]] for j in range(300)] for i in range(300)]
    excluded = model_state.reachable_objects(loader)
    assert id(loader.given) in excluded
    assert len(excluded) <= model_state.NEAREST
    assert len(list(adapter.iter_gradients(model, LOSS, loader))) == 6


# --- how far is looked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 2_000, 20_000])
@pytest.mark.parametrize("kind", [list, deque, dict.fromkeys, OrderedDict.fromkeys, set, lambda x: NoTruth(x)])
def test_containers_of_any_length_get_their_entries_back(data, count, kind):
    model = made(written.Written)
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
    model = made(written.Written)
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
    model = made(written.Written)
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
    alive |= {"object": written.Cache(), "module": made(written.Written)}
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
    odd, model = odd_objects()[name], made(written.Written)
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


# --- parameters that are held elsewhere too ---------------------------------------------------------------------------


class Listed(nn.Module):
    """A model that uses a weight past its module as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.weights = [self.layer.weight]

    def forward(self, x):
        return self.layer(x) + x @ self.weights[0]


def test_the_part_of_a_parameter_that_is_held_elsewhere_is_in_its_gradient(data):
    model = made(Listed)
    penalised = model.layer.bias

    def loss(outputs, targets):
        return LOSS(outputs, targets) + penalised.square().sum()

    expected = torch.autograd.grad(loss(model(data[0]), data[1]), list(model.parameters()))
    row = adapter.mean_gradients(model, loss, *data, batch_size=SAMPLES)[0][0]
    torch.testing.assert_close(row, torch.cat([part.reshape(-1) for part in expected]))
    with pytest.raises(RuntimeError, match=r"must use its parameters by their modules.*Use mean_gradients"):
        adapter.per_sample_gradients(model, loss, *data)


def test_another_model_in_the_loss_is_no_parameter_of_this_one(data):
    model, teacher = made(written.Written), nn.Linear(4, 3)

    def loss(outputs, inputs):
        return (outputs - teacher(inputs)).square().sum()

    rows = adapter.per_sample_gradients(model, loss, data[0], data[0])[0]
    torch.testing.assert_close(rows, adapter.mean_gradients(model, loss, data[0], data[0], batch_size=1)[0])


# --- weights that PyTorch has cast or computed ------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def in_bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("call", [adapter.per_sample_gradients, partial(adapter.mean_gradients, batch_size=2)])
@pytest.mark.parametrize("params", [None, ["2"]])
def test_rows_in_an_autocast_region_are_those_of_the_weights_as_they_are(data, call, params):
    model = network()
    with in_bfloat16():
        model(data[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()
        found = call(model, LOSS, *data, params=params)[0]
    with in_bfloat16():
        assert torch.equal(found, call(model, LOSS, *data, params=params)[0])


def test_a_vector_that_is_written_in_an_autocast_region_takes_effect(data):
    model = network()
    unravel = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[1]
    with in_bfloat16():
        model(data[0])
        unravel.write(model, torch.zeros(unravel.dim))
        assert not torch.any(model(data[0]))


def test_a_step_of_the_optimizer_in_an_autocast_region_takes_effect(data):
    model = network()
    optimizer = adapter.MFAC(model.parameters(), lr=1.0, window=4, damping=0.1)
    with in_bfloat16():
        LOSS(model(data[0]), data[1]).backward()
        optimizer.step()
        found = model(data[0])
    with in_bfloat16():
        assert torch.equal(found, model(data[0]))


@pytest.mark.parametrize("region", [in_bfloat16, parametrize.cached], ids=["autocast", "cached"])
def test_candidates_are_judged_by_their_own_weights(data, region):
    def losses(damping, lengths):
        model = network()
        model[0] = nn.utils.parametrizations.weight_norm(model[0])
        with region():
            model(data[0])
            return [step.loss for step in pruned(model, data, 0.2, damping=damping, lengths=lengths).steps]

    alone = [losses(damping, (length,)) for damping in (1e-6, 1.0) for length in (300.0, 1.0)]
    assert losses([1e-6, 1.0], (300.0, 1.0)) == min(alone)
    assert min(alone) != alone[0]


def test_a_model_is_trained_in_the_autocast_region_in_which_it_was_pruned(data):
    model = network()
    with in_bfloat16():
        pruned(model, data)
        LOSS(model(data[0]), data[1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_of_parametrised_weights_are_those_of_the_weights_as_they_are(data):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0]
    with parametrize.cached():
        model(data[0])
        torch.testing.assert_close(adapter.mean_gradients(model, LOSS, *data, batch_size=2)[0], expected)
        samples = adapter.per_sample_gradients(model, LOSS, *data)[0]
    torch.testing.assert_close(samples[:2].mean(dim=0), expected[0])


def test_rows_in_an_autocast_region_leave_no_casts_behind(data, monkeypatch):
    model, kept = network(), []
    with in_bfloat16():
        cleared = torch.clear_autocast_cache
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (kept.append(1), cleared()))
        for _ in adapter.iter_gradients(model, LOSS, [data] * 3):
            assert kept
            kept.clear()


def test_models_and_samples_made_in_inference_mode_have_rows(data):
    with torch.inference_mode():
        model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval(), data[0].clone()
    everything = {"params": lambda *_: True}
    rows = adapter.per_sample_gradients(model, LOSS, x, data[1], **everything)[0]
    torch.testing.assert_close(rows, adapter.mean_gradients(model, LOSS, x, data[1], batch_size=1, **everything)[0])
    with pytest.raises(ValueError, match=r"`model` must have parameters that can be written; got '0\.weight'"):
        adapter.prune_model(model, LOSS, [data], 0.5, damping=1e-2)


def test_a_compiled_model_has_the_rows_of_the_model(data):
    model = network()
    compiled = torch.compile(model, backend="eager")
    expected = adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0]
    torch.testing.assert_close(adapter.mean_gradients(compiled, LOSS, *data, batch_size=1)[0], expected)
    torch.testing.assert_close(adapter.per_sample_gradients(compiled, LOSS, *data)[0], expected)


def test_a_lazy_model_is_refused_with_the_cure(data):
    with pytest.raises(ValueError, match=r"`model` must have all its parameters; got 'weight'.*Call the model once"):
        adapter.per_sample_gradients(nn.LazyLinear(3), LOSS, *data)


# --- hooks on backward passes -----------------------------------------------------------------------------------------


def with_backward_hooks(model):
    """A model that keeps what passes through it both ways, as BackPACK's do."""

    def keep(module, inputs, outputs):
        module.input0, module.output = inputs[0], outputs

    def extend(module, _, gradients):
        for parameter in module.parameters():
            parameter.grad_batch = gradients[0] * module.output

    for layer in (model[0], model[2]):
        layer.register_forward_hook(keep)
        layer.register_full_backward_hook(extend)
    return model


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_a_model_with_hooks_on_its_backward_passes_has_the_same_rows(data):
    expected = adapter.per_sample_gradients(network(), LOSS, *data)[0]
    model = with_backward_hooks(network())
    before = written.held(model)
    torch.testing.assert_close(adapter.per_sample_gradients(model, LOSS, *data)[0], expected)
    torch.testing.assert_close(adapter.mean_gradients(model, LOSS, *data, batch_size=1)[0], expected)
    assert written.held(model) == before
    assert not any(hasattr(parameter, "grad_batch") for parameter in model.parameters())
    assert pruned(model, data).mask.sum() < 56


def test_a_wrapper_that_takes_gradients_itself_is_refused_with_the_cure(data):
    model = network()
    model.hooks_enabled = True  # as of Opacus
    with pytest.raises(TypeError, match=r"got Sequential\. Call model\.disable_hooks\(\)"):
        adapter.per_sample_gradients(model, LOSS, *data)
