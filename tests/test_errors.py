"""Every argument with bad values: the class of the exception and the name of the argument in its text."""

import numpy as np
import pytest

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import make_problem
from tests.backends import AVAILABLE, BACKENDS

GRADIENTS = make_problem(1, shape=(4, 6)).gradients
STRICT, ELSEWHERE = (next(b for b in BACKENDS if b.name == name) for name in ("strict:CPU_DEVICE", "strict:device1"))


def with_bad_entry(value, array=GRADIENTS):
    """A copy with one bad entry."""
    array = array.copy()
    array.flat[2] = value
    return array


def read_only():
    """Gradients that may not be written."""
    array = GRADIENTS.copy()
    array.flags.writeable = False
    return array


G, D = GRADIENTS, np.ones(6)
CONSTRUCTION = {
    "gradients: a list": (TypeError, "gradients", ([[1.0, 2.0]], 1.0), {}),
    "gradients: None": (TypeError, "gradients", (None, 1.0), {}),
    "gradients: a number": (TypeError, "gradients", (3.0, 1.0), {}),
    "gradients: 1-D": (ValueError, "gradients", (G[0], 1.0), {}),
    "gradients: 3-D": (ValueError, "gradients", (G[None], 1.0), {}),
    "gradients: no rows": (ValueError, "gradients", (G[:0], 1.0), {}),
    "gradients: no columns": (ValueError, "gradients", (G[:, :0], 1.0), {}),
    "gradients: integers": (TypeError, "gradients", (np.ones((2, 3), int), 1.0), {}),
    "gradients: booleans": (TypeError, "gradients", (np.ones((2, 3), bool), 1.0), {}),
    "gradients: complex": (TypeError, "gradients", (np.ones((2, 3), complex), 1.0), {}),
    "gradients: objects": (TypeError, "gradients", (np.ones((2, 3), object), 1.0), {}),
    "gradients: nan": (ValueError, "gradients", (with_bad_entry(np.nan), 1.0), {}),
    "gradients: inf": (ValueError, "gradients", (with_bad_entry(np.inf), 1.0), {}),
    "gradients: -inf": (ValueError, "gradients", (with_bad_entry(-np.inf), 1.0), {}),
    "damping: zero": (ValueError, "damping", (G, 0.0), {}),
    "damping: negative": (ValueError, "damping", (G, -1.0), {}),
    "damping: nan": (ValueError, "damping", (G, float("nan")), {}),
    "damping: inf": (ValueError, "damping", (G, float("inf")), {}),
    "damping: None": (TypeError, "damping", (G, None), {}),
    "damping: a string": (TypeError, "damping", (G, "1"), {}),
    "damping: complex": (TypeError, "damping", (G, 1j), {}),
    "damping: boolean": (TypeError, "damping", (G, True), {}),
    "damping: a boolean scalar": (TypeError, "damping", (G, np.True_), {}),
    "damping: a string scalar": (TypeError, "damping", (G, np.array("a")), {}),
    "damping: a complex scalar": (TypeError, "damping", (G, np.complex128(1)), {}),
    "damping: too large": (ValueError, "damping", (G, 10**400), {}),
    "damping: masked": (TypeError, "damping", (G, np.ma.ones(6)), {}),
    "weights: masked": (TypeError, "weights", (G, 1.0), {"weights": np.ma.ones(4)}),
    "damping: a list": (TypeError, "damping", (G, [1.0] * 6), {}),
    "damping: wrong length": (ValueError, "damping", (G, np.ones(5)), {}),
    "damping: 2-D": (ValueError, "damping", (G, np.eye(6)), {}),
    "damping: a zero entry": (ValueError, "damping", (G, with_bad_entry(0.0, D)), {}),
    "damping: a negative entry": (ValueError, "damping", (G, with_bad_entry(-1.0, D)), {}),
    "damping: a nan entry": (ValueError, "damping", (G, with_bad_entry(np.nan, D)), {}),
    "damping: an inf entry": (ValueError, "damping", (G, with_bad_entry(np.inf, D)), {}),
    "damping: integer entries": (TypeError, "damping", (G, np.ones(6, int)), {}),
    "damping: another dtype": (TypeError, "damping", (G, np.ones(6, "float32")), {}),
    "damping: another library": (TypeError, "damping", (G, STRICT.asarray(D)), {}),
    "damping: another device": (TypeError, "damping", (STRICT.asarray(G), ELSEWHERE.asarray(D)), {}),
    "weights: wrong length": (ValueError, "weights", (G, 1.0), {"weights": np.ones(5)}),
    "weights: 2-D": (ValueError, "weights", (G, 1.0), {"weights": np.ones((4, 1))}),
    "weights: a zero": (ValueError, "weights", (G, 1.0), {"weights": np.array([1.0, 1, 0, 1])}),
    "weights: a negative": (ValueError, "weights", (G, 1.0), {"weights": np.array([1.0, 1, -1, 1])}),
    "weights: nan": (ValueError, "weights", (G, 1.0), {"weights": np.array([1.0, np.nan, 1, 1])}),
    "weights: inf": (ValueError, "weights", (G, 1.0), {"weights": np.array([1.0, np.inf, 1, 1])}),
    "weights: a number": (TypeError, "weights", (G, 1.0), {"weights": 2.0}),
    "weights: a list": (TypeError, "weights", (G, 1.0), {"weights": [1.0] * 4}),
    "weights: another library": (TypeError, "weights", (G, 1.0), {"weights": STRICT.asarray(np.ones(4))}),
    "weights: another device": (TypeError, "weights", (STRICT.asarray(G), 1.0), {"weights": ELSEWHERE.asarray(D[:4])}),
    "normalization: unknown": (ValueError, "normalization", (G, 1.0), {"normalization": "total"}),
    "normalization: window": (ValueError, "normalization", (G, 1.0), {"normalization": "window"}),
    "normalization: None": (TypeError, "normalization", (G, 1.0), {"normalization": None}),
    "precision: unknown": (ValueError, "precision", (G, 1.0), {"precision": "double"}),
    "precision: None": (TypeError, "precision", (G, 1.0), {"precision": None}),
    "whiten: a number": (TypeError, "whiten", (G, 1.0), {"whiten": 1}),
    "whiten: a string": (TypeError, "whiten", (G, 1.0), {"whiten": "yes"}),
    "overwrite_gradients: read-only": (
        ValueError,
        "overwrite_gradients",
        (read_only(), 1.0),
        {"overwrite_gradients": True},
    ),
    "overwrite_gradients: not whitened": (
        ValueError,
        "overwrite_gradients",
        (G.copy(), 1.0),
        {"overwrite_gradients": True, "whiten": False},
    ),
    "overwrite_gradients: a number": (TypeError, "overwrite_gradients", (G.copy(), 1.0), {"overwrite_gradients": 1}),
    "options by position": (TypeError, "positional", (G, 1.0, None), {}),
}

