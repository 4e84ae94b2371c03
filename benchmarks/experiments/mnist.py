"""The trained network for MNIST's digits, and the digits, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Images = tuple[Tensor, Tensor]
WHERE = """\
mlp_mnist_9397.npz    fc1.weight (40, 784), fc2.weight (20, 40), fc3.weight (10, 20) of a trained ReLU network
mnist_mini.npz        x, x_test (n, 28, 28) uint8 and y, y_test: some digits of torchvision.datasets.MNIST
"""


def load(folder: Path) -> tuple[nn.Sequential, Images, Images]:
    """The network, which has no biases, and the digits for training and for tests, (n, 784)."""
    stored, digits = np.load(folder / "mlp_mnist_9397.npz"), np.load(folder / "mnist_mini.npz")
    weights = [torch.from_numpy(stored[f"fc{index}.weight"]).float() for index in (1, 2, 3)]
    layers = [nn.Linear(*weight.shape[::-1], bias=False) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data = weight
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    train, test = (
        scaled(digits[f"x{end}"].reshape(-1, 784), digits[f"y{end}"], 0.1307, 0.3081) for end in ("", "_test")
    )
    return network, train, test


def scaled(pixels: np.ndarray, classes: Any, mean: float, deviation: float) -> Images:
    """Pixels from 0 to 255 as float32 of mean 0 and deviation 1, and their classes."""
    images = (pixels.astype(np.float32) / 255 - mean) / deviation
    return torch.from_numpy(images), torch.from_numpy(classes.astype(np.int64))
