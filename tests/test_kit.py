"""mfac_linalg.testing without Hypothesis: what its checks find, and what they say."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import mfac_linalg as ml
from benchmarks.kit.defects import DEFECTS, FactorOfM, Textbook
from mfac_linalg.testing import (
    CHECKS,
    CheckError,
    CheckResults,
    check_inverse,
    default_problems,
    make_problem,
    right_hand_sides,
)
from tests.backends import AVAILABLE, NUMPY

STABILITY = {"stable: in span", "stable: cancelling"}
ALLOWED = {"refusal": "argument checks are not what this class is about"}


def woodbury(problem, **options):
    return ml.WoodburyRankOneInverse(
        problem.gradients, problem.damping, weights=problem.weights, normalization=problem.normalization, **options
    )


def failures(results):
    return {result.check for result in results if result.status == "failed"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"whiten": True}, {"precision": "high"}], ids=str)
def test_our_inverse_passes_every_check(dtype, options):
    results = check_inverse(lambda problem: woodbury(problem, **options), default_problems(dtype))
    assert {result.check for result in results if result.status == "passed"} == set(CHECKS)


def test_our_inverse_passes_with_every_option():
    problems = [
        make_problem(seed, shape=shape, kappa=kappa, vector=True, weighted=True, normalization=normalization)
        for seed, shape in enumerate([(5, 13), (9, 6)])
        for kappa in (10.0, 1e6)
        for normalization in ("mean", "sum")
    ]
    assert not failures(check_inverse(woodbury, problems))


def test_blocks_and_windows_pass():
    def window(problem):
        return ml.SlidingWindowInverse.from_gradients(problem.gradients, problem.damping)

    def blocks(problem):
        return ml.BlockDiagonalInverse(problem.gradients, problem.damping, block_sizes=problem.shape[1])

    check_inverse(window)
    check_inverse(blocks)


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b is not NUMPY and "float32" in b.dtypes], ids=repr)
def test_arrays_of_any_library_are_checked(backend):
    def make(problem):
        return ml.WoodburyRankOneInverse(backend.asarray(problem.gradients), problem.damping)

    problems = [make_problem(0, shape=(4, 9), dtype="float32"), make_problem(1, shape=(6, 5), dtype="float32")]
    checks = None if backend.library != "dask" else ["right formula: *", "stable: *", "dtype", "factor"]
    check_inverse(make, problems, asarray=backend.asarray, checks=checks)


def test_an_answer_of_another_library_or_dtype_is_found():
    def make(problem):
        inverse = woodbury(problem)
        return lambda v: inverse.matvec(v).astype("float64")

    with pytest.raises(CheckError, match="F⁻¹v has dtype float64 for float32"):
        check_inverse(make, checks=["dtype"])


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.make.__name__)
def test_published_defects_are_found(defect):
    found = failures(check_inverse(defect.make, on_fail=None))
    assert defect.check in found


@pytest.mark.parametrize("defect", DEFECTS[:2], ids=lambda defect: defect.make.__name__)
def test_a_textbook_inverse_is_told_that_its_formula_is_right_and_its_rounding_is_not(defect):
    results = check_inverse(defect.make, expected_failures=ALLOWED, on_fail=None)
    assert failures(results) == STABILITY
    assert all("formula is right" in result.message for result in results if result.status == "failed")


def test_the_textbook_formula_passes_in_a_precision_that_has_the_digits():
    def make(problem):
        gradients = problem.gradients.astype("float64")
        system = gradients @ gradients.T + len(gradients) * problem.damping * np.eye(len(gradients))
        inverse = np.linalg.inv(system)
        return lambda v: ((v - gradients.T @ (inverse @ (gradients @ v))) / problem.damping).astype(v.dtype)

    assert not failures(check_inverse(make, expected_failures=ALLOWED))


def test_a_factor_of_m_is_named():
    with pytest.raises(CheckError, match="a factor of m") as caught:
        check_inverse(FactorOfM, make_problem(1, shape=(6, 40), kappa=10.0))
    assert "the answers divide Σ w_i g_i g_iᵀ by 1; normalization='mean' is 6, with m = 6" in str(caught.value)


def test_a_wrong_formula_is_not_called_right_where_rounding_would_hide_it():
    problem = make_problem(8, kind="common mean", shape=(16, 100), kappa=1e4, dtype="float32")
    (result,) = check_inverse(FactorOfM, problem, checks=["stable: in span"], on_fail=None)
    assert result.status == "failed"
    assert "The formula is wrong: x is the answer for m times" in result.message


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda problem: lambda v: v / problem.damping, "the gradients do not count"),
        (lambda problem: lambda v: v.copy(), "v: an identity"),
        (lambda problem: lambda v: (problem.oracle.forward @ v).astype(v.dtype), "x is Fv"),
        (lambda problem: lambda v: np.zeros_like(v), "nearly 0"),
        (lambda problem: woodbury(problem.with_damping(2 * problem.damping)), "λ twice"),
        (lambda problem: lambda v: v[:-1], r"shape \(13,\) for v of shape \(14,\)"),
        (lambda problem: lambda v: v * np.nan, "not finite"),
        (lambda problem: lambda v: 1 / 0, "ZeroDivisionError"),
        (lambda problem: 1 / 0, "`make` raised ZeroDivisionError"),
    ],
)
def test_well_known_mistakes_are_named(mistake, words):
    with pytest.raises(CheckError, match=words):
        check_inverse(mistake, make_problem(0), checks=["right formula: random"])


@pytest.mark.parametrize("change", ["gradients", "v"])
def test_arguments_that_are_written_to_are_named(change):
    def make(problem):
        if change == "gradients":
            problem.gradients[0, 0] += 1
        inverse = woodbury(problem)

        def product(v):
            x = inverse.matvec(v)
            if change == "v":
                v[0] = 0
            return x

        return product

    problem = make_problem(0)
    before = problem.gradients.copy()
    with pytest.raises(CheckError, match=f"changed: {change}"):
        check_inverse(make, problem, checks=["inputs"])
    assert np.array_equal(problem.gradients, before)


def test_an_answer_that_is_a_view_of_v_may_not_change_it():
    def make(problem):
        def product(v):
            v /= problem.damping
            return v

        return product

    with pytest.raises(CheckError, match="changed: v"):
        check_inverse(make, make_problem(0), checks=["inputs"])


def test_the_line_of_a_failure_makes_it_again():
    results = check_inverse(Textbook, on_fail=None)
    failed = next(result for result in results if result.check == "stable: in span" and result.status == "failed")
    names = {"check_inverse": check_inverse, "make_problem": make_problem, "make": Textbook, "np": np}
    with pytest.raises(CheckError) as caught:
        eval(failed.reproduce, names)
    (again,) = caught.value.results
    assert (again.check, again.value, again.limit) == (failed.check, failed.value, failed.limit)


@pytest.mark.parametrize("change", [lambda p: p.scaled_by(0.5), lambda p: p.permuted(), lambda p: p.with_damping(0.25)])
def test_a_problem_is_made_again_by_its_repr(change):
    problem = change(make_problem(3, kind="decay", shape=(4, 7), kappa=30.0, weighted=True, normalization="sum"))
    again = eval(repr(problem), {"make_problem": make_problem, "np": np})
    assert np.array_equal(again.gradients, problem.gradients)
    assert np.array_equal(again.weights, problem.weights)
    assert again.damping == problem.damping


def test_expected_failures_do_not_raise_and_say_why():
    seen = []
    expected = {"stable: *": "textbook", **ALLOWED}
    results = check_inverse(Textbook, expected_failures=expected, callback=seen.append)
    assert seen == results
    reasons = {result.check: result.message for result in results if result.status == "expected failure"}
    assert set(reasons) == STABILITY | {"refusal"}
    assert all(message.endswith("textbook") for check, message in reasons.items() if check in STABILITY)


def test_failures_can_be_warnings():
    with pytest.warns(UserWarning, match="stable: in span"):
        check_inverse(Textbook, on_fail="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_inverse(Textbook, on_fail=None)


def test_an_iterative_solver_is_held_to_its_tolerance():
    def make(problem):
        noise = np.random.default_rng(0)

        def product(v):
            x = problem.oracle.solve(v)
            error = noise.standard_normal(len(v))
            return (x + 1e-5 * error * np.linalg.norm(x) / np.linalg.norm(error)).astype(v.dtype)

        return product

    checks, problem = ["right formula: *", "stable: *"], make_problem(0, kappa=10.0)
    assert failures(check_inverse(make, problem, checks=checks, on_fail=None)) >= {"right formula: in span"}
    results = check_inverse(make, problem, checks=checks, eps=1e-5)
    assert all(result.reproduce.endswith(f"checks=[{result.check!r}], eps=1e-05)") for result in results)


def test_another_damping_can_be_made_by_a_function():
    def make(problem):
        return {"problem": problem, "inverse": woodbury(problem)}["inverse"].matvec

    skipped = check_inverse(make, make_problem(0), checks=["damping"])
    assert [result.status for result in skipped] == ["skipped"]

    def redamp(product, damping):
        return product.__self__.with_damping(damping)

    passed = check_inverse(make, make_problem(0), checks=["damping"], redamp=redamp)
    assert [result.status for result in passed] == ["passed"]


@pytest.mark.parametrize("argument", ["checks", "expected_failures"])
def test_names_that_are_no_checks_are_refused(argument):
    with pytest.raises(ValueError, match="'stabel'"):
        check_inverse(woodbury, **{argument: ["stabel"] if argument == "checks" else {"stabel": "?"}})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "gauss"}, "`kind`"),
        ({"kappa": 1.0}, "`kappa`"),
        ({"kappa": np.nan}, "`kappa`"),
        ({"kappa": np.inf}, "`kappa`"),
        ({"normalization": "Mean"}, "`normalization`"),
        ({"shape": (0, 5)}, "`shape`"),
    ],
)
def test_invalid_problems_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_problem(0, **arguments)


def test_every_group_of_right_hand_sides_is_what_it_says():
    problem = make_problem(0, shape=(4, 12))
    vectors = right_hand_sides(problem, 0)
    basis = np.linalg.svd(problem.gradients, full_matrices=False)[2]
    inside = {name: np.linalg.norm(basis @ v) / np.linalg.norm(v) for name, v in vectors.items()}
    assert inside["orthogonal to rows"] < 1e-12
    assert all(inside[name] > 1 - 1e-12 for name in ("row", "combination", "first singular vector", "mix"))
    assert 0.1 < inside["random"] < 0.99


def test_the_checks_need_no_hypothesis():
    code = """
