"""A window against a list of rows and the dense oracle, under any sequence of calls: a Hypothesis state machine."""

import copy
import os
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mfac_linalg import SlidingWindowInverse
from tests.backends import FLAVOURS, Backend, eps, flavour_name
from tests.oracle import LIMIT, Oracle
from tests.strategies import seeds

EXAMPLES, MOST, STEPS = {"jax.numpy": 2, "numpy": 60}, 25, 25
KINDS = ("normal", "large", "small", "repeated", "zero", "close")
"""Kinds of new gradients, relative to those in the window: rows may be duplicates or nearly dependent."""


def same(one, other) -> bool:
    """Whether two state dictionaries are equal to the bit."""
    return one.keys() == other.keys() and all(np.array_equal(np.asarray(one[k]), np.asarray(other[k])) for k in one)


class WindowMachine(RuleBasedStateMachine):
    """`rows` are the expected rows of the window, oldest first."""

    backend: Backend
    dtype: str
    calls = 0

    @initialize(
        window=st.integers(1, 6),
        dim=st.integers(1, 9),
        normalization=st.sampled_from(["mean", "sum", "window"]),
        decay=st.sampled_from([1.0, 1.0, 0.7]),
        precision=st.sampled_from(["default", "high"]),
        vector=st.booleans(),
        damping=st.floats(-2, 1),
        seed=seeds(),
    )
    def start(self, window, dim, normalization, decay, precision, vector, damping, seed):
        self.rng, self.vector = np.random.default_rng(seed), vector
        self.rules = {"normalization": normalization, "decay": decay}
        self.window, self.dim, self.rows = window, dim, []
        self.damping = self._damping(damping)
        high = precision == "high" and self.backend.has_float64
        self.inverse = SlidingWindowInverse(
            window, dim, self._sent(self.damping), precision="high" if high else "default", **self.rules
        )
        self._appended(self._gradient("normal"), with_product=False)  # it decides where the window lives

    def _damping(self, power):
        scalar = float(10**power)
        return (scalar * self.rng.uniform(1, 4, self.dim)).astype(self.dtype) if self.vector else scalar

    def _sent(self, x):
        return self.backend.asarray(x) if np.ndim(x) else x

    def _gradient(self, kind):
        g = self.rng.standard_normal(self.dim)
        held = self.rows[self.rng.integers(len(self.rows))] if self.rows else g
        made = {"large": 10 * g, "small": 0.1 * g, "repeated": held, "zero": 0 * g, "close": held + 1e-4 * g}
        return np.asarray(made.get(kind, g), self.dtype)

    @property
    def oracle(self):
        m = len(self.rows)
        divisor = {"mean": m, "sum": 1, "window": self.window}[self.rules["normalization"]]
        weights = self.rules["decay"] ** np.arange(m - 1.0, -1, -1) / max(1, divisor)
        rows = np.reshape(np.asarray(self.rows, self.dtype), (m, self.dim))
        return Oracle(rows, self.damping, weights, "sum", np.float64 if self.dtype == "float32" else np.longdouble)

    def _expect(self, v, x):
        """Check that R is at most LIMIT."""
        if self.rows and np.any(v):
            assert self.oracle.backward_ratio(v, self.backend.to_numpy(x), eps(self.dtype)) <= LIMIT

    def _appended(self, g, *, with_product):
        self.rows = [*self.rows, g][-self.window :]
        if with_product:
            self._expect(g, self.inverse.append_matvec(self._sent(g)))
        else:
            self.inverse.append(self._sent(g))

    @rule(kind=st.sampled_from(KINDS), with_product=st.booleans())
    def append(self, kind, with_product):
        self._appended(self._gradient(kind), with_product=with_product)

    @rule(kinds=st.lists(st.sampled_from(KINDS), max_size=8))
    def extend(self, kinds):
        block = np.reshape([self._gradient(kind) for kind in kinds], (len(kinds), self.dim)).astype(self.dtype)
        self.inverse.extend(self._sent(block))
        self.rows = [*self.rows, *block][-self.window :]

    @precondition(lambda self: self.rows)
    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def replace(self, kind, data):
        age, g = data.draw(st.integers(-len(self.rows), len(self.rows) - 1)), self._gradient(kind)
        self.inverse.replace(age, self._sent(g))
        self.rows[age] = g

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data):
        age = data.draw(st.integers(-len(self.rows), len(self.rows) - 1))
        self.inverse.remove(age)
        del self.rows[age]

    @rule()
    def clear(self):
        self.inverse.clear()
        self.rows = []

    @rule(power=st.floats(-2, 1))
    def set_damping(self, power):
        self.damping = self._damping(power)
        self.inverse.damping = self._sent(self.damping)

    @rule(how=st.sampled_from(["dictionary", "pickle", "copy"]))
    def go_on_with_a_copy(self, how):
        clones = {
            "dictionary": lambda x: SlidingWindowInverse.from_state_dict(x.state_dict()),
            "pickle": lambda x: pickle.loads(pickle.dumps(x)),
            "copy": copy.deepcopy,
        }
        self.inverse = clones[how](self.inverse)

    @rule(which=st.sampled_from(["shape", "nan", "dtype", "block", "age", "damping"]))
    def be_refused(self, which):
        calls = {
            "shape": (ValueError, lambda w: w.append(self._sent(np.ones(self.dim + 1, self.dtype)))),
            "nan": (ValueError, lambda w: w.append_matvec(self._sent(np.full(self.dim, np.nan, self.dtype)))),
            "dtype": (TypeError, lambda w: w.append(self._sent(np.ones(self.dim, int)))),
            "block": (ValueError, lambda w: w.extend(self._sent(np.full((2, self.dim), np.inf, self.dtype)))),
            "age": (IndexError, lambda w: w.remove(len(self.rows))),
            "damping": (ValueError, lambda w: setattr(w, "damping", -1.0)),
        }
        error, call = calls[which]
        before = self._state()
        with pytest.raises(error):
            call(self.inverse)
        assert same(before, self._state())

    def _state(self):
        state = self.inverse.state_dict()
        foreign = {k for k, v in state.items() if hasattr(v, "shape") and not isinstance(v, np.ndarray)}
        return {k: self.backend.to_numpy(v) if k in foreign else v for k, v in state.items()}

    @precondition(lambda self: self.rows)
    @rule()
    def ask_for_entries(self):
        exact, unit = self.oracle.inverse, eps(self.dtype)
        slack = LIMIT * unit * max(1.0, self.oracle.kappa / 4) / np.min(self.damping)
        assert np.allclose(self.backend.to_numpy(self.inverse.diagonal()), np.diag(exact), rtol=1e-3, atol=slack)
        element = self.backend.to_numpy(self.inverse.element(0, self.dim - 1))
        assert abs(element - exact[0, -1]) <= slack
        logdet = float(self.backend.to_numpy(self.inverse.logdet()))
        expected = -np.linalg.slogdet(self.oracle.forward)[1]
        assert abs(logdet - expected) <= LIMIT * unit * self.oracle.kappa * (self.dim + abs(expected))

    @precondition(lambda self: self.rows)
    @rule()
    def ask_for_a_combination(self):
        c = self.rng.standard_normal(len(self.rows)).astype(self.dtype)
        v = np.asarray(self.rows).T.astype(np.longdouble) @ c
        x = self.backend.to_numpy(self.inverse.matvec_gradients(self._sent(c)))
        unit = eps(self.dtype)
        floor = self.oracle.rounding_of_combinations(c[:, None], unit)[0]
        assert self.oracle.backward_ratio(v[:, None], x[:, None], unit, np.array([floor]))[0] <= LIMIT

    @invariant()
    def holds_the_rows_and_solves(self):
        type(self).calls += 1
        if not hasattr(self, "inverse"):
            return
        assert len(self.inverse) == self.inverse.num_gradients == len(self.rows)
        held = self.backend.to_numpy(self.inverse.gradients)
        assert np.array_equal(held, np.reshape(self.rows, (len(self.rows), self.dim)))
        v = self.rows[-1] if self.rows and self.rng.random() < 0.5 else self.rng.standard_normal(self.dim)
        v = v.astype(self.dtype)
        self._expect(v, self.inverse.matvec(self._sent(v)))


@pytest.mark.parametrize("flavour", FLAVOURS, ids=flavour_name)
def test_a_window_is_the_inverse_of_the_rows_it_should_hold(flavour):
    backend, dtype = flavour
    machine = type("Machine", (WindowMachine,), {"backend": backend, "dtype": dtype})
    examples = int(os.environ.get("MFAC_LINALG_EXAMPLES", EXAMPLES.get(backend.library, MOST)))
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=STEPS))
    assert machine.calls > examples
    print(f"{flavour_name(flavour)}: {machine.calls} calls")
