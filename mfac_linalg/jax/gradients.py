"""Rows of gradients of a function of a pytree, by `vmap(grad)` and `ravel_pytree`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _backend
from .. import _validation as check
from .._typing import Array
from .trees import check_real_leaves, check_real_result

Loss = Callable[[Any, Any, Any], Array]
Unravel = Callable[[Array], Any]
ONE_LOSS = "Pass (params, x, y) → the loss of one sample."
CLOSE_OVER = "Let `loss_fn` close over what is not to be differentiated by."


def per_sample_gradients(
    loss_fn: Loss, params: Any, inputs: Any, targets: Any, *, chunk_size: int | None = None
) -> tuple[Array, Unravel]:
    """Return G with one row for each sample, g_i = ∇ loss_fn(params, x_i, y_i), and the function from rows to pytrees.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, x, y)`` of one sample, without a leading axis, as a scalar. The variables that it closes over
        are constants. Row i is its gradient. A weight in the loss is a factor of the row, and squared in F: pass
        ``weights=`` to the inverse to have it there once. A mean over tokens divides by the number in that sample.
    params : pytree of arrays
        The parameters to differentiate by: all of the model's, or some.
    inputs, targets : pytrees of arrays, shape (m, …)
        The samples.
    chunk_size : int, optional
        Samples that are differentiated at a time; all at once unless given.

    Returns
    -------
    rows : array, shape (m, d)
    unravel : callable
        ``unravel(v)`` for v of shape (d,): the pytree, as `jax.flatten_util.ravel_pytree` returns it.

    Raises
    ------
    ValueError
        No samples, inputs and targets of different length, or losses that are not scalar, or not finite (eager calls on
        the host).
    TypeError
        A loss that is not a function; parameters or losses that are not real and floating; samples of another library.

    Notes
    -----
    Cost: one forward and one backward pass a sample; O(md) memory for the rows, and activations and gradients of
    `chunk_size` samples. It can be compiled: ``jax.jit`` a function that returns the rows.

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
    >>> inverse = ml.WoodburyRankOneInverse(rows, damping=0.1)
    >>> step = inverse.matvec_gradients(jnp.full(8, 1 / 8))  # F⁻¹ of the mean of the rows
    >>> rows.shape, unravel(step)["weight"].shape
    ((8, 15), (4, 3))
    """
    _check_arguments(loss_fn, params)
    count = count_samples(inputs, targets)
    size = count if chunk_size is None else check.size("chunk_size", chunk_size)
    unravel = ravel_pytree(params)[1]
    if size >= count:
        rows, losses = jax.vmap(lambda x, y: _row(loss_fn, params, x, y))(inputs, targets)
    else:
        rows, losses = lax.map(lambda pair: _row(loss_fn, params, *pair), (inputs, targets), batch_size=size)
    _refuse_nonfinite(losses)
    return rows, unravel


def mean_gradients(loss_fn: Loss, params: Any, inputs: Any, targets: Any, *, batch_size: int) -> tuple[Array, Unravel]:
    """Return G with one row for each `batch_size` consecutive samples, the gradient of their mean loss, and unravel.

    Parameters
    ----------
    loss_fn : callable
        As in `per_sample_gradients`: the loss of one sample. The mean divides by the number of samples, not by the sum
        of weights in the losses or a number of tokens.
    params : pytree of arrays
        As in `per_sample_gradients`.
    inputs, targets : pytrees of arrays, shape (samples, …)
        As in `per_sample_gradients`.
    batch_size : int
        Samples a row; the last row is of the remaining ones.

    Returns
    -------
    rows : array, shape (⌈samples / batch_size⌉, d)
    unravel : callable

    Raises
    ------
    TypeError, ValueError
        As `per_sample_gradients`; a `batch_size` that is not an integer ≥ 1.

    Notes
    -----
    Cost: one forward and one backward pass a sample; memory as for one batch.

    Examples
    --------
    >>> import jax
    >>> from jax import numpy as jnp
    >>> from mfac_linalg.jax import mean_gradients
    >>> params = {"weight": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    >>> x, y = jax.random.normal(jax.random.key(0), (8, 4)), jnp.arange(8) % 3
    >>> def loss(params, x, y):
    ...     return -jax.nn.log_softmax(x @ params["weight"] + params["bias"])[y]
    >>> rows, unravel = mean_gradients(loss, params, x, y, batch_size=3)
    >>> rows.shape  # of samples 0 to 2, 3 to 5, and 6 and 7
    (3, 15)
    """
    _check_arguments(loss_fn, params)
    count, size = count_samples(inputs, targets), check.size("batch_size", batch_size)
    whole = count // size
    folded = jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), (inputs, targets))
    rows, losses = lax.map(lambda batch: _mean_row(loss_fn, params, *batch), folded)
    if whole * size < count:
        rest = jax.tree.map(lambda x: x[whole * size :], (inputs, targets))
        row, loss = _mean_row(loss_fn, params, *rest)
        rows, losses = jnp.concatenate([rows, row[None, :]]), jnp.append(losses, loss)
    _refuse_nonfinite(losses)
    return rows, ravel_pytree(params)[1]


def iter_gradients(
    loss_fn: Loss, params: Any, batches: Iterable[tuple[Any, Any]], *, per_sample: bool = False
) -> Iterator[Array]:
    """Yield gradients, shape (d,), one after the other: for a window, or to be written to a file.

    Parameters
    ----------
    loss_fn : callable
        As in `per_sample_gradients`.
    params : pytree of arrays
        As in `per_sample_gradients`.
    batches : iterable of (inputs, targets)
        Batches of one shape are compiled once.
    per_sample : bool
        One gradient for each sample; False for that of the mean loss of each batch.

    Yields
    ------
    array, shape (d,)

    Raises
    ------
    TypeError, ValueError
        As `per_sample_gradients`; batches that are not pairs.

    Notes
    -----
    Cost: one forward and one backward pass a sample, compiled; O(d) memory, with `per_sample` O(d) a sample of a batch.

    Examples
    --------
    >>> import jax, mfac_linalg as ml
    >>> from jax import numpy as jnp
    >>> from mfac_linalg.jax import iter_gradients
    >>> keys = jax.random.split(jax.random.key(0), 5)
    >>> batches = [(jax.random.normal(key, (8, 4)), jnp.ones(8)) for key in keys]
    >>> def loss(weight, x, y):
    ...     return (x @ weight - y) ** 2
    >>> window = ml.SlidingWindowInverse(window=3, dim=4, damping=0.1)
    >>> for g in iter_gradients(loss, jnp.zeros(4), batches):
    ...     window.append(g)
    >>> len(window)
    3
    """
    check.flag("per_sample", per_sample)
    _check_arguments(loss_fn, params)
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        msg = f"`batches` must be an iterable of (inputs, targets); got {check.describe(batches)}. Pass a list."
        raise TypeError(msg)
    of_samples = jax.jit(jax.vmap(partial(_row, loss_fn), (None, 0, 0)))
    of_batch = jax.jit(lambda params, x, y: _mean_row(loss_fn, params, x, y))
    for batch in batches:
        inputs, targets = check.pair("batches", batch)
        count_samples(inputs, targets)
        if per_sample:
            rows, losses = of_samples(params, inputs, targets)
            _refuse_nonfinite(losses)
            yield from rows
        else:
            row, loss = of_batch(params, inputs, targets)
            _refuse_nonfinite(loss)
            yield row


def _check_arguments(loss_fn: Loss, params: Any) -> None:
    check.function("loss_fn", loss_fn, ONE_LOSS)
    check_real_leaves("params", params, CLOSE_OVER)


def _row(loss_fn: Loss, params: Any, x: Any, y: Any) -> tuple[Array, Array]:
    """The gradient of a loss, (d,), and the loss."""
    loss, gradient = jax.value_and_grad(partial(_loss, loss_fn))(params, x, y)
    return ravel_pytree(gradient)[0], loss


def _loss(loss_fn: Loss, params: Any, x: Any, y: Any) -> Array:
    """The loss of one sample, a scalar."""
    loss = loss_fn(params, x, y)
    check_real_result("loss_fn", loss, "Return one number: a mean or a sum.")
    check.shape("loss_fn(params, x, y)", jnp.asarray(loss), (), "Return one number: a mean or a sum.")
    return loss


def _mean_row(loss_fn: Loss, params: Any, inputs: Any, targets: Any) -> tuple[Array, Array]:
    """The gradient of the mean loss of a batch, (d,), and that loss."""
    each = jax.vmap(partial(_loss, loss_fn), (None, 0, 0))
    return _row(lambda values, x, y: jnp.mean(each(values, x, y)), params, inputs, targets)


def _refuse_nonfinite(losses: Array) -> None:
    """Refuse nan and inf, where losses are on the host: they have no gradients."""
    if _backend.on_host(losses) and not bool(jnp.all(jnp.isfinite(losses))):
        worst = float(jnp.ravel(losses)[jnp.argmin(jnp.isfinite(jnp.ravel(losses)))])
        msg = f"`loss_fn` must return finite losses; got {worst}. Look for nan and inf in the inputs and parameters."
        raise ValueError(msg)


def count_samples(inputs: Any, targets: Any = ()) -> int:
    """The number of samples, the same in all arrays."""
    leaves = jax.tree.leaves((inputs, targets))
    if not leaves or not all(isinstance(x, np.ndarray | jax.Array) and x.ndim for x in leaves):
        msg = f"`inputs` and `targets` must be arrays of shape (m, …); got {check.describe(inputs)} and "
        raise TypeError(msg + f"{check.describe(targets)}. Stack the samples in arrays of JAX or NumPy.")
    counts = [int(x.shape[0]) for x in leaves]
    if len(set(counts)) > 1:
        msg = f"`inputs` and `targets` must have as many samples; got {counts}. Pass one target for each input."
        raise ValueError(msg)
    if counts[0] == 0:
        msg = "`inputs` and `targets` must have at least one sample; got none, which have no gradient. "
        raise ValueError(msg + "Leave the batch out.")
    return counts[0]