V, C = np.ones(6), np.ones(4)
CALLS = {
    "matvec: wrong length": (ValueError, "`v`", "matvec", (np.ones(5),), {}),
    "matvec: a matrix": (ValueError, "`v`", "matvec", (np.ones((6, 2)),), {}),
    "matvec: a row": (ValueError, "`v`", "matvec", (np.ones((1, 6)),), {}),
    "matvec: a number": (TypeError, "`v`", "matvec", (1.0,), {}),
    "matvec: a list": (TypeError, "`v`", "matvec", ([1.0] * 6,), {}),
    "matvec: float32": (TypeError, "`v`", "matvec", (np.ones(6, "float32"),), {}),
    "matvec: integers": (TypeError, "`v`", "matvec", (np.ones(6, int),), {}),
    "matvec: complex of another precision": (TypeError, "`v`", "matvec", (np.ones(6, "complex64"),), {}),
    "matvec: complex of another shape": (ValueError, "`v`", "matvec", (np.ones(5, complex),), {}),
    "matmat: complex of another shape": (ValueError, "`V`", "matmat", (np.ones((5, 2), complex),), {}),
    "matmat: complex and not finite": (ValueError, "`V`", "matmat", (np.full((6, 2), np.nan + 0j),), {}),
    "matmat: not finite": (ValueError, "`V`", "matmat", (np.full((6, 2), np.inf),), {}),
    "dual_coefficients: complex": (TypeError, "`v`.*imaginary", "dual_coefficients", (np.ones(6, complex),), {}),
    "quadratic_form: 3-D": (ValueError, "`v`", "quadratic_form", (np.ones((6, 2, 2)),), {}),
    "quadratic_form: columns of another length": (ValueError, "`v`", "quadratic_form", (np.ones((5, 2)),), {}),
    "backward_error: a vector beside columns": (ValueError, "`x`", "backward_error", (np.ones((6, 2)), V), {}),
    "matvec: another library": (TypeError, "`v`", "matvec", (STRICT.asarray(V),), {}),
    "matvec: masked": (TypeError, "`v`", "matvec", (np.ma.ones(6),), {}),
    "matvec_gradients: nan": (ValueError, "`coefficients`", "matvec_gradients", (np.full(4, np.nan),), {}),
    "element: beyond any integer": (IndexError, "`j`", "element", (0, 10**30), {}),
    "element: masked": (TypeError, "`j`", "element", (0, np.ma.array([1, 2])), {}),
    "columns: ragged": (ValueError, "`j`", "columns", ([[0], [1, 2]],), {}),
    "damping_path: ragged": (ValueError, "`dampings`", "damping_path", (V, [[1], [1, 2]]), {}),
    "backward_error: nan": (ValueError, "`x`", "backward_error", (V, V * np.nan), {}),
    "rmatvec: wrong length": (ValueError, "`v`", "rmatvec", (np.ones(5),), {}),
    "matmat: a vector": (ValueError, "`V`", "matmat", (V,), {}),
    "matmat: wrong length": (ValueError, "`V`", "matmat", (np.ones((5, 2)),), {}),
    "matmat: 3-D": (ValueError, "`V`", "matmat", (np.ones((6, 2, 2)),), {}),
    "matmat: integers": (TypeError, "`V`", "matmat", (np.ones((6, 2), int),), {}),
    "matmul: wrong length": (ValueError, "6", "__matmul__", (np.ones(5),), {}),
    "matmul: 3-D": (ValueError, "shape", "__matmul__", (np.ones((6, 2, 2)),), {}),
    "matvec_gradients: wrong length": (ValueError, "`coefficients`", "matvec_gradients", (V,), {}),
    "matvec_gradients: 3-D": (ValueError, "`coefficients`", "matvec_gradients", (np.ones((4, 2, 2)),), {}),
    "matvec_gradients: integers": (TypeError, "`coefficients`", "matvec_gradients", (np.ones(4, int),), {}),
    "matvec_gradients: a list": (TypeError, "`coefficients`", "matvec_gradients", ([1.0] * 4,), {}),
    "dual_coefficients: wrong length": (ValueError, "`v`", "dual_coefficients", (C,), {}),
    "element: float row": (TypeError, "`i`", "element", (0.0, 1), {}),
    "element: float column": (TypeError, "`j`", "element", (0, np.ones(2)), {}),
    "element: boolean": (TypeError, "`i`", "element", (np.ones(6, bool), 0), {}),
    "element: a string": (TypeError, "`i`", "element", ("0", 0), {}),
    "element: row out of range": (IndexError, "`i`", "element", (6, 0), {}),
    "element: column out of range": (IndexError, "`j`", "element", (0, np.array([0, -7])), {}),
    "element: shapes": (ValueError, "broadcast", "element", (np.arange(2), np.arange(3)), {}),
    "columns: floats": (TypeError, "`j`", "columns", (np.ones(2),), {}),
    "columns: out of range": (IndexError, "`j`", "columns", (np.array([6]),), {}),
    "columns: 2-D": (ValueError, "`j`", "columns", (np.zeros((2, 2), int),), {}),
    "submatrix: floats": (TypeError, "`rows`", "submatrix", (np.ones(2),), {}),
    "submatrix: out of range": (IndexError, "`cols`", "submatrix", (np.array([0]), np.array([9])), {}),
    "submatrix: 2-D": (ValueError, "`rows`", "submatrix", (np.zeros((2, 2), int),), {}),
    "quadratic_form: wrong length": (ValueError, "`v`", "quadratic_form", (C,), {}),
    "sqrt_matvec: wrong length": (ValueError, "`v`", "sqrt_matvec", (C,), {}),
    "sample: negative size": (ValueError, "`size`", "sample", (-1,), {"seed": 0}),
    "sample: float size": (TypeError, "`size`", "sample", (1.5,), {"seed": 0}),
    "sample: no seed": (TypeError, "seed", "sample", (2,), {}),
    "sample: a string as seed": (TypeError, "`seed`", "sample", (2,), {"seed": "0"}),
    "sample: a negative seed": (ValueError, "`seed`", "sample", (2,), {"seed": -1}),
    "damping_path: no dampings": (ValueError, "`dampings`", "damping_path", (V, []), {}),
    "damping_path: zero": (ValueError, "`dampings`", "damping_path", (V, [1.0, 0.0]), {}),
    "damping_path: negative": (ValueError, "`dampings`", "damping_path", (V, [-1.0]), {}),
    "damping_path: nan": (ValueError, "`dampings`", "damping_path", (V, [float("nan")]), {}),
    "damping_path: bool": (TypeError, "`dampings`", "damping_path", (V, [True, 2.0]), {}),
    "damping_path: complex": (TypeError, "`dampings`", "damping_path", (V, [1j]), {}),
    "damping_path: beyond float64": (ValueError, "`dampings`", "damping_path", (V, [10 ** np.longdouble(4000)]), {}),
    "damping_path: strings": (TypeError, "`dampings`", "damping_path", (V, ["1"]), {}),
    "damping_path: wrong length": (ValueError, "`v`", "damping_path", (C, [1.0]), {}),
    "with_damping: zero": (ValueError, "`damping`", "with_damping", (0.0,), {}),
    "with_damping: wrong length": (ValueError, "`damping`", "with_damping", (C,), {}),
    "to_device: another library's": (TypeError, "`device`", "to_device", ("cuda",), {}),
    "to_device: a number": (TypeError, "`device`", "to_device", (3,), {}),
    "astype: integers": (TypeError, "`dtype`", "astype", (int,), {}),
    "astype: 16 bits": (TypeError, "`dtype`", "astype", ("float16",), {}),
    "astype: no dtype": (TypeError, "`dtype`", "astype", ("double",), {}),
    "backward_error: wrong length": (ValueError, "`x`", "backward_error", (V, C), {}),
    "relative_residual: wrong length": (ValueError, "`v`", "relative_residual", (C, V), {}),
}


