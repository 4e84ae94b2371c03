"""Rows of a classifier's true Fisher matrix: √p_y ∇log p_y for the probability p_y of every class y."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _validation as check
from .gradients import Array, Unravel, count_samples
from .trees import check_real_leaves, check_real_result


def fisher_gradients(
    logits_fn: Callable[[Any, Any], Array],
    params: Any,
    inputs: Any,
    *,
    reduction: str = "mean",
    chunk_size: int | None = None,
) -> tuple[Array, Unravel]:
    """Return G of which Gᵀ G = (1/N) Σ_i Σ_y p_iy ∇log p_iy (∇log p_iy)ᵀ is the Fisher matrix of a classifier.

    Row i C + y is √(p_iy/N) ∇log p_iy, with p_i = softmax(logits_fn(params, x_i)). See also
    `mfac_linalg.torch.fisher_gradients`.

    Parameters
    ----------
    logits_fn : callable
        ``logits_fn(params, x)`` of one sample, without a leading axis → logits, shape (C,) with C ≥ 2 classes.
    params : pytree of arrays
        The parameters to differentiate by.
    inputs : pytree of arrays, shape (N, …)
        The samples.
    reduction : {"mean", "sum"}
        "sum" leaves out the factor 1/N. In either case pass ``normalization="sum"`` to the inverse: the rows
        include all factors, F = Λ + Gᵀ G with the damping on the diagonal of Λ.
    chunk_size : int, optional
        Samples that are differentiated at a time; all at once unless given.

    Returns
    -------
    rows : array, shape (N C, d)
        The C classes of a sample are consecutive.
    unravel : callable
        As in `per_sample_gradients`.

    Raises
    ------
    TypeError, ValueError
        As `per_sample_gradients`; logits of another shape.

    Notes
    -----
    Cost: one forward and C backward passes a sample; O(N C d) memory for the rows. It can be compiled.

    Examples
    --------
    >>> import jax, mfac_linalg as ml
    >>> from jax import numpy as jnp
    >>> from mfac_linalg.jax import fisher_gradients
    >>> params = {"weight": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
    >>> x = jax.random.normal(jax.random.key(0), (8, 4))
    >>> def logits(params, x):
    ...     return x @ params["weight"] + params["bias"]
    >>> rows, unravel = fisher_gradients(logits, params, x)
    >>> fisher = ml.WoodburyRankOneInverse(rows, damping=0.1, normalization="sum")
    >>> rows.shape, fisher.dim
    ((24, 15), 15)
    """
    check.function("logits_fn", logits_fn, "Pass (params, x) → the logits of one sample.")
    check.choice("reduction", reduction, ("mean", "sum"))
    check_real_leaves("params", params, "Let `logits_fn` close over what is not to be differentiated by.")
    count = count_samples(inputs)
    size = count if chunk_size is None else check.size("chunk_size", chunk_size)
    factor = 1 / math.sqrt(count) if reduction == "mean" else 1.0

    def rows_of(x: Any) -> Array:
        return _class_rows(logits_fn, params, x) * factor

    rows = jax.vmap(rows_of)(inputs) if size >= count else lax.map(rows_of, inputs, batch_size=size)
    check.finite("logits_fn(params, x)", rows)
    return rows.reshape(-1, rows.shape[-1]), ravel_pytree(params)[1]


def _class_rows(logits_fn: Callable[[Any, Any], Array], params: Any, x: Any) -> Array:
    """√p_y ∇log p_y of one sample, (C, d), as the vector-Jacobian products of √p_y (e_y − p) at the logits."""
    logits, pull_back = jax.vjp(lambda values: logits_fn(values, x), params)
    check_real_result("logits_fn", logits, "Cast them to float32.")
    if not isinstance(logits, jax.Array) or logits.ndim != 1 or logits.shape[0] < 2:
        msg = "`logits_fn` must return the logits of one sample, shape (classes,), two classes at least; got "
        raise ValueError(msg + f"{check.describe(logits)}. For one logit z return [0, z].")
    log_p = jax.nn.log_softmax(logits)
    root = jnp.exp(log_p / 2)
    errors = jnp.eye(logits.shape[0], dtype=logits.dtype) - jnp.exp(log_p)[None, :]
    return jax.vmap(lambda v: ravel_pytree(pull_back(v)[0])[0])(root[:, None] * errors)
