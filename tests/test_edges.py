"""Legal input at the edges: nothing but zeros, one entry, extreme scales, the ends of a dtype's range."""

import numpy as np
import pytest

from mfac_linalg import BlockDiagonalInverse, FactorizationError, IllConditionedWarning, WoodburyRankOneInverse
from mfac_linalg.testing import LIMIT, Oracle, Problem, make_problem, right_hand_sides
from tests.backends import AVAILABLE, NUMPY, eps
from tests.cases import SQUARE, TALL, WIDE, construct
from tests.contract import measure

SHAPES = (WIDE, SQUARE, TALL, (1, 1), (1, 5), (5, 1))
WHITEN = pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "referenced"])
SOME = [b for b in AVAILABLE if b.name in ("numpy", "strict:device1", "strict:no_x64", "torch:cpu", "jax")]


@WHITEN
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_zero_leave_the_damping(shape, whiten):
    inverse = WoodburyRankOneInverse(np.zeros(shape), 0.5, whiten=whiten)
    v = np.random.default_rng(0).standard_normal(shape[1])
    assert np.array_equal(inverse.matvec(v), 2 * v)
    assert np.array_equal(inverse.diagonal(), np.full(shape[1], 2.0))
    assert inverse.logdet() == pytest.approx(shape[1] * np.log(2))
    assert inverse.condition_number() == 1


@pytest.mark.parametrize("backend", SOME, ids=repr)
def test_gradients_of_zero_are_ordinary_on_every_backend(backend):
    inverse = WoodburyRankOneInverse(backend.asarray(np.zeros(WIDE, "float32")), 0.5)
    assert np.array_equal(backend.to_numpy(inverse.matvec(backend.asarray(np.ones(14, "float32")))), np.full(14, 2.0))


@WHITEN
@pytest.mark.parametrize("backend", SOME, ids=repr)
def test_columns_of_any_size_stand_side_by_side(backend, whiten):
    problem = make_problem(0, kappa=1e3, dtype="float32")
    sizes = np.array([1e-25, 1.0, 1e25, 0.0], "float32")
    v = np.random.default_rng(0).standard_normal((14, 4)).astype("float32") * sizes
    x = backend.to_numpy(construct(problem, backend, whiten=whiten).matmat(backend.asarray(v)))
    assert np.all(problem.oracle.backward_ratio(v, x, eps("float32")) <= LIMIT)


@WHITEN
@pytest.mark.parametrize("power", [-60, 60])
def test_scaling_the_vector_by_a_power_of_two_scales_the_answer_bit_for_bit(power, whiten):
    problem = make_problem(0, kappa=1e4, dtype="float32")
    inverse = construct(problem, NUMPY, whiten=whiten)
    v = problem.gradients[0]
    scale = np.float32(2.0**power)
    assert np.array_equal(inverse.matvec(v * scale), inverse.matvec(v) * scale)


@WHITEN
@pytest.mark.parametrize("shape", [WIDE, SQUARE, TALL], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [8, 15])
def test_a_vector_of_dampings_may_spread_widely(spread, dtype, shape, whiten):
    gradients = np.random.default_rng(2).standard_normal(shape).astype(dtype)
    damping = np.logspace(-spread, spread, shape[1]).astype(dtype)
    gradients *= np.sqrt(damping)  # every column counts
    problem = Problem("spread", gradients, damping, None, "mean")
    for answer in measure(problem, NUMPY, whiten=whiten):
        assert max(answer.backward, answer.forward) <= LIMIT, answer


@WHITEN
@pytest.mark.parametrize("backend", SOME, ids=repr)
def test_rows_of_any_size_stand_side_by_side(backend, whiten):
    gradients = make_problem(0, shape=(4, 9)).gradients * np.array([[1e-12], [1.0], [1e12], [0.0]])
    problem = Problem("rows of any size", gradients.astype("float32"), 1e22, None, "sum")
    for answer in measure(problem, backend, whiten=whiten):
        assert max(answer.backward, answer.forward) <= LIMIT, answer