@pytest.mark.parametrize("row", CONSTRUCTION)
def test_a_bad_argument_of_the_constructor_is_named(row):
    error, text, arguments, options = CONSTRUCTION[row]
    with pytest.raises(error, match=text):
        WoodburyRankOneInverse(*arguments, **options)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("row", CALLS)
def test_a_bad_argument_of_a_call_is_named(row, whiten):
    error, text, method, arguments, options = CALLS[row]
    inverse = WoodburyRankOneInverse(GRADIENTS, 1.0, whiten=whiten)
    with pytest.raises(error, match=text):
        getattr(inverse, method)(*arguments, **options)


@pytest.mark.parametrize("row", CALLS)
def test_a_refused_call_leaves_the_object_as_it_was(row):
    error, _, method, arguments, options = CALLS[row]
    inverse = WoodburyRankOneInverse(GRADIENTS, 1.0)
    before = (inverse.matvec(V), inverse.damping, repr(inverse))
    with pytest.raises(error):
        getattr(inverse, method)(*arguments, **options)
    assert np.array_equal(inverse.matvec(V), before[0])
    assert (inverse.damping, repr(inverse)) == before[1:]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("whiten", [True, False])
def test_non_finite_gradients_are_refused_on_every_backend(backend, whiten, value):
    with pytest.raises(ValueError, match="gradients"):
        WoodburyRankOneInverse(backend.asarray(with_bad_entry(value).astype("float32")), 1.0, whiten=whiten)


