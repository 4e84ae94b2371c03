"""mfac_linalg.testing with Hypothesis: strategies that shrink, the class of tests, the machine, `from_type`."""

import subprocess
import sys
import unittest
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import mfac_linalg as ml
from benchmarks.kit.defects import FactorOfM, Textbook
from mfac_linalg.testing import KINDS, CheckError, InverseTests, Problem, WindowMachine, strategies
from tests.backends import AVAILABLE

FAST = settings(max_examples=200, database=None, derandomize=True, deadline=None)


class TestWoodbury(InverseTests):
    def make_inverse(self, problem):
        return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)


class TestEveryOption(InverseTests):
    dtype = "float64"
    decades = (0.1, 8.0)
    options = MappingProxyType({})

    def make_inverse(self, problem):
        return ml.WoodburyRankOneInverse(
            problem.gradients, problem.damping, weights=problem.weights, normalization=problem.normalization
        )


class TestTextbook(InverseTests):
    """Right, and not stable; it checks no arguments."""

    expected_failures = MappingProxyType({"stable: *": "it cancels", "refusal": "it checks nothing"})

    test_its_diagonal_is_right = test_samples_have_its_covariance = test_another_damping_is_another_inverse = None

    def make_inverse(self, problem):
        return Textbook(problem)


@pytest.mark.skipif(not any(b.library == "torch" for b in AVAILABLE), reason="needs torch")
class TestTensors(InverseTests):
    def make_inverse(self, problem):
        return ml.WoodburyRankOneInverse(self.asarray(problem.gradients), problem.damping)

    def asarray(self, x):
        import torch

        return torch.asarray(x)


@pytest.fixture(scope="module", params=[True, False])
def whiten(request):
    return request.param


@pytest.fixture(scope="module")
def copies():
    return np.array


@pytest.mark.parametrize("precision", ["default", "high"])
class TestParametrized(InverseTests):
    """A class with marks and fixtures of pytest, whose values `make_inverse` and `asarray` are given by name."""

    def make_inverse(self, problem, precision, *, whiten):
        return ml.WoodburyRankOneInverse(problem.gradients, problem.damping, precision=precision, whiten=whiten)

    def asarray(self, x, copies):
        return copies(x)

    def test_its_diagonal_is_right(self, precision, whiten):
        """A test that replaces ours is given the values that it names."""
        assert (precision, whiten) in {(p, w) for p in ("default", "high") for w in (True, False)}

    test_samples_have_its_covariance = test_another_damping_is_another_inverse = None
    test_order_and_units_do_not_matter = test_invalid_arguments_are_refused = None


@pytest.fixture(scope="module")
def data():
    return {"whiten": True}


class TestFixtureOfAnyName(InverseTests):
    """A fixture may have the name that Hypothesis gives its draws elsewhere."""

    def make_inverse(self, problem, data):
        return ml.WoodburyRankOneInverse(problem.gradients, problem.damping, **data)


def one_inverse(problem):
    return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)


class NumPyOf:
    """A callable object whose signature is not told, as that of some builtins."""

    __signature__ = "none"

    def __call__(self, x):
        return np.asarray(x)


@pytest.mark.parametrize(
    "methods",
    [
        {"make_inverse": staticmethod(one_inverse)},
        {"make_inverse": staticmethod(Textbook)},
        {"make_inverse": Textbook},
        {"make_inverse": classmethod(lambda cls, problem: one_inverse(problem))},
        {"make_inverse": staticmethod(one_inverse), "asarray": staticmethod(np.asarray)},
        {"make_inverse": staticmethod(one_inverse), "asarray": staticmethod(NumPyOf())},
        {"make_inverse": staticmethod(one_inverse), "asarray": NumPyOf()},
        {"make_inverse": lambda self, *problem: one_inverse(*problem)},
    ],
    ids=["function", "class", "bare class", "classmethod", "numpy", "no signature", "bare", "any number"],
)
def test_methods_may_be_static_or_builtin(methods):
    made = type("Made", (InverseTests,), methods)
    made().test_the_formula_is_right()
    wrong = type("Wrong", (InverseTests,), methods | {"make_inverse": staticmethod(FactorOfM)})
    assert "a factor of m" in str(falsified(wrong, "test_the_formula_is_right"))


