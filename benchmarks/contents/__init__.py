"""The contents of the tables of the documentation, and the numbers in its sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import chita, factored, influence, pruning, pruning_slope, theory, training, tuning

TABLES: dict[str, Callable[[], str]] = {
    "pruning, one shot": pruning.one_shot,
    "pruning, by number of gradients": pruning.by_count,
    "pruning, in steps": pruning.in_steps,
    "pruning, by damping": pruning.by_damping,
    "pruning, trained afterwards": pruning.tuned,
    "pruning, compensation": pruning.compensated,
    "pruning, compensation in steps": pruning.compensated_in_steps,
    "pruning without a slope, ResNet-20": partial(pruning_slope.over_seeds, "ResNet-20", pruning_slope.WITHOUT),
    "pruning with a slope, ResNet-20": partial(pruning_slope.over_seeds, "ResNet-20", pruning_slope.RESNET),
    "pruning without a slope, digits": partial(pruning_slope.over_seeds, "MLP", pruning_slope.WITHOUT_DIGITS),
    "pruning with a slope, digits": partial(pruning_slope.over_seeds, "MLP", pruning_slope.DIGITS),
    "pruning by steps, digits": pruning_slope.by_steps,
    "pruning with a slope, variants": pruning_slope.variants_of_resnet,
    "pruning with a slope, removals": pruning_slope.variants_of_removals,
    "pruning with a slope, moves": pruning_slope.variants_of_moves,
    "pruning with a slope, variants on digits": pruning_slope.variants_of_mlp,
    "pruning beside CHITA, objective": chita.objectives,
    "pruning beside CHITA, seconds": chita.seconds,
    "pruning beside CHITA, accuracy": chita.accuracies,
    "optimizer": partial(training.training, training.TRAINED, "", timed=True),
    "optimizer, default weights": partial(training.training, training.BY_DEFAULT, "default-"),
    "optimizer, first steps": training.first_steps,
    "optimizer, small batches": partial(training.training, training.SMALL, "small-"),
    "optimizer, text": partial(tuning.by_method, "text"),
    "optimizer, table": partial(tuning.by_method, "table"),
    "optimizer, equation": partial(tuning.by_method, "equation"),
    "optimizer, variants": tuning.variants,
    "influence, last layer": partial(influence.predicted, "last layer"),
    "influence, network": partial(influence.predicted, "network"),
    "influence, datamodelling": influence.scores,
    "influence, datamodelling differences": influence.differences,
    "influence, datamodelling by damping, Fashion-MNIST": partial(influence.by_damping, "Fashion-MNIST"),
    "influence, datamodelling by damping, MNIST": partial(influence.by_damping, "MNIST"),
    "factored rows": factored.sizes,
    "cost model": theory.cost_model,
    "forward error": theory.forward_error,
}
Numbers = Callable[[], tuple[str, ...]]
SENTENCES: dict[str, dict[str, Numbers]] = {
    "README.md": {
        "With `--seed` 0, 1 and 2 the training loss of the window is at most {} of that of the others. Its test "
        "accuracy differs from that of SGD by {} to {} points, and from that of Adam by {} to {}. A step takes {} to "
        "{} times as long as one of SGD": training.window_demo,
        "forward error of {} by `inverse @ v` and of {} by `matvec_gradients`.": theory.in_the_span,
        "its test accuracy is between {} points below and {} points above that of Adam, depending on the window, the "
        "damping and the batches, and above that of SGD. In batches of 512 a step takes {} to {} times as long as one "
        "of SGD. In batches of 128 the window that is ahead of Adam takes {} times its time": training.lead_over_adam,
    },
    "docs/pruning.md": {
        "With θ by the rows no run is more than {} points below single changes; with θ = 0 the worst is {} below.": (
            pruning.losses_to_single
        ),
        "In four steps θ by the rows is at most {} points below single changes, and θ = 0 at most {}.": (
            pruning.losses_to_single_in_steps
        ),
        "Beside θ = 0 it is from {} points behind to {} ahead, in single runs.": pruning.beside_the_minimum_in_steps,
        "With filters that is {} and {} points more than the authors' figures at 80 and 90 % in 4 steps, {} and {} in "
        "16.": pruning.leads,
        "{} to {} % at 70 %, {} to {} % at 80 %, {} to {} % at 90 %.": pruning.by_steps,
        "accuracy on 1,000 test digits, {} % before.": pruning_slope.dense,
        "in 16 steps it is at {} % with the `params` of the tables, and at {} % with": pruning.by_the_call,
        "filters {}, {} and {} % at 70, 80 and 90 %, the full matrix, joint, {}, {} and {} %.": pruning.searched,
    },
    "docs/influence.md": {
        "The longest 5,000 rows of Fashion-MNIST hold {} % of the trace, and the longest 3,000 of MNIST {} %": (
            influence.shares_of_trace
        ),
        "correlate by {} (Fashion-MNIST) and {} (MNIST) over the halves": influence.agreement,
    },
    "docs/howto/factored-rows.md": {
        "differ by {} of their norm for the product, by {} for the push-through and by {} for the influences. The "
        "product is the one that answers to κ eps = {}, as any product with F⁻¹ does in float32; its backward error R "
        "is {} eps at most.": factored.agreement,
    },
    "docs/optimizer.md": {
        "the gradient alone takes {} ms": lambda: (training.milliseconds("gradient"),),
        "The best lr/λ lies between {} and {} with λ√v̂ and between {} and {} with λI.": tuning.best_rates,
        "With lr = {}, the best of the text, lr² gᵀF⁻¹g < {}; K-FAC's": tuning.bound_of_steps,
    },
    "docs/theory.md": {
        "- Worst R: {} in float32 and {} in float64. - Worst ratio to the R of a fresh inverse of the same rows: {} "
        "(an R below one counts as one). - Worst R of a fresh inverse: {} in both.": theory.drift,
    },
}
