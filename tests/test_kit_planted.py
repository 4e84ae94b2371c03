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

    def diagonal(self):
        return self.inverse.diagonal()

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
        dense = np.lib.stride_tricks.as_strided(v, v.shape, (v.itemsize,)) if v.strides[0] > 0 else v
        return super().matvec(dense.copy())


class WritesToV(Right):
    """v is scaled in place, and back."""

    def matvec(self, v):
        v *= 2
        x = super().matvec(v) / np.asarray(2, v.dtype)
        v /= 2
        return x


class TwoBuffers(Right):
    """Every second answer is written to the same memory."""

    calls = 0

    def matvec(self, v):
        self.buffers = getattr(self, "buffers", np.empty((2, len(v)), v.dtype))
        self.calls += 1
        self.buffers[self.calls % 2] = super().matvec(v)
        return self.buffers[self.calls % 2]


class Memory(Right):
    """The answer to the same v is the same array."""

    def matvec(self, v):
        self.answers = getattr(self, "answers", {})
        if v.tobytes() not in self.answers:
            self.answers[v.tobytes()] = super().matvec(v)
        return self.answers[v.tobytes()]


class OneDiagonal(Right):
    """The diagonal is kept, and returned itself."""

    def diagonal(self):
        self.entries = getattr(self, "entries", super().diagonal())
        return self.entries


class KeepsTheDiagonal(Right):
    """The diagonal is kept, also by an inverse of another damping."""

    entries = None

    def diagonal(self):
        if self.entries is None:
            self.entries = super().diagonal()
        return self.entries.copy()

    def with_damping(self, damping):
        other = super().with_damping(damping)
        other.entries = self.entries
        return other


class DampsTheDiagonal(Right):
    """`with_damping` changes the diagonal of the old inverse."""

    def diagonal(self):
        return getattr(self, "newest", self.inverse).diagonal()

    def with_damping(self, damping):
        other = super().with_damping(damping)
        self.newest = other.inverse
        return other


class WritesToTheSecondV(Right):
    """v is overwritten from the second product on."""

    calls = 0

    def matvec(self, v):
        x = super().matvec(v)
        self.calls += 1
        if self.calls > 1 and v.flags.writeable:
            v[:] = x
        return x


class WritesInDiagonal(Right):
    """The gradients are scaled in place where the diagonal is asked for."""

    def __init__(self, problem):
        self.gradients = problem.gradients
        self.inverse = ml.WoodburyRankOneInverse(self.gradients.copy(), problem.damping)

    def with_damping(self, damping):
        other = super().with_damping(damping)
        other.gradients = self.gradients
        return other

    def diagonal(self):
        self.gradients *= 2
        return super().diagonal()


class FailsToDraw(Right):
    """`sample` raises a TypeError of its own."""

    def sample(self, size, *, seed):
        return super().sample(size, seed="a" + seed)


class TakesShort(Right):
    """A v that is too short is filled up."""

    def __init__(self, problem):
        super().__init__(problem)
        self.d = problem.shape[1]

    def with_damping(self, damping):
        other = super().with_damping(damping)
        other.d = self.d
        return other

    def matvec(self, v):
        return super().matvec(np.append(v, np.zeros(max(0, self.d - len(v)), v.dtype)))


class LooksAtTheLastRow(Right):
    """Only the last gradient is checked, and others are taken for 0 where they are not finite."""

    def __init__(self, problem):
        if not np.isfinite(problem.gradients[-1]).all():
            raise ValueError
        self.inverse = ml.WoodburyRankOneInverse(np.nan_to_num(problem.gradients), problem.damping)


class ImaginaryDiagonal(Right):
    """The diagonal is right, and has an imaginary part."""

    def diagonal(self):
        return super().diagonal() * (1 + 1j)


class ImaginaryDraws(Right):
    """The draws are right, and have an imaginary part."""

    def sample(self, size, *, seed):
        return super().sample(size, seed=seed) * (1 + 1j)


class StaleDraws(Right):
    """An inverse of another damping draws as before."""

    def sample(self, size, *, seed):
        self.first = getattr(self, "first", self.inverse)
        return self.first.sample(size, seed=seed)

    def with_damping(self, damping):
        other = super().with_damping(damping)
        if hasattr(self, "first"):
            other.first = self.first
        return other


class SignedDraws(Right):
    """The draws are made from signs, of the right variance."""

    def sample(self, size, *, seed):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (size, self.inverse.dim)).astype(self.inverse.dtype)
        return signs @ np.stack([self.inverse.sqrt_matvec(e) for e in np.eye(len(signs[0]), dtype=signs.dtype)])


