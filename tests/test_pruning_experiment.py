"""The experiment with a slope: a path step by step is that of `prune`, and an interrupted run goes on."""

import json
from dataclasses import asdict, replace

import pytest

from mfac_linalg.pruning import prune
from tests.source import REPOSITORY

torch = pytest.importorskip("torch")
experiment = pytest.importorskip("benchmarks.experiments.pruning_paths")

PATH = (0.3, 0.5, 0.5, 0.7, 0.7)
RECIPE = experiment.Recipe(PATH, slope=1 / 32, slope_damping=0.1, damping=1e-2, num_gradients=4)


@pytest.fixture
def trained():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 3, bias=False))
    images = [(torch.randn(count, 6), torch.randint(3, (count,))) for count in (100, 50)]
    return experiment.Trained("small", network, lambda name, parameter: True, *images, (0.5, 0.7))


def run(trained, path, recipe=RECIPE):
    pool = torch.arange(100)
    return experiment.Run(trained, recipe, 0, pool, trained.test, before_moves=True, state=path / "state.pt")


def without_seconds(found):
    return [{name: value for name, value in facts.items() if name != "seconds"} for facts in found["judged"]]


@pytest.mark.parametrize(("selection", "compensation_damping"), [("scores", 0.0), ("exchanges", "auto")])
def test_a_path_step_by_step_is_that_of_prune(trained, tmp_path, selection, compensation_damping):
    recipe = replace(RECIPE, selection=selection, compensation_damping=compensation_damping)
    found = run(trained, tmp_path, recipe).finish()
    last = torch.load(tmp_path / "state.pt")
    generator = torch.Generator().manual_seed(0)
    whole = prune(
        trained.weights,
        lambda w, step: trained.rows(w, 4, torch.arange(100), generator),
        0.7,
        schedule=PATH,
        damping=1e-2,
        slope=1 / 32,
        slope_damping=0.1,
        block_sizes=trained.filters,
        selection=selection,
        compensation_damping=compensation_damping,
    )
    assert torch.equal(last["weights"], whole.weights)
    assert torch.equal(last["mask"], whole.mask)
    expected = [(0.5, 2, False), (0.5, 3, True), (0.7, 4, False), (0.7, 5, True)]
    assert [(facts["sparsity"], facts["steps"], facts["moved"]) for facts in found["judged"]] == expected


def test_an_interrupted_run_goes_on(trained, tmp_path, monkeypatch):
    whole = run(trained, tmp_path).finish()
    (tmp_path / "state.pt").unlink()
    judge, calls = experiment.Run._judge, []

    def interrupted(self, at, step):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, at, step)

    monkeypatch.setattr(experiment.Run, "_judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(trained, tmp_path).finish()
    assert without_seconds(run(trained, tmp_path).finish()) == without_seconds(whole)
    assert calls == [0, 1, 2, 2, 3, 4]


def test_rows_are_means_of_batches_without_repetition_while_the_pool_lasts(trained):
    pool = torch.arange(40, 100)
    rows = trained.rows(trained.weights, 3, pool, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    indices = torch.cat([pool[torch.randperm(60, generator=generator)][:32] for _ in range(3)])
    loss = torch.nn.functional.cross_entropy
    for row, chosen in zip(rows, indices.split(32), strict=True):
        grads = torch.autograd.grad(
            loss(trained.network(trained.train[0][chosen]), trained.train[1][chosen]),
            list(trained.network.parameters()),
        )
        assert torch.allclose(row, torch.cat([g.reshape(-1) for g in grads]), atol=1e-6)


def test_rows_are_of_images_that_are_mirrored_first_and_then_shifted():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3, bias=False))
    images, classes = torch.randn(32, 1, 3, 3), torch.randint(3, (32,))
    trained = experiment.Trained("square", network, lambda name, parameter: True, *[(images, classes)] * 2, (0.5,))
    pool, generator = torch.arange(32), torch.Generator().manual_seed(3)
    row = trained.rows(trained.weights, 1, pool, torch.Generator().manual_seed(3), mirrored=True, shifted=1)
    order = torch.randperm(32, generator=generator)
    turned = torch.rand(32, 1, 1, 1, generator=generator) < 0.5
    varied = torch.where(turned, images[order].flip(3), images[order])
    varied = experiment.shift_at_random(varied, 1, generator)
    loss = torch.nn.functional.cross_entropy(network(varied), classes[order])
    expected = torch.autograd.grad(loss, network[1].weight)[0]
    assert torch.allclose(row[0], expected.reshape(-1), atol=1e-6)


