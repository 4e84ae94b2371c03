"""Pictures of inverses, pruning and influences: each function draws on one Axes of Matplotlib and returns it.

They need Matplotlib: ``pip install "mfac_linalg[viz]"``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _backend
from ._errors import not_installed
from ._inverse import Inverse
from ._typing import Array
from .pruning import Pruned

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
"""Colours that readers with any colour vision tell apart."""


def spectrum(inverse: Inverse, *, ax: Any = None) -> Any:
    """Draw the eigenvalues of F that the gradients move, the damping, and the effective rank.

    Parameters
    ----------
    inverse : Inverse
        With scalar damping.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ModuleNotFoundError
        If Matplotlib is not installed.
    ValueError
        If there is a damping per parameter.

    Notes
    -----
    Cost: O(m³), the eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> import mfac_linalg as ml
    >>> from mfac_linalg import plot
    >>> gradients = np.random.default_rng(0).standard_normal((20, 100))
    >>> ax = plot.spectrum(ml.WoodburyRankOneInverse(gradients, damping=0.1))
    """
    damping, eigenvalues = _damping_of(inverse), _backend.read(inverse.forward.eigenvalues())
    rank = float(_backend.read(inverse.forward.effective_rank()))
    ax = _axes(ax)
    ax.loglog(np.arange(1, len(eigenvalues) + 1), eigenvalues, color=BLUE, linewidth=2, label="eigenvalues of F")
    ax.axhline(damping, color=ORANGE, linewidth=1.5, linestyle="--", zorder=3, label=f"damping {damping:.3g}")
    ax.axvline(rank, color=GREY, linewidth=1, linestyle=":", label=f"effective rank {rank:.0f}")
    others = inverse.dim - len(eigenvalues)
    ax.set(xlabel=f"index (the other {others:,} equal the damping)" if others else "index", ylim=(damping / 3, None))
    ax.set(ylabel="eigenvalue (squared gradients)")
    ax.set_title(f"Spectrum of F, {inverse.num_gradients:,} gradients of dimension {inverse.dim:,}", fontsize=11)
    return _finished(ax)


def damping_path(inverse: Inverse, v: Array, dampings: Any = None, *, ax: Any = None) -> Any:
    """Draw ‖F(λ)⁻¹v‖ over λ, below ‖v‖/λ, which is what it would be without gradients.

    Parameters
    ----------
    inverse : Inverse
        With scalar damping.
    v : array, shape (d,)
        As for `damping_path` of the inverse.
    dampings : sequence of float, optional
        The λ; by default 40 over four decades around that of the inverse.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ModuleNotFoundError
        If Matplotlib is not installed.
    ValueError
        If there is a damping per parameter.

    Notes
    -----
    Cost: that of the inverse's `damping_path`, matrix products with k columns.

    Examples
    --------
    >>> import numpy as np
    >>> import mfac_linalg as ml
    >>> from mfac_linalg import plot
    >>> gradients = np.random.default_rng(0).standard_normal((20, 100))
    >>> ax = plot.damping_path(ml.WoodburyRankOneInverse(gradients, damping=0.1), gradients[0])
    """
    damping = _damping_of(inverse)
    values = damping * np.logspace(-2, 2, 40) if dampings is None else np.asarray(dampings, np.float64)
    answers = _backend.read(inverse.damping_path(v, values)).astype(np.float64)
    ax = _axes(ax)
    ax.loglog(values, np.linalg.norm(answers, axis=0), color=BLUE, linewidth=2, label="‖F(λ)⁻¹v‖")
    size = float(np.linalg.norm(_backend.read(v).astype(np.float64)))
    ax.loglog(values, size / values, color=GREY, linewidth=1, linestyle=":", label="‖v‖/λ, no gradients")
    ax.axvline(damping, color=ORANGE, linewidth=1.5, linestyle="--", label=f"damping {damping:.3g}")
    ax.set(xlabel="λ (squared gradients)", ylabel="‖F(λ)⁻¹v‖")
    ax.set_title("The size of F(λ)⁻¹v over the damping", fontsize=11)
    return _finished(ax)


def pruning(results: Pruned | Mapping[str, Pruned], *, ax: Any = None) -> Any:
    """Draw the loss after each step of `mfac_linalg.pruning.prune` over the share of weights removed.

    Parameters
    ----------
    results : Pruned or mapping of str to Pruned
        One result, or several by name; pruned with a `loss_fn`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        On its axis of sparsity each halving of the remaining weights takes the same room.

    Raises
    ------
    ModuleNotFoundError
        If Matplotlib is not installed.
    ValueError
        If a result has no losses.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg import plot
    >>> from mfac_linalg.pruning import prune
    >>> rng = np.random.default_rng(0)
    >>> inputs, target = rng.standard_normal((40, 12)), rng.standard_normal(40)
    >>> def loss_fn(weights):
    ...     return float(np.mean((inputs @ weights - target) ** 2))
    >>> def gradients_fn(weights, step):
    ...     return 2 * inputs * (inputs @ weights - target)[:, None]
    >>> weights = np.linalg.lstsq(inputs, target, rcond=None)[0]
    >>> result = prune(weights, gradients_fn, 0.75, steps=4, damping=0.1, loss_fn=loss_fn)
    >>> ax = plot.pruning(result)
    """
    named = {"": results} if isinstance(results, Pruned) else dict(results)
    for name, result in named.items():
        if any(step.loss is None for step in result.steps):
            msg = f"`results` must have losses; got steps without any{f' in {name!r}' if name else ''}. Pass `loss_fn`."
            raise ValueError(msg)
    ax = _axes(ax)
    for (name, result), color in zip(named.items(), _colors(len(named)), strict=True):
        sparsities = [100 * step.sparsity for step in result.steps]
        ax.plot(sparsities, [step.loss for step in result.steps], "o-", color=color, markersize=4, label=name)
    ax.set_xscale("function", functions=(lambda s: -np.log1p(-np.minimum(s, 99.99) / 100), _sparsity_of))
    ax.set_xticks([0, 30, 50, 70, 80, 90, 95, 98])
    most = max(step.sparsity for result in named.values() for step in result.steps)
    ax.set(xlim=(0, min(99.9, 100 - 90 * (1 - most))), xlabel="weights removed, %", ylabel="loss")
    ax.set_title("Loss over pruning", fontsize=11)
    return _finished(ax, with_legend="" not in named)


def _sparsity_of(u: Any) -> Any:
    return -100 * np.expm1(-u)


def influence(values: Array, *, labels: Sequence[str] | None = None, most: int = 5, ax: Any = None) -> Any:
    """Draw the samples that help and that hurt one test loss most.

    Parameters
    ----------
    values : array, shape (n,)
        A row of what `mfac_linalg.influence.influence` returns: positive where leaving the sample out would raise the
        loss.
    labels : sequence of str, optional
        The names of the n samples; by default their numbers.
    most : int
        How many of each kind at most.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Bars from the most helpful sample at the top to the most harmful at the bottom.

    Raises
    ------
    ModuleNotFoundError
        If Matplotlib is not installed.
    ValueError
        If `values` is not one row, or `labels` has another length.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg import plot
    >>> ax = plot.influence(np.array([0.3, -0.2, 0.1, -0.4]), labels=["a", "b", "c", "d"])
    """
    numbers = _backend.read(values).astype(np.float64)
    if numbers.ndim != 1:
        msg = f"`values` must have shape (n,), one row of influences; got shape {numbers.shape}. Pass values[j]."
        raise ValueError(msg)
    if labels is not None and len(labels) != len(numbers):
        msg = f"`labels` must have one name per sample, {len(numbers)}; got {len(labels)}. Pass all or none."
        raise ValueError(msg)
    order = np.argsort(-numbers, kind="stable")
    helpful, harmful = order[numbers[order] > 0][:most], order[numbers[order] < 0][::-1][:most][::-1]
    shown = [*helpful, *harmful]
    ax = _axes(ax)
    colors = [BLUE] * len(helpful) + [ORANGE] * len(harmful)
    ax.barh(np.arange(len(shown)), numbers[shown], color=colors)
    ax.set_yticks(np.arange(len(shown)), [str(i) if labels is None else labels[i] for i in shown])
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(xlabel="influence on the test loss: helpful > 0, harmful < 0")
    ax.set_title(f"The most influential of {len(numbers):,} training samples", fontsize=11)
    return _finished(ax, with_legend=False)


def _damping_of(inverse: Inverse) -> float:
    if _backend.is_array(inverse.damping):
        msg = "`inverse` must have one λ; got a damping per parameter. Pass inverse.with_damping(λ)."
        raise ValueError(msg)
    return float(inverse.damping)


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise not_installed(what="mfac_linalg.plot", library="matplotlib", extra="viz") from error
    return pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")[1]


def _finished(ax: Any, *, with_legend: bool = True) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    if with_legend:
        ax.legend(frameon=False)
    return ax


def _colors(count: int) -> list[str]:
    usual = [BLUE, ORANGE, GREEN, GREY]
    return [usual[i % len(usual)] for i in range(count)]
