"""The demo: its gradients, its pruning steps, and the whole of it as a user runs it."""

import io
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn")
pytest.importorskip("matplotlib", reason="needs matplotlib")

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.demo import __main__ as demo
from mfac_linalg.demo import descent, digits, network, progress, pruning

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def images():
    """Forty digits, in float64 so that differences of losses keep their digits."""
    few = digits.load(seed=0)[0].take(slice(40))
    return digits.Images(few.pixels.astype(np.float64), few.labels)


@pytest.fixture(scope="module")
def parameters():
    """Return a network that is far from every minimum, biases included."""
    return np.random.default_rng(1).normal(scale=0.3, size=network.DIM)


def test_gradients_are_the_derivatives_of_the_losses(images, parameters):
    """Central differences of every image's loss along random directions."""
    gradients = network.per_sample_gradients(parameters, images)
    assert gradients.shape == (40, network.DIM)
    for direction in np.random.default_rng(2).normal(size=(5, network.DIM)):
        step = 1e-6 * direction
        ahead, behind = (network.cross_entropy(parameters + sign * step, images) for sign in (1, -1))
        np.testing.assert_allclose(gradients @ direction, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


def test_gradients_sum_to_the_gradient_of_the_batch(images, parameters):
    """Back-propagation of the summed loss, one matrix product a layer."""
    layers = network.unpack(parameters)
    activations, logits = network.forward(parameters, images.pixels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    errors = probabilities - (images.labels[:, None] == np.arange(10))
    hidden_errors = (errors @ layers.output_weights.T) * (activations > 0)
    parts = images.pixels.T @ hidden_errors, hidden_errors.sum(0), activations.T @ errors, errors.sum(0)
    batch = np.concatenate([part.ravel() for part in parts])
    np.testing.assert_allclose(network.per_sample_gradients(parameters, images).sum(axis=0), batch, atol=1e-12)


def test_gradients_keep_the_dtype_of_the_network(images, parameters):
    """Float32 in, float32 out."""
    single = digits.Images(images.pixels.astype(np.float32), images.labels)
    assert network.per_sample_gradients(parameters.astype(np.float32), single).dtype == np.float32


def test_training_learns_the_digits():
    """Far above chance after a few epochs, and the same for the same seed."""
    training, test = digits.load(seed=0)
    trained = [network.train(training, seed=0, epochs=10) for _ in range(2)]
    assert network.accuracy(trained[0], test) > 0.85
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-5)


def test_schedule_ends_each_group_of_steps_at_a_target():
    """Sparsities rise, and every third one is a target when there are three steps to each."""
    sparsities = pruning.schedule(3)
    assert np.all(np.diff(sparsities) > 0)
    np.testing.assert_allclose(sparsities[2::3], pruning.TARGETS)


@pytest.mark.parametrize("count", [0, 1, 700, 2368])
def test_magnitude_removes_the_smallest_weights_and_no_bias(parameters, count):
    """What stays is unchanged and no smaller than what goes."""
    weights = network.weight_mask()
    pruned = pruning.prune_by_magnitude(parameters, weights, count)
    gone = pruned == 0
    assert gone.sum() == count
    assert not gone[~weights].any()
    np.testing.assert_array_equal(pruned[~gone], parameters[~gone])
    assert abs(parameters[gone]).max(initial=0) <= abs(parameters[weights & ~gone]).min(initial=np.inf)


def test_removing_one_weight_by_curvature_minimises_the_quadratic_model(images, parameters):
    """F times the change is zero but for the removed weight, and no other weight would have cost less."""
    inverse = WoodburyRankOneInverse(network.per_sample_gradients(parameters, images), 1e-2)
    weights = network.weight_mask()
    pruned, removed = pruning.prune_by_curvature(parameters, weights, 1, inverse)
    force = inverse.forward @ (pruned - parameters)
    assert removed.sum() == 1
    assert pruned[removed] == 0
    np.testing.assert_allclose(force[~removed], 0, atol=1e-9 * abs(force[removed][0]))
    cost = parameters**2 / (2 * inverse.diagonal())
    assert cost[removed] == cost[weights].min()


def test_what_is_pruned_stays_pruned(images, parameters):
    """Later steps move the other parameters only, and every step removes what it was asked to."""
    counts = [700, 1400, 2300]
    networks = list(pruning.prune_gradually(parameters, images, counts, damping=1e-2))
    assert [int((each == 0).sum()) for each in networks] == counts
    for earlier, later in itertools.pairwise(networks):
        assert not later[earlier == 0].any()


def test_the_whole_demo_runs_quietly(tmp_path):
    """A report on standard output, nothing on standard error (so no progress bar), and a picture."""
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-m", "mfac_linalg.demo", "--gradients=60", "--steps=1", f"--output={picture}"]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # other tests may use the other cores
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=alone)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("test", "effective rank", "30 eps", "Damping path", "OBS", str(picture)):
        assert part in done.stdout
    assert done.stdout.isascii()
    assert picture.read_bytes().startswith(PNG)


