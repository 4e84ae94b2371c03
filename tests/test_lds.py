"""The linear datamodelling score and its attributions against dense ones; the experiment runs on tiny data."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.experiments import attribution, datamodeling, lds, record, retraining  # noqa: E402
from benchmarks.experiments import perceptron as layers  # noqa: E402
from benchmarks.experiments.datamodeling import lds as score  # noqa: E402
from benchmarks.experiments.datamodeling import over_images, predictions, quantiles, resampled  # noqa: E402
from mfac_linalg import WoodburyRankOneInverse  # noqa: E402
from mfac_linalg.influence import influence  # noqa: E402
from mfac_linalg.torch import fisher_gradients, per_sample_gradients  # noqa: E402

DAMPING = 0.03


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(256, size=(22, 3, 2)).astype(np.uint8), rng.integers(10, size=22)
    return retraining.Samples.of_pixels(pixels, labels, 0.5, 0.3)


@pytest.fixture(scope="module")
def model():
    """A trained network of small layers, in float64."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(5, 10)
    return torch.nn.Sequential(*layers).double().eval()


@pytest.fixture(scope="module")
def rows(model, samples):
    """The gradients of all samples by PyTorch, (22, d): 14 for training, 8 others."""
    loss = torch.nn.functional.cross_entropy
    return per_sample_gradients(model, loss, samples.inputs.double(), samples.labels)[0].numpy()


@pytest.fixture(scope="module")
def perceptron(model):
    return layers.Perceptron.of(model)


def wrong_of(model, samples):
    p = torch.softmax(model(samples.inputs.double()), dim=1).detach().numpy()
    return 1 - p[np.arange(len(p)), samples.labels.numpy()]


def close(found, right, tolerance=1e-9):
    assert np.abs(found - right).max() <= tolerance * np.abs(right).max()


# --- the score -----------------------------------------------------------------------------------------------------


def test_a_perfect_attribution_scores_one_and_its_negative_minus_one(monkeypatch):
    monkeypatch.setattr(datamodeling, "RESAMPLES", 20)
    rng = np.random.default_rng(0)
    scores, subsets = rng.standard_normal((5, 40)), retraining.halves("reported", 12, 40)
    predicted = predictions(scores, subsets)
    outputs = np.exp(predicted) + 3  # any increasing function of the sums
    assert np.allclose(score(predicted, outputs), 1)
    assert np.allclose(score(-predicted, outputs), -1)
    assert np.allclose(quantiles(resampled(predicted, outputs)), 1)
    assert abs(score(predictions(rng.standard_normal((5, 40)), subsets), outputs).mean()) < 0.6


def test_the_score_is_the_mean_of_spearmans_correlations():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    predicted, outputs = rng.standard_normal((2, 7, 9))
    outputs[:, 3] = outputs[:, 4]  # ties
    right = [spearmanr(p, o).statistic for p, o in zip(predicted, outputs, strict=True)]
    assert np.allclose(score(predicted, outputs), right)
    low, high = over_images(score(predicted, outputs))
    assert low < np.mean(right) < high


def test_a_margin_and_a_loss_rank_alike(model, samples):
    margins = retraining.margins(model, retraining.Samples(samples.inputs.double(), samples.labels))
    losses = torch.nn.functional.cross_entropy(model(samples.inputs.double()), samples.labels, reduction="none")
    assert np.allclose(np.exp(-losses.detach().numpy()), 1 / (1 + np.exp(-margins)))
    assert np.array_equal(np.argsort(margins), np.argsort(-losses.detach().numpy()))


def test_halves_are_halves_and_differ():
    chosen = retraining.halves("reported", 6, 21)
    assert chosen.shape == (6, 21)
    assert (chosen.sum(axis=1) == 10).all()
    assert len(np.unique(chosen, axis=0)) == 6
    assert np.array_equal(chosen[:3], retraining.halves("reported", 3, 21))
    assert not np.array_equal(chosen, retraining.halves("tuning", 6, 21))


# --- the gradients -------------------------------------------------------------------------------------------------


def test_factors_make_the_gradients_of_pytorch(perceptron, samples, rows):
    found, _ = attribution.perceptron_rows(perceptron, samples)
    part = found.at(slice(3, 9))
    assert np.allclose(found.gram(part), rows @ rows[3:9].T, atol=1e-12)
    assert np.allclose(found.squares(), np.square(rows).sum(axis=1))
    assert np.allclose(found.dense() @ found.dense().T, rows @ rows.T, atol=1e-12)


def test_the_rows_of_the_true_fisher_make_it(perceptron, model, samples):
    inputs = samples.inputs.double()
    right = fisher_gradients(model, inputs)[0].numpy()
    found, share = layers.fisher_rows(perceptron, inputs.numpy(), 220)
    assert share == pytest.approx(1)
    spectra = [np.linalg.eigvalsh(part.T @ part) for part in (found.dense(), right)]
    assert np.allclose(*spectra, atol=1e-13)
    fewer, share = layers.fisher_rows(perceptron, inputs.numpy(), 40)
    assert share == pytest.approx(fewer.squares().sum() / found.squares().sum())
    assert 40 / 198 < share < 1


@pytest.mark.parametrize("block", [5, 1000])
def test_products_of_factors_are_those_of_rows(perceptron, samples, rows, monkeypatch, block):
    monkeypatch.setattr(layers, "BLOCK", block)
    found, _ = attribution.perceptron_rows(perceptron, samples)
    assert np.allclose(found.times(found.dense().T), rows @ rows.T, atol=1e-12)
    weights = np.arange(22.0)
    assert np.allclose(found.scaled(weights).dense(), weights[:, None] * found.dense())


