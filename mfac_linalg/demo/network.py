"""A 64-32-10 perceptron in plain NumPy: its parameters are one flat vector, its gradients are rows."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from .digits import Images
from .progress import with_progress

Array = NDArray[np.floating[Any]]

INPUTS, HIDDEN, CLASSES = 64, 32, 10
SHAPES = (INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)
DIM = sum(math.prod(shape) for shape in SHAPES)


class Layers(NamedTuple):
    """The arrays of both layers, in the order in which a flat vector holds them."""

    hidden_weights: Array
    hidden_biases: Array
    output_weights: Array
    output_biases: Array


def unpack(parameters: Array) -> Layers:
    """View a flat vector, shape (d,), as the arrays of both layers."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES])
    parts = np.split(parameters, ends[:-1])
    return Layers(*(part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)))


def weight_mask() -> NDArray[np.bool_]:
    """Return True for each weight, False for each bias, shape (d,)."""
    return np.concatenate([np.full(math.prod(shape), len(shape) == 2) for shape in SHAPES])


def forward(parameters: Array, pixels: Array) -> tuple[Array, Array]:
    """Return hidden activations, shape (n, 32), and logits, shape (n, 10)."""
    layers = unpack(parameters)
    activations = np.maximum(pixels @ layers.hidden_weights + layers.hidden_biases, 0)
    return activations, activations @ layers.output_weights + layers.output_biases


def cross_entropy(parameters: Array, images: Images) -> Array:
    """Loss of each image, shape (n,)."""
    log_probabilities: Array = log_softmax(forward(parameters, images.pixels)[1], axis=1)
    return -log_probabilities[np.arange(len(images.labels)), images.labels]


def accuracy(parameters: Array, images: Images) -> float:
    """Fraction of the images that the network classifies correctly."""
    return float(np.mean(forward(parameters, images.pixels)[1].argmax(axis=1) == images.labels))


def per_sample_gradients(parameters: Array, images: Images) -> Array:
    """Gradient of each image's cross-entropy, shape (n, d): the layers' outer products side by side."""
    activations, logits = forward(parameters, images.pixels)
    errors = softmax(logits, axis=1) - np.eye(CLASSES, dtype=logits.dtype)[images.labels]
    hidden_errors = errors @ unpack(parameters).output_weights.T * (activations > 0)
    return np.hstack([_outer(images.pixels, hidden_errors), hidden_errors, _outer(activations, errors), errors])


def _outer(inputs: Array, errors: Array) -> Array:
    return (inputs[:, :, None] * errors[:, None, :]).reshape(len(inputs), -1)


def train(images: Images, *, seed: int, epochs: int = 60, batch: int = 32, rate: float = 3e-3) -> Array:
    """Minimise the mean cross-entropy with Adam and a step that falls linearly to zero."""
    rng = np.random.default_rng(seed)
    parameters = initial(rng)
    mean, square = np.zeros_like(parameters), np.zeros_like(parameters)
    steps = [rows for _ in range(epochs) for rows in batches(len(images.labels), rng, size=batch)]
    for step, rows in enumerate(with_progress(steps, "training"), start=1):
        gradient = per_sample_gradients(parameters, images.take(rows)).mean(axis=0)
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        parameters -= rate * (1 - step / len(steps)) * direction
    return parameters


def batches(count: int, rng: np.random.Generator, *, size: int = 32) -> list[NDArray[np.intp]]:
    """Draw the indices of each batch of an epoch."""
    return np.array_split(rng.permutation(count), count // size)


def initial(rng: np.random.Generator) -> Array:
    """He's initialisation: normal weights of variance 2 / inputs, biases of zero."""
    parameters = np.zeros(DIM, dtype=np.float32)
    for array in unpack(parameters):
        if array.ndim == 2:
            array[:] = rng.normal(scale=math.sqrt(2 / len(array)), size=array.shape)
    return parameters
