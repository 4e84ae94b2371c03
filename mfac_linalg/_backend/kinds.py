"""What an array is: its library, its device, and whether its values can be read or written."""

import functools
import importlib
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from .._errors import not_installed
from .._typing import Array
from .libraries import is_cupy, is_dask, is_jax, is_torch

NUMPY = (np.ndarray, np.generic)
NARROW = ("float16", "bfloat16")  # stored as they are, computed in float32


def is_array(x: object) -> bool:
    """Return whether x is an array of a library that the array API covers; a class of such arrays is none."""
    return isinstance(x, NUMPY) or (compat.is_array_api_obj(x) and not isinstance(x, type))


def is_supported(x: Array) -> bool:
    """Return whether x holds its values itself (Dask's arrays do not), and all of them (sparse ones do not)."""
    return kind_of_tensor(x) is None and not is_dask(x) and not compat.is_pydata_sparse_array(x)


def kind_of_tensor(x: object) -> str | None:
    """Return what a tensor of PyTorch is that is no plain array of numbers: nested, quantized, masked, sparse."""
    if not is_torch(x):
        return None
    tensor: Any = x
    if type(tensor).__name__ == "MaskedTensor":
        return "masked"
    if tensor.is_nested or tensor.is_quantized:
        return "nested" if tensor.is_nested else "quantized"
    return None if tensor.layout == sys.modules["torch"].strided else str(tensor.layout).rpartition(".")[2]


def is_masked(x: object) -> bool:
    """Return whether x is a NumPy masked array, or Dask's of such chunks, whose mask a product would drop."""
    return isinstance(_chunk(x), np.ma.MaskedArray)


def is_matrix(x: object) -> bool:
    """Return whether x is a numpy.matrix, or Dask's of such chunks: its * and its slices mean something else."""
    return isinstance(_chunk(x), np.matrix)


def _chunk(x: Any) -> Any:
    return x._meta if is_dask(x) else x


def is_vector(x: Any) -> bool:
    """Return whether x is an array with an axis."""
    return is_array(x) and x.ndim > 0


def is_numpy(x: Any) -> bool:
    """Return whether x is a NumPy array or scalar."""
    return isinstance(x, NUMPY)


def is_plain_numpy(x: Any) -> bool:
    """Return whether x is of NumPy's own class of arrays, with numbers in the machine's byte order."""
    return type(x) is np.ndarray and x.dtype.isnative


def is_plain_like(x: Any, like: Array, dtype: Any) -> bool:
    """Return whether x is for certain of like's own class, on its device and in dtype: a quick look before others."""
    if isinstance(like, np.ndarray):
        return is_plain_numpy(x) and x.dtype == dtype
    if type(x) is not type(like) or not (is_torch(x) or (is_jax(x) and not is_traced(x))) or x.dtype != dtype:
        return False
    return x.device == like.device and (is_jax(x) or kind_of_tensor(x) is None)


def is_real(x: Array) -> bool:
    """Return whether x holds real numbers."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x).dtype.kind in "fiu"
    try:
        return bool(namespace(x).isdtype(x.dtype, ("real floating", "integral")))
    except TypeError:  # a key of JAX's generators
        return False


def is_integer(x: Array) -> bool:
    """Return whether x holds integers."""
    return bool(namespace(x).isdtype(x.dtype, "integral"))


def is_boolean(x: Array) -> bool:
    """Return whether x holds True and False."""
    return bool(namespace(x).isdtype(x.dtype, "bool"))


def same_library(x: Array, y: Array) -> bool:
    """Return whether two arrays are of one library."""
    return namespace(x) is namespace(y)


def namespace(x: Array) -> Any:
    """Return the array-API namespace of x, cached by class."""
    known = _namespaces.get(type(x))
    if known is None:
        known = _namespaces[type(x)] = compat.array_namespace(x)
    return known


_namespaces: dict[type, Any] = {}


def device(x: Array) -> Any:
    """Return the device of x; None where there is none to name (a traced JAX array)."""
    return None if is_traced(x) else compat.device(x)


def dtype_name(dtype: Any) -> str:
    """Return "float32", "bfloat16", … for a dtype of any library."""
    if isinstance(dtype, np.dtype | type) or hasattr(dtype, "dtype"):
        return _numpy_name(np.dtype(dtype))
    return str(dtype).rpartition(".")[2]


@functools.lru_cache(maxsize=64)
def _numpy_name(dtype: np.dtype[Any]) -> str:
    """The name, which NumPy computes at every call."""
    return dtype.name


def is_narrow(x: Array) -> bool:
    """Return whether x holds 16-bit numbers."""
    return dtype_name(x.dtype) in NARROW


def result_dtype(gradients: Array) -> Any:
    """Return the dtype of answers: the gradients' own in native order, float32 for 16-bit ones."""
    dtype = namespace(gradients).float32 if is_narrow(gradients) else gradients.dtype
    return np.dtype(dtype).newbyteorder("=") if isinstance(dtype, np.dtype | type) else dtype


