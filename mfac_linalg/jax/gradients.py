"""Rows of gradients of a function of a pytree, by `vmap(grad)` and `ravel_pytree`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _validation as check

Array = Any
Loss = Callable[[Any, Any, Any], Array]
Unravel = Callable[[Array], Any]


def per_sample_gradients(
    loss_fn: Loss, params: Any, inputs: Any, targets: Any, *, chunk_size: int | None = None
) -> tuple[Array, Unravel]:
    """Return G with one row for each sample, g_i = ∇ loss_fn(params, x_i, y_i), and the way back to the pytree.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, x, y)`` of one sample, without a leading axis, as a scalar. What it closes over is held fixed.
        Row i is its gradient as it is. A weight that the loss multiplies by is in the row, and squared in F: pass
        ``weights=`` to the inverse to have it there once. A mean over tokens divides by the number in that sample.
    params : pytree of arrays
        What to differentiate by: a part of the model's parameters where only that is wanted.
    inputs, targets : pytrees of arrays, shape (m, …)
        The samples.
    chunk_size : int, optional
        Samples that are differentiated at a time; all at once unless given.

    Returns
    -------
    rows : array, shape (m, d)
    unravel : callable
        ``unravel(v)`` for v of shape (d,): the pytree, as `jax.flatten_util.ravel_pytree` gives it.

    Raises
    ------
    ValueError
        No samples, or inputs and targets of different length.
    TypeError
        A loss that is no function, or (from JAX) not a scalar.

    Notes
    -----
    Cost: one forward and one backward pass a sample; O(md) memory for the rows, and activations and gradients of
    `chunk_size` samples beside them. It can be compiled: ``jax.jit`` a function that returns the rows.

    Examples
    --------
    >>> import jax, mfac_linalg as ml
    >>> from jax import numpy as jnp
    >>> from mfac_linalg.jax import per_sample_gradients
    >>> params = {"weight": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    >>> x, y = jax.random.normal(jax.random.key(0), (8, 4)), jnp.arange(8) % 3
    >>> def loss(params, x, y):
    ...     return -jax.nn.log_softmax(x @ params["weight"] + params["bias"])[y]
    >>> rows, unravel = per_sample_gradients(loss, params, x, y)
    >>> step = ml.WoodburyRankOneInverse(rows, damping=0.1) @ rows.mean(axis=0)
    >>> rows.shape, unravel(step)["weight"].shape
    ((8, 15), (4, 3))
    """
    check_function("loss_fn", loss_fn, "(params, x, y)")
    count = count_samples(inputs, targets)
    size = count if chunk_size is None else check.check_size("chunk_size", chunk_size)
    unravel = ravel_pytree(params)[1]
    if size >= count:
        return jax.vmap(lambda x, y: _row(loss_fn, params, x, y))(inputs, targets), unravel
    return lax.map(lambda pair: _row(loss_fn, params, *pair), (inputs, targets), batch_size=size), unravel


def mean_gradients(loss_fn: Loss, params: Any, inputs: Any, targets: Any, *, batch_size: int) -> tuple[Array, Unravel]:
    """Return G with one row for each `batch_size` samples in turn, the gradient of their mean loss, and the way back.

    Parameters
    ----------
    loss_fn, params, inputs, targets
        As in `per_sample_gradients`: the loss of one sample. The mean divides by the number of samples: not by the sum
        of weights in the losses, nor by a number of tokens.
    batch_size : int
        Samples a row; the last row is of those that are left.

    Returns
    -------
    rows : array, shape (⌈samples / batch_size⌉, d)
    unravel : callable

    Notes
    -----
    Cost: one forward and one backward pass a sample; memory as for one batch.
    """
    check_function("loss_fn", loss_fn, "(params, x, y)")
    count, size = count_samples(inputs, targets), check.check_size("batch_size", batch_size)
    whole = count // size
    folded = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), (inputs, targets))
    rows = lax.map(lambda batch: _mean_row(loss_fn, params, *batch), folded)
    if whole * size < count:
        rest = jax.tree.map(lambda x: x[whole * size :], (inputs, targets))
        rows = jnp.concatenate([rows, _mean_row(loss_fn, params, *rest)[None, :]])
    return rows, ravel_pytree(params)[1]


def iter_gradients(
    loss_fn: Loss, params: Any, batches: Iterable[tuple[Any, Any]], *, per_sample: bool = False
) -> Iterator[Array]:
    """Yield gradients, shape (d,), one after the other: for a window, or to be written to a file.

    Parameters
    ----------
    loss_fn, params
        As in `per_sample_gradients`.
    batches : iterable of (inputs, targets)
        Batches of one shape are compiled once.
    per_sample : bool
        One gradient for each sample; that of the mean loss of each batch unless so.

    Yields
    ------
    array, shape (d,)
    """
    check.check_flag("per_sample", per_sample)
    check_function("loss_fn", loss_fn, "(params, x, y)")
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        msg = f"`batches` must be an iterable of (inputs, targets); got {check.describe(batches)}. Pass a list."
        raise TypeError(msg)
    one_each = jax.jit(lambda params, x, y: per_sample_gradients(loss_fn, params, x, y)[0])
    of_batch = jax.jit(lambda params, x, y: _mean_row(loss_fn, params, x, y))
    for batch in batches:
        inputs, targets = check.check_pair("batches", batch)
        count_samples(inputs, targets)
        if per_sample:
            yield from one_each(params, inputs, targets)
        else:
            yield of_batch(params, inputs, targets)


def _row(loss_fn: Loss, params: Any, x: Any, y: Any) -> Array:
    return ravel_pytree(jax.grad(loss_fn)(params, x, y))[0]


def _mean_row(loss_fn: Loss, params: Any, inputs: Any, targets: Any) -> Array:
    """The gradient of the mean loss of a batch, (d,)."""
    return _row(lambda values, x, y: jnp.mean(jax.vmap(loss_fn, (None, 0, 0))(values, x, y)), params, inputs, targets)


def check_function(name: str, value: Any, arguments: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        msg = f"`{name}` must be a function of {arguments}; got {check.describe(value)}. Pass one."
        raise TypeError(msg)


def count_samples(inputs: Any, targets: Any = ()) -> int:
    """The number of samples, the same in all arrays."""
    leaves = jax.tree.leaves((inputs, targets))
    if not leaves or not all(getattr(x, "ndim", 0) for x in leaves):
        msg = f"`inputs` and `targets` must be arrays of shape (m, …); got {check.describe(inputs)} and "
        raise TypeError(msg + f"{check.describe(targets)}. Stack the samples.")
    counts = [int(x.shape[0]) for x in leaves]
    if len(set(counts)) > 1:
        msg = f"`inputs` and `targets` must have as many samples; got {counts}. Pass one target for each input."
        raise ValueError(msg)
    if counts[0] == 0:
        msg = "`inputs` and `targets` must have at least one sample; got none, of which there is no gradient. "
        raise ValueError(msg + "Leave the batch out.")
    return counts[0]
