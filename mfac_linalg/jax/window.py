"""The sliding window as a pytree."""

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
from .._errors import warn_if_unresolved
from .._forms.state import State
from .._inverse import Inverse
from .._scaling.damping import spans_widely
from .._typing import Array
from .._window.options import WindowOptions
from .arrays import Arrays, appended, build, damped, in_slots, inverse_of, known_norm, measured, rows_by_age

ANY = 1  # in options: the number of parameters is that of the rows


@jax.tree_util.register_pytree_with_keys_class
class SlidingWindowState(Inverse):
    """F⁻¹ over the newest gradients as an immutable pytree, for use under `jit`, `vmap` and `lax.scan`.

    F = Λ + Σ_i c_i g_i g_iᵀ as in `SlidingWindowInverse`, which is the better choice outside of JAX's transformations.
    A step returns a new state of the same shapes: ``state = state.append(g)``. All queries of an inverse are methods
    here too. A window that is not full holds rows of zeros as its oldest, which change nothing.

    Parameters
    ----------
    window : int
        Capacity ≥ 1: the most gradients held.
    dim : int
        d ≥ 1, the number of parameters.
    damping : float or array, shape (d,)
        λ > 0, or one λ per parameter; it may be traced. Unit: that of squared gradients.
    normalization : {"mean", "sum", "window"}
        What the sum is divided by: the number of gradients held, 1, or the capacity.
    decay : float
        In (0, 1]: a gradient of age a (0 for the newest) counts decay^a times.
    dtype : dtype
        Of the gradients: float32, bfloat16, float16, or float64 where JAX has it enabled.
    precision : {"default", "high"}
        "high" computes in float64 by panels whatever the dtype of the gradients.

    Raises
    ------
    TypeError, ValueError
        Arguments of another kind or out of range. Values that are traced are not looked at.

    Warns
    -----
    IllConditionedWarning
        κ is beyond what the arithmetic in use resolves, where it can be read.

    Notes
    -----
    Cost: a step one pass over the rows, O(window²), and a Cholesky factorisation of the small system, window³/3 flops:
    XLA has no update of a factor that is quicker (`cholesky_update` takes 7 times as long at 512 and 1,024 rows on
    a CPU). O(d · window) memory; under `jit` with a donated state the rows are written to in place.
    Accuracy: as `SlidingWindowInverse`; under `jit` a product does as many dual sweeps as it needs, under `vmap` as
    many as the worst κ needs. The small arrays are float64 whether or not `jax_enable_x64` is set: keep them out of
    casts, and restore saved ones within ``jax.enable_x64(True)``.
    Several states as one, as `jax.vmap` returns them, are asked under `jax.vmap`.
    Gradients taken in and damping are constants of differentiation; answers are differentiable by v. A gradient with
    nan or infinity is refused where values can be read; under `jit` it makes answers nan until it has left the window.

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
    >>> held = np.asarray(gradients[-4:], dtype=float)
    >>> dense = np.linalg.inv(0.1 * np.eye(6) + held.T @ held / 4)
    >>> bool(np.allclose(steps[-1], dense @ held[-1], rtol=1e-4))
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
        rules = WindowOptions.checked(window, dim, normalization, decay, precision)
        if check.name_of_dtype(dtype) == "float64":
            check.as_result_dtype(dtype, jnp.zeros(0))
        rows = jnp.zeros((rules.window, rules.dim), check.as_empty_array(jnp, dtype, None).dtype)
        self._become(rules, rows, damping, 0)

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
        """Return a state that has taken in the rows of an array (k, d), the oldest first.

        Parameters
        ----------
        gradients : array, shape (k, d), real floating
            One gradient per row, of JAX.
        damping : float or array, shape (d,)
            As in the constructor.
        window : int, optional
            Capacity; k where not given.
        normalization, decay, precision
            As in the constructor.

        Notes
        -----
        Cost: dk² + k³/3 flops for the k ≤ window rows that are kept.
        """
        check.gradients(gradients)
        check.same_library("gradients", gradients, jnp.zeros(0))
        count, dim = gradients.shape
        rules = WindowOptions.checked(count if window is None else window, dim, normalization, decay, precision)
        kept = lax.stop_gradient(gradients[max(0, count - rules.window) :, :])
        check.finite("gradients", kept)
        made = object.__new__(cls)
        made._become(rules, in_slots(kept, rules.window, count), damping, count)
        return made

    def _become(self, rules: WindowOptions, rows: Array, damping: Any, count: int) -> None:
        """Hold unscaled rows in their slots, of which `count` have been taken in."""
        check.precision_available(rules.precision, rows)
        damping = check.damping(damping, rows, _backend.result_dtype(rows))
        rules = _computable(rules, damping, rows)
        self._options = replace(rules, dim=ANY)
        self._arrays = build(rules, rows, _constant(damping), count)
        register(rows)
        self._warn()

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def _current(self) -> State:
        return inverse_of(self._rules, self._sound)

    @property
    def _sound(self) -> Arrays:
        """The arrays, none of which was cast."""
        if self._arrays.gram.dtype != np.float64:
            msg = f"The small arrays of a state must be float64; got {self._arrays.gram.dtype}. Keep them out of "
            raise TypeError(msg + "casts, and restore them within jax.enable_x64(True).")
        if self._arrays.rows.ndim != 2:
            msg = f"A state must have rows of shape (window, d); got {tuple(self._arrays.rows.shape)}, several states. "
            raise ValueError(msg + "Ask them under jax.vmap, or take one: jax.tree.map(lambda x: x[0], states).")
        return self._arrays

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        register(self._like)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Arrays]], WindowOptions]:
        """The arrays as children, what stays beside: not d, which the shapes of the arrays say."""
        return ((jax.tree_util.GetAttrKey("arrays"), self._arrays),), self._options

    @classmethod
    def tree_unflatten(cls, options: WindowOptions, children: tuple[Arrays]) -> Self:
        """The way back."""
        made = object.__new__(cls)
        made._options, (made._arrays,) = options, children
        return made

    @property
    def _rules(self) -> WindowOptions:
        return replace(self._options, dim=self.dim)

    @property
    def _like(self) -> Array:
        return self._arrays.rows

    @property
    def window(self) -> int:
        """Capacity."""
        return self._options.window

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._arrays.rows.shape[-1]

    @property
    def dtype(self) -> Any:
        """Dtype of the answers."""
        return _backend.result_dtype(self._arrays.rows)

    @property
    def num_gradients(self) -> int:
        """Number of rows, `window`: those that are still missing are zero."""
        return self._options.window

    @property
    @_backend.in_plain_modes
    def count(self) -> Array:
        """Gradients taken in and not let go of, a () integer array."""
        return jnp.minimum(self._arrays.steps, self.window)

    @property
    def damping(self) -> Any:
        """λ as a float, where it can be read, or the (d,) array it was given as."""
        damping = self._arrays.damping
        return float(damping) if damping.ndim == 0 and _backend.is_concrete(damping) else damping

    @property
    def gradients(self) -> Array:
        """The gradients held, shape (window, d), oldest first, after rows of zeros for those that are missing."""
        return rows_by_age(self._sound)

    # --- steps ----------------------------------------------------------------------------------------------------

    def append(self, g: Array) -> Self:
        """Return the state with a gradient g, shape (d,), as its newest; a full window lets go of its oldest.

        Raises
        ------
        TypeError
            Another library or dtype.
        ValueError
            Another shape, or non-finite values where they can be read.

        Notes
        -----
        Cost: one pass over the rows, O(window²), and window³/3 flops.
        """
        sound = self._sound
        g = check.as_window_dtype("g", g, self._like)
        check.shape("g", g, (self.dim,), f"Pass flattened gradients of {self.dim} entries.")
        check.finite("g", g)
        return self._with(appended(self._rules, *lax.stop_gradient((sound, g))))._warn()

    def append_matvec(self, g: Array) -> tuple[Self, Array]:
        """Return the state with g, and F⁻¹ g, by push-through: the body of a `lax.scan` over gradients.

        Notes
        -----
        Cost: as `append`, and one pass more; two more for each sweep where the rows are nearly dependent.
        """
        state = self.append(g)
        return state, state.matvec_gradients(
            _backend.asarray(np.eye(self.window)[-1], like=self._like, dtype=self.dtype)
        )

    def with_damping(self, damping: Any) -> Self:
        """Return the state with another damping, which may be traced.

        Notes
        -----
        Cost: window³/3 flops; a Gram matrix more, d · window² flops, from or to a vector of dampings.
        """
        sound = self._sound
        damping = check.damping(damping, self._like, self.dtype)
        rules = _computable(self._rules, damping, self._like)
        arrays = damped(rules, lax.stop_gradient(sound), _constant(damping))
        return self.tree_unflatten(replace(rules, dim=ANY), (arrays,))._warn()

    def _warn(self) -> Self:
        """Warn where κ can be read and is beyond the arithmetic in use."""
        norm = known_norm(self._arrays)
        if isinstance(norm, float):
            primal = self.window >= self.dim or self._options.precision == "high"
            warn_if_unresolved(1 + norm * norm, "float64" if primal else _backend.dtype_name(self.dtype))
        return self

    def _describe(self) -> dict[str, str]:
        """Nothing that has to be computed: a state may be traced, a batch of states, shapes alone, or anything else."""
        if not hasattr(self._like, "shape"):  # of a tree that something was mapped over
            return {"m": f"{self.window}"}
        size, dtype = {"m": f"{self.window}", "d": f"{self.dim}"}, {"dtype": _backend.dtype_name(self.dtype)}
        if not isinstance(self._like, jax.Array):
            return size | dtype
        norm, damping = known_norm(self._arrays), self.damping
        return {
            **size,
            "damping": f"{damping:.6g}" if isinstance(damping, float) else check.describe(damping),
            **dtype,
            "device": f"{self.device}",
            "kappa": f"{1 + norm * norm:.3g}" if isinstance(norm, float) else "array",
        }

    def _with(self, arrays: Arrays) -> Self:
        return self.tree_unflatten(self._options, (arrays,))

    def _rebuilt(self, move: Callable[[Array], Array]) -> Self:
        arrays = self._sound
        rows, damping = move(arrays.rows), move(arrays.damping) if arrays.damping.ndim else arrays.damping
        beside = _backend.device(rows)
        scaled_gram = {} if beside is None else {n: jax.device_put(x, beside) for n, x in vars(arrays).items()}
        moved = replace(arrays, **{**scaled_gram, "rows": rows})
        return self._with(measured(self._rules, moved, damping))


def _computable(rules: WindowOptions, damping: Any, rows: Array) -> WindowOptions:
    """The rules, in float64 where decays, or dampings that can be read, span more than the dtype of rows computes."""
    known = not _backend.is_vector(damping) or _backend.is_concrete(damping)
    wide = rules.decays_widely or (known and spans_widely(damping, _backend.result_dtype(rows)))
    return replace(rules, precision="high") if wide else rules


def _constant(damping: Any) -> Any:
    """A damping without a derivative; a float stays one, in float64."""
    return lax.stop_gradient(damping) if _backend.is_array(damping) else damping