def falsified(cls, name):
    """The failure that a test of a class finds, after shrinking."""
    with pytest.raises(CheckError) as caught:
        getattr(cls(), name)()
    return caught.value


def test_a_planted_factor_of_m_is_found_and_shrunk():
    class Planted(InverseTests):
        def make_inverse(self, problem):
            return FactorOfM(problem)

    failure = falsified(Planted, "test_the_formula_is_right")
    problem = failure.results[0].problem
    assert problem.shape in [(2, 1), (2, 3)]  # by the version of Hypothesis
    assert "kind='gaussian'" in repr(problem)
    assert "make_problem(0," in repr(problem)
    assert "a factor of m" in str(failure)


def test_a_class_without_make_inverse_says_so():
    class Forgotten(InverseTests):
        pass

    failure = falsified(Forgotten, "test_the_formula_is_right")
    assert "`make_inverse` must be defined" in str(failure)


def test_a_test_of_what_is_not_offered_is_skipped():
    class Products(InverseTests):
        def make_inverse(self, problem):
            return ml.WoodburyRankOneInverse(problem.gradients, problem.damping).matvec

        @FAST
        @given(st.data())
        def test_of_some_problems(self, data):
            self.check(data, "right formula: orthogonal")

    for name in ("test_its_diagonal_is_right", "test_samples_have_its_covariance"):
        with pytest.raises(unittest.SkipTest, match="there is no `"):
            getattr(Products(), name)()
    with pytest.raises(unittest.SkipTest, match="there is no `with_damping`"):
        Products().test_another_damping_is_another_inverse()
    Products().test_of_some_problems()  # skipped where m ≥ d, and made elsewhere


def test_a_test_of_a_subclass_replaces_ours():
    class Own(TestWoodbury):
        def test_its_diagonal_is_right(self):
            return "own"

    assert Own().test_its_diagonal_is_right() == "own"
    assert type("Third", (Own,), {})().test_its_diagonal_is_right() == "own"


def test_a_test_can_be_left_out():
    class Without(TestWoodbury):
        test_its_diagonal_is_right = None

    assert Without.test_its_diagonal_is_right is None
    assert type("Third", (Without,), {}).test_its_diagonal_is_right is None


class Window:
    """A window in a few lines that solves the dense system; `limit` is where gradients are dropped."""

    def __init__(self, window, dim, damping, extra=0):
        self.limit, self.dim, self.damping, self.rows = window + extra, dim, damping, []

    def append(self, g):
        if g.shape != (self.dim,):
            raise ValueError(g.shape)
        self.rows = [*self.rows, g.copy()][-self.limit :]

    def matvec(self, v):
        rows = np.reshape(self.rows, (len(self.rows), self.dim)).astype("longdouble")
        matrix = self.damping * np.eye(self.dim) + rows.T @ rows / max(1, len(rows))
        inverse = np.linalg.inv(matrix.astype("float64"))
        inverse = inverse @ (2 * np.eye(self.dim) - matrix @ inverse)
        return (inverse @ v).astype(v.dtype)


def run(machine, phases=(Phase.generate,)):
    some = settings(FAST, max_examples=60, stateful_step_count=15, phases=phases)
    run_state_machine_as_test(machine, settings=some)


def test_the_machine_accepts_a_right_window():
    class Machine(WindowMachine):
        dtype = "float32"

        def make_window(self, window, dim, damping):
            return Window(window, dim, damping)

    run(Machine)


class Updated:
    """F⁻¹ (d, d) over n, by the formula of Sherman and Morrison alone: right, and it drifts by κ²ε a step."""

    def __init__(self, window, dim, damping, sign=-1):
        self.window, self.rows, self.sign = window, [], sign
        self.inverse = np.eye(dim) / damping

    def _change(self, g, sign):
        u = self.inverse @ g
        self.inverse = self.inverse - sign * np.outer(u, u) / (self.window + sign * (g @ u))

    def append(self, g):
        self._change(g, 1)
        self.rows.append(g.copy())
        if len(self.rows) > self.window:
            self._change(self.rows.pop(0), self.sign)

    def replace(self, age, g):
        self._change(g, 1)
        self._change(self.rows[age], self.sign)
        self.rows[age] = g.copy()

    def remove(self, age):
        self._change(self.rows.pop(age), self.sign)

    def matvec(self, v):
        return self.inverse @ v


