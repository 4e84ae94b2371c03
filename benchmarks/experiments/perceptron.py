"""Gradients of a perceptron as factors of its layers: their inner products do not need the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

BLOCK = 500  # rows in memory at a time


@dataclass(frozen=True)
class FactoredRows:
    """Row i is, layer by layer, b_i ⊗ (a_i, 1): the gradients of weights and biases, with d = Σ q (p + 1) numbers."""

    inputs: list[np.ndarray]  # (n, p + 1), of every layer, with a one for the biases
    outputs: list[np.ndarray]  # (n, q), the gradients at the layer's outputs

    def __len__(self) -> int:
        return len(self.outputs[0])

    def at(self, index: np.ndarray | slice) -> FactoredRows:
        return FactoredRows([a[index] for a in self.inputs], [b[index] for b in self.outputs])

    def scaled(self, weights: np.ndarray) -> FactoredRows:
        """The rows w_i g_i."""
        return FactoredRows(self.inputs, [b * weights[:, None] for b in self.outputs])

    def gram(self, other: FactoredRows) -> np.ndarray:
        """All inner products, Σ over the layers of (A Cᵀ) ∘ (B Dᵀ), in (p + q) instead of p q multiplications each."""
        found = np.zeros((len(self), len(other)))
        for a, b, c, d in zip(self.inputs, self.outputs, other.inputs, other.outputs, strict=True):
            product = a @ c.T
            product *= b @ d.T
            found += product
        return found

    def squares(self) -> np.ndarray:
        """‖g_i‖², (n,)."""
        pairs = zip(self.inputs, self.outputs, strict=True)
        return sum(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b) for a, b in pairs)

    def dense(self) -> np.ndarray:
        """The rows themselves, (n, d)."""
        pairs = zip(self.inputs, self.outputs, strict=True)
        return np.concatenate([(b[:, :, None] * a[:, None, :]).reshape(len(self), -1) for a, b in pairs], axis=1)

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """G X for X (d, k), some rows at a time, in the dtype of X."""
        blocks = [self.at(slice(start, start + BLOCK)) for start in range(0, len(self), BLOCK)]
        return np.concatenate([block.dense().astype(matrix.dtype) @ matrix for block in blocks])


@dataclass(frozen=True)
class Perceptron:
    """Linear layers with ReLU between them, in float64; dropout is off."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    @classmethod
    def of(cls, model: nn.Sequential) -> Perceptron:
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        arrays = [[p.detach().numpy().astype(np.float64) for p in (layer.weight, layer.bias)] for layer in layers]
        return cls(*map(list, zip(*arrays, strict=True)))

    def forward(self, inputs: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """The inputs of all layers, and the logits."""
        layers, values = [], inputs
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            layers.append(np.maximum(values, 0) if index else values)
            values = layers[-1] @ weight.T + bias
        return layers, values

    def rows(self, inputs: np.ndarray, cotangents: np.ndarray) -> FactoredRows:
        """The gradients of c_iᵀ logits(x_i) for the rows of inputs and cotangents."""
        layers, _ = self.forward(inputs)
        outputs = [cotangents]
        for values, weight in zip(layers[:0:-1], self.weights[:0:-1], strict=True):
            outputs.insert(0, (outputs[0] @ weight) * (values > 0))
        ones = np.ones((len(inputs), 1))
        return FactoredRows([np.concatenate([values, ones], axis=1) for values in layers], outputs)


def fisher_rows(model: Perceptron, inputs: np.ndarray, count: int) -> tuple[FactoredRows, float]:
    """The `count` longest rows of G with GᵀG = F, the true Fisher matrix, and their share of its trace.

    F = (1/n) Σ_i J_iᵀ (diag p_i − p_i p_iᵀ) J_i, with the Jacobian J_i of the logits. The eigenpairs (μ, u) of the
    matrix in the middle make rows √(μ/n) uᵀJ_i: C − 1 a sample, of which the first is often nearly all.
    """
    _, logits = model.forward(inputs)
    p = softmax(logits)
    values, vectors = np.linalg.eigh(p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :])
    cotangents = (vectors * np.sqrt(np.maximum(values, 0) / len(p))[:, None, :]).transpose(2, 0, 1)
    squares = np.stack([model.rows(inputs, c).squares() for c in cotangents])
    label, sample = np.unravel_index(np.argsort(-squares, axis=None)[:count], squares.shape)
    return model.rows(inputs[sample], cotangents[label, sample]), float(squares[label, sample].sum() / squares.sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
