"""The sections of the report: each function returns the text of one."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.linalg import norm

from .. import WoodburyRankOneInverse
from .descent import RATES, WINDOW, Comparison
from .digits import Images
from .network import CLASSES, HIDDEN, INPUTS, Array, accuracy, weight_mask
from .pruning import TARGETS, Curves


def facts(title: str, values: dict[str, str]) -> str:
    """Lay out names and values in two columns."""
    width = max(len(name) for name in values)
    return "\n".join([title, *(f"  {name:<{width}}   {value}" for name, value in values.items()), ""])


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out rows under a header, the first column flush left and the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([title, *(f"  {line}" for line in text), ""])


def network_facts(training: Images, test: Images, parameters: Array, *, seconds: float) -> str:
    """Size and accuracy of the network before pruning."""
    values = {
        "layers": f"{INPUTS} - {HIDDEN} - {CLASSES}",
        "parameters": f"{len(parameters):,}, {weight_mask().sum():,} of them weights",
        "training": f"{100 * accuracy(parameters, training):.1f} % of {len(training.labels):,} images, {seconds:.1f} s",
        "test": f"{100 * accuracy(parameters, test):.1f} % of {len(test.labels):,} images",
    }
    return facts("Network", values)


def inverse_facts(inverse: WoodburyRankOneInverse, *, build: float, product: float, dense: float) -> str:
    """Sizes, times and conditioning."""
    m = inverse.num_gradients
    values = {
        "gradients": f"{m:,} x {inverse.dim:,} {inverse.dtype}",
        "build": f"{1e3 * build:.0f} ms (the dense float64 inverse: {1e3 * dense:.0f} ms)",
        "one product": f"{1e3 * product:.1f} ms",
        "kappa": f"{inverse.kappa:.3g}, with {inverse.sweeps} dual sweep(s) a product",
        "condition number": f"{inverse.condition_number():.3g}",
        "effective rank": f"{inverse.forward.effective_rank():.1f} of {m:,}",
    }
    return facts(f"Inverse of F = damping I + G'G/m, damping {float(inverse.damping):.3g}", values)


def accuracy_table(inverse: WoodburyRankOneInverse, products: Iterable[tuple[str, Array, Array]], dense: Array) -> str:
    """Each product's error against the dense inverse, and its backward error, which needs no dense inverse."""
    bound = 30 * np.finfo(inverse.dtype).eps
    rows = []
    for name, v, x in products:
        exact = dense @ v
        error = norm(x - exact) / norm(exact)
        rows.append([name, f"{error:.1e}", f"{inverse.backward_error(v, x):.1e}", f"{bound:.1e}"])
    return table("Products F^-1 v", ["v", "error against dense", "own backward error", "30 eps"], rows)


def damping_table(inverse: WoodburyRankOneInverse, gradient: Array) -> str:
    """Norm and direction of the step F⁻¹ (mean gradient) along a path of dampings."""
    dampings = float(inverse.damping) * 10.0 ** np.arange(-1, 4)
    steps = inverse.damping_path(gradient, dampings)
    rows = []
    for damping, step in zip(dampings, steps.T, strict=True):
        product = inverse.forward @ step + (damping - inverse.damping) * step
        residual = norm(gradient - product) / norm(gradient)
        cosine = gradient @ step / (norm(gradient) * norm(step))
        rows.append([f"{damping:.0e}", f"{norm(step):.3g}", f"{cosine:.3f}", f"{residual:.1e}"])
    header = ["damping", "norm of step", "cosine with gradient", "relative residual"]
    return table("Damping path of the step F^-1 (mean gradient)", header, rows)


def pruning_table(curves: Curves, *, before: float) -> str:
    """Test accuracy of each method at the target sparsities."""
    steps = len(curves.sparsity) // len(TARGETS)
    at_targets = [100 * np.asarray(curve[steps - 1 :: steps]) for curve in curves]
    rows = [[f"{row[0]:.0f} %", *(f"{value:.1f} %" for value in row[1:])] for row in zip(*at_targets, strict=True)]
    title = f"Test accuracy after pruning, no retraining, {100 * before:.1f} % before (OBS: optimal brain surgeon)"
    header = ["weights removed", "magnitude", "OBS, one inverse", f"OBS, {len(curves.sparsity)} inverses"]
    return table(title, header, rows)


def descent_table(comparisons: Iterable[Comparison], *, epochs: int, damping: float) -> str:
    """Each method at its best learning rate."""
    rows = []
    for each in comparisons:
        best = each.best
        figures = [
            f"{best.rate:g}",
            f"{best.losses[-1]:.2g}",
            f"{100 * best.accuracy:.1f} %",
            f"{1e3 * best.seconds:.2f}",
        ]
        rows.append([each.name, *figures])
    grid = ", ".join(f"{rate:g}" for rate in RATES)
    title = (
        f"Training for {epochs} epochs in batches of 32, the same start and batches for all; rates fall to zero;\n"
        f"momentum 0.9 for SGD and the window ({WINDOW} gradients, damping {damping:g}); best rate of {grid}"
    )
    return table(title, ["method", "learning rate", "training loss", "test accuracy", "ms a step"], rows)