def test_the_first_direction_of_each_method_is_the_known_one():
    """SGD's is g, Adam's its signs, and the window's F⁻¹g = g / (damping + ‖g‖²) while g is the only gradient in F."""
    g = np.random.default_rng(0).normal(size=network.DIM).astype(np.float32)
    np.testing.assert_allclose(descent.sgd()(g), g)
    np.testing.assert_allclose(descent.adam()(g), np.sign(g), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(descent.window(0.1)(g), g / (0.1 + g @ g), rtol=1e-5)


def test_momentum_adds_up_older_directions():
    """0.9 times as much for each step of age."""
    rule, g = descent.sgd(), np.ones(network.DIM, dtype=np.float32)
    for _ in range(3):
        direction = rule(g)
    np.testing.assert_allclose(direction, 1 + 0.9 + 0.81, rtol=1e-6)


def test_a_rate_that_diverges_is_never_the_best():
    """Its losses are infinite from there on."""
    training, test = digits.load(seed=0)
    few = training.take(slice(64))
    with np.errstate(all="ignore"):
        runs = [descent.descend(descent.sgd(), few, test, rate=rate, epochs=3, seed=0) for rate in (1e-2, 1e30)]
    assert np.isinf(runs[1].losses[-1])
    assert descent.Comparison("SGD", tuple(runs)).best is runs[0]


def test_the_window_demo_reports_every_method_and_draws(tmp_path):
    """As a user runs it, for two epochs."""
    picture = tmp_path / "window.png"
    command = [sys.executable, "-W", "error", "-m", "mfac_linalg.demo", "--window", "--epochs=2", f"--output={picture}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert all(name in done.stdout for name in ("SGD", "Adam", "M-FAC window"))
    assert done.stdout.isascii()
    assert picture.read_bytes().startswith(PNG)


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch):
    """Steps are returned unchanged unless standard error is a terminal."""
    pytest.importorskip("tqdm", reason="needs tqdm")
    steps = [1, 2, 3]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.with_progress(steps, "working") is steps
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.with_progress(steps, "working") is not steps
    assert list(progress.with_progress(steps, "working")) == steps
    for stream in (None, closed_stream()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert progress.with_progress(steps, "working") is steps


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    """The message has the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r'needs matplotlib\. Install with: pip install "mfac_linalg\[demo\]"'):
        demo.main([])


@pytest.mark.parametrize(
    "argument",
    [
        "--damping=0",
        "--damping=inf",
        "--gradients=0",
        "--gradients=1001",
        "--steps=0",
        "--epochs=0",
        "--output=no/such/folder.png",
    ],
)
def test_a_bad_option_is_refused_with_its_value(argument, capsys):
    """The usual exit of argparse, with the name of the option and the value."""
    with pytest.raises(SystemExit) as stopped:
        demo.main([argument])
    name, value = argument.split("=")
    assert stopped.value.code == 2
    assert f"{name} must" in (message := capsys.readouterr().err)
    assert message.rstrip().endswith(f"got {float(value) if name == '--damping' else value}.")