@WHITEN
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_float64_reaches_the_ends_of_its_range(scale, whiten):
    problem = make_problem(0, kappa=1e6).scaled_by(scale)
    for answer in measure(problem, NUMPY, whiten=whiten):
        assert max(answer.backward, answer.forward) <= LIMIT, answer


@WHITEN
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e20])
def test_a_new_damping_is_as_accurate_in_any_units(scale, whiten):
    problem = make_problem(0, kappa=1e3, dtype="float32").scaled_by(scale)
    inverse = construct(problem, NUMPY, whiten=whiten)
    damping = problem.damping / 10
    oracle = Oracle(problem.gradients, damping)
    for v in right_hand_sides(problem, 0).values():
        assert oracle.backward_ratio(v, inverse.with_damping(damping).matvec(v), eps("float32")) <= LIMIT


@WHITEN
def test_weights_of_any_size_are_legal(whiten):
    gradients = make_problem(0, shape=(4, 9)).gradients
    problem = Problem("weights", gradients, 1.0, np.array([1e-300, 1.0, 1e4, 1e-10]), "mean")
    for answer in measure(problem, NUMPY, whiten=whiten):
        assert max(answer.backward, answer.forward) <= LIMIT, answer


@WHITEN
@pytest.mark.parametrize("size", [65504.0, 6e-8])
def test_float16_reaches_the_ends_of_its_range(size, whiten):
    signs = np.sign(make_problem(0, shape=(4, 9)).gradients)
    gradients = (signs * size).astype("float16")
    damping = size**2 / 10
    x = WoodburyRankOneInverse(gradients, damping, whiten=whiten).matvec(gradients[0])
    oracle = Oracle(gradients.astype("float64"), damping)
    assert oracle.backward_ratio(gradients[0].astype("float64"), x, eps("float32")) <= LIMIT


@WHITEN
def test_a_damping_that_swamps_the_gradients_divides(whiten):
    v = np.random.default_rng(0).standard_normal(14)
    inverse = WoodburyRankOneInverse(make_problem(0).gradients, 1e40, whiten=whiten)
    assert np.allclose(inverse.matvec(v), v / 1e40, rtol=1e-15, atol=0)
    assert inverse.condition_number() == pytest.approx(1)


@WHITEN
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [WIDE, TALL], ids=str)
def test_a_vector_that_is_not_finite_is_refused(shape, value, whiten):
    v = np.ones(shape[1])
    v[1] = value
    with pytest.raises(ValueError, match="`v`"):
        WoodburyRankOneInverse(np.ones(shape), 1.0, whiten=whiten).matvec(v)


LAYOUTS = {
    "rows": lambda xp, x: xp.asarray(x),
    "columns": lambda xp, x: xp.asarray(x.T.copy()).T,
    "every second column": lambda xp, x: xp.asarray(np.repeat(x, 2, axis=1))[:, ::2],
    "every second row": lambda xp, x: xp.asarray(np.repeat(x, 2, axis=0))[::2],
    "one row": lambda xp, x: xp.broadcast_to(xp.asarray(x[:1]), x.shape),
    "one column": lambda xp, x: xp.broadcast_to(xp.asarray(x[:, :1].copy()), x.shape),
    "columns reversed": lambda xp, x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    "rows reversed": lambda xp, x: np.ascontiguousarray(x[::-1])[::-1],
}
VECTORS = {
    "plain": lambda xp, v: xp.asarray(v),
    "every third": lambda xp, v: xp.asarray(np.repeat(v, 3))[::3],
    "one number": lambda xp, v: xp.broadcast_to(xp.asarray(v[:1]), v.shape),
    "reversed": lambda xp, v: np.ascontiguousarray(v[::-1])[::-1],
}
"""Layouts of equal entries in NumPy and in PyTorch, which has no reversed ones."""


def in_libraries(layouts):
    return [(xp, name) for xp in ("numpy", "torch") for name in layouts if xp == "numpy" or "reversed" not in name]