class HalfOfTheDraws(Right):
    """Every draw is returned twice."""

    def sample(self, size, *, seed):
        return np.repeat(super().sample(-(-size // 2), seed=seed), 2, axis=0)[:size]


class NoWayBack(Right):
    """A stride is read without its sign."""

    def matvec(self, v):
        return super().matvec(v[::-1].copy() if v.strides[0] < 0 else v)


PLANTED = [
    (StaleDraws, "damping", "`sample`: along"),
    (SignedDraws, "sample", "is not normal"),
    (HalfOfTheDraws, "sample", "are copies of others"),
    (NoWayBack, "layout", "if v is a view backwards"),
    (TwoBuffers, "outputs", "changed when others were asked for"),
    (Memory, "outputs", "was written to"),
    (OneDiagonal, "outputs", "the answer of `diagonal` was written to"),
    (KeepsTheDiagonal, "damping", "`diagonal`: entry"),
    (DampsTheDiagonal, "damping", "`with_damping` changed the inverse"),
    (WritesToTheSecondV, "inputs", "changed: v"),
    (WritesInDiagonal, "inputs", "changed: gradients"),
    (FailsToDraw, "sample", "TypeError"),
    (TakesShort, "refusal", "accepted: a v that is too short"),
    (LooksAtTheLastRow, "refusal", "a nan in row 0"),
    (ImaginaryDiagonal, "diagonal", "is complex"),
    (ImaginaryDraws, "sample", "are complex"),
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
    assert {result.status for result in results} <= {"passed", "skipped"}
    assert {r.check for r in results if r.status == "passed"} >= {check for _, check, _ in PLANTED}


class OneMultiple(Right):
    """A new damping per parameter is taken to be a multiple of the old one."""

    def __init__(self, problem):
        self.problem = problem
        self.inverse = ml.WoodburyRankOneInverse(
            problem.gradients, problem.damping, weights=problem.weights, normalization=problem.normalization
        )

    def with_damping(self, damping):
        return type(self)(self.problem.with_damping(self.problem.damping * (damping[0] / self.problem.damping[0])))


class WritesToTheDamping(OneMultiple):
    """`with_damping` returns the right inverse, and writes to the damping that it is given."""

    def with_damping(self, damping):
        other = type(self)(self.problem.with_damping(damping.copy()))
        damping *= 2
        return other


@pytest.mark.parametrize(
    ("make", "words"), [(OneMultiple, "for 7 to 14 times Λ"), (WritesToTheDamping, "wrote to the damping")]
)
def test_a_damping_per_parameter_is_another_multiple_of_each_and_stays_as_it_is(make, words):
    with pytest.raises(CheckError, match=words) as caught:
        check_inverse(make, make_problem(0, vector=True))
    assert {result.check for result in caught.value.results if result.status == "failed"} == {"damping"}


def test_complex_answers_are_refused():
    def make(problem):
        inverse = Right(problem)
        return lambda v: inverse.matvec(v) * (1 + 1j)

    with pytest.raises(CheckError, match="F⁻¹v is complex, complex128, for a real matrix"):
        check_inverse(make, make_problem(0), checks=["right formula: random"])
    problem, v = make_problem(0), np.ones(14)
    for ratio in (problem.oracle.backward_ratio, problem.oracle.forward_ratio):
        with pytest.raises(TypeError, match="`x` must be real"):
            ratio(v, problem.oracle.solve(v) + 1j, 1e-16)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("with_damping", "`with_damping` raised ZeroDivisionError"),
        ("diagonal", "`diagonal` raised ZeroDivisionError"),
        ("matvec", "a product raised ZeroDivisionError"),
    ],
)
def test_a_call_that_raises_is_named(method, words):
    broken = type("Broken", (Right,), {method: lambda self, *_: 1 / 0})
    check = {"with_damping": "damping", "diagonal": "diagonal", "matvec": "stable: random"}[method]
    with pytest.raises(CheckError, match=words):
        check_inverse(broken, make_problem(0), checks=[check])


def test_a_diagonal_of_another_shape_is_called_that():
    broken = type("Broken", (Right,), {"diagonal": lambda self: np.eye(14)})
    with pytest.raises(CheckError, match=r"the answer of `diagonal` has shape \(14, 14\) instead of \(14,\)"):
        check_inverse(broken, make_problem(0), checks=["diagonal"])


def test_a_refusal_of_asarray_is_none_of_the_inverse():
    problem = make_problem(0)

    def asarray(x):
        assert x.shape == problem.shape[1:]
        return x

    (result,) = check_inverse(Right, problem, checks=["refusal"], asarray=asarray)
    assert result.status == "skipped"
    assert "`asarray` raised for a v that is too long and a v that is too short" in result.message
    (result,) = check_inverse(LooksAtTheLastRow, problem, checks=["refusal"], asarray=asarray, on_fail=None)
    assert result.status == "failed"


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
