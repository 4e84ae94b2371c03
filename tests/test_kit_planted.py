"""mfac_linalg.testing: mistakes that a single product does not show, each planted in a class otherwise right."""

import numpy as np
import pytest

import mfac_linalg as ml
from benchmarks.kit.defects import Textbook
from mfac_linalg.testing import CheckError, check_inverse, default_problems, make_problem, right_hand_sides


class Right:
    """An inverse with a damping and samples, right in every way, for mistakes to be planted in."""

    def __init__(self, problem):
        self.inverse = ml.WoodburyRankOneInverse(problem.gradients, problem.damping)

    def matvec(self, v):
        return self.inverse.matvec(v)

    def with_damping(self, damping):
        other = object.__new__(type(self))
        other.inverse = self.inverse.with_damping(damping)
        return other

    def sample(self, size, *, seed):
        return self.inverse.sample(size, seed=seed)


class OneBuffer(Right):
    """Every answer is written to the same memory."""

    def matvec(self, v):
        self.buffer = getattr(self, "buffer", np.empty_like(v))
        self.buffer[:] = super().matvec(v)
        return self.buffer


class DampsItself(Right):
    """`with_damping` returns the new inverse, and is it."""

    def with_damping(self, damping):
        self.inverse = self.inverse.with_damping(damping)
        return self


class DampsTheOriginal(Right):
    """`with_damping` returns a new inverse and changes the old one too."""

    def with_damping(self, damping):
        other = super().with_damping(damping)
        self.inverse = other.inverse
        return other


class OneSeed(Right):
    """Every seed gives the same draws."""

    def sample(self, size, *, seed):
        return super().sample(size, seed=0)


class NoSeed(Right):
    """The draws are those of a global generator."""

    draws = 0

    def sample(self, size, *, seed):
        NoSeed.draws += 1
        return super().sample(size, seed=1000 + NoSeed.draws)


class NoStrides(Right):
    """The memory of v is read as if v had no strides."""

    def matvec(self, v):
        dense = np.lib.stride_tricks.as_strided(v, v.shape, (v.itemsize,))
        return super().matvec(dense.copy())


class WritesToV(Right):
    """v is scaled in place, and back."""

    def matvec(self, v):
        v *= 2
        x = super().matvec(v) / np.asarray(2, v.dtype)
        v /= 2
        return x


PLANTED = [
    (OneBuffer, "outputs", "share memory"),
    (DampsItself, "damping", "`with_damping` changed the inverse"),
    (DampsTheOriginal, "damping", "`with_damping` changed the inverse"),
    (OneSeed, "sample", "give the same draws"),
    (NoSeed, "sample", "the seed does not decide them"),
    (NoStrides, "layout", "if v is a view with strides"),
    (WritesToV, "layout", "read-only"),
]


@pytest.mark.parametrize(("make", "check", "words"), PLANTED, ids=[make.__name__ for make, *_ in PLANTED])
def test_what_is_planted_is_found_by_its_check_alone(make, check, words):
    with pytest.raises(CheckError, match=words) as caught:
        check_inverse(make, default_problems())
    assert {result.check for result in caught.value.results if result.status == "failed"} == {check}


def test_without_a_mistake_everything_passes():
    results = check_inverse(Right)
    assert {result.status for result in results if result.check != "diagonal"} <= {"passed", "skipped"}
    assert {r.check for r in results if r.status == "passed"} >= {check for _, check, _ in PLANTED}


def test_an_answer_to_zero_that_is_not_zero_is_infinitely_wrong():
    problem = make_problem(0, kind="zero rows", shape=(5, 12))
    vectors = right_hand_sides(problem, 0)
    assert not vectors["row"].any()
    (result,) = check_inverse(lambda _: np.ones_like, problem, checks=["right formula: in span"], on_fail=None)
    assert result.status == "failed"
    assert result.value == np.inf


def test_a_setter_and_a_redamp_may_change_the_inverse_that_they_are_given():
    class Set(Right):
        @property
        def damping(self):
            return self.inverse.damping

        @damping.setter
        def damping(self, value):
            self.inverse = self.inverse.with_damping(value)

    Set.with_damping = property(doc="not offered")
    results = check_inverse(Set, make_problem(0), checks=["damping"])
    assert [result.status for result in results] == ["passed"]
    results = check_inverse(DampsItself, make_problem(0), checks=["damping"], redamp=DampsItself.with_damping)
    assert [result.status for result in results] == ["passed"]


def test_a_way_to_arrays_of_one_length_is_asked_for_no_other():
    problem = make_problem(0)

    def asarray(x):
        assert x.shape == problem.shape[1:]
        return x.copy()

    assert [r.status for r in check_inverse(Right, problem, checks=["layout"], asarray=asarray)] == ["passed"]


def test_general_problems_find_what_the_others_do_not():
    class NoWeights(Textbook):
        """Weights do not count."""

        def __init__(self, problem):
            gradients, damping = problem.gradients, problem.damping
            self.inverse = ml.WoodburyRankOneInverse(gradients, damping, normalization=problem.normalization)

        def matvec(self, v):
            return self.inverse.matvec(v)

    checks = ["right formula: *"]
    check_inverse(NoWeights, checks=checks)
    with pytest.raises(CheckError, match="weighted=True"):
        check_inverse(NoWeights, default_problems(general=True), checks=checks)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_our_inverse_passes_every_check_of_general_problems(dtype):
    def make(problem):
        return ml.WoodburyRankOneInverse(
            problem.gradients, problem.damping, weights=problem.weights, normalization=problem.normalization
        )

    problems = default_problems(dtype, general=True)
    assert {problem.normalization for problem in problems} == {"mean", "sum"}
    assert all(np.ndim(problem.damping) == 1 and problem.weights is not None for problem in problems)
    check_inverse(make, problems)
