"""The oracles against each other and against LAPACK: a test suite is no better than they are."""

import numpy as np
import pytest
from hypothesis import given

from mfac_linalg.testing import Oracle, Problem, make_problem, right_hand_sides
from mfac_linalg.testing.strategies import problems
from tests.oracle import RankOneRecursion, backward_ratio, dense_inverse

EPS = float(np.finfo(np.float64).eps)
LONG_EPS = float(np.finfo(np.longdouble).eps)


@given(problems())
def test_the_dense_inverse_times_the_matrix_is_the_identity(problem):
    oracle = problem.oracle
    product = oracle.inverse @ oracle.forward
    assert np.linalg.norm(product - np.eye(len(product))) <= 30 * EPS * np.linalg.cond(oracle.forward)


@given(problems())
def test_the_refined_inverse_equals_lapacks(problem):
    expected = dense_inverse(problem.gradients, problem.damping, problem.weights, problem.normalization)
    error = np.linalg.norm(problem.oracle.inverse - expected)
    assert error <= 30 * EPS * np.linalg.cond(problem.oracle.forward) * np.linalg.norm(expected)


@given(problems(vector=False, weighted=False, normalization="mean"))
def test_the_papers_recursion_gives_the_dense_inverse(problem):
    recursion = RankOneRecursion(problem.gradients, problem.damping).matvec(np.eye(problem.gradients.shape[1]))
    expected = problem.oracle.inverse
    assert np.linalg.norm(recursion - expected) <= 30 * EPS * problem.oracle.kappa * np.linalg.norm(expected)


@given(problems(decades=(9, 14.6)))
def test_the_oracle_solves_to_extended_precision_where_float64_cannot(problem):
    vectors = np.stack(list(right_hand_sides(problem, 0).values()), axis=1)
    oracle = problem.oracle
    assert np.all(oracle.backward_ratio(vectors, oracle.solve(vectors), LONG_EPS) <= 30)


@given(problems(decades=(0.1, 14)))
def test_a_problem_has_the_condition_number_it_was_asked_for(problem):
    asked = float(problem.name.split("kappa=")[1].split(",")[0])
    assert problem.oracle.kappa == pytest.approx(asked, rel=0.06)


def test_the_backward_ratio_of_a_wrong_answer_is_large():
    problem = make_problem(0)
    v = problem.gradients[0]
    assert problem.oracle.backward_ratio(v, 1.001 * problem.oracle.solve(v), EPS) > 1e6


def test_the_backward_ratio_of_the_rounded_answer_is_below_one():
    problem = make_problem(0, kappa=1e12)
    v = problem.gradients[0]
    exact = problem.oracle.solve(v).astype(np.float64)
    assert backward_ratio(problem.gradients, problem.damping, None, "mean", v, exact, EPS) < 1


def test_the_ratios_are_taken_column_by_column():
    problem = make_problem(0)
    v = problem.gradients[:3].T
    x = problem.oracle.solve(v) * np.array([1, 1.001, 1])
    assert list(problem.oracle.forward_ratio(v, x, EPS) > 1) == [False, True, False]


def test_the_ratios_do_not_depend_on_units():
    problem = make_problem(0, vector=True)
    scaled = problem.scaled_by(2.0**40)
    v = problem.gradients[0]
    x = problem.oracle.solve(v).astype(np.float64)
    here, there = problem.oracle, scaled.oracle
    assert here.backward_ratio(v, x, EPS) == pytest.approx(there.backward_ratio(v, x * 2.0**-80, EPS), rel=1e-6)


def test_the_textbook_formula_fails_the_contract_so_the_contract_says_something():
    problem = make_problem(0, kappa=1e5, dtype="float32")
    gradients, damping = problem.gradients, np.float32(problem.damping)
    m = len(gradients)
    v = gradients[0]
    capacitance = gradients @ gradients.T + m * damping * np.eye(m, dtype=np.float32)
    x = (v - gradients.T @ np.linalg.solve(capacitance, gradients @ v)) / damping
    assert problem.oracle.backward_ratio(v, x, float(np.finfo(np.float32).eps)) > 1e3


def test_a_zero_right_hand_side_has_ratio_zero():
    problem = make_problem(0)
    zero = np.zeros(14)
    assert Oracle(problem.gradients, 1.0).backward_ratio(zero, zero, EPS) == 0


@pytest.mark.parametrize("word", ["Mean", "window", None])
def test_another_normalization_is_refused_by_each_that_takes_it(word):
    problem = make_problem(0)
    for make in (
        lambda: Oracle(problem.gradients, 1.0, normalization=word),
        lambda: Problem("own", problem.gradients, 1.0, normalization=word),
        lambda: make_problem(0, normalization=word),
    ):
        with pytest.raises(ValueError, match=r"`normalization` must be 'mean' or 'sum'; got"):
            make()


@pytest.mark.parametrize("gradients", [np.eye(3, dtype=int), np.ones(3), [[1.0, 2.0]], np.eye(2) * 1j])
def test_gradients_of_a_problem_that_are_no_real_matrix_are_refused(gradients):
    with pytest.raises(TypeError, match=r"`gradients` must be a NumPy matrix \(m, d\) of floating numbers; got"):
        Problem("own", gradients, 1.0)
