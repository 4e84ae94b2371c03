"""What influence functions predict, against retraining: ``python -m benchmarks.experiments.influence --data FOLDER``.

Groups of training digits are left out of the last layer of a trained MLP, 784-40-20-10 without biases, which is
softmax regression on 20 features: convex, and with L2 damping fitted by Newton's method to its last digits, first on
all digits, then without each group. The actual change of a test loss is compared with the predicted one, + (1/n) Σ tᵀ
F⁻¹ g_i over the group, for several F with the λ of the L2 damping: the true Fisher, whose rows are the gradients of all
labels weighted by their probabilities (for this layer the Hessian itself), the Fisher of one sampled label a digit,
the empirical Fisher of the true labels, its diagonal, and λI. Then the same by gradients of the whole network.

The folder contains two files. ``mnist_mini.npz``: ``x``, ``x_test`` (n, 28, 28) uint8 and ``y``, ``y_test``, some
digits of torchvision.datasets.MNIST (``.data`` and ``.targets``; 1,000 and 1,000 here). ``mlp_mnist_9397.npz``:
``fc1.weight``, ``fc2.weight``, ``fc3.weight`` of any trained MLP of that shape (``numpy.savez(path,
**{name: p.detach().numpy() for name, p in model.named_parameters()})``), with ReLU, for (x/255 − 0.1307)/0.3081.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.experiments.softmax import Softmax, losses, outer_rows, probabilities
from benchmarks.machine import describe
from mfac_linalg import BlockDiagonalInverse, WoodburyRankOneInverse
from mfac_linalg.influence import influence

DAMPINGS, GROUPS = (1e-3, 1e-2, 1e-1), (1, 10, 100)
DIGITS, RESAMPLES, SHOWN = 20, 500, (1e-2, 10)
LEAST = 0.01  # probability of a label whose gradient is a row of the whole network's true Fisher
KINDS = ("true Fisher", "sampled Fisher", "empirical Fisher", "diagonal", "identity")


@dataclass(frozen=True)
class Data:
    """The layers before the last, training and test samples."""

    layers: list[np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    @classmethod
    def load(cls, folder: Path) -> Data:
        """From the two files that the module's docstring describes."""
        network, digits = np.load(folder / "mlp_mnist_9397.npz"), np.load(folder / "mnist_mini.npz")
        train, test = (digits[name].reshape(len(digits[name]), -1) / 255 for name in ("x", "x_test"))
        layers = [network[f"{name}.weight"].astype(np.float64) for name in ("fc1", "fc2")]
        y, y_test = (digits[name].astype(int) for name in ("y", "y_test"))
        return cls(layers, (train - 0.1307) / 0.3081, y, (test - 0.1307) / 0.3081, y_test, 10)

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """What the last layer sees."""
        for layer in self.layers:
            inputs = np.maximum(inputs @ layer.T, 0)
        return inputs


@dataclass(frozen=True)
class Outcome:
    """How well one F predicts, over all groups of one size: rank correlation with its 95 % interval, and scale.

    `error` is ‖predicted − actual‖/‖actual‖ over the groups.
    """

    damping: float
    group: int
    gradients: str
    fisher: str
    loss: str
    spearman: float
    low: float
    high: float
    by_seed: list[float]
    error: float


# --- what really happens ------------------------------------------------------------------------------------------


def retrained(model: Softmax, optimum: np.ndarray, groups: np.ndarray, evaluate: Callable) -> np.ndarray:
    """The change of evaluate(θ), (losses,), where each group (one a row) is left out, (groups, losses)."""
    before = evaluate(optimum)
    return np.stack([evaluate(model.without(group, optimum)) - before for group in groups])


