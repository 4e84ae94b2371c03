"""Preconditioning of gradients by F⁻¹, F over the newest gradients, as a gradient transformation of Optax."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree

from .. import _backend, _second_moment
from .. import _validation as check
from .._window.options import WindowOptions
from .trees import check_real_leaves
from .window import SlidingWindowState

Tree = Any


class GradientTransformation(NamedTuple):
    """Optax's pair of pure functions; Optax is not imported."""

    init: Callable[[Tree], Any]
    update: Callable[..., tuple[Tree, Any]]


class SecondMoment(NamedTuple):
    """√v of the running mean v of squared gradients, and its bias correction 1 − β₂ᵗ."""

    root_mean_square: jax.Array  # (d,)
    share: jax.Array  # (): the bias correction

    @classmethod
    def empty(cls, like: jax.Array) -> "SecondMoment":
        """The moment before the first gradient; float32 at least."""
        dtype = jnp.promote_types(like.dtype, jnp.float32)
        return cls(jnp.zeros_like(like, dtype), jnp.zeros((), dtype))

    def update_rms(self, g: jax.Array, beta2: Any) -> "SecondMoment":
        """The moment with one more gradient, in the same dtype; unchanged for a gradient with nan or infinity."""
        after = SecondMoment(*_second_moment.update_rms(*self, g.astype(self.root_mean_square.dtype), beta2))
        is_finite = jnp.all(jnp.isfinite(g))
        return lax.stop_gradient(jax.tree.map(lambda x, y: jnp.where(is_finite, x, y).astype(y.dtype), after, self))


class ScaleByMFACState(NamedTuple):
    """The state of the transformation."""

    inverse: SlidingWindowState  # of d = 1, and unused, without parameters
    moment: SecondMoment | None = None  # None without beta2


def scale_by_mfac(
    window: int = 128,
    damping: Any = 1.0,
    *,
    beta2: float | None = 0.999,
    momentum: float = 0.0,
    normalization: str = "window",
    precision: str = "default",
) -> GradientTransformation:
    """Return g → F⁻¹g with F = λD + (1/n)Σ g gᵀ over the newest gradients, g in it, for use in `optax.chain`.

    D is diagonal: √v̂ + 1e-8 by default, the identity for ``beta2=None``. n is the capacity of the window by default;
    see `normalization`.

    Parameters
    ----------
    window : int
        Capacity m ≥ 1: the number of gradients in F.
    damping : float or array, shape ()
        λ > 0. Unit: that of gradients, without `beta2` that of squared gradients. An array may be traced, and is the
        damping of its step and later ones, so that it can follow a schedule:
        ``optax.inject_hyperparams(scale_by_mfac, static_args="window")(window=64, damping=schedule)``.
    beta2 : float, optional
        In [0, 1): F has λ(√v̂ + 1e-8) on its diagonal, v̂ being Adam's running mean of squared gradients; None for λ
        itself. Details are in `mfac_linalg.torch.MFAC`.
    momentum : float
        In [0, 1): above 0 updates are F⁻¹Σ_a momentumᵃ g_a with g_a of age a in the window: momentum of gradients,
        where `optax.trace`, after this transformation, is that of steps, each with the F of its time. It may be
        traced. It costs no pass over the rows more, but for two where the sum needs a sweep and g does not.
    normalization : {"mean", "sum", "window"}
        Divisor of the sum in F: the number of stored gradients, 1, or the capacity.
    precision : {"default", "high"}
        "high" computes in float64 by panels, for gradients of any dtype.

    Returns
    -------
    GradientTransformation
        A named tuple of ``init(params)`` and ``update(updates, state, params=None)``, as in Optax, which is not
        imported. Updates have the dtypes of the gradients.

    Raises
    ------
    TypeError
        Arguments of another kind; parameters that are not real floating.
    ValueError
        Arguments out of range; gradients of another size than the parameters, or, outside of `jit`, with nan or
        infinity.

    Notes
    -----
    Cost: that of `SlidingWindowState.append_matvec` on the raveled gradients; m d numbers of memory in total
    where the state is donated to a compiled step; d more with `beta2`. A damping that is an array costs one more
    factorisation, m³/3 flops.

    Accuracy: ‖g − Fx‖ ≤ 30 eps ‖F‖ ‖x‖ for the x = F⁻¹g that is returned, before it is cast to 16-bit dtypes.

    Updates are constants of differentiation: derivatives of `update` by gradients, state and damping are zero. Later
    operations on them, as a learned rate, have their derivatives.

    Under `jit` a gradient with nan or infinity makes updates nan until it has left the window: wrap the chain in
    `optax.apply_if_finite`, which returns to the state before it.

    The state has small float64 arrays whether or not `jax_enable_x64` is set. Keep it out of casts: restore a saved
    one, and use `optax.MultiSteps`, which casts, within ``jax.enable_x64(True)``. A state restored as NumPy arrays can
    be used outside of `jit`. Its arrays have names (`jax.tree_util.tree_leaves_with_path`); none of them is a tree like
    `params`, so that `optax.tree_map_params` treats all of them as non-parameters.

    The defaults are for `optax.chain(scale_by_mfac(), optax.trace(0.9), optax.scale(-0.001))`: docs/optimizer.md.

    All parameters share a window, in the dtype to which theirs promote; `optax.multi_transform` makes one per label.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.2 (the dynamic algorithm).

    Examples
    --------
    >>> import jax
    >>> from mfac_linalg.jax import scale_by_mfac
    >>> transform = scale_by_mfac(window=4, damping=0.5, beta2=None, normalization="mean")
    >>> params = {"w": jax.numpy.zeros(2), "b": jax.numpy.zeros(())}
    >>> state = transform.init(params)
    >>> gradients = {"w": jax.numpy.array([3.0, 0.0]), "b": jax.numpy.array(4.0)}
    >>> updates, state = jax.jit(transform.update)(gradients, state)
    >>> bool(jax.numpy.allclose(updates["b"], 4 / (0.5 + 25)))  # the first is g/(λ + ‖g‖²)
    True
    """
    beta2 = None if beta2 is None else _check_decay("beta2", beta2, "0.999")
    momentum = _check_decay("momentum", momentum, "0.9")
    WindowOptions.checked(window, 1, normalization, 1.0, precision)
    is_number = isinstance(damping, numbers.Real | jax.Array | np.ndarray) and not isinstance(damping, bool)
    if not is_number or jnp.ndim(damping) != 0:
        msg = f"`damping` must be a number; got {check.describe(damping)}. Pass one λ for all parameters."
        raise TypeError(msg)
    check.damping(damping, jnp.zeros((0, 1)), jnp.float32)

    @_backend.in_plain_modes
    def init(params: Tree) -> ScaleByMFACState:
        flat = _ravel("params", params)[0]
        if not flat.size:  # the same structure for any parameters: Optax calls init with a placeholder
            flat = jnp.zeros(1)
        inverse = SlidingWindowState(
            window, flat.size, damping, normalization=normalization, dtype=flat.dtype, precision=precision
        )
        return ScaleByMFACState(inverse, None if beta2 is None else SecondMoment.empty(flat))

    @_backend.in_plain_modes
    def update(updates: Tree, state: ScaleByMFACState, params: Tree = None) -> tuple[Tree, ScaleByMFACState]:
        del params
        g, unravel = _ravel("updates", updates)
        inverse = _window_of(state)
        if not g.size and inverse.dim == 1:
            return updates, state
        _check_gradient(inverse, g)
        if isinstance(damping, jax.Array):
            inverse = inverse.with_damping(damping)
        if state.moment is None:
            inverse, x = _append_and_solve(inverse, g, momentum)
            return unravel(x.astype(g.dtype)), ScaleByMFACState(inverse)
        g = lax.stop_gradient(g)
        moment = state.moment.update_rms(g, beta2)
        scale = _second_moment.inverse_sqrt_damping(*moment)
        inverse, x = _append_and_solve(inverse, (scale * g).astype(g.dtype), momentum)
        return unravel((scale * x).astype(g.dtype)), ScaleByMFACState(inverse, moment)

    return GradientTransformation(init, update)


