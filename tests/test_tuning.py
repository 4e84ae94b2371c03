"""The experiment with equal tuning: its tasks, and the steps that are not those of `MFAC`, against dense formulas."""

import csv

import pytest

pytest.importorskip("torch", reason="needs torch")
import torch

from benchmarks.experiments import runs, tuning
from benchmarks.experiments.gauss_newton import GaussNewton
from benchmarks.experiments.training_tasks import Equation, Table, Text
from benchmarks.experiments.window_variants import BETA2, DECAY, CovarianceDescent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Diamonds whose price is their weight to the power of two."""
    path = tmp_path_factory.mktemp("data")
    names = ["carat", "cut", "color", "clarity", "depth", "table", "price", "x", "y", "z"]
    with (path / "diamonds.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        for i in range(400):
            carat = 0.2 + 0.01 * (i % 150)
            rows.writerow(
                [carat, "AB"[i % 2], "DEF"[i % 3], "IS"[i % 2], 60 + i % 7, 55 + i % 5, carat**2, i % 4, i % 9, i % 2]
            )
    return path


def laplacian(u, points):
    """The sum of second derivatives at each point, by a Hessian for each."""
    hessians = [torch.autograd.functional.hessian(lambda x: u(x[None])[0], point) for point in points]
    return torch.stack([hessian.trace() for hessian in hessians])


def test_the_force_is_minus_the_laplacian_of_the_solution(folder):
    task = Equation(folder)
    points = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.force(points), -laplacian(task.exact, points))


def test_residuals_are_those_of_the_equation(folder):
    task, network = Equation(folder), Equation(folder).network(0)
    batch = task.batch(torch.Generator().manual_seed(0))
    curvature = laplacian(lambda points: task._solution(network, points), batch.inputs)
    expected = (-curvature - task.force(batch.inputs)) / task.unit
    torch.testing.assert_close(task.residuals(network, batch), expected)


@pytest.mark.parametrize(("task", "rate"), [(Text, 0.01), (Table, 0.01), (Equation, 0.01)])
def test_a_task_can_be_learnt(folder, task, rate):
    task = task(folder)
    network, generator = task.network(0), torch.Generator().manual_seed(0)
    before = {part: task.error(network, part) for part in ("validation", "test")}
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(40):
        tuning.take_step(task, network, optimizer, task.batch(generator))
    assert all(task.error(network, part) < 0.8 * error for part, error in before.items())


def test_a_transformer_sees_nothing_of_what_follows(folder):
    task = Text(folder)
    network, inputs = task.network(0), task.batch(torch.Generator().manual_seed(0)).inputs
    changed = inputs.clone()
    changed[:, 20:] = 0
    torch.testing.assert_close(network(changed)[:, :20], network(inputs)[:, :20])


def test_a_gauss_newton_step_is_the_dense_one(folder):
    task = Equation(folder)
    network, batch = task.network(0), task.batch(torch.Generator().manual_seed(0))
    weights = list(network.parameters())
    r = task.residuals(network, batch)
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(x, weights, retain_graph=True)]) for x in r]
    jacobian, n = torch.stack(rows), len(r)
    fisher = 0.1 * torch.eye(jacobian.shape[1], dtype=jacobian.dtype) + jacobian.T @ jacobian / n
    expected = torch.nn.utils.parameters_to_vector(weights) - 0.5 * torch.linalg.solve(fisher, jacobian.T @ r / n)
    loss = GaussNewton(weights, 0.5, 0.1).step(lambda: task.residuals(network, batch))
    assert loss == pytest.approx(float(r.detach().square().mean()))
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(weights), expected)


def test_a_step_by_the_covariance_is_the_dense_one():
    d, m, lr, damping = 6, 4, 0.1, 0.5
    p, generator = torch.nn.Parameter(torch.zeros(d, dtype=torch.float64)), torch.Generator().manual_seed(0)
    optimizer = CovarianceDescent([p], lr, damping, window=m)
    rows, mean, square, weights = [], torch.zeros(d), torch.zeros(d), torch.zeros(d, dtype=torch.float64)
    for t in range(1, m + 1):
        p.grad = torch.randn(d, generator=generator, dtype=torch.float64)
        mean = DECAY * mean + (1 - DECAY) * p.grad
        square = BETA2 * square + (1 - BETA2) * p.grad**2
        scale = ((square / (1 - BETA2**t)).sqrt() + 1e-8) ** -0.5
        mu = mean / (1 - DECAY**t)
        rows.append(scale * (p.grad - mu))
        g = torch.stack(rows)
        fisher = damping * torch.eye(d, dtype=torch.float64) + g.T @ g / m
        weights = weights - lr * damping * scale * torch.linalg.solve(fisher, scale * mu)
        optimizer.step()
        torch.testing.assert_close(p.detach(), weights)


def test_a_run_that_diverges_has_no_errors_and_is_not_chosen(folder):
    study = tuning.Study(folder)
    found = study.run("equation", "SGD", 1e6, 0.9, 0)
    assert found["test"] is None
    assert found["steps"] < study.tasks["equation"].steps
    trials = [{"method": "SGD", **found}, {"method": "SGD", "validation": 2.0}, {"method": "SGD", "validation": 1.0}]
    assert runs.best_trial(trials, "SGD") is trials[2]
