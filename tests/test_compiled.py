"""Functions compiled by torch.compile that call the library: a graph break there, and the same answers to the bit."""

import pytest

import mfac_linalg as ml
from mfac_linalg import influence, pruning

torch = pytest.importorskip("torch")
MFAC = pytest.importorskip("mfac_linalg.torch").MFAC
GRADIENTS = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
V = torch.linspace(-1, 1, 24)


def compile_function(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="eager")


def static():
    return ml.WoodburyRankOneInverse(GRADIENTS, 0.1)


def window():
    return ml.SlidingWindowInverse.from_gradients(GRADIENTS, 0.1)


def blocks():
    return ml.BlockDiagonalInverse(GRADIENTS, 0.1, block_sizes=8)


def change_window(inverse):
    inverse.append(V)
    inverse.replace(0, V + 1)
    inverse.remove(1)
    inverse.extend(2 * GRADIENTS[:2])
    inverse.damping = 0.5
    return inverse @ V, inverse.gradients


QUERIES = {
    "@": lambda inverse: 2 * (inverse @ (V + 1)),
    "tensor @": lambda inverse: (V + 1) @ inverse,
    "matmat": lambda inverse: inverse.matmat(V[:, None] + 1),
    "diagonal": lambda inverse: inverse.diagonal() + 1,
    "entries": lambda inverse: (inverse.element(1, -2), inverse.columns([3, 0]), inverse.submatrix([1, 2])),
    "scalars": lambda inverse: (inverse.logdet(), inverse.trace(), inverse.quadratic_form(V)),
    "forward": lambda inverse: (inverse.forward @ V, inverse.forward.diagonal()),
    "damping": lambda inverse: inverse.with_damping(0.5) @ V,
    "gradients": lambda inverse: inverse.matvec_gradients(torch.ones(5)) @ inverse.gradients.T,
    "scores": lambda inverse: (pruning.obs_scores(V, inverse), pruning.joint_update(V, inverse, V > 0)),
}
WINDOW = {
    "append_matvec": lambda inverse: inverse.append_matvec(V + 1),
    "changes": change_window,
    "state": lambda inverse: ml.SlidingWindowInverse.from_state_dict(inverse.state_dict()) @ V,
}
CASES = {
    **{f"static, {name}": (static, query) for name, query in QUERIES.items()},
    **{f"blocks, {name}": (blocks, QUERIES[name]) for name in ("@", "diagonal")},
    **{f"window, {name}": (window, query) for name, query in ({"@": QUERIES["@"]} | WINDOW).items()},
    "built there": (lambda: None, lambda _: (static() @ V, window() @ V, blocks() @ V)),
    "influence": (static, lambda inverse: influence.influence(inverse, GRADIENTS[:2], 2 * GRADIENTS)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_answer_in_a_compiled_function_is_that_outside(case):
    make, query = CASES[case]
    expected, inverse = query(make()), make()
    found = compile_function(lambda: query(inverse))()
    for x, y in zip(*(one if isinstance(one, tuple) else (one,) for one in (expected, found)), strict=True):
        assert torch.equal(x, y)


def test_a_compiled_method_does_not_answer_for_others():
    step = torch.compile(ml.SlidingWindowInverse(4, 24, 0.1).append_matvec, backend="eager")
    for g in GRADIENTS:
        step(g)
    for case in ("static, @", "static, entries", "static, scalars", "window, changes"):
        test_an_answer_in_a_compiled_function_is_that_outside(case)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own, of a loss between two graphs
@pytest.mark.parametrize("options", [{}, {"beta2": None, "compression": ml.TopK(0.5)}], ids=str)
def test_a_compiled_step_of_training_is_that_outside(options):
    ends = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = MFAC(model.parameters(), lr=0.01, window=4, damping=0.1, **options)

        def step(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        run = compile_function(step) if compiles else step
        for seed in range(6):
            run(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)))
        assert len(optimizer.windows[0]) == 4
        ends.append(model.weight.detach())
    assert torch.equal(*ends)


def test_state_dictionaries_can_be_taken_and_loaded_in_a_compiled_function():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = MFAC([p], lr=0.1, window=4, damping=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    compile_function(lambda: optimizer.load_state_dict(optimizer.state_dict()))()
    assert len(optimizer.windows[0]) == 1
