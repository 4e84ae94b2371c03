"""ResNet-20 for CIFAR-10, its trained weights and the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WHERE = """\
resnet20_cifar10.npz  the state dictionary of a trained ResNet-20 (1x1 convolutions on its shortcuts), an array a name:
                      the M-FAC authors publish theirs at github.com/IST-DASLab/M-FAC
cifar10_train_{0,1}.npz, cifar10_test_{0,1}.npz
                      x, (5000, 32, 32, 3) uint8, and y: the first 10,000 training images, in the order of the
                      original files, and the 10,000 test images, from torchvision.datasets.CIFAR10
"""
BATCH = 500


class Block(nn.Module):
    """Two convolutions in parallel with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs)) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet20(nn.Module):
    """Three stages of three blocks; 272,474 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def prunable(name: str, _: nn.Parameter) -> bool:
    """Whether a parameter is pruned: convolutions but those of shortcuts, and the last layer, without biases."""
    return ("conv" in name or "fc" in name) and "bias" not in name


def load_network(folder: Path) -> ResNet20:
    """The trained network, in eval mode."""
    stored = np.load(folder / "resnet20_cifar10.npz")
    network = ResNet20()
    network.load_state_dict({name: torch.from_numpy(stored[name]) for name in stored.files})
    return network.to(memory_format=torch.channels_last).eval()


def load_images(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of "train" or "test", normalised as the network was trained, and their classes."""
    files = [np.load(folder / f"cifar10_{part}_{index}.npz") for index in (0, 1)]
    pixels = np.concatenate([file["x"] for file in files])[:count].astype(np.float32)
    classes = np.concatenate([file["y"] for file in files])[:count].astype(np.int64)
    images = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(classes)


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Per cent of the images that are classified rightly."""
    right = sum(
        int((network(x).argmax(dim=1) == y).sum())
        for x, y in zip(images.split(BATCH), classes.split(BATCH), strict=True)
    )
    return 100 * right / len(classes)


@torch.inference_mode()
def mean_loss(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Mean cross-entropy."""
    parts = zip(images.split(BATCH), classes.split(BATCH), strict=True)
    return sum(float(functional.cross_entropy(network(x), y, reduction="sum")) for x, y in parts) / len(classes)
