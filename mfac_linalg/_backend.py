"""The only module that names an array library: namespaces, devices, small factorisations, host reads."""

import contextlib
import sys
from typing import Any

import array_api_compat as compat
import numpy as np
import scipy.linalg

Array = Any


# --- what an array is -------------------------------------------------------------------------------------------


def is_array(x: object) -> bool:
    """Return whether x is an array of a library that the array API covers."""
    return compat.is_array_api_obj(x) or isinstance(x, np.generic)


def is_supported(x: Array) -> bool:
    """Return whether x is of a library that holds its values itself (Dask does not)."""
    return not compat.is_dask_array(x) and not compat.is_pydata_sparse_array(x)


def is_masked(x: object) -> bool:
    """Return whether x is a NumPy masked array, whose mask a product would drop."""
    return isinstance(x, np.ma.MaskedArray)


def is_integer(x: Array) -> bool:
    """Return whether x holds integers."""
    return bool(namespace(x).isdtype(x.dtype, "integral"))


def same_library(x: Array, y: Array) -> bool:
    """Return whether two arrays are of one library."""
    return namespace(x) is namespace(y)


def namespace(*arrays: Array) -> Any:
    """Return the array-API namespace of the arrays."""
    return compat.array_namespace(*arrays)


def device(x: Array) -> Any:
    """Return the device of x; None where there is none to name (a traced JAX array)."""
    return None if is_traced(x) else compat.device(x)


def dtype_name(dtype: Any) -> str:
    """Return "float32", "bfloat16", … for a dtype of any library."""
    if isinstance(dtype, np.dtype | type) or hasattr(dtype, "dtype"):
        return np.dtype(dtype).name
    return str(dtype).rpartition(".")[2]


def is_traced(x: Array) -> bool:
    """Return whether x is a JAX tracer: it has a shape and a dtype, and no values yet."""
    return compat.is_jax_array(x) and isinstance(x, sys.modules["jax"].core.Tracer)


def is_concrete(x: Array) -> bool:
    """Return whether x has values that can be read (not traced by JAX, not batched by torch.func, not on "meta")."""
    if compat.is_torch_array(x):
        wrapped = sys.modules["torch"]._C._functorch.is_functorch_wrapped_tensor(x)
        return not wrapped and x.device.type != "meta"
    return not is_traced(x)


def on_host(x: Array) -> bool:
    """Return whether reading a value of x costs nothing: a concrete array in the host's memory."""
    if compat.is_numpy_array(x):
        return True
    if not is_concrete(x) or compat.is_cupy_array(x):
        return False
    if compat.is_torch_array(x):
        return x.device.type == "cpu"
    if compat.is_jax_array(x):
        return all(d.platform == "cpu" for d in x.devices())
    return str(compat.device(x)).endswith("'CPU_DEVICE')")


def is_differentiated(x: Array) -> bool:
    """Return whether gradients flow through x, so that it may not be written in place."""
    return compat.is_torch_array(x) and (x.requires_grad or not is_concrete(x))


def is_writable(x: Array) -> bool:
    """Return whether blocks of arrays like x can be written in place."""
    return not compat.is_jax_array(x) and not is_differentiated(x)


def stop_gradient(x: Array) -> Array:
    """Return x as a constant of differentiation."""
    if compat.is_torch_array(x):
        return x.detach()
    return sys.modules["jax"].lax.stop_gradient(x) if compat.is_jax_array(x) else x


def supports_float64(x: Array) -> bool:
    """Return whether arrays beside x, on its device, can be float64."""
    if compat.is_numpy_array(x) or compat.is_jax_array(x) or compat.is_cupy_array(x):
        return True
    if compat.is_torch_array(x):
        return x.device.type != "mps"
    info = namespace(x).__array_namespace_info__()
    return "float64" in info.dtypes(device=compat.device(x), kind="real floating")


def index_dtype(x: Array) -> Any:
    """Return the integer dtype for indices beside x."""
    xp = namespace(x)
    if compat.is_jax_namespace(xp):
        return xp.int32  # int64 needs jax_enable_x64
    if compat.is_array_api_strict_namespace(xp):
        return xp.__array_namespace_info__().default_dtypes(device=compat.device(x))["indexing"]
    return xp.int64 if supports_float64(x) else xp.int32


