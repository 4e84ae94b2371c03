"""`WindowMachine`: any sequence of calls of a sliding window against a list of rows and the dense oracle."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ._arrays import overwrite, to_numpy
from ._oracle import LIMIT, Oracle
from ._redamping import has_setter
from .strategies import seeds

KINDS = ("normal", "large", "small", "repeated", "zero", "close")
"""Kinds of new gradients, relative to those in the window: rows may be duplicates or nearly dependent."""


# Conditions of rules have names: some versions of Hypothesis read the source of a lambda again at every step.


def has_rows(machine: "WindowMachine") -> bool:
    """Whether gradients are held."""
    return bool(machine.rows)


def _has(method: str) -> Callable[["WindowMachine"], bool]:
    def has(machine: "WindowMachine") -> bool:
        return hasattr(machine.inverse, method)

    return has


def _has_damping(machine: "WindowMachine") -> bool:
    return has_setter(machine.inverse, "damping")


def _require_refusal(call: Callable[[], Any], words: str) -> None:
    try:
        call()
    except Exception:
        return
    msg = f"accepted: {words}"
    raise AssertionError(msg)


class WindowMachine(RuleBasedStateMachine):
    """A state machine of Hypothesis for anybody's window over the newest gradients: define `make_window`.

    The window needs `append(g)` and a product, `matvec(v)` or `@`. `append_matvec`, `replace(age, g)`, `remove(age)`,
    `clear()` and a settable `damping` are called where they are there; age 0 is the oldest gradient.

    Attributes
    ----------
    dtype : str
        Of the gradients.
    normalization : str
        The n of F = λI + (1/n) Σ g_i g_iᵀ over the gradients held: "mean" for their number, "window" for the capacity,
        "sum" for 1.
    is_stable : bool
        Whether R ≤ 30 is required of products; if not, what a correct formula may lose is allowed. That includes the
        drift of an inverse to which rank-one updates are made: kκ²ε‖v‖/λ after k calls, with the largest κ so far. In
        float32 this leaves little to judge except at small κ.
    largest_window, largest_dim : int
        Bounds of the sizes.

    Examples
    --------
    In a file of tests; `extend` is a step of our own, which the machine takes among the others:

    >>> import mfac_linalg as ml
    >>> from hypothesis.stateful import rule
    >>> from mfac_linalg.testing import WindowMachine
    >>> class Machine(WindowMachine):
    ...     def make_window(self, window, dim, damping):
    ...         return ml.SlidingWindowInverse(window, dim, damping)
    ...
    ...     @rule()
    ...     def extend(self):
    ...         g = self.gradient("close")
    ...         self.give(g[None, :], self.inverse.extend)
    ...         self.rows = [*self.rows, g][-self.window :]
    ...         self.expect(g, self.inverse @ g)
    >>> TestWindow = Machine.TestCase
    """

    dtype: ClassVar[str] = "float64"
    normalization: ClassVar[str] = "mean"
    is_stable: ClassVar[bool] = True
    largest_window: ClassVar[int] = 6
    largest_dim: ClassVar[int] = 9

    inverse: Any = None
    rows: list[np.ndarray]
    calls_made: int = 0
    largest_kappa: float = 1.0

    def make_window(self, window: int, dim: int, damping: float) -> Any:
        """An empty window, which a subclass defines.

        Parameters
        ----------
        window : int
            How many gradients it holds at most.
        dim : int
            The length d of a gradient.
        damping : float
            λ.

        Returns
        -------
        object
            With `append`, and `matvec` or `@`.

        Raises
        ------
        NotImplementedError
            If the subclass does not define it.
        """
        msg = "`make_window` must be defined: return an empty window."
        raise NotImplementedError(msg)

    def asarray(self, x: np.ndarray) -> Any:
        """The array that the window takes for one of NumPy: override it for another library or device.

        Parameters
        ----------
        x : numpy.ndarray, shape (d,)
            A vector.

        Returns
        -------
        array, shape (d,)
            Here x itself.

        Examples
        --------
        >>> from mfac_linalg.testing import WindowMachine
        >>> class TorchMachine(WindowMachine):
        ...     def asarray(self, x):
        ...         import torch
        ...
        ...         return torch.asarray(x, device="cuda")
        """
        return x

    @initialize(data=st.data(), power=st.integers(-20, 10), seed=seeds())
    def start(self, data: st.DataObject, power: int, seed: int) -> None:
        """An empty window, and one gradient."""
        self.rng = np.random.default_rng(seed)
        self.window = data.draw(st.integers(1, self.largest_window))
        self.dim = data.draw(st.integers(1, self.largest_dim))
        self.damping, self.rows = float(10 ** (power / 10)), []
        self.inverse = self.make_window(self.window, self.dim, self.damping)
        self.append("normal")

    def gradient(self, kind: str) -> np.ndarray:
        """A new gradient, for a step.

        Parameters
        ----------
        kind : str
            "normal", "large", "small", "repeated", "zero" or "close", relative to those in the window.

        Returns
        -------
        numpy.ndarray, shape (d,)
        """
        g = self.rng.standard_normal(self.dim)
        held = self.rows[self.rng.integers(len(self.rows))] if self.rows else g
        made = {"large": 10 * g, "small": 0.1 * g, "repeated": held, "zero": 0 * g, "close": held + 1e-4 * g}
        return np.asarray(made.get(kind, g), self.dtype)

    @property
    def oracle(self) -> Oracle:
        """The dense answers for the rows that the window should hold."""
        count = len(self.rows)
        divisor = {"mean": count, "sum": 1, "window": self.window}[self.normalization]
        rows = np.reshape(np.asarray(self.rows, self.dtype), (count, self.dim))
        return Oracle(rows, self.damping, np.full(count, 1.0) / max(1, divisor), "sum")

    def expect(self, v: np.ndarray, x: Any) -> None:
        """Check that x is F⁻¹v.

        Parameters
        ----------
        v : numpy.ndarray, shape (d,)
            The vector.
        x : array, shape (d,)
            What the window answered.
        """
        answer, oracle, eps = to_numpy(x), self.oracle, float(np.finfo(self.dtype).eps)
        assert not np.iscomplexobj(answer), f"F⁻¹v is complex, {answer.dtype}"
        assert answer.shape == v.shape, f"F⁻¹v has shape {answer.shape} for v of shape {v.shape}"
        if not np.any(v):
            assert not np.any(answer), "F⁻¹0 is not 0"
        elif self.is_stable:
            ratio = float(oracle.backward_ratio(v, answer, eps))
            assert ratio <= LIMIT, f"R = {ratio:.3g}, limit {LIMIT:g}, κ = {oracle.kappa:.3g}, {len(self.rows)} rows"
        else:
            exact, size = oracle.solve(v), np.linalg.norm(v) / self.damping
            drift = (self.calls_made + 1) * max(
                self.largest_kappa, oracle.kappa
            ) ** 2  # of updates of an explicit inverse
            loss = eps * (oracle.kappa * np.linalg.norm(exact) + (np.sqrt(oracle.kappa) + drift) * size)
            error = float(np.linalg.norm(answer - exact) / loss)
            assert error <= LIMIT, f"the error is {error:.3g} of what rounding may cost, κ = {oracle.kappa:.3g}"

    def give(self, g: np.ndarray, call: Callable[[Any], Any]) -> Any:
        """Call the window with an array of its library, which it may not change, and may not keep: it is overwritten.

        Parameters
        ----------
        g : numpy.ndarray, shape (d,)
            The gradient.
        call : callable
            Takes the array.

        Returns
        -------
        object
            What the call returned.
        """
        sent = self.asarray(g.copy())
        answer = call(sent)
        assert np.array_equal(to_numpy(sent), g), "the window changed the gradient that it was given"
        overwrite(sent)
        return answer

    @rule(kind=st.sampled_from(KINDS))
    def append(self, kind: str) -> None:
        """Append a gradient."""
        g = self.gradient(kind)
        self.give(g, self.inverse.append)
        self.rows = [*self.rows, g][-self.window :]

    @precondition(_has("append_matvec"))
    @rule(kind=st.sampled_from(KINDS))
    def append_matvec(self, kind: str) -> None:
        """Append a gradient and ask for its product."""
        g = self.gradient(kind)

        def call(sent: Any) -> None:
            x = self.inverse.append_matvec(sent)
            self.rows = [*self.rows, g][-self.window :]
            self.expect(g, x)  # before what was sent is overwritten, of which x may be a view

        self.give(g, call)

    @precondition(has_rows)
    @precondition(_has("replace"))
    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def replace(self, kind: str, data: st.DataObject) -> None:
        """Replace the gradient of an age."""
        age, g = data.draw(st.integers(0, len(self.rows) - 1)), self.gradient(kind)
        self.give(g, lambda sent: self.inverse.replace(age, sent))
        self.rows[age] = g

    @precondition(has_rows)
    @precondition(_has("remove"))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove the gradient of an age."""
        age = data.draw(st.integers(0, len(self.rows) - 1))
        self.inverse.remove(age)
        del self.rows[age]

    @precondition(_has("clear"))
    @rule()
    def clear(self) -> None:
        """Remove all gradients."""
        self.inverse.clear()
        self.rows = []

    @precondition(_has_damping)
    @rule(power=st.integers(-20, 10))
    def set_damping(self, power: int) -> None:
        """Change λ, where `damping` is a property that can be set."""
        self.damping = float(10 ** (power / 10))
        self.inverse.damping = self.damping
        told = to_numpy(self.inverse.damping)
        gap = np.max(np.abs(told - self.damping))
        assert gap <= 4 * np.finfo(self.dtype).eps * self.damping, f"`damping` is {told} after {self.damping} was set"

    @rule()
    def refuse_a_gradient(self) -> None:
        """A gradient of another length raises, and the window stays as it is."""
        for method in ("append", "append_matvec"):
            if hasattr(self.inverse, method):
                g = self.asarray(np.ones(self.dim + 1, self.dtype))
                words = f"a gradient of length {self.dim + 1} by `{method}`, d = {self.dim}"
                _require_refusal(functools.partial(getattr(self.inverse, method), g), words)

    @precondition(_has_damping)
    @rule()
    def refuse_a_damping(self) -> None:
        """A damping that is negative raises where it can be set, and the window stays as it is."""
        _require_refusal(lambda: setattr(self.inverse, "damping", -1.0), "a damping of -1")

    @invariant()
    def solves(self) -> None:
        """A product is that of the rows that should be held."""
        if self.inverse is None:
            return
        if not self.is_stable:
            self.calls_made += 1
            self.largest_kappa = max(self.largest_kappa, self.oracle.kappa)
        for v in (self.rng.standard_normal(self.dim), *self.rows[-1:]):
            vector = np.asarray(v, self.dtype)
            asked = self.asarray(vector.copy())
            matvec = getattr(self.inverse, "matvec", None)
            self.expect(vector, self.inverse @ asked if matvec is None else matvec(asked))
            assert np.array_equal(to_numpy(asked), vector), "a product changed the v that it was given"
