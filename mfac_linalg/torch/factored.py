"""Rows of gradients that are never formed: `factored_gradients`."""

from typing import Any

from torch import Tensor, nn

from .. import _backend
from .. import _validation as check
from .factored_rows import FactoredRows
from .factors import FactoredModel
from .parameters import Selection, Unravel
from .rows import Loss, ModelRows
from .samples import Samples


def factored_gradients(
    model: nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    *,
    params: Selection = None,
    chunk_size: int | None = None,
) -> tuple[FactoredRows, Unravel]:
    """Return the G of `per_sample_gradients` as `GradientRows` of factors: g_i = vec Σ_t b_it a_itᵀ for each weight.

    a_it is what a linear layer is called with for sample i, at position t of a sequence, and b_it the gradient of the
    sample's loss with respect to what the layer returns there. For T positions and a weight of shape (p, q) that is
    T (p + q) numbers a sample, not p q. A convolution is a linear layer whose positions are its patches. The rows of a
    4096 × 4096 layer for 256 samples take 8 MB, not 17 GB.

    Parameters
    ----------
    model : torch.nn.Module
        As in `per_sample_gradients`.
    loss_fn : callable
        As there: ``loss_fn(outputs, targets)`` of a batch of one sample.
    inputs, targets : tensors, shape (m, …)
        As there.
    params : iterable of str or callable, optional
        As there.
    chunk_size : int, optional
        As there. It bounds the activations that are in memory.

    Returns
    -------
    rows : GradientRows, shape (m, d)
        For `WoodburyRankOneInverse`, in the columns' order of `per_sample_gradients`, float64 for parameters in float64
        and else float32. ``rows.nbytes`` is its memory.
    unravel : Unravel
        As in `per_sample_gradients`.

    Raises
    ------
    ValueError
        As `per_sample_gradients`; a model that does not repeat the calls of its layers, as with layers that are left
        out at random.
    TypeError, RuntimeError
        As `per_sample_gradients`; a model on a device without float64.

    Notes
    -----
    Factored are the weights of `torch.nn.Linear` and of `Conv1d` to `Conv3d`, with any strides, dilations, padding and
    groups, also those that are used several times or by several layers: the positions of all calls are put together.
    The rows are explicit, m numbers for each entry, in

    - all other parameters: biases, normalisation, embeddings, recurrent and transposed layers;
    - weights with T (p + q) ≥ p q, as of a convolution with many patches;
    - weights that are also used without a call of their layer, by a function, another module or a penalty;
    - weights with a mask, a parametrisation or a forward of the user's own;
    - layers that are differentiated within the model, or called within a transform of `torch.func`.

    The first sample is passed through the model once more, to find the layers that it calls. PyTorch's default
    generators are then as before, so that with the same seed the rows are those of `per_sample_gradients`. The model's
    own generators, and those of NumPy and Python, advance.

    Cost: one forward and one backward pass a sample, in which gradients of factored weights are not formed. For each of
    them the Gram matrix takes m² T² (p + q) multiplications in float64, or m p q (m + T) by panels if that is less, and
    a product with F⁻¹ two times m T p q for each sweep: for T = 1 those of explicit rows, in two products of matrices.
    Memory O(d) for a vector, and some tens of MB.

    Accuracy: the sums over entries and positions are those of explicit rows, with each product of two factors exact
    instead of rounded; the Gram matrix is in float64. Columns are rounded to the dtype of the rows. Factors of
    parameters in 16 bits are in 16 bits, and are multiplied in float32.

    References
    ----------
    .. [1] I. Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv:1510.01799 (the norms, for T = 1).
    .. [2] X. Li, F. Tramèr, P. Liang, T. Hashimoto, "Large Language Models Can Be Strong Differentially Private
       Learners", ICLR 2022, arXiv:2110.05679, section 4 (the norms, for sequences).
    .. [3] G. Rochette, A. Manoel, E. W. Tramel, "Efficient Per-Example Gradient Computations in Convolutional Neural
       Networks", 2019, arXiv:1912.06015.

    Examples
    --------
    >>> import torch, mfac_linalg as ml
    >>> from mfac_linalg.torch import factored_gradients
    >>> model, x, y = torch.nn.Linear(400, 300), torch.randn(8, 400), torch.randint(300, (8,))
    >>> rows, unravel = factored_gradients(model, torch.nn.functional.cross_entropy, x, y)
    >>> inverse = ml.WoodburyRankOneInverse(rows, damping=0.1)
    >>> step = inverse.matvec_gradients(torch.full((8,), 1 / 8))  # F⁻¹ of the mean of the rows
    >>> rows.shape, rows.nbytes, unravel(step)["weight"].shape  # 3.9 MB if they were formed
    ((8, 120300), 32000, torch.Size([300, 400]))
    """
    samples = Samples.of(inputs, targets)
    size = None if chunk_size is None else check.size("chunk_size", chunk_size)
    rows = ModelRows.of_selection(model, loss_fn, params)
    _check_float64(next(iter(rows.chosen.values())))
    return FactoredModel.of(rows, samples).of_samples(samples, size), rows.unravel


def _check_float64(parameter: Tensor) -> None:
    """Refuse a device on which the small sums cannot be in float64."""
    if not _backend.supports_float64(parameter):
        msg = f"`model` must be on a device with float64; got {parameter.device}. Move it to the CPU, or use "
        raise TypeError(msg + "per_sample_gradients.")