import sys, mfac_linalg.testing as kit
kit.check_inverse(lambda problem: problem.oracle.solve, kit.make_problem(0), checks=["right formula: *"])
print("hypothesis" in sys.modules, "pytest" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_answers_of_zero_and_other_signatures_do_not_end_the_run():
    zeros = check_inverse(lambda problem: np.zeros_like, make_problem(0), on_fail=None)
    assert {"right formula: random", "factor"} <= failures(zeros)

    class OtherSample(Textbook):
        def sample(self, size, *, rng=None):
            raise AssertionError

    results = check_inverse(OtherSample, make_problem(0), checks=["sample"])
    assert [(result.status, "sample(size, seed=0)" in result.message) for result in results] == [("skipped", True)]


@pytest.mark.parametrize(
    "options",
    [{"on_fail": "raises"}, {"checks": []}, {"problem": []}, {"problem": iter(())}],
    ids=["on_fail", "checks", "list", "iterator"],
)
def test_a_run_that_checks_nothing_is_refused(options):
    problem = options.pop("problem", make_problem(0))
    with pytest.raises(ValueError, match=r"`on_fail`|must not be empty"):
        check_inverse(woodbury, problem, **options)


def test_checks_may_be_one_name_or_a_generator():
    for checks in ("stable: random", (name for name in ["stable: random"])):
        assert [result.check for result in check_inverse(woodbury, make_problem(0), checks=checks)] == [
            "stable: random"
        ]


def test_a_factor_is_not_judged_where_rounding_hides_it():
    problem = make_problem(0, kind="decay", shape=(10, 600), kappa=1e6, dtype="float32")
    results = check_inverse(Textbook, problem, on_fail=None)
    assert {result.check: result.status for result in results}["factor"] == "skipped"


def test_a_class_that_reorders_its_gradients_leaves_the_problem_and_is_found():
    def make(problem):
        problem.gradients[:] = problem.gradients[::-1].copy()
        return woodbury(problem)

    problem = make_problem(0)
    before = problem.gradients.copy()
    assert failures(check_inverse(make, problem, on_fail=None)) == {"inputs"}
    assert np.array_equal(problem.gradients, before)


def test_failures_survive_processes():
    with pytest.raises(CheckError) as caught:
        check_inverse(Textbook, make_problem(2, kappa=1e6, dtype="float32"), checks=["stable: *"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert [result.check for result in again.results] == [result.check for result in caught.value.results]


def test_a_damping_that_is_only_kept_may_mean_anything():
    class Keeps(Textbook):
        def __init__(self, problem):
            super().__init__(problem)
            self.damping = problem.damping

    assert [result.status for result in check_inverse(Keeps, make_problem(0), checks=["damping"])] == ["skipped"]


def test_an_inverse_that_always_raises_refuses_nothing():
    with pytest.raises(CheckError, match="ZeroDivisionError"):
        check_inverse(lambda problem: 1 / 0, make_problem(0), checks=["refusal"])


def test_what_make_may_return_is_said():
    with pytest.raises(CheckError, match="`matvec` or `@`, or a function; got NoneType"):
        check_inverse(lambda problem: None, make_problem(0), checks=["stable: random"])


def test_options_are_in_the_line_of_a_failure():
    results = check_inverse(
        Textbook, make_problem(0), asarray=np.asarray, eps=1e-30, checks=["stable: *"], on_fail=None
    )
    assert all(result.reproduce.endswith(", asarray=asarray, eps=1e-30)") for result in results)


def test_a_problem_with_a_damping_per_parameter_is_made_again_by_its_repr():
    problem = make_problem(0, dtype=np.float32, vector=True)
    problem = problem.with_damping(problem.damping * 2)
    again = eval(repr(problem), {"make_problem": make_problem, "np": np})
    assert np.array_equal(again.damping, problem.damping)
    assert again.damping.dtype == np.float32


def test_a_dampings_own_dtype_is_in_the_repr():
    problem = make_problem(0, dtype="float32").with_damping(np.full(14, 0.1))
    again = eval(repr(problem), {"make_problem": make_problem, "np": np})
    assert again.damping.dtype == "float64"
    assert np.array_equal(again.damping, problem.damping)


@pytest.mark.parametrize("dtype", [np.float32, "f4", np.dtype("float32")], ids=repr)
def test_a_dtype_may_be_given_in_any_way(dtype):
    assert list(map(repr, default_problems(dtype))) == list(map(repr, default_problems("float32")))


@pytest.mark.parametrize("dtype", ["float16", int, "flaot32"], ids=repr)
@pytest.mark.parametrize("make", [default_problems, lambda dtype: make_problem(0, dtype=dtype)])
def test_other_dtypes_are_refused_by_name(make, dtype):
    with pytest.raises(ValueError, match="`dtype` must be 'float32' or 'float64'; got"):
        make(dtype)


def test_the_caption_counts_expected_failures_apart():
    results = check_inverse(Textbook, expected_failures={"stable: *": "textbook", **ALLOWED})
    passed, excused = (sum(r.status == status for r in results) for status in ("passed", "expected failure"))
    assert f"{passed} checks passed, {excused} failed as expected" in results._repr_html_()
    assert "no checks" in CheckResults([])._repr_html_()


def test_an_other_signature_of_a_sampler_is_skipped_and_its_own_type_error_is_not():
    class Draws(Textbook):
        def sample(self, size, *, seed):
            return len(size)

    class Key(Textbook):
        def sample(self, size, *, key):
            raise AssertionError

    statuses = [
        check_inverse(make, make_problem(0), checks=["sample"], on_fail=None)[0].status for make in (Draws, Key)
    ]
    assert statuses == ["failed", "skipped"]


def test_an_asarray_that_rounds_is_named():
    def rounds(x):
        return x.astype("float32")

    with pytest.raises(ValueError, match="`asarray` makes float32 of float64"):
        check_inverse(woodbury, make_problem(0), asarray=rounds)
    check_inverse(
        lambda problem: lambda v: woodbury(problem).matvec(v.astype("float64")),
        make_problem(0),
        asarray=rounds,
        eps=2e-7,
        checks=["stable: *"],
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"expected_failures": ["refusal"]}, TypeError, "`expected_failures`"),
        ({"expected_failures": {"*": None}}, TypeError, "`expected_failures`"),
        ({"problem": "float64"}, TypeError, "`problem` must be a Problem, or several; got str"),
        ({"problem": np.ones((2, 3))}, TypeError, "`problem` must be a Problem, or several; got ndarray"),
        ({"eps": np.nan}, ValueError, "`eps`"),
        ({"eps": 0.0}, ValueError, "`eps`"),
        ({"eps": "1e-3"}, ValueError, "`eps`"),
    ],
    ids=str,
)
def test_odd_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        check_inverse(woodbury, **options)
