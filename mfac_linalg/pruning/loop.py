"""Pruning in steps: gradients at the remaining weights, F⁻¹, a sparser mask by scores, and the update of the others."""

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._progress import Progress, reporter
from .._repr import as_list, as_table
from .._static.blocks import BlockDiagonalInverse
from .._static.woodbury import WoodburyRankOneInverse
from .._typing import Array
from .compensation import check_compensation_damping
from .exchange import exchanged
from .losses import NoFiniteLossError, as_float, sort_key
from .relative import relative_damping
from .schedule import Schedule
from .scores import score_roots
from .select import Budget, count_active
from .slope import Descent
from .updates import joint_update, obs_update

Cut = Callable[[Array, Array], Array]
"""A mask and scores to a sparser mask."""
Change = Callable[[Array, Any, Array], Array]
"""Weights, F⁻¹ and a mask to the change of the weights."""
UPDATES, SELECTIONS = ("joint", "single"), ("scores", "exchanges")
EXCHANGES = 20  # steps of `exchange`


@dataclass(frozen=True)
class Step:
    """The record of one step of `prune`.

    Parameters
    ----------
    sparsity : float
        Of all weights, after the step.
    damping : float
        λ of the step.
    length : float
        The factor by which the change of the remaining weights was multiplied.
    loss : float or None
        `loss_fn` of the result; None without one.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg.pruning import prune
    >>> w = np.array([1.0, 2.0, 3.0, 4.0])
    >>> pruned = prune(w, lambda w, step: np.eye(4), 0.75, steps=2, damping=1.0)
    >>> [step.sparsity for step in pruned.steps]
    [0.5, 0.75]
    """

    sparsity: float
    damping: float
    length: float
    loss: float | None

    def _texts(self) -> dict[str, str]:
        figures = {"sparsity": self.sparsity, "damping": self.damping, "length": self.length, "loss": self.loss}
        return {name: "not computed" if figure is None else f"{figure:.4g}" for name, figure in figures.items()}

    def _repr_html_(self) -> str:
        return as_table("Step", self._texts())


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`.

    Parameters
    ----------
    weights : array, shape (d,)
        Zero where the mask is False.
    mask : array of bool, shape (d,)
        True where a weight stays.
    steps : tuple of Step
        A record of each step.

    Examples
    --------
    >>> import numpy as np
    >>> from mfac_linalg.pruning import prune
    >>> w = np.array([1.0, 2.0, 3.0, 4.0])
    >>> pruned = prune(w, lambda w, step: np.eye(4), 0.5, damping=1.0)
    >>> pruned.weights, pruned.mask
    (array([0., 0., 3., 4.]), array([False, False,  True,  True]))
    """

    weights: Array = field(repr=False)
    mask: Array = field(repr=False)
    steps: tuple[Step, ...]

    def _repr_html_(self) -> str:
        name = f"Pruned: {self.weights.shape[0]} weights, {len(self.steps)} steps"
        heads = ["step", "sparsity", "damping", "length", "loss"]
        rows = ([f"{count}", *step._texts().values()] for count, step in enumerate(self.steps, 1))
        return as_list(name, heads, rows)


@_backend.outside_graphs
def prune(
    weights: Array,
    gradients_fn: Callable[[Array, int], Array],
    sparsity: float | Sequence[float],
    *,
    steps: int = 1,
    schedule: str | Sequence[float] = "geometric",
    moves: int = 0,
    damping: float | Sequence[float],
    relative: bool = False,
    selection: str = "scores",
    update: str = "joint",
    compensation_damping: float | str = "auto",
    layer_sizes: int | Sequence[int] | None = None,
    block_sizes: int | Sequence[int] | None = None,
    slope: float | Callable[[int], float] = 0.0,
    slope_damping: float | None = None,
    mask: Array | None = None,
    lengths: Sequence[float] = (1.0,),
    loss_fn: Callable[[Array], float] | None = None,
    progress: bool = False,
) -> Pruned:
    """Remove the weights that F⁻¹ says cost least, and move the others, in steps with gradients of their own.

    Step j of k leaves a fraction (1 − sparsity)^(j/k) of the weights, or what `schedule` says. A step

    - computes gradients at the current weights by `gradients_fn`, and sets those of removed weights to zero;
    - with a slope, takes them to the minimum of the model, w̄ = w − α F⁻¹ḡ, with the full matrix F;
    - scores the remaining weights by `obs_scores`, and exchanges some if asked to;
    - applies `joint_update` or `obs_update`. Removed weights stay zero.

    Parameters
    ----------
    weights : array, shape (d,)
        w; it is not changed.
    gradients_fn : callable
        ``gradients_fn(weights, step)`` → gradients at those weights, shape (m, d), of their library, device and dtype;
        `step` counts from 0. m may differ from step to step.
    sparsity : float or sequence of float
        Of all weights (or of each layer) at the end: 0.8 removes 80 %. At least one stays.
    steps : int
        k ≥ 1; more steps follow the loss more closely.
    schedule : {"geometric", "cubic", "linear"} or sequence of float
        The sparsity s after step j of k, with t = j/k, from s₀ (that of the mask, or 0) to s₁ (`sparsity`):

        - "geometric": 1 − s = (1 − s₀)^(1 − t) (1 − s₁)^t, the same share of the remaining weights each step;
        - "cubic": s = s₁ − (s₁ − s₀)(1 − t)³, which slows down towards the end;
        - "linear": s = s₀ + (s₁ − s₀) t;
        - a sequence: s itself after each step, rising to s₁. `steps` is its length.
    moves : int
        Further steps at the end, which remove nothing: each has gradients of its own, and goes to w̄. Needs a slope. A
        sparsity that is repeated in a `schedule` makes such a step too.
    damping : float or sequence of float
        λ > 0, in units of squared gradients. Of several, each step takes the one whose result has the smallest
        `loss_fn`; nan and infinity are never chosen.
    relative : bool
        `damping` is in units of mean ‖g‖²/d over the remaining weights, as in `relative_damping`.
    selection : {"scores", "exchanges"}
        The weights of the largest scores stay, or those that `exchange` finds from there, within the layers.
    update : {"joint", "single"}
        The best change for all removed weights at once, or, as in the paper, the sum of those for each by itself.
    compensation_damping : float or "auto"
        θ of `joint_update`, for "joint": 0 is the minimum of the model, and the rows choose "auto".
    layer_sizes : int or sequence of int, optional
        Every layer keeps its own share; all weights compete unless given.
    block_sizes : int or sequence of int, optional
        Invert the blocks on the diagonal of F only (`BlockDiagonalInverse`).
    slope : float or callable
        α ≥ 0, the weight of the mean gradient ḡ in the model, as in `obs_scores`; or ``slope(step)`` → α, called after
        the gradients of a step. The weights that stay are then also trained on the rows.
    slope_damping : float, optional
        λ of the F of w̄; the step's `damping` unless given. Small blocks prune best with less damping than a step of all
        weights needs. In the units of `damping`.
    mask : array of bool, shape (d,), optional
        False where a weight is removed already.
    lengths : sequence of float
        Factors of the change of the remaining weights, of which `loss_fn` chooses: a line search.
    loss_fn : callable, optional
        ``loss_fn(weights)`` → float, the loss on data that the gradients have not seen, which is minimised. Needed for
        several dampings or lengths.
    progress : bool
        Show a progress bar over the steps, and one over the candidates of each where there are several (needs tqdm).

    Returns
    -------
    Pruned
        `weights`, `mask`, and a record of each step.

    Raises
    ------
    TypeError, ValueError
        Arguments of another kind or out of range; gradients of another shape, library or dtype than the weights; a step
        in which no candidate has a finite loss.

    Notes
    -----
    Cost: a step O(dm²) for each damping, and a copy of its gradients; up to twenty times that with exchanges.

    For eager use only: the number of remaining weights is read.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 4 (recomputations).

    Examples
    --------
    A quadratic loss, ½ ‖X w − y‖², with per-sample gradients (x_iᵀw − y_i) x_i:

    >>> import numpy as np
    >>> from mfac_linalg.pruning import prune
    >>> rng = np.random.default_rng(0)
    >>> x, true = rng.standard_normal((50, 20)), rng.permutation(20) < 5.0
    >>> y = x @ true + 0.1 * rng.standard_normal(50)
    >>> w = np.linalg.lstsq(x, y)[0]
    >>> pruned = prune(w, lambda w, step: (x @ w - y)[:, None] * x, 0.75, steps=3, damping=1e-3)
    >>> bool(np.all(pruned.mask == true)), pruned.steps[-1].sparsity
    (True, 0.75)
    """
    check.function("gradients_fn", gradients_fn, "Pass (weights, step) → gradients.")
    check.function("loss_fn", loss_fn, "Pass weights → the loss on other data.", optional=True)
    path = Schedule.checked(schedule, steps, moves)
    check.flag("relative", relative)
    check.choice("selection", selection, SELECTIONS)
    check.choice("update", update, UPDATES)
    compensation_damping = check_compensation_damping(compensation_damping)
    weights = _backend.stop_gradient(check.computing("weights", weights))
    check.values("weights", weights)
    check.shape("weights", weights, ("d",), "Flatten them; `layer_sizes` tells the layers.")
    check.not_empty("weights", weights)
    check.finite("weights", weights)
    if mask is None:
        mask = _full_mask(weights)
    mask = check.mask("mask", mask, weights[None, :], weights.shape[0])
    budget = Budget.checked(sparsity, layer_sizes, weights.shape[0])
    block_sizes = None if block_sizes is None else check.block_sizes(block_sizes, weights.shape[0])
    path.require_end(sparsity)
    plan = path.plan(budget, mask)
    check.flag("progress", progress)
    bar = reporter(progress)
    dampings, lengths = _positive_floats("damping", damping), _positive_floats("lengths", lengths)
    descent = Descent.checked(slope, slope_damping)
    descent.require_slope(path.moves)
    change = _change(update, compensation_damping)
    parts = budget.part_of_each() if selection == "exchanges" else None
    search = _Search(dampings, relative, parts, change, lengths, block_sizes, descent, loss_fn, bar)
    search.require_choice()
    weights, records = _zero_outside(mask, weights), []
    for step, counts in enumerate(bar(plan, "prune")):
        gradients = _check_gradients(gradients_fn(_backend.copy_of(weights), step), weights)
        only_moves = sum(counts) == count_active(mask)  # by the full matrix, whatever the blocks
        now = replace(search, descent=descent.at(step), block_sizes=None if only_moves else block_sizes)
        weights, mask, record = now.step(weights, gradients, mask, functools.partial(budget.cut, counts=counts))
        records.append(record)
    return Pruned(weights, mask, tuple(records))


def _change(update: str, compensation_damping: float | str) -> Change:
    """`joint_update` with this damping, or `obs_update`."""
    if update == "single":
        return obs_update
    return functools.partial(joint_update, compensation_damping=compensation_damping)


def _check_gradients(gradients: Array, weights: Array) -> Array:
    """Accept what `gradients_fn` returned."""
    name = "gradients_fn(weights, step)"
    if _backend.is_array(gradients) and not _backend.same_library(gradients, weights):
        msg = f"`{name}` must be of the weights' library; got {type(gradients).__module__}.{type(gradients).__name__}. "
        raise TypeError(msg + "Convert it.")
    gradients = check.as_window_dtype(name, gradients, weights[None, :])
    check.shape(name, gradients, ("m", weights.shape[0]), "Give one row a gradient.")
    check.not_empty(name, gradients)
    check.finite(name, gradients)
    return _backend.stop_gradient(gradients)


def _refuse_overflow(weights: Array) -> None:
    """Refuse pruned weights that are not finite, where that can be seen."""
    if _backend.on_host(weights) and not bool(_backend.read(_backend.namespace(weights).isfinite(weights)).all()):
        msg = f"The weights after this step do not fit into {_backend.dtype_name(weights.dtype)}. "
        raise OverflowError(msg + "Raise `damping`, or scale the weights by s and the gradients by 1/s.")


@dataclass(frozen=True)
class _Search:
    """The candidates of a step, and the loss that chooses among them."""

    dampings: tuple[float, ...]
    relative: bool
    parts: np.ndarray | None  # the layer of each weight, where weights are exchanged within it
    change: Change
    lengths: tuple[float, ...]
    block_sizes: Any
    descent: Descent
    loss_fn: Callable[[Array], float] | None
    bar: Progress

    def require_choice(self) -> None:
        """Refuse several candidates without a loss to choose among them."""
        dampings, lengths = len(self.dampings), len(self.lengths)
        if self.loss_fn is None and dampings * lengths > 1:
            choice = f"{dampings} of `damping` and {lengths} of `lengths`"
            msg = f"`loss_fn` must be given to choose among {choice}; got None. "
            raise TypeError(msg + "Pass the loss on other data as a function of the weights.")

    def step(self, weights: Array, gradients: Array, mask: Array, cut: Cut) -> tuple[Array, Array, Step]:
        """The best candidate of one step: weights, mask and record."""
        number = len(self.dampings) * len(self.lengths)
        candidates: Iterable[Any] = self._candidates(weights, _zero_outside(mask, gradients), mask, cut)
        candidates = candidates if number == 1 else self.bar(candidates, "candidates", number)
        best = min(map(self._with_loss, candidates), key=lambda candidate: sort_key(candidate[2].loss))
        if sort_key(best[2].loss) == math.inf:
            raise NoFiniteLossError(best[2].loss, best[0])
        return best

    def _with_loss(self, candidate: tuple[Array, Array, Step]) -> tuple[Array, Array, Any]:
        weights, mask, step = candidate
        if self.loss_fn is None:
            return weights, mask, step
        return weights, mask, replace(step, loss=as_float(self.loss_fn(_backend.copy_of(weights))))

    def _candidates(
        self, weights: Array, gradients: Array, mask: Array, cut: Cut
    ) -> Iterator[tuple[Array, Array, Step]]:
        unit = relative_damping(gradients, weights.shape[0] / count_active(mask)) if self.relative else 1.0
        inverse = self._inverse(gradients, self.dampings[0] * unit)
        for damping in self.dampings:
            if damping * unit != inverse.damping:  # without another Gram matrix
                inverse = inverse.with_damping(damping * unit)
            least = self.descent.from_weights(weights, gradients, inverse, unit)
            sparser = _backend.with_x64(cut, mask, score_roots(least, inverse))
            if self.parts is not None:
                labels = np.where(_backend.read(mask), self.parts, -1)
                sparser = exchanged(least, inverse, sparser, labels, slope=0.0, steps=EXCHANGES)
            change = (least - weights) + self.change(least, inverse, sparser)
            sparsity = 1 - count_active(sparser) / weights.shape[0]
            for length in self.lengths:
                changed = _apply_change(weights, change, length, sparser)
                _refuse_overflow(changed)
                yield changed, sparser, Step(sparsity, damping * unit, length, None)

    def _inverse(self, gradients: Array, damping: float) -> WoodburyRankOneInverse | BlockDiagonalInverse:
        if self.block_sizes is None:
            return WoodburyRankOneInverse(gradients, damping, whiten=False)
        return BlockDiagonalInverse(gradients, damping, block_sizes=self.block_sizes)


@_backend.in_plain_modes
def _zero_outside(mask: Array, x: Array) -> Array:
    """A copy of x, shape (…, d), with zeros where the mask is False."""
    return _backend.namespace(x).where(mask, x, _backend.namespace(x).zeros_like(x))


@_backend.in_plain_modes
def _full_mask(weights: Array) -> Array:
    """The mask that is True everywhere."""
    xp = _backend.namespace(weights)
    return xp.ones_like(weights, dtype=xp.bool)


@_backend.in_plain_modes
def _apply_change(weights: Array, change: Array, length: float, mask: Array) -> Array:
    return _zero_outside(mask, weights + length * change)


def _positive_floats(name: str, values: Any) -> tuple[float, ...]:
    """Accept a number > 0 or several of them."""
    return tuple(check.dampings([values] if isinstance(values, numbers.Real) else values, name).tolist())
