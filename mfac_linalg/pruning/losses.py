"""The losses that choose among the candidates of a step."""

import math
from typing import Any

from .. import _validation as check
from .._typing import Array


class NoFiniteLossError(ValueError):
    """No candidate of a step has a finite loss."""

    def __init__(self, loss: float, weights: Array) -> None:
        wanted = "`loss_fn(weights)` must be finite for one candidate of each step at least"
        super().__init__(f"{wanted}; got {loss}. Look for nan and inf in its data, or pass smaller `lengths`.")
        self.loss, self.weights = loss, weights


def sort_key(loss: float | None) -> float:
    """A loss for comparison: nan and infinity, of either sign, come last."""
    if loss is None:  # of the only candidate
        return 0.0
    return loss if math.isfinite(loss) else math.inf


def as_float(loss: Any) -> float:
    """The result of `loss_fn`, as a float."""
    try:
        return float(loss)
    except (TypeError, ValueError, RuntimeError) as refused:  # of None, text, arrays with axes
        msg = f"`loss_fn(weights)` must be a number; got {check.describe(loss)}. Return one float."
        raise TypeError(msg) from refused