def tests_of(data: Data, digits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """θ → the mean test loss, and those of some digits."""
    features = data.features(data.test_inputs)

    def evaluate(theta: np.ndarray) -> np.ndarray:
        each = losses(features, data.test_labels, theta, data.num_classes)
        return np.concatenate([[each.mean()], each[digits]])

    return evaluate


# --- what is predicted ---------------------------------------------------------------------------------------------

Rows = Callable[[np.ndarray, np.ndarray], np.ndarray]


def last_layer_rows(data: Data, optimum: np.ndarray) -> Rows:
    """(inputs, labels) → gradients of the last layer's weights."""

    def rows(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        features, identity = data.features(inputs), np.eye(data.num_classes)
        return outer_rows(probabilities(features, optimum, data.num_classes) - identity[labels], features)

    return rows


def network_rows(data: Data, optimum: np.ndarray) -> Rows:
    """(inputs, labels) → gradients of all weights, by PyTorch in float32."""
    import torch

    from mfac_linalg.torch import per_sample_gradients

    weights = [*data.layers, optimum.reshape(data.num_classes, -1)]
    layers = []
    for weight in weights:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = torch.as_tensor(weight, dtype=torch.float32)
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])

    def rows(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        tensors = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(labels)
        return per_sample_gradients(model, torch.nn.functional.cross_entropy, *tensors, chunk_size=250)[0].numpy()

    return rows


def sampled_labels(p: np.ndarray, seed: int) -> np.ndarray:
    """One label a row, drawn by its probabilities."""
    drawn = np.random.default_rng(seed).uniform(size=(len(p), 1))
    return np.minimum((np.cumsum(p, axis=1) < drawn).sum(axis=1), p.shape[1] - 1)


@dataclass(frozen=True)
class Forecast:
    """Training and test gradients, the probabilities p of labels, (n, classes), and the least that make rows of F."""

    rows: Rows
    data: Data
    p: np.ndarray
    trains: np.ndarray
    tests: np.ndarray
    damping: float
    least: float

    def scores(self, kind: str, seed: int) -> np.ndarray:
        """T F⁻¹ Gᵀ, (tests, n), under one of the KINDS of F."""
        if kind == "identity":
            return self.tests @ self.trains.T / self.damping
        if kind == "diagonal":
            return influence(BlockDiagonalInverse(self.trains, self.damping, block_sizes=1), self.tests)
        if kind == "empirical Fisher":
            return influence(WoodburyRankOneInverse(self.trains, self.damping), self.tests)
        if kind == "sampled Fisher":
            fisher = self.rows(self.data.inputs, sampled_labels(self.p, seed))
            return influence(WoodburyRankOneInverse(fisher, self.damping), self.tests, self.trains)
        return influence(self.true_fisher(), self.tests, self.trains)

    def true_fisher(self) -> WoodburyRankOneInverse:
        """F = Λ + (1/n) Σ_i Σ_y p_iy g_iy g_iyᵀ, over the labels with p_iy above the least."""
        sample, label = np.nonzero(self.p > self.least)
        fisher = self.rows(self.data.inputs[sample], label)
        weights = (self.p[sample, label] / len(self.p)).astype(fisher.dtype)
        return WoodburyRankOneInverse(fisher, self.damping, weights=weights, normalization="sum", whiten=False)


# --- how well they agree ------------------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, centred and of norm one."""
    from scipy.stats import rankdata

    found = rankdata(values, axis=-1)
    found = found - found.mean(axis=-1, keepdims=True)
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-300)


