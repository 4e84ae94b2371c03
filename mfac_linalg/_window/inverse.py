"""The inverse over a sliding window of gradients."""

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .._condition import largest_kappa
from .._errors import warn_if_unresolved
from .._files.saveable import Saveable
from .._forms.state import State
from .._inverse import Inverse
from .._typing import Array
from .initial import copied_damping, empty_state, restore_state, run
from .options import STATE_ON_HOST, STATE_OPTIONS, WindowOptions, arguments_of
from .own_memory import OwnMemory
from .recorded import count_changes
from .state import WindowState
from .topk import TopK

STATE_VERSION = 1


@_backend.methods_outside_graphs
class SlidingWindowInverse(OwnMemory, Inverse, Saveable):
    """F⁻¹ for F = Λ + Σ_i c_i g_i g_iᵀ over the newest gradients, kept current in O(dm + m²) a step.

    Λ is the diagonal matrix of the damping, λI for a number. With m gradients stored, c_i = decay^a / n for one of age
    a steps; n is m for "mean", 1 for "sum", and the capacity for "window". Choose this class where gradients keep
    coming; `WoodburyRankOneInverse` where all are there.

    Parameters
    ----------
    window : int
        Capacity ≥ 1: the largest number of gradients. When it is full, a new one replaces the oldest.
    dim : int
        d ≥ 1, the number of parameters.
    damping : float or array, shape (d,)
        λ > 0, or one λ per parameter. Unit: that of squared gradients. It can be set again.
    normalization : {"mean", "sum", "window"}
        What the sum is divided by: the number of gradients stored, 1, or the capacity.
    decay : float
        In (0, 1]: a gradient of age a (0 for the newest) counts decay^a times. Below 1 a step costs O(m³).
    dtype, device, xp : optional
        Of the gradients: a dtype of the library `xp`, one of its devices, and the library's module. With none of them
        the first gradient decides; `dtype` or `device` without `xp` mean NumPy. 16-bit gradients are stored as they
        are and computed in float32.
    precision : {"default", "high"}
        "high" computes in float64 by panels whatever the dtype of the gradients.
    compression : TopK, optional
        Keep the largest entries of each gradient instead of the whole: F is then that of the rows that are kept.

    Raises
    ------
    TypeError
        Arguments of another kind; an array of another library, device or dtype.
    ValueError
        Values out of range.

    Warns
    -----
    IllConditionedWarning
        A step takes κ beyond what the arithmetic in use resolves.

    Notes
    -----
    Cost: O(dm) memory for a ring of window + 1 rows, O(m²) on the host; a step two passes over the rows and O(m²).
    While a "mean" window fills or shrinks, and under decay, a step refactors the m × m system, O(m³).

    With compression: O(density · dm) memory and a vector of d numbers, products in time proportional to the entries
    that are kept and O(d); a step three passes over these and two more for each further sweep, O(m²), and O(d) to find
    the largest entries.

    Accuracy: ‖v − Fx‖ ≤ 30 eps ‖F‖ ‖x‖, as the static class; elements are right to about κ/4 eps/λ, with
    ``precision="high"`` in float32 to 30 eps/λ. Where κ of float32 rows passes 0.1/eps the Gram matrix is computed in
    float64 from then on, which makes a step about three times as expensive.

    Gradients and damping are constants of differentiation; answers are differentiable by v and by coefficients.

    A call that raises leaves the window as it was. Several threads may ask at once; one may change it while none asks.
    Copies (`copy.copy` as well), pickles, files and state dictionaries share no memory with the window; `forward` and
    `as_linear_operator()` follow it. PyTorch's derivatives of an answer are to be taken before the next change.

    Under JAX it is for eager use: a traced gradient is refused. `mfac_linalg.jax.SlidingWindowState` is for `jit`.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.2 (the dynamic algorithm, O(dm + m³) a step).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> window = ml.SlidingWindowInverse(window=4, dim=6, damping=0.1)
    >>> for g in np.random.default_rng(0).standard_normal((9, 6)):
    ...     step = window.append_matvec(g)
    >>> dense = np.linalg.inv(0.1 * np.eye(6) + window.gradients.T @ window.gradients / 4)
    >>> bool(np.allclose(step, dense @ g)), len(window), window.factorizations
    (True, 4, 3)
    """

    def __init__(
        self,
        window: int,
        dim: int,
        damping: Any,
        *,
        normalization: str = "mean",
        decay: float = 1.0,
        dtype: Any = None,
        device: Any = None,
        xp: Any = None,
        precision: str = "default",
        compression: TopK | None = None,
    ) -> None:
        self._options = WindowOptions.checked(window, dim, normalization, decay, precision, compression)
        self._state, self._initial_damping, self._changes = None, 1.0, 0
        if not (xp is None and dtype is None and device is None):
            self._state = empty_state(self._options, check.as_empty_array(xp, dtype, device), damping)
        else:
            self.damping = damping

    @classmethod
    def from_gradients(
        cls,
        gradients: Array,
        damping: Any,
        *,
        window: int | None = None,
        normalization: str = "mean",
        decay: float = 1.0,
        precision: str = "default",
        compression: TopK | None = None,
    ) -> Self:
        """Return a window that holds the last rows of an array, the oldest first; a copy.

        Parameters
        ----------
        gradients : array, shape (k, d), real floating
            One gradient per row; library, dtype and device of the window are theirs.
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
        compression : TopK, optional
            As in the constructor.

        Returns
        -------
        SlidingWindowInverse

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As the constructor and `append`.

        Notes
        -----
        Cost: dk² + k³/3 flops for the k ≤ window rows that are kept.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.random.default_rng(0).standard_normal((9, 6))
        >>> window = ml.SlidingWindowInverse.from_gradients(gradients, damping=0.1, window=4)
        >>> bool(np.array_equal(window.gradients, gradients[-4:]))
        True
        """
        check.gradients(gradients)
        check.gradient_values("gradients", gradients)
        capacity = gradients.shape[0] if window is None else window
        options: dict[str, Any] = {
            "normalization": normalization,
            "decay": decay,
            "precision": precision,
            "compression": compression,
        }
        new = cls(capacity, gradients.shape[1], 1.0, **options)
        new._state = empty_state(new._options, gradients, damping)
        new.extend(gradients)
        return new

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def _current(self) -> State:
        return run(attrgetter("device_state"), self._known_state)

    @property
    def _known_state(self) -> WindowState:
        if self._state is None:
            msg = (
                "The window has not seen a gradient yet; got a query. Append one, or construct it with `xp` or `dtype`."
            )
            raise ValueError(msg)
        return self._state

    @property
    def _like(self) -> Array:
        return self._known_state.like

    def __len__(self) -> int:
        """Return the number of gradients stored."""
        return 0 if self._state is None else self._state.count

    @property
    def window(self) -> int:
        """Capacity: the largest number of gradients."""
        return self._options.window

    @property
    def num_gradients(self) -> int:
        """Number m of gradients stored, as `len`."""
        return len(self)

    @property
    def dim(self) -> int:
        """Number d of parameters."""
        return self._options.dim

    @property
    def dtype(self) -> Any:
        """Dtype of the answers; None before the first gradient where it was left open."""
        return None if self._state is None else _backend.result_dtype(self._like)

    @property
    def device(self) -> Any:
        """Device of the answers; None before the first gradient where it was left open."""
        return None if self._state is None else _backend.device(self._like)

    @property
    def kappa(self) -> float:
        """κ = ‖F‖/λ, by power steps that go on from step to step."""
        return 1.0 if self._state is None else self._state.kappa

    @property
    def factorizations(self) -> int:
        """Full O(m³) factorisations of the m × m system so far."""
        return 0 if self._state is None else self._state.factor.num_factorizations

    @property
    def gradients(self) -> Array:
        """The stored gradients, shape (m, d), oldest first: a copy; with compression the rows of F, in `dtype`."""
        return run(WindowState.rows_by_age, self._known_state)

    @property
    def damping(self) -> Any:
        """λ as a float, or a copy of the (d,) array it was given as; settable at the cost of a factorisation, O(m³)."""
        if self._state is None:
            return self._initial_damping
        if not _backend.is_array(self._state.damping):
            return self._state.damping
        return run(lambda state: _backend.copy_of(state.damping), self._state)

    @damping.setter
    def damping(self, damping: Any) -> None:
        state = self._state
        if state is not None:
            checked = copied_damping(damping, state.like)
            self._commit(run(WindowState.with_damping, state, checked), rows_changed=False)
        elif _backend.is_vector(damping):
            self._state = empty_state(self._options, check.computing("damping", damping), damping)
        else:
            self._initial_damping = check.scalar_damping(damping, self.dim)

    def _describe(self) -> dict[str, str]:
        facts = {"m": f"{len(self)}", "window": f"{self.window}"}
        if self._options.compression is not None:
            facts["compression"] = f"{self._options.compression}"
        if self._state is None:
            return facts | {"d": f"{self.dim}", "damping": f"{self._initial_damping:.6g}"}
        return facts | {name: fact for name, fact in super()._describe().items() if name != "m"}

    # --- changes ----------------------------------------------------------------------------------------------------

    def append(self, g: Array) -> None:
        """Add a gradient; a full window drops its oldest.

        Parameters
        ----------
        g : array, shape (d,)
            The gradient, which is copied.

        Raises
        ------
        TypeError
            Another library, device or dtype than the window's; a traced array.
        ValueError
            Another shape, or non-finite values.
        FactorizationError
            The m × m system has no factor.

        Notes
        -----
        Cost: one pass over the rows and O(m²).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse(window=2, dim=3, damping=0.5)
        >>> for g in np.eye(3):
        ...     window.append(g)
        >>> window.gradients
        array([[0., 1., 0.],
               [0., 0., 1.]])
        """
        state, g = self._accept(g)
        self._commit(run(WindowState.append_row, state, g))

    def append_matvec(self, g: Array) -> Array:
        """Append g, then return F⁻¹ g, by push-through, in the two passes over the rows that both need.

        Parameters
        ----------
        g : array, shape (d,)
            As in `append`.

        Returns
        -------
        array, shape (d,)

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As `append`.
        OverflowError
            The answer does not fit into `dtype` (host arrays); g is not appended.

        Notes
        -----
        Cost: two passes over the rows and O(m²); two passes more where the rows are nearly dependent.

        Accuracy: as `matvec_gradients`: nothing is lost to the damping.

        With compression F has the compressed gradient in it, and the answer is the product with g itself, as `matvec`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse(window=2, dim=3, damping=1.0)
        >>> window.append_matvec(np.array([0.0, 0.0, 3.0])).round(3)  # g/(λ + ‖g‖²) for the first
        array([0. , 0. , 0.3])
        """
        state, g = self._accept(g)
        state, x = run(WindowState.append_and_solve, state, g)
        self._commit(state)
        return x

    def extend(self, gradients: Array) -> None:
        """Add many gradients at once, by matrix products.

        Parameters
        ----------
        gradients : array, shape (k, d)
            One gradient per row, the oldest first.

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As `append`.

        Notes
        -----
        Cost: 2dmk + dk² flops and O(km²), O(m³) for k > m/8; the ring is copied, which takes O(dm) memory more.

        With compression gradients are compressed one after the other, as by `append`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse(window=4, dim=6, damping=0.1)
        >>> window.extend(np.random.default_rng(0).standard_normal((9, 6)))
        >>> len(window)
        4
        """
        state, rows = self._accept(gradients, "gradients", ("k", self.dim))
        if rows.shape[0]:
            self._commit(run(WindowState.append_rows, state, rows))

    def replace(self, age: int, g: Array) -> None:
        """Replace the gradient of an age by another.

        Parameters
        ----------
        age : int
            0 for the oldest, −1 for the newest.
        g : array, shape (d,)
            As in `append`.

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As `append`; TypeError also for an age that is not an integer.
        IndexError
            An age that no gradient has.

        Notes
        -----
        Cost: as `append`.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(2, 3), damping=0.5)
        >>> window.replace(0, np.array([0.0, 0.0, 5.0]))
        >>> window.gradients
        array([[0., 0., 5.],
               [0., 1., 0.]])
        """
        age = check.age(age, len(self))
        state, g = self._accept(g)
        self._commit(run(WindowState.replace_row, state, age, g))

    def remove(self, age: int) -> None:
        """Remove the gradient of an age.

        Parameters
        ----------
        age : int
            0 for the oldest, −1 for the newest.

        Raises
        ------
        TypeError
            An age that is not an integer.
        IndexError
            An age that no gradient has.
        FactorizationError
            The m × m system has no factor.

        Notes
        -----
        Cost: O(m²); O(m³) under "mean", whose divisor changes.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(3), damping=0.5)
        >>> window.remove(0)
        >>> window.gradients
        array([[0., 1., 0.],
               [0., 0., 1.]])
        """
        age = check.age(age, len(self))
        self._commit(run(WindowState.remove_row, self._known_state, age))

    def clear(self) -> None:
        """Remove all gradients, and the error that compression feeds back.

        Notes
        -----
        Cost: O(window²) for an empty small system; the memory of the rows is kept.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(3), damping=0.5)
        >>> window.clear()
        >>> len(window), window.diagonal()  # F = λI
        (0, array([2., 2., 2.]))
        """
        if self._state is not None:
            self._state = self._state.without_rows()
            self._changes += 1

    def _accept(self, g: Any, name: str = "g", shape: tuple[int | str, ...] = ()) -> tuple[WindowState, Array]:
        """The state, which the first gradient decides where nothing did before, and g, checked."""
        shape = shape or (self.dim,)
        check.gradient_values(name, g)
        state = self._state or empty_state(self._options, g, self._initial_damping)
        g = check.as_window_dtype(name, _backend.stop_gradient(g), state.like)
        check.shape(name, g, shape, f"Pass flattened gradients of {self.dim} entries.")
        return state, g

    def _commit(self, state: WindowState, *, rows_changed: bool = True) -> None:
        """Make a finished change visible by one assignment, after everything that can fail."""
        if self.kappa <= largest_kappa(state.arithmetic):
            warn_if_unresolved(state.kappa, state.arithmetic)
        if rows_changed and self._state is not None:
            count_changes(self._state)
        self._state = state
        self._changes += rows_changed

    # --- saved states -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the window, copied: arrays, numbers and words, by name.

        A window made from it by `from_state_dict` gives the same answers, and takes the same steps, to the bit. The
        float64 arrays must be kept as float64.

        Returns
        -------
        dict of str to array, number or str
            The rows, the small arrays, the damping and the options.

        Notes
        -----
        Cost: a copy of the rows, O(dm), and of the small system, O(m²).

        The arrays of PyTorch's windows are tensors, so that ``torch.load(weights_only=True)`` takes what ``torch.save``
        wrote; of others the small ones are NumPy's. ``numpy.savez(file, **state)`` and ``numpy.load`` take all without
        pickle, but for tensors of bfloat16, which PyTorch refuses to NumPy ("unsupported ScalarType"): use `save` or
        ``torch.save``, or put ``x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)`` in the place of such a tensor x.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(2, 3), damping=0.5)
        >>> state = window.state_dict()
        >>> state["window"], state["dim"], state["damping"]
        (2, 3, 0.5)
        """
        parts = {} if self._state is None else run(WindowState.as_dict, self._state)
        if self._state is not None and self._state.is_by_numpy:
            parts["rows"] = _backend.from_numpy(parts["rows"], like=self._like)
        parts |= {name: _backend.host_array(parts[name], like=self._like) for name in STATE_ON_HOST if name in parts}
        return {"version": STATE_VERSION, "damping": self.damping, **self._options.as_dict(), **parts}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Return a window as `state_dict` described it.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned, or what `numpy.load` or `torch.load` made of it; its arrays are copied.

        Returns
        -------
        SlidingWindowInverse

        Raises
        ------
        TypeError
            Not a dictionary; entries of another kind; a float64 array that is no longer one.
        ValueError
            A missing entry, another version, values out of range, or parts that are not those of one window.

        Notes
        -----
        Cost: a copy of the rows and a product with them, O(dm), and O(m²).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(2, 3), damping=0.5)
        >>> copy = ml.SlidingWindowInverse.from_state_dict(window.state_dict())
        >>> v = np.ones(3)
        >>> bool(np.array_equal(copy.append_matvec(v), window.append_matvec(v)))
        True
        """
        state = check.as_window_state(state, STATE_ON_HOST)
        check.window_state(state, STATE_VERSION, STATE_OPTIONS)
        new = cls(damping=1.0, **arguments_of(state))
        if "slots" not in state:
            new.damping = state["damping"]
            return new
        restored = restore_state(new._options, state)
        new._state = run(WindowState.require_consistent, restored)
        return new

    # --- other windows ----------------------------------------------------------------------------------------------

    def with_damping(self, damping: Any) -> "SlidingWindowInverse":
        """Return another window with the same gradients and another damping.

        To change the damping of this window, set `damping`.

        Parameters
        ----------
        damping : float or array, shape (d,)
            As in the constructor.

        Returns
        -------
        SlidingWindowInverse
            This one stays as it is.

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As the constructor.

        Notes
        -----
        Cost: a copy of the rows, O(dm), and O(m³).

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(2, 3), damping=0.5)
        >>> window.with_damping(1.5).diagonal().round(3), window.damping
        (array([0.5  , 0.5  , 0.667]), 0.5)
        """
        other = copy.deepcopy(self)
        other.damping = damping
        return other

    def _to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        state = self.state_dict()
        arrays = {name: value for name, value in state.items() if _backend.is_array(value)}
        return {name: value for name, value in state.items() if name not in arrays}, arrays

    @classmethod
    def _from_parts(cls, facts: dict[str, Any], arrays: dict[str, Array]) -> Self:
        return cls.from_state_dict({**facts, **arrays})

    def _map_arrays(self, move: Callable[[Array], Array]) -> Self:
        new = type(self)(damping=1.0, **vars(self._options))
        before, damping = self._known_state, self.damping
        damping = move(damping) if _backend.is_vector(damping) else damping
        empty = new._state = empty_state(new._options, move(before.like[:0, :]), damping)
        if new._options.compression is not None:
            new._commit(run(WindowState.import_rows, empty, before, move))
        elif before.count:
            new._commit(run(WindowState.append_rows, empty, move(self.gradients)))
        return new
