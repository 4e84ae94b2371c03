"""Per-sample gradients of a trained network: single layers against dense inverses, all of it against the recursion.

Needs a folder of data that is named by MFAC_LINALG_DATA and not part of the project.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT, Oracle
from tests.backends import eps
from tests.oracle import RankOneRecursion, dense_inverse

FOLDER = os.environ.get("MFAC_LINALG_DATA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs MFAC_LINALG_DATA")
LAYERS = {"fc1.weight": slice(0, 31_360), "fc2.weight": slice(31_360, 32_160), "fc3.weight": slice(32_160, 32_360)}
KAPPA = 1e5


@pytest.fixture(scope="module")
def gradients():
    """Gradients of 1,000 cross-entropies with respect to all weights, (1000, 32360), float64."""
    network = np.load(Path(FOLDER) / "mlp_mnist_9397.npz")
    digits = np.load(Path(FOLDER) / "mnist_mini.npz")
    first, second, third = (network[name].astype(np.float64) for name in LAYERS)
    pixels = (digits["x"].reshape(1000, 784) / 255 - 0.1307) / 0.3081
    hidden = np.maximum(pixels @ first.T, 0)
    deeper = np.maximum(hidden @ second.T, 0)
    logits = deeper @ third.T
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert np.mean(np.argmax(logits, axis=1) == digits["y"]) > 0.9
    error = probabilities - np.eye(10)[digits["y"]]
    deeper_error = (error @ third) * (deeper > 0)
    hidden_error = (deeper_error @ second) * (hidden > 0)
    pairs = [(hidden_error, pixels), (deeper_error, hidden), (error, deeper)]
    return np.concatenate([(e[:, :, None] * a[:, None, :]).reshape(1000, -1) for e, a in pairs], axis=1)


def questions(gradients):
    """A random vector, a row, a difference of rows and the mean gradient, as columns."""
    columns = [np.random.default_rng(0).standard_normal(gradients.shape[1]), gradients[3]]
    columns += [gradients[3] - gradients[5], gradients.mean(axis=0)]
    return np.stack(columns, axis=1).astype(gradients.dtype)


def damping_for(gradients):
    """A damping for a condition number of up to `KAPPA`: the mean squared gradient over it."""
    return float(np.mean(np.sum(gradients.astype(np.float64) ** 2, axis=1))) / KAPPA


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", ["fc2.weight", "fc3.weight"])
def test_a_layer_equals_its_dense_inverse(gradients, layer, dtype, whiten):
    rows = np.ascontiguousarray(gradients[:, LAYERS[layer]]).astype(dtype)
    damping = damping_for(rows)
    v, oracle = questions(rows), Oracle(rows, damping, wide=np.float64)
    x = WoodburyRankOneInverse(rows, damping, whiten=whiten).matmat(v)
    exact = dense_inverse(rows, damping) @ v.astype(np.float64)
    error = np.linalg.norm(x - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert np.all(error <= LIMIT * eps(dtype) * oracle.kappa)
    assert np.all(oracle.backward_ratio(v, x, eps(dtype)) <= LIMIT)


@pytest.mark.parametrize("layer", ["fc2.weight", "fc3.weight"])
def test_the_diagonal_of_a_layer_equals_the_dense_one(gradients, layer):
    rows = np.ascontiguousarray(gradients[:, LAYERS[layer]]).astype(np.float32)
    damping = damping_for(rows)
    diagonal = WoodburyRankOneInverse(rows, damping).diagonal()
    exact = np.diag(dense_inverse(rows, damping))
    assert np.max(np.abs(diagonal - exact)) <= LIMIT * eps("float32") / damping
    assert np.max(np.abs(diagonal - exact) / exact) <= 1e-3


@pytest.fixture(scope="module")
def network(gradients):
    """All layers at once: float32 gradients, questions, the oracle for residuals, the recursion's float64 answers."""
    rows = gradients.astype(np.float32)
    oracle = Oracle(rows, damping_for(rows), wide=np.float64)
    asked = questions(rows)
    return rows, asked, oracle, RankOneRecursion(rows, oracle.damping).matvec(asked.astype(np.float64))


@pytest.mark.parametrize("whiten", [True, False])
def test_the_whole_network_equals_the_recursion_in_float64(network, whiten):
    rows, asked, oracle, exact = network
    x = WoodburyRankOneInverse(rows, oracle.damping, whiten=whiten).matmat(asked)
    error = np.linalg.norm(x - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert np.all(error <= LIMIT * eps("float32") * oracle.kappa)
    assert np.all(oracle.backward_ratio(asked, x, eps("float32")) <= LIMIT)


def test_the_whole_network_in_float64_equals_the_recursion_to_the_recursions_own_error(network):
    rows, asked, oracle, exact = network
    x = WoodburyRankOneInverse(rows.astype(np.float64), oracle.damping).matmat(asked.astype(np.float64))
    error = np.linalg.norm(x - exact, axis=0) / np.linalg.norm(exact, axis=0)
    unit = eps("float64")
    assert np.all(error <= unit * oracle.kappa * (LIMIT + oracle.backward_ratio(asked, exact, unit)))