def spearman(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis."""
    return np.sum(ranks(predicted) * ranks(actual), axis=-1)


def interval(predicted: np.ndarray, actual: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval, over groups, of the mean correlation of some losses, (losses, groups)."""
    count = predicted.shape[1]
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    found = np.mean([spearman(f[drawn], a[drawn]) for f, a in zip(predicted, actual, strict=True)], axis=0)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def outcomes(predicted: np.ndarray, actual: np.ndarray, num_seeds: int, **facts) -> Iterator[Outcome]:
    """For the mean test loss and for single digits, both (1 + digits, groups), the groups of one seed side by side."""
    for loss, part in (("mean", slice(0, 1)), ("digits", slice(1, None))):
        f, a = predicted[part], actual[part]
        low, high = interval(f, a)
        seeds = zip(np.split(f, num_seeds, axis=1), np.split(a, num_seeds, axis=1), strict=True)
        by_seed = [float(spearman(*pair).mean()) for pair in seeds]
        error = float(np.linalg.norm(f - a) / np.linalg.norm(a))
        yield Outcome(
            **facts, loss=loss, spearman=float(spearman(f, a).mean()), low=low, high=high, by_seed=by_seed, error=error
        )


# --- the experiment -----------------------------------------------------------------------------------------------


def groups_of(size: int, count: int, num_samples: int, seeds: list[int]) -> np.ndarray:
    """Random groups of samples, `count` a seed, as rows."""
    generators = [np.random.default_rng([seed, size]) for seed in seeds]
    return np.array([rng.permutation(num_samples)[:size] for rng in generators for _ in range(count)])


def experiment(
    data: Data, damping: float, seeds: list[int], count: int, sizes: tuple[int, ...], whole: bool
) -> Iterator[tuple[Outcome, np.ndarray, np.ndarray]]:
    """Outcomes under one damping, with the predicted and the actual changes of the mean test loss."""
    model = Softmax(data.features(data.inputs), data.labels, data.num_classes, damping)
    optimum = model.fitted()
    digits = np.random.default_rng(0).permutation(len(data.test_labels))[:DIGITS]
    evaluate, p = tests_of(data, digits), probabilities(model.features, optimum, data.num_classes)
    groups = {size: groups_of(size, count, len(p), seeds) for size in sizes}
    actual = {size: retrained(model, optimum, groups[size], evaluate).T for size in sizes}
    named = {"last layer": (last_layer_rows(data, optimum), 0.0)}
    named |= {"network": (network_rows(data, optimum), LEAST)} if whole else {}
    for gradients, (rows, least) in named.items():
        each = rows(data.test_inputs, data.test_labels)
        tests = np.concatenate([each.mean(axis=0, keepdims=True), each[digits]])
        forecast = Forecast(rows, data, p, rows(data.inputs, data.labels), tests, damping, least)
        for kind in KINDS:
            drawn = seeds if kind == "sampled Fisher" else seeds[:1]
            scores = [forecast.scores(kind, seed) / len(p) for seed in drawn]
            for size in sizes:
                parts = np.split(groups[size], len(drawn))
                sums = [s[:, part].sum(axis=2) for s, part in zip(scores, parts, strict=True)]
                found = np.concatenate(sums, axis=1).astype(np.float64)
                facts = {"damping": damping, "group": size, "gradients": gradients, "fisher": kind}
                for outcome in outcomes(found, actual[size], len(seeds), **facts):
                    yield outcome, found[0], actual[size][0]


def line(outcome: Outcome) -> str:
    """A line of the table."""
    words = (
        f"{outcome.damping:<7g} {outcome.group:>5}  {outcome.gradients:<10}  {outcome.fisher:<16}  {outcome.loss:<6}"
    )
    return f"{words}  {outcome.spearman:6.3f}  [{outcome.low:6.3f}, {outcome.high:6.3f}]  {outcome.error:8.2f}"


def rounded(outcome: Outcome) -> dict[str, object]:
    """Its figures to four decimals, for JSON."""
    by_seed = [round(figure, 4) for figure in outcome.by_seed]
    figures = {name: round(getattr(outcome, name), 4) for name in ("spearman", "low", "high", "error")}
    return asdict(outcome) | figures | {"by_seed": by_seed}


def draw(points: list[tuple[Outcome, np.ndarray, np.ndarray]], path: Path) -> None:
    """Foretold against actual changes of the mean test loss, one panel for each F."""
    import matplotlib.pyplot as plt

    shown = [point for point in points if (point[0].damping, point[0].group) == SHOWN and point[0].loss == "mean"]
    kinds = list(dict.fromkeys(outcome.gradients for outcome, *_ in shown))
    figure, axes = plt.subplots(len(kinds), len(KINDS), figsize=(2.7 * len(KINDS), 2.9 * len(kinds)), squeeze=False)
    for outcome, found, actual in shown:
        axis = axes[kinds.index(outcome.gradients)][KINDS.index(outcome.fisher)]
        panel(axis, outcome, 1e3 * found, 1e3 * actual)
    figure.suptitle(
        f"Change of the mean test loss (× 1000) where {SHOWN[1]} of 1,000 digits are left out and the last layer is "
        f"retrained, λ = {SHOWN[0]:g}; dashed: predicted = actual",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def panel(axis, outcome: Outcome, found: np.ndarray, actual: np.ndarray) -> None:
    """One scatter, with the line of equality where it is in reach."""
    axis.scatter(found, actual, s=9, color="#0b6e99", alpha=0.6, lw=0)
    limits = axis.get_xlim(), axis.get_ylim()
    axis.axline((0, 0), slope=1, color="0.4", ls="--", lw=0.9)
    axis.set(xlim=limits[0], ylim=limits[1], xlabel="predicted")
    axis.set_title(
        f"{outcome.fisher}, {outcome.gradients}\nρ = {outcome.spearman:.2f} [{outcome.low:.2f}, {outcome.high:.2f}]",
        fontsize=9,
    )
    axis.locator_params(nbins=5)
    axis.tick_params(labelsize=8)
    if outcome.fisher == KINDS[0]:
        axis.set_ylabel("actual")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.experiments.influence", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="see above")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of groups and sampled labels")
    parser.add_argument("--groups", type=int, default=50, help="groups a seed, of each size")
    parser.add_argument("--dampings", type=float, nargs="+", default=list(DAMPINGS))
    parser.add_argument("--output", type=Path, help="write machine, versions and figures here")
    parser.add_argument("--picture", type=Path, help=f"draw the groups of {SHOWN[1]} at λ = {SHOWN[0]:g} here")
    options = parser.parse_args(arguments)
    if options.picture and SHOWN[0] not in options.dampings:
        parser.error(f"--picture shows λ = {SHOWN[0]:g}; got --dampings {options.dampings}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run everything and print the table."""
    options = parse(arguments)
    data, points = Data.load(options.data), []
    print("damping group  gradients   F                 loss    Spearman and 95 % interval     error")
    for damping in options.dampings:
        for point in experiment(data, damping, options.seeds, options.groups, GROUPS, whole=True):
            points.append(point)
            print(line(point[0]), flush=True)
    if options.output:
        facts = {"machine": describe(), "seeds": options.seeds, "groups a seed": options.groups}
        lines = ",\n".join(json.dumps(rounded(outcome)) for outcome, *_ in points)
        options.output.write_text(f'{json.dumps(facts, indent=1)[:-2]},\n "outcomes": [\n{lines}\n]}}\n')
    if options.picture:
        draw(points, options.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