def test_legs_end_at_their_sparsities_and_moves_repeat_them():
    assert experiment.through((2, 0.5, 1), (1, 0.75, 2), schedule="linear") == (0.25, 0.5, 0.5, 0.75, 0.75, 0.75)
    assert experiment.through((2, 0.75, 0), schedule="geometric") == pytest.approx((0.5, 0.75))
    assert experiment.through((2, 0.8, 0)) == pytest.approx((0.7, 0.8))


def test_only_moves_may_have_the_slope_and_they_may_have_rows_of_their_own():
    recipe = experiment.Recipe(PATH, slope=0.5, num_gradients=4, only_moves=True, rows_of_moves=2)
    assert [recipe.slope_of(step) for step in range(5)] == [0, 0, 0.5, 0, 0.5]
    assert [recipe.rows_of(step) for step in range(5)] == [4, 4, 2, 4, 2]
    assert (RECIPE.slope_of(0), RECIPE.rows_of(2)) == (1 / 32, 4)


def test_the_slope_may_fall_from_move_to_move_at_a_sparsity():
    recipe = experiment.Recipe((0.3, 0.5, 0.5, 0.5, 0.7, 0.7), slope=0.5, decay=0.5)
    assert [recipe.slope_of(step) for step in range(6)] == [0.5, 0.5, 0.5, 0.25, 0.5, 0.5]


@pytest.mark.parametrize("shape", [(400, 3, 6, 6), (400, 36)])
def test_images_are_shifted_each_by_itself_and_what_comes_in_is_black(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    shifted = experiment.shift_at_random(images, 2, torch.Generator().manual_seed(1))
    assert shifted.shape == shape
    seen = set()
    for before, after in zip(images.reshape(400, -1, 6, 6), shifted.reshape(400, -1, 6, 6), strict=True):
        expected = {}
        for down in range(-2, 3):
            for across in range(-2, 3):
                moved = torch.full_like(before, images.min())
                moved[:, max(down, 0) : 6 + down, max(across, 0) : 6 + across] = before[
                    :, max(-down, 0) : 6 - down, max(-across, 0) : 6 - across
                ]
                expected[down, across] = moved
        seen |= {shift for shift, moved in expected.items() if torch.equal(moved, after)}
        assert any(torch.equal(moved, after) for moved in expected.values())
    assert len(seen) == 25


def test_a_recipe_says_how_images_are_varied(trained, tmp_path, monkeypatch):
    varied, rows = [], experiment.Trained.rows

    def noted(self, *arguments, mirrored, shifted):
        varied.append((mirrored, shifted))
        return rows(self, *arguments)

    monkeypatch.setattr(experiment.Trained, "rows", noted)
    run(trained, tmp_path, replace(RECIPE, mirrored=True, shifted=3)).finish()
    assert varied == [(True, 3)] * 5


def recorded_recipes():
    """Every recipe in the results, and the one that the code has under the same name."""
    slope = pytest.importorskip("benchmarks.experiments.pruning_slope")
    tried = {
        "choice ResNet-20": slope.TRIED_RESNET,
        "choice ResNet-20, removals": slope.TRIED_REMOVALS,
        "choice ResNet-20, moves": slope.TRIED_MOVES,
        "choice MLP": slope.TRIED_MLP,
    }
    networks = {"ResNet-20": slope.REPORTED_RESNET, "MLP": slope.REPORTED_MLP}
    reported = {f"{name}, {method}": recipe for name, each in networks.items() for method, recipe in each.items()}
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "pruning-slope.json").read_text(encoding="utf-8"))
    for part, run in results.items():
        for figure in run["figures"]:
            if "recipe" in figure and part != "steps":
                recipe = tried[part][figure["method"]] if part in tried else reported[part]
                yield f"{part}: {figure.get('method')}", figure["recipe"], json.loads(json.dumps(asdict(recipe)))


def test_what_was_run_is_what_the_code_has_under_that_name():
    """A field that came later has its default in the recipes of before."""
    defaults, recipes = asdict(experiment.Recipe()), list(recorded_recipes())
    assert recipes
    for name, recorded, recipe in recipes:
        assert defaults | recorded == recipe, name
