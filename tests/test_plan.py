"""Decisions of a build, which depend on a few numbers and no array."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfac_linalg as ml
from mfac_linalg._static.plan import LARGEST_ENTRY, Facts, Measured, plan_form, plan_system
from tests.backends import eps

DTYPES = ("float32", "float64")


def facts(m=8, d=1000, dtype="float32", gram_dtype=None, **more):
    return Facts(m, d, dtype, gram_dtype or dtype, **more)


def measured(norm=3.0, largest_square=1.0, largest=1.0, smallest=1.0, **more):
    return Measured(largest_square, norm, largest, smallest, **more)


def plan(known, numbers, *, wide=False, whitens=False):
    return plan_system(known, numbers, wide=wide, whitens=whitens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_numbers_ask_for_nothing(dtype):
    chosen = plan(facts(dtype=dtype), measured())
    assert (chosen.exponent, chosen.widen, chosen.gram_dtype, chosen.kappa) == (None, False, dtype, 10.0)


@pytest.mark.parametrize("largest_square", [0.0, 1e-30, 1e30, math.inf, math.nan])
def test_squares_out_of_range_ask_for_the_largest_entry(largest_square):
    assert plan(facts(), measured(largest_square=largest_square)).exponent == LARGEST_ENTRY


def test_what_was_rescaled_is_not_rescaled_again():
    assert plan(facts(), measured(largest_square=1e-30, exponent=7)).exponent == 7


@given(st.floats(2.0**-300, 2.0**300).filter(lambda x: not 2.0**-80 < x < 2.0**80))
def test_a_gram_matrix_in_float64_knows_the_exponent_of_the_largest_row(largest_square):
    power = plan(facts(gram_dtype="float64"), measured(largest_square=largest_square)).exponent
    assert 0.5 <= math.sqrt(largest_square) / 2.0**power < 1


@pytest.mark.parametrize("known", [facts(gram_dtype="float64", has_row_squares=False), facts(), facts(dtype="float64")])
def test_other_gram_matrices_do_not(known):
    assert plan(known, measured(largest_square=1e-300)).exponent == LARGEST_ENTRY


@given(st.floats(1.0, 1e9))
def test_the_gram_matrix_for_whitening_is_in_float64_from_where_its_rounding_shows_in_elements(norm):
    shows = norm**2 * eps("float32") > 3e-5
    assert plan(facts(), measured(norm=norm), whitens=True).gram_dtype == ("float64" if shows else "float32")


@given(st.floats(1.0, 1e6))
def test_the_gram_matrix_for_products_is_in_float64_from_where_sweeps_may_not_contract(norm):
    serves = (1 + norm**2) * eps("float32") <= 0.1
    assert plan(facts(), measured(norm=norm)).gram_dtype == ("float32" if serves else "float64")


@pytest.mark.parametrize("known", [facts(m=1000), facts(can_widen=False)])
def test_not_where_a_primal_matrix_or_no_float64_makes_that_void(known):
    assert plan(known, measured(norm=1e5), whitens=True).gram_dtype == "float32"


@pytest.mark.parametrize(
    "numbers",
    [
        measured(largest=1e35, exponent=0),  # what underflows in products counts for more than an element
        measured(largest=1.0, smallest=1e-20, exponent=0),  # rows of unlike weights in one product
        measured(norm=2.0**31),
        measured(damping_span=200.0),
    ],
)
def test_what_float32_does_not_hold_is_widened_once(numbers):
    assert plan(facts(), numbers).widen
    assert not plan(facts(dtype="float64"), numbers, wide=True).widen


def test_what_float64_does_not_hold_either_is_an_error():
    with pytest.raises(ml.FactorizationError, match="underflow in float64"):
        plan(facts(dtype="float64"), measured(largest=1e300, exponent=0), wide=True)


@pytest.mark.parametrize("norm", [1e200, math.inf, math.nan])
def test_a_norm_without_a_square_asks_for_nothing_more(norm):
    chosen = plan(facts(), measured(norm=norm))
    assert not chosen.widen
    assert not math.isfinite(chosen.kappa)


@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(DTYPES), st.floats(1.0, 1e16))
def test_a_form_has_the_arithmetic_and_the_sweeps_that_kappa_asks_for(m, d, dtype, kappa):
    form = plan_form(facts(m, d, dtype), kappa)
    assert form.is_primal == (m >= d)
    assert form.arithmetic == ("float64" if m >= d else dtype)
    assert (
        form.sweeps <= plan_form(facts(m, d, dtype), 2 * kappa).sweeps <= plan_form(facts(m, d, dtype), math.inf).sweeps
    )
    assert plan_form(facts(m, d, dtype, "float64"), kappa).sweeps <= form.sweeps


@pytest.mark.parametrize(("kappa", "dtype"), [(5e3, "float32"), (5e4, "float64"), (math.inf, "float64")])
def test_rows_are_whitened_in_float32_while_that_keeps_three_digits(kappa, dtype):
    assert plan_form(facts(gram_dtype="float64"), kappa).whitening_dtype == dtype
