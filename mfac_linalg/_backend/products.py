"""Products whose derivatives too are computed in the dtype of their factors, under any autocast of PyTorch."""

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._typing import Array
from .kinds import is_concrete, namespace
from .libraries import is_torch
from .memory import aligned_empty
from .modes import without_autocast


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b for matrices, or batches of them.

    PyTorch's `autocast` is left while an answer is computed; its backward pass comes later, and in it plain products of
    float32 would be of bfloat16. Those of float64 never are.
    """
    return _product_rule().apply(operator.matmul, a, b) if may_be_cast(a, b) else a @ b


def matmul_by_blocks(a: Array, b: Array, size: int, runs: Sequence[slice]) -> Array:
    """Return a @ b as the sum over runs of the inner index; NumPy takes `size` rows of a at a time for a matrix b."""
    if not isinstance(a, np.ndarray):
        return sum(matmul(a[:, run], b[run, :]) for run in runs) if len(runs) > 1 else matmul(a, b)
    product = aligned_empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    size = max(1, a.shape[0]) if b.shape[1] == 1 else size
    for start in range(0, a.shape[0], size):  # each block stays in a cache
        block, total = a[start : start + size, :], product[start : start + size, :]
        np.matmul(block[:, runs[0]], b[runs[0], :], out=total)
        for run in runs[1:]:
            total += block[:, run] @ b[run, :]
    return product


def subtract_over(x: Array, y: Array) -> Array:
    """Return x − y for a y that nothing else refers to: NumPy writes over it."""
    if isinstance(y, np.ndarray) and isinstance(x, np.ndarray) and x.dtype == y.dtype and y.ndim:
        return np.subtract(x, y, out=y)
    return x - y


def divide_over(x: Array, y: Any) -> Array:
    """Return x / y for an x that nothing else refers to and a number y: NumPy writes over it."""
    return np.divide(x, y, out=x) if isinstance(x, np.ndarray) and x.ndim and isinstance(y, float) else x / y


def long_matmul(product: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Return product(a, b), which is a @ b in float64, as one node of differentiation."""
    return _product_rule().apply(product, a, b)


def vecdot(x: Array, y: Array) -> Array:
    """Return Σ_i x_i y_i over the last axis."""
    as_product = is_torch(x) and (may_be_cast(x, y) or not (is_concrete(x) and is_concrete(y)))  # which vmap can batch
    return matmul(x[..., None, :], y[..., :, None])[..., 0, 0] if as_product else namespace(x).vecdot(x, y)


def may_be_cast(a: Array, b: Array) -> bool:
    """Return whether PyTorch differentiates a product of these, and it is not in float64."""
    if isinstance(a, np.ndarray) or not is_torch(a):
        return False
    torch = sys.modules["torch"]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return a.dtype != torch.float64 and (a.requires_grad or b.requires_grad or wrapped(a) or wrapped(b))


@functools.cache
def _product_rule() -> Any:
    """A product with its derivatives, which are such products again, in the dtype of the factors."""
    torch: Any = sys.modules["torch"]

    class Product(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(product: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
            with without_autocast():
                return product(a, b)

        @staticmethod
        def setup_context(context: Any, inputs: tuple[Any, Array, Array], output: Array) -> None:
            del output
            context.product, a, b = inputs
            context.save_for_backward(a, b)
            context.save_for_forward(a, b)

        @staticmethod
        def backward(context: Any, cotangent: Array) -> tuple[None, Array | None, Array | None]:
            a, b = context.saved_tensors
            _, by_a, by_b = context.needs_input_grad
            cotangent = cotangent.to(a.dtype)
            return (
                None,
                Product.apply(operator.matmul, cotangent, b.mT).sum_to_size(a.shape) if by_a else None,
                Product.apply(operator.matmul, a.mT, cotangent).sum_to_size(b.shape) if by_b else None,
            )

        @staticmethod
        def jvp(context: Any, _: None, by_a: Array | None, by_b: Array | None) -> Array:
            a, b = context.saved_tensors
            parts = [] if by_a is None else [Product.apply(context.product, by_a, b)]
            return sum(parts if by_b is None else [*parts, Product.apply(context.product, a, by_b)])

    return Product