def _append_and_solve(inverse: SlidingWindowState, g: jax.Array, momentum: Any) -> tuple[SlidingWindowState, jax.Array]:
    """Append g, then F⁻¹ of the sum of stored gradients times the powers of momentum by age."""
    if isinstance(momentum, float) and momentum == 0:
        return inverse.append_matvec(g)
    inverse, ages = inverse.append(g), np.arange(inverse.window)[::-1]
    if isinstance(momentum, float):
        powers = jnp.asarray((momentum**ages).astype(inverse.dtype))
    else:
        powers = lax.stop_gradient(momentum).astype(inverse.dtype) ** ages.astype(inverse.dtype)
    return inverse, inverse.matvec_gradients(powers)


def _window_of(state: Any) -> SlidingWindowState:
    """The window of a state; NumPy arrays, of a restored one, are converted to JAX without a cast."""
    if not (isinstance(state, ScaleByMFACState) and isinstance(state.inverse, SlidingWindowState)):
        given = type(state).__name__ if isinstance(state, tuple) else check.describe(state)
        msg = f"`state` must be what `init` or `update` returned; got {given}. Pass the state of this transformation."
        raise TypeError(msg)
    leaves, structure = jax.tree.flatten(state.inverse)
    if not any(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves):
        return state.inverse
    with jax.enable_x64(True):
        return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])


def _check_gradient(inverse: SlidingWindowState, g: jax.Array) -> None:
    """Accept a gradient of the window's size and dtype."""
    own = inverse._checked_arrays.rows.dtype
    if g.size != inverse.dim:
        msg = f"`updates` must have the {inverse.dim} entries of the parameters; got {g.size}. Pass their gradients."
        raise ValueError(msg)
    check.finite("updates", g)
    if jnp.promote_types(g.dtype, own) != own:
        msg = f"`updates` must have the parameters' dtype, {own}, or a shorter one; got {g.dtype}. Cast them."
        raise TypeError(msg)


def _ravel(name: str, tree: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """The leaves, real floating numbers, as one vector, and the function that unravels it."""
    check_real_leaves(name, tree, "Leave it out with optax.masked.")
    return ravel_pytree(tree)


def _check_decay(name: str, decay: Any, usual: str) -> Any:
    """Accept a number in [0, 1), as a float, or a traced one."""
    is_number = isinstance(decay, numbers.Real | np.ndarray | jax.Array) and not isinstance(decay, bool)
    if not is_number or jnp.ndim(decay) != 0 or not _is_real(decay):
        msg = f"`{name}` must be a number; got {check.describe(decay)}. Pass a float."
        raise TypeError(msg)
    if not _backend.is_traced(decay) and not 0 <= decay < 1:
        msg = f"`{name}` must be in [0, 1); got {check.describe(decay)}. {usual} is usual."
        raise ValueError(msg)
    return decay if isinstance(decay, jax.Array) else float(decay)


def _is_real(x: Any) -> bool:
    """Whether x is a number that is neither complex nor a boolean."""
    dtype = jnp.result_type(x)
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
