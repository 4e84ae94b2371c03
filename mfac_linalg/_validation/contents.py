"""Checks of all contents of a file before any are used: checksums find damage, and these find forged contents."""

import math
from typing import Any

import numpy as np

from .._condition import kappa_of
from .._errors import InvalidFileError
from .arrays import FLOATING
from .entries import compression_of
from .memory import total_memory
from .states import COMPRESSION, is_gram, is_lower

Arrays = dict[str, tuple[np.ndarray, str]]
"""Values and the name of their dtype: those of bfloat16 are uint16."""
RULES = {"normalization": ("mean", "sum"), "precision": ("default", "high")}
CSR = ("gradients.data", "gradients.indices", "gradients.indptr")
LARGEST_EXPONENT = 1100  # of all rows: a little more than that of float64
SYMMETRIC = 1e-5  # relative asymmetry of a Gram matrix of float32 products
STATIC = ("kappa", "norm", "sweeps", "sharp", "exponent", "dtype")
WINDOW = ("version", "damping", "window", "dim", "normalization", "decay", "precision", "compression")
SYSTEM = ("norm", "sharp", "factorizations")
WINDOW_ARRAYS = ("rows", "exponents", "slots", "gram", "ages", "factor", "direction", "damping")
COMPRESSED_ARRAYS = ("values", "indices", "error", *WINDOW_ARRAYS[1:])


def check_contents(kind: str, facts: dict[str, Any], arrays: Arrays) -> None:
    """Refuse names, types, shapes, dtypes and ranges that `save` of this class does not write."""
    if kind == "SlidingWindowInverse":
        compressed = compression_of(facts) is not None
        rest = (*SYSTEM, "gradient_dtype", *(f"compression.{name}" for name in COMPRESSION)) if compressed else SYSTEM
        _need_names(facts, (), (*WINDOW, *rest))
        _need_names(arrays, (), COMPRESSED_ARRAYS if compressed else WINDOW_ARRAYS)
        return
    inputs = ("damping", "weights", "gradients", *CSR)
    if kind == "BlockDiagonalInverse":
        _need_names(facts, (*RULES, "damping", "sparse", "block_sizes"), ())
        _need_names(arrays, (), inputs)
        _need(_shape_of(facts, arrays) is not None, "gradients", "there")
        _check_rules(facts, arrays)
        return
    _need_names(facts, (*RULES, "damping", "sparse", *STATIC), ("wide", "width", "asked", "on_demand"))
    _need_names(arrays, ("gram", "factor"), (*inputs, "whitened", "small.index", "small.values"))
    _check_rules(facts, arrays)
    m, d = _check_rows(facts, arrays)
    _check_arguments(facts, arrays, m, d)
    _check_system(facts, arrays, min(m, d))
    _check_numbers(facts)
    _check_small(facts, arrays, d)


def _need(is_valid: Any, name: str, wanted: str) -> None:
    if not is_valid:
        msg = f"`path` must hold what `save` wrote; its `{name}` must be {wanted}. Save again."
        raise InvalidFileError(msg)


