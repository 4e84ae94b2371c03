"""Operators for other libraries' solvers: complex arrays by their parts, and SciPy's and CuPy's LinearOperator."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .._typing import Array
from .float64 import with_x64
from .kinds import dtype_name, is_array, is_masked, is_numpy, namespace
from .libraries import is_cupy
from .values import asarray, cast, no_grad_constants, read


def is_complex(x: Any) -> bool:
    """Return whether x is an array of complex numbers."""
    dtype = getattr(x, "dtype", None)
    kind = getattr(dtype, "kind", None)
    found = kind == "c" if isinstance(kind, str) else dtype is not None and "complex" in str(dtype)
    return found and is_array(x)


def as_parts(z: Array) -> Array:
    """Return the real parts, then the imaginary parts, of columns (d, k) side by side, (d, 2k)."""
    xp = namespace(z)
    return xp.concat([xp.real(z), xp.imag(z)], axis=1)


def from_parts(parts: Array) -> Array:
    """Return complex columns (d, k) from what `as_parts` makes of them."""
    xp, k = namespace(parts), parts.shape[1] // 2
    wide = xp.complex128 if dtype_name(parts.dtype) == "float64" else xp.complex64
    return cast(parts[:, :k], wide) + 1j * cast(parts[:, k:], wide)


def linear_operator(operator: Any, like: Array) -> Any:
    """Return SciPy's LinearOperator over an operator, for NumPy vectors, or CuPy's where its arrays are CuPy's."""
    products: HostProducts | DeviceProducts
    if is_cupy(like):
        from cupyx.scipy.sparse.linalg import LinearOperator

        products = DeviceProducts(operator, like)
    else:
        from scipy.sparse.linalg import LinearOperator

        products = HostProducts(operator, like)
    vector, matrix = products.matvec, products.matmat
    name = dtype_name(operator.dtype)
    return LinearOperator(operator.shape, matvec=vector, rmatvec=vector, matmat=matrix, rmatmat=matrix, dtype=name)


class DeviceProducts:
    """Products of an operator with arrays of its own library, of any real or complex dtype."""

    def __init__(self, operator: Any, like: Array) -> None:
        self.operator, self.like = operator, like

    def matvec(self, v: Array) -> Array:
        """The product with one vector, (d,) or (d, 1)."""
        return self._product(self.operator.matvec, v)

    def matmat(self, v: Array) -> Array:
        """The product with columns, (d, k)."""
        return self._product(self.operator.matmat, v)

    def _dtypes(self, v: Array) -> tuple[Any, Any]:
        """The dtype to compute in, and that of the result: as of a matrix times v."""
        own = np.dtype(dtype_name(self.operator.dtype))
        own = np.result_type(own, np.complex64) if v.dtype.kind == "c" else own
        return own, np.result_type(own, v.dtype)

    def _product(self, function: Callable[[Array], Array], v: Array) -> Array:
        own, wide = self._dtypes(v)
        return function(v.astype(own, copy=False)).astype(wide, copy=False)


class HostProducts(DeviceProducts):
    """The same with NumPy's arrays, whatever the operator's library is."""

    def _product(self, function: Callable[[Array], Array], v: Array) -> Array:
        v = _as_numbers(v)
        own, wide = self._dtypes(v)
        if own == wide:
            return self._product_in_library(function, v.astype(own, copy=False))
        scale = _column_scales(v.astype(wide, copy=False), wide)
        with np.errstate(all="ignore"):  # of infinities, which `function` refuses
            scaled = (v / scale).astype(own)
        return self._product_in_library(function, scaled).astype(wide) * scale

    def _product_in_library(self, function: Callable[[Array], Array], v: np.ndarray) -> np.ndarray:
        """The product with v, by way of the operator's library and back."""
        like = self.like
        if not is_numpy(like):
            plain = v.flags.c_contiguous and v.flags.writeable  # others are not taken by every library
            dtype = getattr(namespace(like), v.dtype.name)
            v = v if plain else np.array(v, order="C")
            with no_grad_constants(like):
                v = with_x64(partial(asarray, like=like, dtype=dtype), v, like=like)
        return read(function(v))


def _as_numbers(v: Any) -> np.ndarray:
    """Accept numbers; a matrix object, whose products differ, becomes an array."""
    plain = np.asarray(v)
    if is_masked(v) or plain.dtype.kind not in "biufc":
        got = f"a {type(v).__name__} of dtype {plain.dtype}"
        msg = f"`x` must be an array of real or complex numbers; got {got}. Make it one: dense, without a mask."
        raise TypeError(msg)
    return plain


def _column_scales(v: np.ndarray, dtype: Any) -> np.ndarray:
    """A power of two near the largest entry of v, or of each of its columns."""
    real = np.empty(0, dtype).real.dtype
    parts = np.maximum(np.abs(v.real), np.abs(v.imag)) if v.dtype.kind == "c" else np.abs(v)
    largest = np.max(parts, axis=0, initial=0)
    reach = np.finfo(real).maxexp - 24
    exponents = np.frexp(np.where(np.isfinite(largest), largest, 0))[1]
    return np.ldexp(np.ones((), real), np.clip(exponents, -reach, reach))
