"""Influence predicts what retraining gives; the experiment runs on tiny data."""

from dataclasses import replace

import numpy as np
import pytest

import benchmarks.experiments.influence as experiment
from benchmarks.experiments.softmax import Softmax, losses, probabilities
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.influence import influence, self_influence


@pytest.fixture(scope="module")
def regression():
    """A logistic regression of 30 samples, as softmax of two classes, at its optimum."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 4))
    labels = (features @ rng.standard_normal(4) + rng.standard_normal(30) > 0).astype(int)
    model = Softmax(features, labels, 2, 0.3)
    return model, model.fitted()


def exact_fisher(model, theta):
    """Its Hessian: the gradients of all labels, weighted by their probabilities."""
    p = probabilities(model.features, theta, 2)
    rows = np.concatenate([replace(model, labels=np.full(30, y)).gradients(theta) for y in (0, 1)])
    return WoodburyRankOneInverse(rows, model.damping, weights=p.T.reshape(-1) / 30, normalization="sum")


def test_the_rows_of_all_labels_make_the_hessian(regression):
    model, theta = regression
    steps = 1e-6 * np.eye(model.dim)
    numerical = [(model.slope(theta + s, np.ones(30)) - model.slope(theta - s, np.ones(30))) / 2e-6 for s in steps]
    assert np.allclose(exact_fisher(model, theta).forward.to_dense(), numerical, rtol=0, atol=1e-8)
    assert np.allclose(model.hessian(theta, np.ones(30)), numerical, rtol=0, atol=1e-8)


def test_retraining_agrees_to_second_order(regression):
    """A sample of weight 1 − ε: what is predicted is off by O(ε²)."""
    model, theta = regression
    test = np.array([0.3, -1.0, 0.5, 2.0])[None]
    rise = influence(
        exact_fisher(model, theta),
        replace(model, features=test, labels=np.array([1])).gradients(theta),
        model.gradients(theta),
    )[0]

    def change(sample, share):
        weights = np.ones(30)
        weights[sample] -= share
        return losses(test, [1], model.fitted(theta, weights), 2)[0] - losses(test, [1], theta, 2)[0]

    for sample in np.argsort(-np.abs(rise))[:5]:
        whole, *errors = (abs(change(sample, e) - e * rise[sample] / 30) for e in (1.0, 0.1, 0.05))
        assert whole < 0.3 * abs(rise[sample]) / 30
        assert 3.5 < errors[0] / errors[1] < 4.5


def test_the_leverage_makes_leave_one_out_of_least_squares_exact():
    rng, damping = np.random.default_rng(1), 0.1
    x, y, test = rng.standard_normal((20, 5)), rng.standard_normal(20), rng.standard_normal((2, 5))
    inverse = WoodburyRankOneInverse(x, damping)
    theta = inverse.matvec_gradients(y / 20)
    gradients = (x @ theta - y)[:, None] * x
    leverages = self_influence(inverse) / 20
    predicted = influence(inverse, test, gradients) / 20 / (1 - leverages)
    for i in range(20):
        rest = np.arange(20) != i
        without = np.linalg.solve(damping * np.eye(5) + x[rest].T @ x[rest] / 20, x[rest].T @ y[rest] / 20)
        assert np.allclose(test @ (without - theta), predicted[:, i], rtol=1e-10, atol=1e-14)


def tiny_digits(rng):
    """A network of random layers, 6-5-4, and samples of three classes."""
    inputs, centres = rng.standard_normal((72, 6)), rng.standard_normal((6, 3))
    labels = np.argmax(inputs @ centres, axis=1)
    layers = [rng.standard_normal((5, 6)), rng.standard_normal((4, 5))]
    return experiment.Data(layers, inputs[:60], labels[:60], inputs[60:], labels[60:], 3)


def test_the_experiment_runs_on_other_data(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(experiment, "RESAMPLES", 20)
    monkeypatch.setattr(experiment, "DIGITS", 3)
    data = tiny_digits(np.random.default_rng(0))
    points = list(experiment.experiment(data, 0.1, [0, 1], 8, (1, 5), whole=True))
    assert len(points) == 2 * 2 * 2 * len(experiment.KINDS)  # gradients, sizes, losses
    for outcome, predicted, actual in points:
        assert outcome.low <= outcome.high
        assert predicted.shape == actual.shape == (16,)
        if (outcome.gradients, outcome.fisher) == ("last layer", "true Fisher"):
            assert outcome.spearman > 0.9
            assert outcome.error < 0.6
    pytest.importorskip("matplotlib").use("Agg")
    experiment.draw([(replace(o, damping=1e-2, group=10), f, a) for o, f, a in points], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