def equal_entries(library, shape, kappa, *, layout="rows", vector="plain"):
    """Gradients, damping and a vector, all of equal entries: their sums round with a bias."""
    xp = pytest.importorskip(library, reason=f"needs {library}")
    gradients, v = np.full(shape, 1.3579, "float32"), np.full(shape[1], 0.777, "float32")
    damping = float(np.sum(gradients.astype(float) ** 2)) / shape[0] / (kappa - 1)
    held, asked = LAYOUTS[layout](xp, gradients), VECTORS[vector](xp, v)
    return (
        held,
        damping,
        asked,
        lambda x: Oracle(gradients, damping, wide=np.float64).backward_ratio(v, np.asarray(x), eps("float32")),
    )


@WHITEN
@pytest.mark.parametrize(("library", "layout"), in_libraries(LAYOUTS))
@pytest.mark.parametrize("shape", [(1, 2000), (6, 5000), (20, 5000), (300, 912)], ids=str)
@pytest.mark.parametrize("kappa", [1.5, 1e3])
def test_rows_of_equal_entries_keep_the_contract_in_every_layout(library, layout, shape, kappa, whiten):
    """What BLAS does not take as it lies, libraries multiply in one running sum."""
    gradients, damping, v, ratio = equal_entries(library, shape, kappa, layout=layout)
    assert ratio(WoodburyRankOneInverse(gradients, damping, whiten=whiten).matvec(v)) <= LIMIT
    one_block = BlockDiagonalInverse(gradients, damping, block_sizes=shape[1])
    assert ratio(one_block.matvec(v)) <= LIMIT


@WHITEN
@pytest.mark.parametrize(("library", "vector"), in_libraries(VECTORS))
@pytest.mark.parametrize("shape", [(20, 5000), (300, 912), (700, 3000)], ids=str)
def test_a_vector_of_equal_entries_keeps_the_contract_in_every_layout(library, vector, shape, whiten):
    gradients, damping, v, ratio = equal_entries(library, shape, 1.5, vector=vector)
    assert ratio(WoodburyRankOneInverse(gradients, damping, whiten=whiten).matvec(v)) <= LIMIT


def test_many_equal_rows_are_whitened_without_their_bias():
    gradients = np.full((1500, 2000), 1.3579, "float32")
    damping = float(gradients[0].astype(float) @ gradients[0]) / 999
    v = np.full(2000, 0.777, "float32")
    x = WoodburyRankOneInverse(gradients, damping, whiten=True).matvec(v)
    assert Oracle(gradients, damping, wide=np.float64).backward_ratio(v, x, eps("float32")) <= LIMIT


@pytest.mark.parametrize("shape", [WIDE, SQUARE, TALL], ids=str)
@pytest.mark.parametrize("damping", [1e-150, 1e-200, 1e-250])
def test_a_condition_number_of_any_size_is_noticed(shape, damping):
    with pytest.warns(IllConditionedWarning, match=r"kappa = ‖F‖/damping = \d.*e\+(15|20|25)"):
        WoodburyRankOneInverse(make_problem(0, shape=shape).gradients, damping)


def test_a_condition_number_beyond_float64_is_a_breakdown():
    with pytest.raises(FactorizationError, match="kappa = ‖F‖/damping = inf"):
        WoodburyRankOneInverse(make_problem(0).gradients, 1e-310)


def test_numpy_may_be_set_to_raise_on_underflow():
    gradients = make_problem(0, dtype="float32").gradients
    with np.errstate(all="raise"):
        x = WoodburyRankOneInverse(np.float32(1e-30) * gradients, 1.0).matvec(gradients[0])
    assert np.array_equal(x, gradients[0])


def test_nothing_has_no_backward_error_to_hide():
    inverse = WoodburyRankOneInverse(make_problem(0).gradients, 1.0)
    assert inverse.backward_error(np.ones(14), np.zeros(14)) == np.inf
    assert inverse.relative_residual(np.zeros(14), np.ones(14)) == np.inf
    assert inverse.backward_error(np.zeros(14), np.zeros(14)) == 0