def index_dtype(x: Array) -> Any:
    """Return the integer dtype for indices on the device of x."""
    xp = namespace(x)
    if compat.is_jax_namespace(xp):
        return xp.int32  # int64 needs jax_enable_x64
    if compat.is_array_api_strict_namespace(xp):
        return xp.__array_namespace_info__().default_dtypes(device=compat.device(x))["indexing"]
    return xp.int64 if supports_float64(x) else xp.int32


def has_int64(x: Array) -> bool:
    """Return whether integers on the device of x may have 64 bits."""
    xp = namespace(x)
    if compat.is_array_api_strict_namespace(xp):
        return "int64" in xp.__array_namespace_info__().dtypes(device=compat.device(x), kind="signed integer")
    return not compat.is_jax_namespace(xp)  # which needs jax_enable_x64


def supports_float64(x: Array) -> bool:
    """Return whether arrays of x's library on its device can be float64."""
    if is_numpy(x) or is_jax(x) or is_cupy(x):
        return True
    if is_torch(x):
        return x.device.type != "mps"
    info = namespace(x).__array_namespace_info__()
    return "float64" in info.dtypes(device=compat.device(x), kind="real floating")


def offers_dtype(x: Array, name: str) -> bool:
    """Return whether a user's arrays like x, on its device, can be float32 or float64: JAX has float64 on request."""
    if name == "float64" and is_jax(x):
        return bool(sys.modules["jax"].config.jax_enable_x64)
    return name == "float32" or supports_float64(x)


def require_bfloat16() -> Any:
    """Return ml_dtypes, from which NumPy has bfloat16."""
    try:
        return importlib.import_module("ml_dtypes")
    except ModuleNotFoundError as missing:
        raise not_installed(what="bfloat16 in NumPy", library="ml_dtypes", extra="bfloat16") from missing


def named_dtype(name: str, *, like: Array) -> Any:
    """Return the dtype of that name in like's library."""
    if name == "bfloat16" and isinstance(like, np.ndarray):
        require_bfloat16()
    return np.dtype(name) if isinstance(like, np.ndarray) else getattr(namespace(like), name)


def is_traced(x: Array) -> bool:
    """Return whether x is a JAX tracer: it has a shape and a dtype, and no values yet."""
    return is_jax(x) and isinstance(x, sys.modules["jax"].core.Tracer)


def is_concrete(x: Array) -> bool:
    """Return whether x has values that can be read (not traced by JAX, not batched by torch.func, not on "meta")."""
    if is_torch(x):
        wrapped = sys.modules["torch"]._C._functorch.is_functorch_wrapped_tensor(x)
        return not wrapped and x.device.type != "meta"
    return not is_traced(x)


def unwrapped(x: Array) -> Array:
    """Return x without the derivatives that torch.func takes through it, and so with its values."""
    if is_torch(x):
        functorch = sys.modules["torch"]._C._functorch
        while functorch.is_gradtrackingtensor(x):
            x = functorch.get_unwrapped(x)
    return x


def on_host(x: Array) -> bool:
    """Return whether reading a value of x costs nothing: a concrete array in the host's memory."""
    if is_numpy(x):
        return True
    if not is_concrete(x) or is_cupy(x):
        return False
    if is_torch(x):
        return x.device.type == "cpu"
    if is_jax(x):
        return all(d.platform == "cpu" for d in x.devices())
    return str(compat.device(x)).endswith("'CPU_DEVICE')")


def is_differentiated(x: Array) -> bool:
    """Return whether derivatives flow through x, so that it may be neither written in place nor read for a result."""
    return is_torch(x) and (x.requires_grad or not is_concrete(x) or _is_dual(x))


def _is_dual(x: Array) -> bool:
    """Whether a tensor carries a tangent of PyTorch's forward mode."""
    forward = sys.modules["torch"].autograd.forward_ad
    if forward._current_level < 0 or x.is_inference():  # which carries nothing, and cannot be asked
        return False
    return forward.unpack_dual(x).tangent is not None


def is_writable(x: Array) -> bool:
    """Return whether blocks of arrays like x can be written in place."""
    return not is_jax(x) and not is_differentiated(x)


def is_overwritable(x: Array) -> bool:
    """Return whether x can be whitened in place."""
    if isinstance(x, np.ndarray):
        return x.flags.writeable and (x.flags.c_contiguous or x.flags.f_contiguous)
    if is_torch(x) and not (x.is_contiguous() or x.T.is_contiguous()):
        return False
    return is_writable(x)


def is_row_major(x: Array) -> bool:
    """Return whether the rows of a NumPy or PyTorch matrix are contiguous (others do not tell)."""
    if is_torch(x):
        return is_concrete(x) and x.stride(1) == 1
    return is_numpy(x) and x.strides[1] == x.itemsize


def stop_gradient(x: Array) -> Array:
    """Return x as a constant of differentiation."""
    if is_torch(x):
        return x.detach()
    return sys.modules["jax"].lax.stop_gradient(x) if is_traced(x) else x