def _need_names(found: Any, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for name in needed:
        _need(name in found, name, "there")
    for name in found:
        _need(name in needed or name in optional, f"{name:.40}", "left out")


def _check_rules(facts: dict[str, Any], arrays: Arrays) -> None:
    for name, choices in RULES.items():
        _need(facts[name] in choices, name, f"one of {', '.join(choices)}")
    if "damping" in arrays:
        _need(facts["damping"] is None, "damping", "there once")
        _need(_is_positive(*arrays["damping"]), "damping", "a vector of finite numbers > 0")
    else:
        damping = facts["damping"]
        _need(_is_number(damping) and damping > 0, "damping", "a finite number > 0")
    if "weights" in arrays:
        _need(_is_positive(*arrays["weights"]), "weights", "a vector of finite numbers > 0")


def _is_number(x: Any) -> bool:
    return type(x) is float and math.isfinite(x)


def _is_positive(x: np.ndarray, dtype: str) -> bool:
    """Whether a vector of floating numbers is finite and > 0."""
    if dtype not in FLOATING or x.ndim != 1:
        return False
    if dtype == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return bool(np.all((x > 0) & (x < np.inf)))


def _check_rows(facts: dict[str, Any], arrays: Arrays) -> tuple[int, int]:
    """Accept gradients, whitened rows, or both; return (m, d)."""
    shape = _shape_of(facts, arrays)
    if "whitened" in arrays:
        whitened, dtype = arrays["whitened"]
        _need(dtype == facts["dtype"], "whitened", "of the dtype of the answers")
        fine = whitened.ndim == 2 and 0 < whitened.shape[0] < whitened.shape[1]
        _need(fine and shape in (None, whitened.shape), "whitened", "a matrix of fewer rows than columns")
        alone = shape is None
        _need(
            not alone or facts["precision"] == "default" or dtype == "float64", "gradients", "there for high precision"
        )
        shape = whitened.shape
    _need(shape is not None, "gradients", "there")
    return shape  # type: ignore[return-value]


def _shape_of(facts: dict[str, Any], arrays: Arrays) -> tuple[int, int] | None:
    """The shape of the gradients, dense or sparse; None without gradients."""
    if facts["sparse"] is not None:
        _need("gradients" not in arrays, "gradients", "dense or sparse")
        return _sparse_shape(facts["sparse"], arrays)
    _need(not any(name in arrays for name in CSR), "gradients", "dense or sparse")
    if "gradients" not in arrays:
        return None
    gradients, dtype = arrays["gradients"]
    fine = gradients.ndim == 2 and 0 not in gradients.shape and dtype in FLOATING
    _need(fine, "gradients", "a matrix of floating numbers, (m, d) with m ≥ 1 and d ≥ 1")
    return gradients.shape


def _sparse_shape(shape: Any, arrays: Arrays) -> tuple[int, int]:
    """Accept three arrays of a valid CSR matrix: SciPy does not check the indices that it reads and writes at."""
    fine = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    _need(fine, "sparse", "the shape (m, d) of the gradients, m ≥ 1 and d ≥ 1")
    m, d = shape
    _need(16 * d <= total_memory(), "sparse", "so small that two vectors fit into this machine's memory")
    for name in CSR:
        _need(name in arrays and arrays[name][0].ndim == 1, name, "a vector")
    (data, dtype), (indices, kind), (starts, _) = (arrays[name] for name in CSR)
    _need(dtype in ("float32", "float64"), CSR[0], "float32 or float64")
    for name in CSR[1:]:
        _need(arrays[name][1] in ("int32", "int64") and arrays[name][1] == kind, name, "int32 or int64, like the other")
    _need(
        len(starts) == m + 1 and starts[0] == 0 and np.all(starts[1:] >= starts[:-1]), CSR[2], f"{m + 1} rising steps"
    )
    _need(starts[-1] == len(indices) == len(data), CSR[1], "as long as the steps and the numbers say")
    _need(not len(indices) or (indices.min() >= 0 and indices.max() < d), CSR[1], f"in [0, {d})")
    return m, d


def _check_arguments(facts: dict[str, Any], arrays: Arrays, m: int, d: int) -> None:
    """Accept dampings and weights that fit the rows, and the dtype of results that follows from the rows."""
    rows = next((arrays[name] for name in ("gradients", CSR[0], "whitened") if name in arrays), None)
    answers = "float64" if rows is not None and rows[1] == "float64" else "float32"
    _need(facts["dtype"] == answers, "dtype", f"{answers}, as the rows are")
    if "damping" in arrays:
        damping, dtype = arrays["damping"]
        _need(damping.shape == (d,) and dtype == answers, "damping", f"{answers} of shape ({d},)")
    if "weights" in arrays:
        _need(arrays["weights"][0].shape == (m,), "weights", f"of shape ({m},)")


def _check_system(facts: dict[str, Any], arrays: Arrays, n: int) -> None:
    for name in ("gram", "factor"):
        x, dtype = arrays[name]
        fine = dtype == "float64" and x.shape == (n, n) and np.all(np.isfinite(x))
        _need(fine, name, f"float64 of shape ({n}, {n}), and finite")
    _need(is_gram(arrays["gram"][0], SYMMETRIC), "gram", "symmetric, with a diagonal ≥ 0")
    _need(is_lower(arrays["factor"][0]), "factor", "lower triangular, without zeros on its diagonal")


def _check_numbers(facts: dict[str, Any]) -> None:
    norm, kappa, sweeps, power = (facts[name] for name in ("norm", "kappa", "sweeps", "exponent"))
    _need(_is_number(norm) and 0 <= norm < 1e154, "norm", "a finite number ≥ 0")
    _need(_is_number(kappa) and math.isclose(kappa, kappa_of(norm), rel_tol=1e-6), "kappa", "1 + norm²")
    _need(type(sweeps) is int and sweeps >= 1, "sweeps", "an integer ≥ 1")
    for name in ("sharp", "wide", "on_demand"):
        _need(type(facts.get(name, False)) is bool, name, "true or false")
    fine = power is None or (type(power) is int and abs(power) <= LARGEST_EXPONENT)
    _need(fine, "exponent", f"null, or an integer within ±{LARGEST_EXPONENT}")


def _check_small(facts: dict[str, Any], arrays: Arrays, d: int) -> None:
    """Accept the small entries of a diagonal with their indices, and the panel width of W."""
    names = [name for name in ("small.index", "small.values") if name in arrays]
    _need(len(names) in (0, 2) and (not names or "whitened" in arrays), "small.index", "stored with its values and W")
    if "width" in facts or isinstance(arrays.get("whitened", (None,))[0], np.memmap):
        width = facts.get("width")
        _need(names and type(width) is int and 1 <= width < 2**62, "width", "an integer ≥ 1, stored with small entries")
    if not names:
        return
    index, (values, dtype) = arrays["small.index"][0], arrays["small.values"]
    _need(are_increasing(index, d), "small.index", f"rising integers in [0, {d})")
    fine = dtype == "float64" and values.shape == index.shape and np.all(np.abs(values) <= 2)
    _need(fine, "small.values", "a float64 for each index, of a size that it can have")


def are_increasing(index: np.ndarray, dim: int) -> bool:
    """Whether these are integers in [0, dim), each larger than the one before."""
    fine = index.ndim == 1 and index.dtype.kind == "i" and bool(np.all(index[1:] > index[:-1]))
    return fine and (not len(index) or (index[0] >= 0 and index[-1] < dim))
