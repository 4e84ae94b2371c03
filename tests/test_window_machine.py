"""A window under any sequence of calls: the state machine of mfac_linalg.testing, and what our windows do besides."""

import copy
import os
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from mfac_linalg import SlidingWindowInverse
from mfac_linalg.testing import LIMIT, Oracle, WindowMachine
from mfac_linalg.testing._window_machine import has_rows
from mfac_linalg.testing.strategies import seeds
from tests.backends import FLAVOURS, Backend, eps, flavour_name

EXAMPLES, MOST, STEPS = {"jax.numpy": 2, "numpy": 60}, 25, 25
KINDS = ("normal", "large", "small", "repeated", "zero", "close")


def same(one, other) -> bool:
    """Whether two state dictionaries are equal to the bit."""
    return one.keys() == other.keys() and all(np.array_equal(np.asarray(one[k]), np.asarray(other[k])) for k in one)


class OurMachine(WindowMachine):
    """With decay, a damping per parameter, other precisions and libraries, copies, entries and combinations."""

    backend: Backend
    calls = 0

    @initialize(
        sizes=st.tuples(st.integers(1, 6), st.integers(1, 9)),
        normalization=st.sampled_from(["mean", "sum", "window"]),
        decay=st.sampled_from([1.0, 1.0, 0.7]),
        precision=st.sampled_from(["default", "high"]),
        vector=st.booleans(),
        power=st.integers(-20, 10),
        seed=seeds(),
    )
    def start(self, sizes, normalization, decay, precision, vector, power, seed):
        self.rng, self.vector = np.random.default_rng(seed), vector
        self.rules = {"normalization": normalization, "decay": decay}
        (self.window, self.dim), self.rows = sizes, []
        self.damping = self._damping(power)
        high = precision == "high" and self.backend.has_float64
        self.inverse = SlidingWindowInverse(
            self.window, self.dim, self.asarray(self.damping), precision="high" if high else "default", **self.rules
        )
        self.append("normal")  # it decides where the window lives

    def _damping(self, power):
        scalar = float(10 ** (power / 10))
        return (scalar * self.rng.uniform(1, 4, self.dim)).astype(self.dtype) if self.vector else scalar

    def asarray(self, x):
        return self.backend.asarray(x) if np.ndim(x) else x

    @property
    def oracle(self):
        m = len(self.rows)
        divisor = {"mean": m, "sum": 1, "window": self.window}[self.rules["normalization"]]
        weights = self.rules["decay"] ** np.arange(m - 1.0, -1, -1) / max(1, divisor)
        rows = np.reshape(np.asarray(self.rows, self.dtype), (m, self.dim))
        return Oracle(rows, self.damping, weights, "sum", np.float64 if self.dtype == "float32" else np.longdouble)

    def expect(self, v, x):
        super().expect(v, self.backend.to_numpy(x))

    @rule(kinds=st.lists(st.sampled_from(KINDS), max_size=8))
    def extend(self, kinds):
        block = np.reshape([self.gradient(kind) for kind in kinds], (len(kinds), self.dim)).astype(self.dtype)
        self.inverse.extend(self.asarray(block))
        self.rows = [*self.rows, *block][-self.window :]

    @precondition(has_rows)
    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def replace_from_the_end(self, kind, data):
        age, g = data.draw(st.integers(-len(self.rows), -1)), self.gradient(kind)
        self.inverse.replace(age, self.asarray(g))
        self.rows[age] = g

    @precondition(has_rows)
    @rule(data=st.data())
    def remove_from_the_end(self, data):
        age = data.draw(st.integers(-len(self.rows), -1))
        self.inverse.remove(age)
        del self.rows[age]

    @rule(power=st.integers(-20, 10))
    def set_damping(self, power):
        self.damping = self._damping(power)
        self.inverse.damping = self.asarray(self.damping)

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
            "shape": (ValueError, lambda w: w.append(self.asarray(np.ones(self.dim + 1, self.dtype)))),
            "nan": (ValueError, lambda w: w.append_matvec(self.asarray(np.full(self.dim, np.nan, self.dtype)))),
            "dtype": (TypeError, lambda w: w.append(self.asarray(np.ones(self.dim, int)))),
            "block": (ValueError, lambda w: w.extend(self.asarray(np.full((2, self.dim), np.inf, self.dtype)))),
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

    @precondition(has_rows)
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

    @precondition(has_rows)
    @rule()
    def ask_for_a_combination(self):
        c = self.rng.standard_normal(len(self.rows)).astype(self.dtype)
        v = np.asarray(self.rows).T.astype(np.longdouble) @ c
        x = self.backend.to_numpy(self.inverse.matvec_gradients(self.asarray(c)))
        unit = eps(self.dtype)
        floor = self.oracle.rounding_of_combinations(c[:, None], unit)[0]
        assert self.oracle.backward_ratio(v[:, None], x[:, None], unit, np.array([floor]))[0] <= LIMIT

    @invariant()
    def holds_the_rows(self):
        type(self).calls += 1
        if self.inverse is not None:
            assert len(self.inverse) == self.inverse.num_gradients == len(self.rows)
            held = self.backend.to_numpy(self.inverse.gradients)
            assert np.array_equal(held, np.reshape(self.rows, (len(self.rows), self.dim)))


@pytest.mark.parametrize("flavour", FLAVOURS, ids=flavour_name)
def test_a_window_is_the_inverse_of_the_rows_it_should_hold(flavour):
    backend, dtype = flavour
    machine = type("Machine", (OurMachine,), {"backend": backend, "dtype": dtype})
    examples = int(os.environ.get("MFAC_LINALG_EXAMPLES", EXAMPLES.get(backend.library, MOST)))
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=STEPS))
    assert machine.calls > examples
    print(f"{flavour_name(flavour)}: {machine.calls} calls")