# --- moving values ----------------------------------------------------------------------------------------------


def read(x: Array) -> np.ndarray:
    """Copy a small array to the host: the one place where a device is waited for."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if compat.is_torch_array(x):
        return x.detach().cpu().numpy()
    if compat.is_cupy_array(x):
        return x.get()
    if compat.is_jax_array(x):
        return np.asarray(x)
    return np.asarray(compat.to_device(x, namespace(x).Device("CPU_DEVICE")))


def asarray(values: Any, *, like: Array, dtype: Any = None) -> Array:
    """Return host values as an array of like's library, on its device."""
    xp = namespace(like)
    if is_traced(like):
        return xp.asarray(values, dtype=dtype)
    return xp.asarray(values, dtype=dtype, device=compat.device(like))


def native(x: Array) -> Array:
    """Return x in the machine's byte order (a NumPy matter)."""
    return x.astype(x.dtype.newbyteorder("=")) if isinstance(x, np.ndarray) and not x.dtype.isnative else x


def cast(x: Array, dtype: Any) -> Array:
    """Return x in another dtype of its own library; x itself where nothing changes."""
    x = native(x)
    with np.errstate(over="ignore"):  # an overflow is found, and named, where the answer is known
        return x if x.dtype == dtype else namespace(x).astype(x, dtype)


def to_float64(x: Array) -> Array:
    """Return x in float64: on its own device where that has float64, else on the host."""
    if supports_float64(x):
        return cast(x, namespace(x).float64)
    return read(x).astype(np.float64)


def beside_float64(index: Any) -> Any:
    """Bring integers, or an int, to where `to_float64` brings arrays."""
    return index if isinstance(index, int) or supports_float64(index) else read(index)


def from_float64(x: Any, *, like: Array, dtype: Any) -> Array:
    """Bring float64 values of the small system back beside like."""
    if isinstance(x, np.ndarray | np.generic) and not compat.is_numpy_array(like):
        with np.errstate(over="ignore"):
            return asarray(np.asarray(x, dtype=dtype_name(dtype)), like=like, dtype=dtype)
    return cast(x, dtype)


def index_like(index: Array, *, like: Array) -> Array:
    """Bring an integer array beside like, where it is not there already."""
    if isinstance(index, np.ndarray) and not compat.is_numpy_array(like):
        return asarray(index, like=like, dtype=index_dtype(like))
    if compat.is_numpy_array(like):
        return read(index)
    return index


def empty(shape: tuple[int, ...], *, like: Array, dtype: Any) -> Array:
    """Return an uninitialised array beside like."""
    return namespace(like).empty(shape, dtype=dtype, device=compat.device(like))


def unit_columns(j: Array, size: int, *, like: Array, dtype: Any) -> Array:
    """Return the unit vectors e_j as columns, shape (size, len(j))."""
    xp = namespace(like)
    positions = asarray(np.arange(size), like=like, dtype=j.dtype)
    return xp.astype(positions[:, None] == j[None, :], dtype)


def column_squares(x: Array) -> Array:
    """Return the squared norms of the columns of x."""
    if compat.is_numpy_array(x):
        return np.einsum("ij,ij->j", x, x)
    xp = namespace(x)
    return xp.sum(x * x, axis=0)


def column_norms(x: Array) -> Array:
    """Return the norms of the columns of x."""
    return namespace(x).linalg.vector_norm(x, axis=0)


def is_row_major(x: Array) -> bool:
    """Return whether the rows of a NumPy matrix are contiguous (other libraries gather either way)."""
    return compat.is_numpy_array(x) and x.strides[1] == x.itemsize


def result_dtype(gradients: Array) -> Any:
    """Return the dtype of answers: the gradients' own in native order, float32 for 16-bit ones."""
    if dtype_name(gradients.dtype) in ("float16", "bfloat16"):
        return namespace(gradients).float32
    return gradients.dtype.newbyteorder("=") if isinstance(gradients, np.ndarray) else gradients.dtype


