"""The sliding window as an immutable pytree."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from .. import _backend
from .. import _validation as check
from .._backend.pytree import register
from .._condition import kappa_of
from .._errors import warn_if_unresolved
from .._forms.state import State
from .._inverse import Inverse
from .._repr import with_hint
from .._scaling.sqrt_damping import spans_widely
from .._typing import Array
from .._window.options import WindowOptions
from .arrays import (
    Arrays,
    append_row,
    build,
    compute_gram,
    norm_as_float,
    replace_damping,
    rows_by_age,
    state_of,
    to_slots,
)

ANY = 1  # dim in the options of a pytree: d is the number of columns of the rows


@jax.tree_util.register_pytree_with_keys_class
class SlidingWindowState(Inverse):
    """F⁻¹ over the newest gradients as an immutable pytree, for use under `jit`, `vmap` and `lax.scan`.

    F = Λ + Σ_i c_i g_i g_iᵀ as in `SlidingWindowInverse`, which is faster outside of JAX's transformations. A step
    returns a new state of the same shapes: ``state = state.append(g)``. All queries of an inverse are methods here too.
    A window that is not full has rows of zeros as its oldest, which change nothing.

    Parameters
    ----------
    window : int
        Capacity ≥ 1: the largest number of gradients.
    dim : int
        d ≥ 1, the number of parameters.
    damping : float or array, shape (d,)
        λ > 0, or one λ per parameter; it may be traced. Unit: that of squared gradients.
    normalization : {"mean", "sum", "window"}
        Divisor of the sum: the number of stored gradients, 1, or the capacity.
    decay : float
        In (0, 1]: a gradient of age a (0 for the newest) counts decay^a times.
    dtype : dtype
        Of the gradients: float32, bfloat16, float16, or float64 where JAX has it enabled.
    precision : {"default", "high"}
        "high" computes in float64 by panels, for gradients of any dtype.

    Raises
    ------
    TypeError, ValueError
        Arguments of another kind or out of range. Traced values are not checked.

    Warns
    -----
    IllConditionedWarning
        κ is larger than the arithmetic in use resolves, where it can be read.

    Notes
    -----
    Cost: a step is one pass over the rows, O(window²), and a Cholesky factorisation of the small system, window³/3
    flops: XLA has no faster update of a factor (`cholesky_update` takes 7 times as long at 512 and 1,024 rows on
    a CPU). O(d · window) memory; under `jit` with a donated state the rows are written to in place.

    Accuracy: as `SlidingWindowInverse`; under `jit` a product does as many dual sweeps as it needs, under `vmap` as
    many as the worst κ needs. The small arrays are float64 whether or not `jax_enable_x64` is set: keep them out of
    casts, and restore saved ones within ``jax.enable_x64(True)``.

    A batch of states, as `jax.vmap` returns it, is queried under `jax.vmap`.

    Stored gradients and damping are constants of differentiation; results are differentiable by v. A gradient with nan
    or infinity is refused where values can be read; under `jit` results are nan until it has left the window.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.2.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from mfac_linalg.jax import SlidingWindowState
    >>> gradients = jax.random.normal(jax.random.key(0), (9, 6))
    >>> state = SlidingWindowState(window=4, dim=6, damping=0.1)
    >>> state, steps = jax.lax.scan(SlidingWindowState.append_matvec, state, gradients)
    >>> newest = np.asarray(gradients[-4:], dtype=float)
    >>> dense = np.linalg.inv(0.1 * np.eye(6) + newest.T @ newest / 4)
    >>> bool(np.allclose(steps[-1], dense @ newest[-1], rtol=1e-4))
    True
    """

    @_backend.in_plain_modes
    def __init__(
        self,
        window: int,
        dim: int,
        damping: Any,
        *,
        normalization: str = "mean",
        decay: float = 1.0,
        dtype: Any = jnp.float32,
        precision: str = "default",
    ) -> None:
        options = WindowOptions.checked(window, dim, normalization, decay, precision)
        if check.name_of_dtype(dtype) == "float64":
            check.as_result_dtype(dtype, jnp.zeros(0))
        rows = jnp.zeros((options.window, options.dim), check.as_empty_array(jnp, dtype, None).dtype)
        self._initialize(options, rows, damping, 0)

    @classmethod
    @_backend.in_plain_modes
    def from_gradients(
        cls,
        gradients: Array,
        damping: Any,
        *,
        window: int | None = None,
        normalization: str = "mean",
        decay: float = 1.0,
        precision: str = "default",
    ) -> Self:
        """Return a state with the last rows of an array, the oldest first.

        Parameters
        ----------
        gradients : array, shape (k, d), real floating
            One gradient per row, an array of JAX.
        damping : float or array, shape (d,)
            As in the constructor.
        window : int, optional
            Capacity; k where not given.
        normalization : {"mean", "sum", "window"}
            As in the constructor.
        decay : float
            As in the constructor.
        precision : {"default", "high"}
            As in the constructor.

        Returns
        -------
        SlidingWindowState

        Raises
        ------
        TypeError, ValueError
            As the constructor and `append`.

        Notes
        -----
        Cost: dk² + k³/3 flops for the k ≤ window rows that are stored.

        Examples
        --------
        >>> import jax
        >>> from mfac_linalg.jax import SlidingWindowState
        >>> gradients = jax.random.normal(jax.random.key(0), (9, 6))
        >>> state = SlidingWindowState.from_gradients(gradients, damping=0.1, window=4)
        >>> bool((state.gradients == gradients[-4:]).all())
        True
        """
        check.gradients(gradients)
        check.same_library("gradients", gradients, jnp.zeros(0))
        count, dim = gradients.shape
        options = WindowOptions.checked(count if window is None else window, dim, normalization, decay, precision)
        newest = lax.stop_gradient(gradients[max(0, count - options.window) :, :])
        check.finite("gradients", newest)
        state = object.__new__(cls)
        state._initialize(options, to_slots(newest, options.window, count), damping, count)
        return state

    def _initialize(self, options: WindowOptions, rows: Array, damping: Any, count: int) -> None:
        """Set the options and arrays, from unscaled rows by slot, after `count` appended gradients."""
        check.precision_available(options.precision, rows)
        damping = check.damping(damping, rows, _backend.result_dtype(rows))
        options = _widen_if_needed(options, damping, rows)
        self._options = replace(options, dim=ANY)
        self._arrays = build(options, rows, _stop_gradient(damping), count)
        register(rows)
        self._warn()

    # --- properties -----------------------------------------------------------------------------------------------

    @property
    def _current(self) -> State:
        return state_of(self._full_options, self._checked_arrays)

    @property
    def _checked_arrays(self) -> Arrays:
        """The arrays of one state, none of which was cast."""
        if self._arrays.gram.dtype != np.float64:
            msg = f"The small arrays of a state must be float64; got {self._arrays.gram.dtype}. Keep them out of "
            raise TypeError(msg + "casts, and restore them within jax.enable_x64(True).")
        if self._arrays.rows.ndim != 2:
            msg = f"A state must have rows of shape (window, d); got {tuple(self._arrays.rows.shape)}, a batch. "
            raise ValueError(msg + "Query it under jax.vmap, or select one: jax.tree.map(lambda x: x[0], states).")
        return self._arrays

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        register(self._like)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Arrays]], WindowOptions]:
        """The arrays as children, the options as static data, without d, which is a shape of the arrays.

        Returns
        -------
        children : tuple
            The arrays with their key.
        options : WindowOptions
            Hashable.
        """
        return ((jax.tree_util.GetAttrKey("arrays"), self._arrays),), self._options

    @classmethod
    def tree_unflatten(cls, options: WindowOptions, children: tuple[Arrays]) -> Self:
        """The state of these arrays and options.

        Parameters
        ----------
        options : WindowOptions
            The static data of `tree_flatten_with_keys`.
        children : tuple
            The arrays.

        Returns
        -------
        SlidingWindowState
        """
        state = object.__new__(cls)
        state._options, (state._arrays,) = options, children
        return state

    @property
    def _full_options(self) -> WindowOptions:
        return replace(self._options, dim=self.dim)

    @property
    def _like(self) -> Array:
        return self._arrays.rows

    @property
    def window(self) -> int:
        """Capacity: the largest number of gradients."""
        return self._options.window

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._arrays.rows.shape[-1]

    @property
    def dtype(self) -> Any:
        """Dtype of the results."""
        return _backend.result_dtype(self._arrays.rows)

    @property
    def num_gradients(self) -> int:
        """Number of rows, `window`; missing ones are zero."""
        return self._options.window

    @property
    @_backend.in_plain_modes
    def count(self) -> Array:
        """Number of stored gradients, at most `window`, an integer array of shape ()."""
        return jnp.minimum(self._arrays.steps, self.window)

    @property
    def damping(self) -> Any:
        """λ as a float, where it can be read, or the (d,) array it was given as."""
        damping = self._arrays.damping
        return float(damping) if damping.ndim == 0 and _backend.is_concrete(damping) else damping

    @property
    def gradients(self) -> Array:
        """The stored gradients, shape (window, d), oldest first, after rows of zeros for missing ones."""
        return rows_by_age(self._checked_arrays)

    # --- steps ----------------------------------------------------------------------------------------------------

    def append(self, g: Array) -> Self:
        """Return the state with a gradient as its newest; a full window drops its oldest.

        Parameters
        ----------
        g : array, shape (d,)
            The gradient, in the dtype of the stored ones.

        Returns
        -------
        SlidingWindowState

        Raises
        ------
        TypeError
            Another library or dtype.
        ValueError
            Another shape, or non-finite values where they can be read.

        Notes
        -----
        Cost: one pass over the rows, O(window²), and window³/3 flops.

        Examples
        --------
        >>> import jax
        >>> from mfac_linalg.jax import SlidingWindowState
        >>> state = SlidingWindowState(window=4, dim=6, damping=0.1)
        >>> state = jax.jit(SlidingWindowState.append)(state, jax.numpy.ones(6))
        >>> int(state.count)
        1
        """
        arrays = self._checked_arrays
        g = check.as_window_dtype("g", g, self._like)
        check.shape("g", g, (self.dim,), f"Pass flattened gradients of {self.dim} entries.")
        check.finite("g", g)
        return self._with(append_row(self._full_options, *lax.stop_gradient((arrays, g))))._warn()

    def append_matvec(self, g: Array) -> tuple[Self, Array]:
        """Return the state with g, and F⁻¹ g, by push-through: the body of a `lax.scan` over gradients.

        Parameters
        ----------
        g : array, shape (d,)
            As in `append`.

        Returns
        -------
        state : SlidingWindowState
        x : array, shape (d,)
            F⁻¹ g, with g in F.

        Raises
        ------
        TypeError, ValueError
            As `append`.

        Notes
        -----
        Cost: as `append`, and one pass more; two more for each sweep where the rows are nearly dependent.

        Examples
        --------
        >>> import jax
        >>> from mfac_linalg.jax import SlidingWindowState
        >>> gradients = jax.random.normal(jax.random.key(0), (9, 6))
        >>> state = SlidingWindowState(window=4, dim=6, damping=0.1)
        >>> state, steps = jax.lax.scan(SlidingWindowState.append_matvec, state, gradients)
        >>> steps.shape, int(state.count)
        ((9, 6), 4)
        """
        state = self.append(g)
        return state, state.matvec_gradients(
            _backend.asarray(np.eye(self.window)[-1], like=self._like, dtype=self.dtype)
        )

    def with_damping(self, damping: Any) -> Self:
        """Return the state with another damping, which may be traced.

        Parameters
        ----------
        damping : float or array, shape (d,)
            As in the constructor.

        Returns
        -------
        SlidingWindowState

        Raises
        ------
        TypeError, ValueError
            As the constructor.

        Notes
        -----
        Cost: window³/3 flops; from or to a vector of dampings also a Gram matrix, d · window² flops.

        Examples
        --------
        >>> import jax
        >>> from mfac_linalg.jax import SlidingWindowState
        >>> state = SlidingWindowState.from_gradients(jax.numpy.eye(2, 3), damping=0.5)
        >>> [round(float(x), 3) for x in state.with_damping(1.5).diagonal()]
        [0.5, 0.5, 0.667]
        """
        arrays = self._checked_arrays
        damping = check.damping(damping, self._like, self.dtype)
        options = _widen_if_needed(self._full_options, damping, self._like)
        arrays = replace_damping(options, lax.stop_gradient(arrays), _stop_gradient(damping))
        return self.tree_unflatten(replace(options, dim=ANY), (arrays,))._warn()

    def _warn(self) -> Self:
        """Warn where κ can be read and is too large for the arithmetic in use."""
        norm = norm_as_float(self._arrays)
        if isinstance(norm, float):
            primal = self.window >= self.dim or self._options.precision == "high"
            warn_if_unresolved(kappa_of(norm), "float64" if primal else _backend.dtype_name(self.dtype))
        return self

    def _describe(self) -> dict[str, str]:
        """Facts that need no computation: a state may be traced, a batch, shapes only, or a tree of other objects."""
        if not hasattr(self._like, "shape"):  # after jax.tree.map to other objects
            return {"m": f"{self.window}"}
        size, dtype = {"m": f"{self.window}", "d": f"{self.dim}"}, {"dtype": _backend.dtype_name(self.dtype)}
        if not isinstance(self._like, jax.Array):
            return size | dtype
        norm, damping = norm_as_float(self._arrays), self.damping
        return {
            **size,
            "damping": f"{damping:.6g}" if isinstance(damping, float) else check.describe(damping),
            **dtype,
            "device": f"{self.device}",
            "kappa": f"{kappa_of(norm):.3g}" if isinstance(norm, float) else "array",
        }

    def _hint(self) -> dict[str, str]:
        norm = norm_as_float(self._arrays) if isinstance(self._like, jax.Array) else None
        return {"kappa": with_hint(kappa_of(norm), _backend.dtype_name(self.dtype))} if isinstance(norm, float) else {}

    def _with(self, arrays: Arrays) -> Self:
        return self.tree_unflatten(self._options, (arrays,))

    def _map_arrays(self, move: Callable[[Array], Array]) -> Self:
        arrays = self._checked_arrays
        rows, damping = move(arrays.rows), move(arrays.damping) if arrays.damping.ndim else arrays.damping
        device = _backend.device(rows)
        others = {} if device is None else {name: jax.device_put(x, device) for name, x in vars(arrays).items()}
        arrays = replace(arrays, **{**others, "rows": rows})
        return self._with(compute_gram(self._full_options, arrays, damping))


def _widen_if_needed(options: WindowOptions, damping: Any, rows: Array) -> WindowOptions:
    """The options, with precision "high" where weights or known dampings span more than the dtype of rows resolves."""
    is_known = not _backend.is_vector(damping) or _backend.is_concrete(damping)
    is_wide = options.decays_widely or (is_known and spans_widely(damping, _backend.result_dtype(rows)))
    return replace(options, precision="high") if is_wide else options


def _stop_gradient(damping: Any) -> Any:
    """A damping without a derivative; a float stays a float."""
    return lax.stop_gradient(damping) if _backend.is_array(damping) else damping