@pytest.mark.parametrize("shape", [(14, 6), (6, 6), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_gradients_are_refused_in_every_shape(shape, value):
    gradients = np.ones(shape)
    gradients[-1, -1] = value
    with pytest.raises(ValueError, match="gradients"):
        WoodburyRankOneInverse(gradients, 1.0)


@pytest.mark.parametrize("backend", [b for b in AVAILABLE if not b.has_float64], ids=repr)
def test_high_precision_is_refused_where_there_is_no_float64(backend):
    with pytest.raises(ValueError, match="precision"):
        WoodburyRankOneInverse(backend.asarray(GRADIENTS, "float32"), 1.0, precision="high")


def test_refused_gradients_are_not_overwritten():
    gradients = with_bad_entry(np.nan)
    before = gradients.copy()
    with pytest.raises(ValueError, match="gradients"):
        WoodburyRankOneInverse(gradients, 1.0, overwrite_gradients=True)
    assert np.array_equal(gradients, before, equal_nan=True)


@pytest.mark.parametrize("other", AVAILABLE, ids=repr)
def test_an_array_of_another_library_or_device_is_refused(backend, other):
    if type(backend.asarray([1.0], "float32")) is type(other.asarray([1.0], "float32")) and (
        backend.asarray([1.0], "float32").device == other.asarray([1.0], "float32").device
    ):
        return
    inverse = WoodburyRankOneInverse(backend.asarray(GRADIENTS, "float32"), 1.0)
    with pytest.raises(TypeError, match="`v`"):
        inverse.matvec(other.asarray(V, "float32"))


def test_an_error_shows_the_offending_value():
    with pytest.raises(ValueError, match=r"damping.*-2"):
        WoodburyRankOneInverse(GRADIENTS, -2.0)


def test_an_error_shows_the_offending_shape():
    with pytest.raises(ValueError, match=r"\(5,\)"):
        WoodburyRankOneInverse(GRADIENTS, 1.0).matvec(np.ones(5))


@pytest.mark.parametrize("which", ["inverse", "forward"])
def test_a_dense_form_above_the_limit_is_refused(which):
    inverse = WoodburyRankOneInverse(np.ones((1, 20_000), "float32"), 1.0)
    with pytest.raises(ValueError, match=r"20.?000"):
        (inverse if which == "inverse" else inverse.forward).to_dense()


def test_an_overflowing_answer_raises():
    inverse = WoodburyRankOneInverse(np.ones((2, 3), "float32") * np.float32(1e-20), 1e-35)
    with pytest.raises((OverflowError, FloatingPointError, ValueError, ArithmeticError)):
        inverse.matvec(np.full(3, 1e10, "float32"))
