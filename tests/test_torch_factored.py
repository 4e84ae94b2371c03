"""Rows that are kept as factors are those of `per_sample_gradients`, for any model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfac_linalg.testing import LIMIT, check_rows
from tests.torch_factored import CASES, LOSS, Model, columns_of, factored_names, hidden

torch = pytest.importorskip("torch")
nn = torch.nn
adapter = pytest.importorskip("mfac_linalg.torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # vmap of attention
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def error(rows, expected):
    """The largest error of an entry, in eps of the largest entry of its row."""
    scale = expected.abs().amax(dim=1, keepdim=True) * torch.finfo(expected.dtype).eps
    return float(((columns_of(rows) - expected).abs() / scale.clamp_min(1e-300)).max())


@DTYPES
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_columns_are_those_of_explicit_rows(case, dtype, chunk_size):
    model, *data = case.model_in(dtype)
    expected, names = adapter.per_sample_gradients(model, LOSS, *data)
    rows, unravel = adapter.factored_gradients(model, LOSS, *data, chunk_size=chunk_size)
    assert unravel == names
    assert error(rows, expected) <= LIMIT
    assert factored_names(rows, unravel) == case.factored
    assert rows.dtype == dtype


@DTYPES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_methods_are_those_of_one_matrix(case, dtype):
    model, *data = case.model_in(dtype)
    check_rows(adapter.factored_gradients(model, LOSS, *data)[0], asarray=torch.asarray)


def test_factors_take_the_memory_of_inputs_and_output_gradients():
    model, x = nn.Linear(400, 300, bias=False), torch.randn(8, 3, 400)
    rows, _ = adapter.factored_gradients(model, nn.functional.mse_loss, x, torch.randn(8, 3, 300))
    assert rows.nbytes == 4 * 8 * 3 * (400 + 300)
    assert f"nbytes={rows.nbytes:,}" in repr(rows)
    assert "shape=(8, 120000)" in repr(rows)


@pytest.mark.parametrize(
    "params", [["first.bias"], ["last"], lambda name, _: "weight" in name], ids=["a bias", "a layer", "a function"]
)
def test_rows_are_of_the_chosen_parameters(params):
    model, *data = CASES["used three times"].model_in(torch.float64)
    expected, names = adapter.per_sample_gradients(model, LOSS, *data, params=params)
    rows, unravel = adapter.factored_gradients(model, LOSS, *data, params=params)
    assert unravel == names
    assert error(rows, expected) <= LIMIT


@settings(max_examples=60, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),  # groups, in and out of each
    axes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 4)),
        min_size=1,
        max_size=3,
    ),
    mode=st.sampled_from(["zeros", "circular", "replicate", "same"]),
    as_factors=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_convolution(monkeypatch_context, channels, axes, mode, as_factors, seed):
    groups, channels_in, channels_out = channels
    kernel, stride, dilation, padding, extra = zip(*axes, strict=True)
    sizes = [d * (k - 1) + 1 + e for k, d, e in zip(kernel, dilation, extra, strict=True)]
    options = {"padding": padding, "padding_mode": "zeros" if mode == "same" else mode, "stride": stride}
    if mode == "same":
        options |= {"padding": "same", "stride": 1}
    if mode in ("circular", "replicate"):
        options["padding"] = tuple(min(p, s - 1) for p, s in zip(padding, sizes, strict=True))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(axes) - 1]
    torch.manual_seed(seed)
    shape = groups * channels_in, groups * channels_out, kernel
    model = kind(*shape, dilation=dilation, groups=groups, **options).double()
    x = torch.randn(3, groups * channels_in, *sizes, dtype=torch.float64)
    y = torch.randn_like(model(x).detach())
    with monkeypatch_context() as patch:
        if as_factors:
            patch.setattr("mfac_linalg.torch.factors._are_fewer", bool)
        expected, _ = adapter.per_sample_gradients(model, nn.functional.mse_loss, x, y)
        rows, _ = adapter.factored_gradients(model, nn.functional.mse_loss, x, y)
    assert error(rows, expected) <= LIMIT
    check_rows(rows, asarray=torch.asarray)


@pytest.fixture(scope="session")
def monkeypatch_context():
    """A monkeypatch that is undone within a test."""
    return pytest.MonkeyPatch.context


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    positions=st.lists(st.integers(1, 4), max_size=2),
    m=st.integers(1, 7),
    chunk_size=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_any_linear_layer(shape, positions, m, chunk_size, seed):
    width, inputs, outputs = shape
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).double()
    x, y = (torch.randn(m, *positions, n, dtype=torch.float64) for n in (inputs, outputs))
    expected, _ = adapter.per_sample_gradients(model, nn.functional.mse_loss, x, y)
    rows, _ = adapter.factored_gradients(model, nn.functional.mse_loss, x, y, chunk_size=chunk_size)
    assert error(rows, expected) <= LIMIT
    check_rows(rows, asarray=torch.asarray)


# --- odd models -------------------------------------------------------------------------------------------------------


def without_gradients(model, x):
    with torch.no_grad():
        constant = model.first(x)
    return model.last(torch.tanh(model.first(x) + constant))


def differentiated(model, x):
    """The derivative of one layer by what another returns, in which its weight is used without a call."""
    h = model.first(x)
    (g,) = torch.autograd.grad(torch.tanh(model.second(h)).sum(), h, create_graph=True)
    return model.last(g + h)


def replaced(model, x):
    model.first.weight = nn.Parameter(2 * model.first.weight.detach())
    return model.last(torch.tanh(model.first(x)))


def overwritten(model, x):
    """An input that is written to after the call, where plain autograd raises."""
    h = torch.sin(x)
    z = model.first(h)
    h.zero_()
    return model.last(z + h)


class Doubled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight, self.bias)


def hooked(*, backward):
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    model[0].register_forward_pre_hook(lambda module, arguments: (2 * arguments[0],))
    model[0].register_forward_hook(lambda module, arguments, output: 3 * output)
    if backward:
        model[0].register_full_backward_hook(lambda module, inner, outer: None)
        model[2].register_full_backward_pre_hook(lambda module, outer: (3 * outer[0],))
    return model


def masked():
    model = hidden(repeated_once)
    nn.utils.prune.l1_unstructured(model.first, "weight", 0.5)
    return model


def repeated_once(model, x):
    return model.last(torch.tanh(model.first(x)))


def own_forward():
    model = hidden(repeated_once)
    forward = model.first.forward
    model.first.forward = lambda x: 2 * forward(x)
    return model


def old_hooks():
    model = hidden(repeated_once)
    model.first.register_backward_hook(lambda module, inner, outer: None)
    return model


BOTH = ("first.weight", "last.weight")
ODD = {
    "a call without gradients": (lambda: hidden(without_gradients), BOTH),
    "a detached call": (lambda: hidden(lambda m, x: m.last(m.first(x).detach() + x)), BOTH),
    "derivatives": (lambda: hidden(differentiated, second=nn.Linear(16, 16)), BOTH[1:]),
    "func.grad": (
        lambda: hidden(lambda m, x: m.last(torch.func.grad(lambda z: torch.tanh(m.first(z)).sum())(x))),
        BOTH[1:],
    ),
    "vmap": (lambda: hidden(lambda m, x: m.last(torch.func.vmap(m.first)(x))), BOTH[1:]),
    "replaced weight": (lambda: hidden(replaced), BOTH[1:]),
    "forward hooks": (lambda: hooked(backward=False), ("0.weight", "2.weight")),
    "backward hooks": (lambda: hooked(backward=True), ("0.weight", "2.weight")),
    "old backward hooks": (old_hooks, BOTH[1:]),
    "own forward": (own_forward, BOTH[1:]),
    "subclass": (lambda: Model(repeated_once, first=Doubled(16, 16), last=nn.Linear(16, 5)), BOTH[1:]),
    "masked": (masked, BOTH[1:]),
    "normalised weight": (
        lambda: Model(
            repeated_once, first=nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)), last=nn.Linear(16, 5)
        ),
        BOTH[1:],
    ),
    "unused": (lambda: hidden(lambda m, x: m.last(x)), BOTH[1:]),
    "no layer": (lambda: nn.LayerNorm(16), ()),
    "no outputs": (lambda: hidden(lambda m, x: m.last(m.first(x)), empty=nn.Linear(16, 0)), BOTH),
    "dropout": (lambda: hidden(lambda m, x: m.last(nn.functional.dropout(m.first(x)))), BOTH),
}


@pytest.mark.parametrize(("make", "factored"), ODD.values(), ids=ODD)
def test_rows_of_odd_models_are_the_explicit_ones(make, factored):
    torch.manual_seed(0)
    model, x, y = make().double(), torch.randn(6, 16, dtype=torch.float64), torch.arange(6) % 5
    torch.manual_seed(1)
    expected, _ = adapter.per_sample_gradients(model, LOSS, x, y)
    torch.manual_seed(1)
    rows, unravel = adapter.factored_gradients(model, LOSS, x, y)
    assert error(rows, expected) <= LIMIT
    assert factored_names(rows, unravel) == factored
    assert not any("forward" in vars(module) for module in model.modules()) or make is own_forward


def test_an_input_that_is_written_to_after_the_call_counts_as_it_was():
    torch.manual_seed(0)
    model, x, y = hidden(overwritten).double(), torch.randn(6, 16, dtype=torch.float64), torch.arange(6) % 5
    expected = adapter.per_sample_gradients(hidden_like(model, lambda m, x: m.last(m.first(torch.sin(x)))), LOSS, x, y)
    assert error(adapter.factored_gradients(model, LOSS, x, y)[0], expected[0]) <= LIMIT


def hidden_like(model, function):
    """The same layers, and another function."""
    return Model(function, first=model.first, last=model.last)


def test_a_loss_that_uses_a_weight_makes_its_rows_explicit():
    model, *data = CASES["used three times"].model_in(torch.float64)

    def loss(outputs, targets):
        return LOSS(outputs, targets) + 0.1 * model.first.weight.square().sum()

    rows, unravel = adapter.factored_gradients(model, loss, *data)
    assert error(rows, adapter.per_sample_gradients(model, loss, *data)[0]) <= LIMIT
    assert factored_names(rows, unravel) == ("last.weight",)


def test_a_loss_that_calls_the_model_adds_positions():
    model, *data = CASES["used three times"].model_in(torch.float64)

    def loss(outputs, targets):
        return LOSS(outputs, targets) + model.first(torch.ones(16, dtype=torch.float64)).square().sum()

    rows, unravel = adapter.factored_gradients(model, loss, *data)
    assert error(rows, adapter.per_sample_gradients(model, loss, *data)[0]) <= LIMIT
    assert factored_names(rows, unravel) == BOTH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_in_16_bits_make_rows_in_float32(dtype):
    model, *data = CASES["mlp"].model_in(dtype)
    expected, _ = adapter.per_sample_gradients(model, LOSS, *data)
    rows, _ = adapter.factored_gradients(model, LOSS, *data)
    assert rows.dtype == torch.float32
    assert error(rows, expected) <= LIMIT
    check_rows(rows, asarray=torch.asarray)
    dense = 30 * 20 + 20 * 30 + 5 * 20 + 55
    assert rows.nbytes == 2 * 6 * (20 + 30 + 30 + 20 + 20 + 5 + 55) < 2 * 6 * dense


def test_autocast_rounds_as_it_does_explicit_rows_and_changes_no_products():
    model, *data = CASES["mlp"].model_in(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = adapter.per_sample_gradients(model, LOSS, *data)
        rows, _ = adapter.factored_gradients(model, LOSS, *data)
        check_rows(rows, asarray=torch.asarray)
    scale = expected.abs().amax(dim=1, keepdim=True) * torch.finfo(torch.bfloat16).eps
    assert float(((columns_of(rows) - expected).abs() / scale).max()) < 2


def test_a_call_leaves_the_model_as_it_was_and_random_numbers_to_the_samples():
    model, *data = CASES["mlp"].model_in(torch.float32)
    model[0].register_buffer("count", torch.zeros(1))

    def count(module, *_):
        module.count += 1

    model[0].register_forward_hook(count)
    torch.manual_seed(0)
    adapter.factored_gradients(model, LOSS, *data)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))
    assert float(model[0].count) == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "given"), [([1, 2], "another call"), ([2, 1], "1 instead of 2 calls")])
def test_a_model_that_calls_a_layer_at_random_is_refused_by_name(counts, given):
    counts = iter(counts)

    def at_random(model, x):
        for _ in range(next(counts)):
            x = torch.tanh(model.first(x))
        return model.last(x)

    model = hidden(at_random)
    with pytest.raises(ValueError, match=rf"in the same way each time; got {given} of the layer of 'first\.weight'"):
        adapter.factored_gradients(model, LOSS, torch.randn(6, 16), torch.arange(6) % 5)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_share_a_weight_in_another_order_are_refused():
    calls = iter([(0, 1), (1, 0)])

    def in_turns(model, x):
        for index in next(calls):
            x = torch.tanh((model.near, model.far)[index](x))
        return x.flatten(1)

    options = {"near": nn.Conv1d(64, 64, 3, padding=1), "far": nn.Conv1d(64, 64, 3, padding=2, dilation=2)}
    model = Model(in_turns, **options)
    model.far.weight = model.near.weight
    with pytest.raises(ValueError, match=r"got another call of the layer of 'near\.weight'"):
        adapter.factored_gradients(model, LOSS, torch.randn(6, 64, 5), torch.arange(6) % 5)


def test_a_call_that_fails_leaves_no_trace():
    model = hidden(lambda m, x: m.last(m.first(x)) if random.random() < 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.factored_gradients(model, LOSS, torch.randn(6, 16), torch.arange(6) % 5)
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(isinstance(p, nn.Parameter) for p in (model.first.weight, model.last.weight))


@pytest.mark.parametrize(
    ("model", "loss", "kind"),
    [
        (nn.Sequential(nn.Linear(16, 5), nn.BatchNorm1d(5)), LOSS, ValueError),
        (nn.Linear(16, 5), lambda outputs, _: outputs.detach().sum(), ValueError),
        (nn.Linear(16, 5), lambda outputs, y: LOSS(outputs, y) / 0, ValueError),
        (nn.Linear(16, 5), lambda outputs, _: outputs, ValueError),
        (nn.Linear(15, 5), LOSS, RuntimeError),
        (nn.GRUCell(16, 5), LOSS, RuntimeError),
        (nn.DataParallel(nn.Linear(16, 5)), LOSS, TypeError),
    ],
    ids=["batch statistics", "no graph", "infinite", "no scalar", "model's own", "not batched", "wrapped"],
)
def test_what_explicit_rows_refuse_is_refused_in_the_same_words(model, loss, kind):
    data, words = (torch.randn(6, 16), torch.arange(6) % 5), []
    for call in (adapter.per_sample_gradients, adapter.factored_gradients):
        with pytest.raises(kind) as refusal:
            call(model, loss, *data)
        words.append(str(refusal.value))
    assert words[0] == words[1]


def test_a_device_without_float64_is_refused(monkeypatch):
    monkeypatch.setattr("mfac_linalg._backend.supports_float64", lambda _: False)
    with pytest.raises(TypeError, match=r"`model` must be on a device with float64; got cpu\. Move it"):
        adapter.factored_gradients(nn.Linear(16, 5), LOSS, torch.randn(6, 16), torch.arange(6) % 5)


def test_a_parameter_that_a_list_has_is_refused_in_the_same_words():
    model = hidden(lambda m, x: m.last(torch.tanh(m.first(x) + x @ m.list[0])))
    model.list = [model.first.weight]
    with pytest.raises(RuntimeError, match="must use its parameters by their modules"):
        adapter.factored_gradients(model, LOSS, torch.randn(6, 16), torch.arange(6) % 5)
    model.first.register_full_backward_hook(lambda module, inner, outer: None)
    with pytest.raises(RuntimeError, match="must use its parameters by their modules"):
        adapter.factored_gradients(model, LOSS, torch.randn(6, 16), torch.arange(6) % 5)
