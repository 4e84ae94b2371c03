"""`check_rows` on right and wrong classes of rows."""

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg.testing import CheckError, check_rows
from tests.backends import AVAILABLE

NAMES = ["columns", "panels", "project", "combine", "gram", "adjoint", "dtype"]


class Rows(ml.GradientRows):
    """An array behind the five methods."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def gram(self):
        return self.array @ self.array.T

    def project(self, v):
        return self.array @ v

    def combine(self, coefficients):
        return self.array.T @ coefficients

    def columns(self, j):
        return self.array[:, j]


def array(dtype="float64"):
    return np.random.default_rng(0).standard_normal((4, 11)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_rows_pass(dtype):
    results = check_rows(Rows(array(dtype)))
    assert [(result.check, result.status) for result in results] == [(name, "passed") for name in NAMES]


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if b.library in ("torch", "jax.numpy")], ids=repr)
def test_rows_of_other_libraries_pass(backend):
    check_rows(Rows(backend.asarray(array("float32"))), asarray=backend.asarray)


def wrong(**methods):
    return type("Wrong", (Rows,), methods)(array())


@pytest.mark.parametrize(
    ("rows", "found", "words"),
    [
        (wrong(gram=lambda self: 2 * self.array @ self.array.T), {"gram"}, "entry"),
        (wrong(project=lambda self, v: self.array @ v * (1 + 1e-9)), {"project", "adjoint"}, "entry"),
        (wrong(combine=lambda self, c: self.array.T @ c[::-1]), {"combine", "adjoint"}, "and ⟨v, Gᵀc⟩ is"),
        (wrong(panels=lambda self: [self.array[:, :3], self.array[:, 4:]]), {"panels"}, "shape (4, 10)"),
        (wrong(panels=lambda self: [self.array[:, 5:], self.array[:, :5]]), {"panels"}, "entry"),
        (
            wrong(combine=lambda self, c: (self.array.T @ c).astype("float32")),
            {"combine", "adjoint", "dtype"},
            "float32",
        ),
        (wrong(gram=lambda self: self.array @ self.array), {"gram", "dtype"}, "ValueError"),
        (wrong(gram=lambda self: np.full((4, 4), np.nan)), {"gram"}, "nan instead of"),
        (wrong(gram=lambda self: self.array @ self.array.T * (1 + 1j)), {"gram", "dtype"}, "complex, complex128"),
        (wrong(project=lambda self, v: (self.array @ v)[:, 0]), {"project", "adjoint"}, "shape (4,)"),
        (wrong(project=lambda self, v: (self.array @ v).squeeze()), {"project"}, "shape (4,)"),
        (wrong(combine=lambda self, c: (self.array.T @ c).squeeze()), {"combine"}, "shape (11,)"),
        (wrong(project=lambda self, v: [self.array @ v, v.fill(0)][0]), {"project"}, "writes to its argument"),
        (wrong(combine=lambda self, c: [self.array.T @ c, c.fill(0)][0]), {"combine"}, "writes to its argument"),
        (
            wrong(columns=lambda self, j: self.array[:, np.unique(j)[np.argsort(np.argsort(j))]]),
            {"columns"},
            "IndexError",
        ),
    ],
    ids=[
        "gram",
        "project",
        "combine",
        "a lost column",
        "panels out of order",
        "dtype",
        "raises",
        "nan",
        "complex",
        "shape",
        "one column",
        "one combination",
        "writes to v",
        "writes to c",
        "a column twice",
    ],
)
def test_wrong_rows_are_found(rows, found, words):
    with pytest.raises(CheckError) as caught:
        check_rows(rows)
    failed = [result for result in caught.value.results if result.status == "failed"]
    assert {result.check for result in failed} == found
    assert words in str(caught.value)


def test_rows_of_another_dtype_than_the_two_are_found():
    with pytest.raises(CheckError, match="rows of float16, neither float32 nor float64"):
        check_rows(Rows(array("float16")), checks=["dtype"])


def test_columns_are_compared_with_themselves_in_another_order():
    class Sorted(Rows):
        def columns(self, j):
            return self.array[:, np.sort(j)]

    with pytest.raises(CheckError, match="columns"):
        check_rows(Sorted(array()))


def test_some_checks_can_be_chosen_and_others_are_refused():
    assert [result.check for result in check_rows(Rows(array()), checks=["gram"])] == ["gram"]
    with pytest.raises(ValueError, match="'grams'"):
        check_rows(Rows(array()), checks=["grams"])


def test_failures_can_be_warnings():
    rows = wrong(gram=lambda self: -self.array @ self.array.T)
    with pytest.warns(UserWarning, match="gram"):
        check_rows(rows, on_fail="warn")
    assert len(check_rows(rows, on_fail=None)) == len(NAMES)


def test_a_misspelt_way_to_fail_is_refused():
    with pytest.raises(ValueError, match="`on_fail`"):
        check_rows(Rows(array()), on_fail="raises")


def test_no_checks_at_all_are_refused():
    with pytest.raises(ValueError, match="`checks` must not be empty"):
        check_rows(Rows(array()), checks=[])


def test_options_are_in_the_line_of_a_failure():
    rows = wrong(gram=lambda self: -self.array @ self.array.T)
    (result,) = check_rows(rows, checks=(name for name in ["gram"]), asarray=np.asarray, seed=3, on_fail=None)
    assert result.reproduce == "check_rows(rows, checks=['gram'], asarray=asarray, seed=3)"
    with pytest.raises(CheckError):
        eval(result.reproduce, {"check_rows": check_rows, "rows": rows, "asarray": np.asarray})


def test_rows_whose_columns_raise_fail_every_check_with_the_reason():
    rows = wrong(columns=lambda self, j: self.array[:, j.item()])
    results = check_rows(rows, on_fail=None)
    assert [result.check for result in results] == list(NAMES)
    assert all(
        result.status == "failed" and "`columns` of all of `shape` raised" in result.message for result in results
    )
