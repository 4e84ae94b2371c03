"""Rows of a classifier's true Fisher matrix: √p_y ∇log p_y for the probability p_y of every class y."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import _validation as check
from .model_state import restoring_model
from .parameters import Selection, Unravel
from .rows import ModelRows
from .samples import NotBatchedError, Samples, arguments_of


def fisher_gradients(
    model: nn.Module,
    inputs: Any,
    *,
    reduction: str = "mean",
    params: Selection = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Unravel]:
    """Return G of which Gᵀ G = (1/N) Σ_i Σ_y p_iy ∇log p_iy (∇log p_iy)ᵀ is the Fisher matrix of a classifier.

    Row i C + y is √(p_iy/N) ∇log p_iy, with p_i = softmax(model(x_i)). No labels are needed: the matrix is the
    expectation over labels drawn from the model, where the empirical Fisher matrix uses those of the data. For softmax
    and logistic regression it is the Hessian of the mean cross-entropy, for a network its generalised Gauss–Newton
    matrix.

    Parameters
    ----------
    model : torch.nn.Module
        Its outputs are logits, or log-probabilities, shape (N, C) with C ≥ 2 classes. As in `per_sample_gradients`; in
        eval mode where it has dropout.
    inputs : tensors, shape (N, …)
        As in `per_sample_gradients`.
    reduction : {"mean", "sum"}
        "sum" leaves out the factor 1/N: Gᵀ G = Σ_i Σ_y p_iy ∇log p_iy (∇log p_iy)ᵀ. In either case pass
        ``normalization="sum"`` to the inverse: the rows include all factors, F = Λ + Gᵀ G with the
        damping on the diagonal of Λ.
    params : iterable of str or callable, optional
        As in `per_sample_gradients`.
    chunk_size : int, optional
        As in `per_sample_gradients`.

    Returns
    -------
    rows : torch.Tensor, shape (N C, d)
        The C classes of a sample are consecutive.
    unravel : Unravel

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As `per_sample_gradients`, except for models that cannot be batched; outputs of another shape.

    Notes
    -----
    Cost: C forward and backward passes a sample, one at a time where `torch.func.vmap` cannot batch the model
    (`torch.nn.GRU`); O(N C d) memory for the rows.

    A sample's C rows are dependent, Σ_y √p_iy g_iy = 0, so that F − Λ has the rank N (C − 1) at most.

    References
    ----------
    .. [1] F. Kunstner, L. Balles, P. Hennig, "Limitations of the Empirical Fisher Approximation for Natural Gradient
       Descent", NeurIPS 2019, arXiv:1905.12558, equations 3 and 4.

    Examples
    --------
    >>> import torch, mfac_linalg as ml
    >>> from mfac_linalg.torch import fisher_gradients
    >>> model, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
    >>> rows, unravel = fisher_gradients(model, x)
    >>> fisher = ml.WoodburyRankOneInverse(rows, damping=0.1, normalization="sum")
    >>> rows.shape, fisher.dim
    (torch.Size([24, 15]), 15)
    """
    check.choice("reduction", reduction, ("mean", "sum"))
    size = None if chunk_size is None else check.size("chunk_size", chunk_size)
    samples = Samples.of(inputs, None)
    rows = ModelRows.of_selection(model, _weighted_log_probability, params)
    classes = _count_classes(model, samples)
    result = rows.empty(samples.count * classes).reshape(samples.count, classes, -1)
    rows_of: Callable[[Samples], Tensor] = partial(rows.of_samples, chunk_size=size)
    for label in range(classes):
        labelled = Samples(samples.inputs, torch.full((samples.count,), label, device=result.device), samples.count)
        try:
            result[:, label] = rows_of(labelled)
        except NotBatchedError:
            rows_of = rows.of_samples_one_by_one
            result[:, label] = rows_of(labelled)
    if reduction == "mean":
        result /= math.sqrt(samples.count)
    return result.reshape(samples.count * classes, -1), rows.unravel


def _weighted_log_probability(outputs: Tensor, labels: Tensor) -> Tensor:
    """√p log p of one sample's label, with √p constant under differentiation; 0 for a logit of −∞."""
    log_p = torch.log_softmax(outputs, dim=1).gather(1, labels[:, None])[0, 0]
    root = (log_p.detach() / 2).exp()
    return root * torch.where(root == 0, torch.zeros_like(log_p), log_p)


def _count_classes(model: nn.Module, samples: Samples) -> int:
    """C, from a call with one sample."""
    inputs, _ = samples.at(slice(1))
    arguments, options = arguments_of(inputs)
    with restoring_model(model):
        outputs = model(*arguments, **options)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        msg = f"`model` must return logits of shape (m, classes), two classes at least; got {check.describe(outputs)} "
        raise ValueError(msg + "of one sample. Wrap it in a module that does; for one logit z return [0, z].")
    if not outputs.is_floating_point():
        msg = f"`model` must return logits that are real and floating; got {check.describe(outputs)}. Cast them."
        raise TypeError(msg)
    return int(outputs.shape[1])