def weights_column(weights: Array | None, size: int, *, like: Array) -> Array:
    """Return weights, 1 where there are none, as a (size, 1) float64 array of the small system."""
    if weights is not None:
        return to_float64(weights)[:, None]
    ones = np.ones((size, 1))
    return asarray(ones, like=like, dtype=namespace(like).float64) if supports_float64(like) else ones


def is_vector(x: Any) -> bool:
    """Return whether x is an array with an axis."""
    return is_array(x) and x.ndim > 0


def is_overwritable(x: Array) -> bool:
    """Return whether x can be whitened in place."""
    if isinstance(x, np.ndarray):
        return x.flags.writeable and (x.flags.c_contiguous or x.flags.f_contiguous)
    return is_writable(x)


def standard_normal(shape: tuple[int, ...], *, seed: int, like: Array, dtype: Any) -> Array:
    """Draw standard normal numbers by like's own generator, on its device."""
    if compat.is_torch_array(like):
        torch = sys.modules["torch"]
        generator = torch.Generator(device=like.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=dtype, device=like.device)
    if compat.is_jax_array(like):
        random = sys.modules["jax"].random
        return random.normal(random.key(seed), shape, dtype=dtype)
    if compat.is_cupy_array(like):
        return sys.modules["cupy"].random.default_rng(seed).standard_normal(shape, dtype=dtype)
    values = np.random.default_rng(seed).standard_normal(shape, dtype=dtype_name(dtype))
    return asarray(values, like=like, dtype=dtype)


def linear_operator(inverse: Any) -> Any:
    """Return SciPy's LinearOperator over an inverse, or CuPy's for CuPy arrays."""
    if compat.is_cupy_array(inverse._like):
        from cupyx.scipy.sparse.linalg import LinearOperator
    else:
        from scipy.sparse.linalg import LinearOperator
    products = {"matvec": inverse.matvec, "rmatvec": inverse.matvec}
    products |= {"matmat": inverse.matmat, "rmatmat": inverse.matmat}
    return LinearOperator(inverse.shape, dtype=dtype_name(inverse.dtype), **products)


# --- float64 and differentiation --------------------------------------------------------------------------------


def in_float64(function: Any, *arguments: Any) -> Any:
    """Call function(*arguments) where float64 exists: JAX needs it switched on, for this call and its gradient alone.

    Arrays may be nested in registered classes. Traced JAX arguments get a reverse rule that works in float64 too
    (without it JAX transposes the float64 part in float32).
    """
    jax = sys.modules.get("jax")
    if jax is None or not any(compat.is_jax_array(x) for x in jax.tree_util.tree_leaves(arguments)):
        return function(*arguments)
    if any(is_traced(x) for x in jax.tree_util.tree_leaves(arguments)):
        return _with_float64_gradient(jax, function, arguments)
    with jax.enable_x64(True):
        return function(*arguments)