class UpdatedMachine(WindowMachine):
    normalization = "window"
    is_stable = False

    def make_window(self, window, dim, damping):
        return Updated(window, dim, damping)


def test_the_machine_accepts_a_textbook_window_that_drifts():
    run(UpdatedMachine)


def test_such_a_window_is_not_stable():
    with pytest.raises(AssertionError, match="R = "):
        run(type("Machine", (UpdatedMachine,), {"is_stable": True}))


def test_the_machine_finds_a_wrong_sign_in_a_window_that_may_drift():
    class Machine(UpdatedMachine):
        def make_window(self, window, dim, damping):
            return Updated(window, dim, damping, sign=-1 + 1e-3)

    with pytest.raises(AssertionError, match="of what rounding may cost"):
        run(Machine)


def test_the_machine_finds_a_window_that_keeps_one_gradient_too_many():
    class Machine(WindowMachine):
        dtype = "float32"

        def make_window(self, window, dim, damping):
            return Window(window, dim, damping, extra=1)

    with pytest.raises(AssertionError, match="R = ") as caught:
        run(Machine, phases=(Phase.generate, Phase.shrink))
    assert sum("append" in line for note in caught.value.__notes__ for line in note.splitlines()) <= 3


def test_the_machine_finds_a_window_that_writes_to_gradients():
    class Normalizes(Window):
        def append(self, g):
            super().append(g)
            g *= 0.5

    class Machine(WindowMachine):
        def make_window(self, window, dim, damping):
            return Normalizes(window, dim, damping)

    with pytest.raises(AssertionError, match="changed the gradient"):
        run(Machine)


def test_the_machine_finds_a_window_that_keeps_the_array_that_it_is_given():
    class Keeps(Window):
        def append(self, g):
            super().append(g)
            self.rows[-1] = g

    class Machine(WindowMachine):
        def make_window(self, window, dim, damping):
            return Keeps(window, dim, damping)

    with pytest.raises(AssertionError, match=r"R = |F⁻¹0 is not 0"):
        run(Machine)


def test_the_machine_finds_complex_answers():
    class Imaginary(Window):
        def matvec(self, v):
            return super().matvec(v) * (1 + 1j)

    class Machine(WindowMachine):
        def make_window(self, window, dim, damping):
            return Imaginary(window, dim, damping)

    with pytest.raises(AssertionError, match="is complex"):
        run(Machine)


class Damped(Window):
    """A window whose damping can be set to what is positive."""

    @property
    def damping(self):
        return self._damping

    @damping.setter
    def damping(self, value):
        if not value > 0:
            raise ValueError(value)
        self._damping = value
        self.first = getattr(self, "first", value)

    def append_matvec(self, g):
        self.append(g)
        return self.matvec(g)


class WritesToV(Damped):
    def matvec(self, v):
        v[:] = super().matvec(v.copy())
        return v.copy()


class CutsGradients(Damped):
    def append_matvec(self, g):
        return super().append_matvec(g[: self.dim])


class AnyDamping(Damped):
    damping = Damped.damping.setter(lambda self, value: setattr(self, "_damping", abs(value)))


class FirstDamping(Damped):
    damping = property(lambda self: self.first, lambda self, value: Damped.damping.__set__(self, value))

    def matvec(self, v):
        self.rows, kept = [*self.rows], self.first
        self.first = self._damping
        x = super().matvec(v)
        self.first = kept
        return x


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (WritesToV, "a product changed the v"),
        (CutsGradients, "accepted: a gradient of length .* by `append_matvec`"),
        (AnyDamping, "accepted: a damping of -1"),
        (FirstDamping, "`damping` is .* was set"),
    ],
)
def test_the_machine_finds_what_a_window_takes_and_tells(window, words):
    def machine(kind):
        return type("Machine", (WindowMachine,), {"make_window": lambda self, *sizes: kind(*sizes)})

    run(machine(Damped))
    with pytest.raises(AssertionError, match=words):
        run(machine(window))