# --- the attributions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(model, samples, rows):
    """Scores of 8 images by matrices of d × d, of all methods."""
    trains, tests, n = rows[:14], rows[14:], 14
    wrong, identity = wrong_of(model, samples)[:14], np.eye(rows.shape[1])
    fishers = {
        "true": (f := fisher_gradients(model, samples.inputs[:14].double())[0].numpy()).T @ f,
        "empirical": trains.T @ trains / n,
        "margins": (trains / wrong[:, None]).T @ (trains / wrong[:, None]) / n,
    }
    inverses = {name: np.linalg.inv(f + DAMPING * identity) for name, f in fishers.items()}
    exact = {name: tests @ inverse @ trains.T for name, inverse in inverses.items()}
    return exact | {"dot": tests @ trains.T}


@pytest.fixture(scope="module")
def gradients(perceptron, samples):
    train, others = samples.at(slice(14)), samples.at(slice(14, None))
    kinds = ("true", "empirical", "margins")
    return {kind: attribution.gradients_of(perceptron, train, others, kind, 0, 140) for kind in kinds}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("true Fisher, exact", "true"),
        ("empirical Fisher, exact", "empirical"),
        ("gradient dot product", "dot"),
        ("gradients of margins, exact", "margins"),
    ],
)
def test_attributions_are_those_of_dense_matrices(gradients, dense, name, key):
    method = attribution.BY_NAME[name]
    rows = gradients[method.fisher]
    close(method.scores(rows, DAMPING if key != "dot" else None, rows.wrong), dense[key])


def test_exact_attributions_are_those_of_the_library(gradients, rows):
    inverse = WoodburyRankOneInverse(rows[:14], DAMPING)
    close(gradients["empirical"].exact(DAMPING, None), influence(inverse, rows[14:]))


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_of_cg_are_those_in_all_dimensions(gradients, fisher, steps, monkeypatch):
    from scipy.sparse.linalg import cg

    monkeypatch.setattr(attribution, "CG_STEPS", steps)
    found = replace(gradients[fisher])
    matrix = found.fisher.dense().T @ found.fisher.dense() + DAMPING * np.eye(found.fisher.dense().shape[1])
    solutions = [cg(matrix, t, rtol=0, maxiter=steps)[0] for t in found.tests.dense()]
    close(found.by_cg(DAMPING, None), np.stack(solutions) @ found.trains.dense().T, 1e-9)


def test_a_wide_projection_changes_little_and_weights_multiply(gradients, dense, monkeypatch):
    monkeypatch.setattr(attribution, "PROJECTED", 8_000)
    found = replace(gradients["empirical"])
    scores = found.by_projection(DAMPING, found.wrong)
    close(scores, dense["margins"], 0.2)
    close(found.by_projection(DAMPING, 2 * found.wrong), 2 * scores)
    margins = gradients["margins"]
    close(margins.by_margins(DAMPING, 2 * margins.wrong), 2 * dense["margins"])


# --- the experiment ------------------------------------------------------------------------------------------------


def tiny_data():
    """Images of a few classes that a network can tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=54)
    pixels = np.clip(rng.integers(256, size=(3, 3, 3))[labels] + rng.normal(0, 60, (54, 3, 3)), 0, 255)
    images = retraining.Samples.of_pixels(pixels.astype(np.uint8), labels, 0.5, 0.3)
    return retraining.Data("tiny", images.at(slice(40)), images.at(slice(40, None)), 8, 2)


def test_the_experiment_runs_on_other_data_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "EPOCHS", 4)
    monkeypatch.setattr(datamodeling, "RESAMPLES", 10)
    output, scratch = tmp_path / "lds.json", retraining.Scratch(tmp_path / "scratch")
    study = lds.Study([tiny_data()], scratch, halves=6)
    for name, part in lds.PARTS.items():
        record.add(study, name, part, output)
    held = record.read(output)
    for figure in held["one"]["figures"] + held["chosen"]["figures"]:
        assert -1 <= figure["interval"][0] <= figure["lds"] <= figure["interval"][1] <= 1
    assert held["networks"]["figures"][0]["halves"] == 6
    assert held["explicit"]["figures"][0]["error"] < 1e-4
    assert len(held["chosen"]["figures"]) == 3 * len(lds.METHODS)
    assert lds.summary(held).count("\n") == 3 * len(lds.METHODS) - 1

    monkeypatch.setattr(retraining, "trained", None)  # everything is in the folder
    again = lds.Study([tiny_data()], scratch, halves=6)
    monkeypatch.setattr(again, "gradients", None)
    record.add(again, "one", lds.one, tmp_path / "again.json")
    assert record.read(tmp_path / "again.json")["one"]["figures"] == held["one"]["figures"]


def test_the_damping_is_that_of_the_other_images():
    figures = [{"data": "x", "method": "m", "damping": d, "tuning": t, "lds": -t} for d, t in ((1, 0.1), (2, 0.3))]
    method = attribution.Method("m", attribution.Gradients.exact)
    assert lds.chosen_damping({"one": {"figures": figures}}, "x", method) == 2


def test_a_killed_run_leaves_no_half_array(tmp_path):
    scratch = retraining.Scratch(tmp_path)

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scratch.array("a/b", fail)
    assert np.array_equal(scratch.array("a/b", lambda: np.ones(3)), np.ones(3))
    assert np.array_equal(scratch.array("a/b", fail), np.ones(3))