def _with_float64_gradient(jax: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten(arguments)
    is_leaf_array = [compat.is_jax_array(x) for x in leaves]
    arrays = [x for x, yes in zip(leaves, is_leaf_array, strict=True) if yes]

    def evaluate(*arrays: Any) -> Any:
        with jax.enable_x64(True):
            given = iter(arrays)
            filled = [next(given) if yes else x for x, yes in zip(leaves, is_leaf_array, strict=True)]
            return function(*jax.tree_util.tree_unflatten(structure, filled))

    def forward(*arrays: Any) -> Any:
        with jax.enable_x64(True):
            return jax.vjp(evaluate, *arrays)

    def backward(pullback: Any, cotangent: Any) -> Any:
        with jax.enable_x64(True):
            return pullback(cotangent)

    scoped = jax.custom_vjp(evaluate)
    scoped.defvjp(forward, backward)
    return scoped(*arrays)


ESTIMATES = ("kappa", "norm")  # floats that jit must not compile in
_registered: set[type] = set()


def adopt(like: Array, *classes: type) -> None:
    """Make the classes known to JAX as pytrees, on the first use of a JAX array."""
    if not compat.is_jax_array(like):
        return
    tree_util = sys.modules["jax"].tree_util
    for cls in classes:
        if cls not in _registered:
            tree_util.register_pytree_node(cls, _flatten, _unflatten(cls))
            _registered.add(cls)


def _flatten(instance: Any) -> tuple[tuple[Any, ...], Any]:
    fields = vars(instance)
    arrays = {n: v for n, v in fields.items() if compat.is_jax_array(v) or type(v) in _registered or n in ESTIMATES}
    constants = tuple((n, v) for n, v in fields.items() if n not in arrays)
    return tuple(arrays.values()), (tuple(arrays), constants)


def _unflatten(cls: type) -> Any:
    def unflatten(auxiliary: Any, arrays: Any) -> Any:
        names, constants = auxiliary
        instance = object.__new__(cls)
        vars(instance).update(constants)
        vars(instance).update(zip(names, arrays, strict=True))
        return instance

    return unflatten


def portable(x: Any) -> Any:
    """Return what to pickle for x: JAX would bring float64 back as float32."""
    return _Float64(np.asarray(x)) if compat.is_jax_array(x) and x.dtype == np.float64 else x


class _Float64:
    """The values of a float64 JAX array, unpickled as one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, tuple[np.ndarray]]:
        return _restore_float64, (self.values,)


def _restore_float64(values: np.ndarray) -> Array:
    import jax

    with jax.enable_x64(True):
        return jax.numpy.asarray(values)


# --- small linear algebra ---------------------------------------------------------------------------------------


def cholesky(a: Array) -> Array | None:
    """Return the lower Cholesky factor, or None where there is none; traced or batched values are not tested."""
    if compat.is_torch_array(a):
        torch = sys.modules["torch"]
        factor, info = torch.linalg.cholesky_ex(a)
        return None if is_concrete(a) and int(info) else factor
    if compat.is_cupy_array(a):
        with sys.modules["cupyx"].errstate(linalg="raise"):
            return _attempt_cholesky(a)
    return _attempt_cholesky(a)


def _attempt_cholesky(a: Array) -> Array | None:
    with contextlib.suppress(np.linalg.LinAlgError):
        factor = namespace(a).linalg.cholesky(a)
        if compat.is_jax_array(a) and is_concrete(a) and not bool(np.isfinite(read(factor[-1, -1]))):
            return None
        return factor
    return None


def solve_triangular(lower: Array, b: Array, *, transposed: bool = False) -> Array:
    """Return L⁻¹b, or L⁻ᵀb, for a lower-triangular L."""
    matrix = lower.T if transposed else lower
    if compat.is_numpy_array(b):
        return scipy.linalg.solve_triangular(lower, b, lower=True, trans=int(transposed), check_finite=False)
    if compat.is_torch_array(b):
        return sys.modules["torch"].linalg.solve_triangular(matrix, b, upper=transposed)
    if compat.is_jax_array(b):
        solve = sys.modules["jax"].scipy.linalg.solve_triangular
        return solve(lower, b, trans=int(transposed), lower=True)
    if compat.is_cupy_array(b):
        from cupyx.scipy.linalg import solve_triangular as solve

        return solve(lower, b, trans=int(transposed), lower=True, check_finite=False)
    return namespace(b).linalg.solve(matrix, b)


def solve_triangular_into(lower: Array, b: Array, out: Array) -> None:
    """Write L⁻¹b into out, which may be b itself: in place for NumPy where the memory layout allows."""
    if not compat.is_numpy_array(out):
        out[...] = cast(solve_triangular(lower, b), out.dtype)
        return
    if out.dtype != b.dtype:
        out[...] = solve_triangular(lower, b)
        return
    if out is not b:
        np.copyto(out, b)
    (trsm,) = scipy.linalg.get_blas_funcs(("trsm",), (out,))
    if out.flags.f_contiguous:
        solved, view = trsm(1.0, lower, out, lower=1, overwrite_b=1), out
    else:  # X Lᵀ = Bᵀ, with Bᵀ in Fortran order
        solved, view = trsm(1.0, lower, out.T, side=1, lower=1, trans_a=1, overwrite_b=1), out.T
    if not np.shares_memory(solved, view):
        view[...] = solved