def test_the_machine_finds_a_stale_damping():
    class Stale(Damped):
        def matvec(self, v):
            self._damping, kept = self.first, self._damping
            x = super().matvec(v)
            self._damping = kept
            return x

    class Machine(WindowMachine):
        dtype = "float32"
        is_stable = False

        def make_window(self, window, dim, damping):
            return Stale(window, dim, damping)

    with pytest.raises(AssertionError, match="of what rounding may cost"):
        run(Machine)


@given(strategies.problems("float32", decades=(0.1, 5.0)))
def test_a_problem_is_what_was_asked_for(problem):
    m, d = problem.shape
    assert problem.gradients.dtype == "float32"
    assert 1 <= m <= 24
    assert 1 <= d <= 24
    assert np.isfinite(problem.gradients).all()
    assert np.all(np.asarray(problem.damping) > 0)


def test_problems_shrink_to_the_smallest_that_fails():
    problem = find(strategies.problems(), lambda p: p.shape[0] >= 3 and p.shape[1] > p.shape[0], settings=FAST)
    assert problem.shape == (3, 4)
    assert repr(problem).startswith("make_problem(0, kind='gaussian', shape=(3, 4), kappa=1.26,")
    assert problem.weights is None


@given(st.data())
def test_gradients_have_their_shape_and_dtype(data):
    shape = data.draw(strategies.shapes(9))
    kind = data.draw(strategies.kinds())
    gradients = data.draw(strategies.gradients("float32", shape=shape, kind=kind))
    assert kind in KINDS
    assert (gradients.shape, gradients.dtype) == (shape, np.float32)


@given(strategies.dampings(5, decades=(-3, 0)), strategies.dampings())
def test_dampings_are_positive(vector, scalar):
    assert vector.shape == (5,)
    assert np.all(vector > 0)
    assert 1e-4 <= scalar <= 10


@given(st.data())
def test_right_hand_sides_are_those_of_the_problem(data):
    problem = data.draw(strategies.problems(largest=8))
    v = data.draw(strategies.right_hand_sides(problem))
    assert v.shape == problem.shape[1:]
    assert np.isfinite(v).all()


@given(strategies.operations(3, 4))
def test_operations_are_valid_calls(operations):
    window = ml.SlidingWindowInverse(3, 4, 0.1)
    for method, arguments in operations:
        getattr(window, method)(*arguments)


@pytest.mark.parametrize("kind", [ml.WoodburyRankOneInverse, ml.SlidingWindowInverse, ml.BlockDiagonalInverse, Problem])
def test_types_have_strategies(kind):
    @settings(max_examples=20, deadline=None)
    @given(st.from_type(kind))
    def draws(value):
        assert isinstance(value, kind)

    draws()


@pytest.mark.parametrize(
    "order",
    [
        "hypothesis.strategies, mfac_linalg",
        "mfac_linalg, hypothesis.strategies",
        "mfac_linalg.testing.strategies, mfac_linalg",
    ],
)
def test_types_have_strategies_whichever_is_imported_first(order):
    """The entry point of Hypothesis, or ours, registers them: nothing else has to be imported."""
    code = f"""
import {order}
import hypothesis.strategies as st, mfac_linalg as ml
print(st.from_type(ml.WoodburyRankOneInverse).validate())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_imports_nothing_of_the_package():
    code = "import sys, hypothesis; print(*[m for m in ('mfac_linalg', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["strategies", "InverseTests", "WindowMachine"])
def test_without_hypothesis_the_way_to_install_it_is_said(name):
    code = f"import sys; sys.modules['hypothesis'] = None; import mfac_linalg.testing as kit; kit.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith('which is not installed. Run pip install "mfac_linalg[testing]".')


def test_without_hypothesis_everything_else_can_be_imported():
    code = """import sys; sys.modules["hypothesis"] = None
from mfac_linalg.testing import *
print(callable(check_inverse), "InverseTests" in globals())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
