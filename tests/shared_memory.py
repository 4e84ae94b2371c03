"""Gradients that an inverse keeps by reference, in every form and library, with ways to fill them again."""

import numpy as np
import pytest
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg import BlockDiagonalInverse, WoodburyRankOneInverse
from tests.ambient_queries import BLOCKS, SHAPE, TALL, Asked, gradients
from tests.ambient_queries import answer as answer_or_refusal
from tests.backends import AVAILABLE, NUMPY
from tests.inputs import memory_map

LIMIT = 10**5
WITHOUT_VALUES = {"kappa", "repr"}  # which read no array
TORCH = next((backend for backend in AVAILABLE if backend.name == "torch:cpu"), None)
STRICT = next((backend for backend in AVAILABLE if backend.name == "strict:CPU_DEVICE"), None)


def static(rows, **options):
    return WoodburyRankOneInverse(rows, 0.01, **options)


def referenced(rows):
    return static(rows, whiten=False)


def limited(rows):
    return static(rows, memory_limit=LIMIT)


def overwritten(rows):
    return static(rows, overwrite_gradients=True)


def blocks(rows):
    return BlockDiagonalInverse(rows, 0.01, block_sizes=BLOCKS)


def high(rows):
    return static(rows, precision="high")


def fill(memory, values):
    memory[...] = values


def fill_sparse(matrix, values):
    matrix.data *= -2


def strided(rows):
    base = np.zeros((rows.shape[0], 3 * rows.shape[1]), rows.dtype)
    base[:, ::3] = rows
    return base[:, ::3]


def misaligned(rows):
    memory = np.zeros(rows.nbytes + 1, np.uint8)[1:].view(rows.dtype).reshape(rows.shape)
    memory[...] = rows
    return memory


def numpy_cases():
    """Name to the memory that is shared, the inverse of it, and how its owner refills it."""
    rows, tall = gradients(), gradients(TALL)
    found = {
        "by reference": (rows.copy(), referenced, fill),
        "float64": (rows.astype(float), referenced, fill),
        "float16": (rows.astype("float16"), static, fill),
        "column by column": (np.asfortranarray(rows), referenced, fill),
        "a view": (strided(rows), referenced, fill),
        "backwards": (rows.copy()[::-1, ::-1], referenced, fill),
        "misaligned": (misaligned(rows), referenced, fill),
        "another byte order": (rows.astype(rows.dtype.newbyteorder()), referenced, fill),
        "a transposed view": (rows.T.copy(), lambda memory: referenced(memory.T), fill),
        "tall": (tall.copy(), static, fill),
        "high": (rows.copy(), high, fill),
        "blocks": (rows.copy(), blocks, fill),
        "equal blocks": (rows.copy(), lambda memory: BlockDiagonalInverse(memory, 0.01, block_sizes=4), fill),
        "blocks of a mapped file": (memory_map(rows), blocks, fill),
        "limited": (rows.copy(), limited, fill),
        "a mapped file": (memory_map(rows), static, fill),
        "overwritten": (rows.copy(), overwritten, fill),
        "overwritten, column by column": (np.asfortranarray(rows), overwritten, fill),
        "written to an array": (np.zeros_like(rows), lambda memory: static(rows.copy(), out=memory), fill),
        "written to a mapped file": (memory_map(rows), lambda memory: static(rows.copy(), out=memory), fill),
        "weights": (rows.copy(), lambda memory: static(memory, whiten=False, weights=np.arange(1.0, 7.0)), fill),
        "sparse blocks": (scipy.sparse.csr_array(rows), blocks, fill_sparse),
    }
    thin = rows * (np.random.default_rng(2).random(rows.shape) < 0.3)
    for form in ("csr", "csc"):
        for dtype in ("float32", "float64"):
            matrix = scipy.sparse.coo_array(thin.astype(dtype)).asformat(form)
            found[f"{form} of {dtype}"] = (matrix, static, fill_sparse)
    return {("numpy", name): (NUMPY, *case) for name, case in found.items()}


def torch_cases():
    import torch

    rows = torch.from_numpy(gradients())
    found = {
        "by reference": (rows.clone(), referenced, fill),
        "column by column": (rows.T.contiguous().T, referenced, fill),
        "bfloat16": (rows.bfloat16(), static, fill),
        "recorded": (rows.clone().requires_grad_(), referenced, lambda memory, values: fill(memory.detach(), values)),
        "exchanged": (rows.clone(), referenced, lambda memory, values: setattr(memory, "data", values.to(memory))),
        "of NumPy's memory": (rows.clone(), referenced, lambda memory, values: fill(memory.numpy(), values)),
        "blocks": (rows.clone(), blocks, fill),
        "limited": (rows.clone(), limited, fill),
        "overwritten": (rows.clone(), overwritten, fill),
        "tall": (torch.from_numpy(gradients(TALL)), static, fill),
        "written to an array": (np.zeros(SHAPE, "float32"), lambda memory: static(rows.clone(), out=memory), fill),
    }
    return {("torch", name): (TORCH, *case) for name, case in found.items()}


def strict_cases():
    found = {
        "by reference": (STRICT.asarray(gradients()), referenced, fill),
        "blocks": (STRICT.asarray(gradients()), blocks, fill),
    }
    return {("strict", name): (STRICT, *case) for name, case in found.items()}


def cases():
    """All of them, in memory of their own."""
    return {**numpy_cases(), **(torch_cases() if TORCH else {}), **(strict_cases() if STRICT else {})}


@pytest.fixture(params=cases(), ids=", ".join)
def case(request):
    """A backend, some memory, the inverse built on it, and how it is refilled."""
    backend, memory, build, refill = cases()[request.param]
    return backend, memory, build(memory), refill


def asked_of(backend, inverse):
    return Asked(inverse, backend, "float64" if str(inverse.dtype).endswith("64") else "float32")


def other_values(backend, memory):
    return backend.asarray(np.random.default_rng(8).standard_normal(memory.shape).astype("float32"))


def refill_anew(case):
    backend, memory, _, refill = case
    refill(memory, other_values(NUMPY if isinstance(memory, np.ndarray) else backend, memory))


def answer(query, asked):
    """What a query gives, or how it is refused; PyTorch copies nothing that is differentiated."""
    try:
        return answer_or_refusal(query, asked)
    except RuntimeError as refused:
        return f"{type(refused).__name__}: {refused}"


def bits_of(memory):
    return [part.tobytes() for part in ml._backend.host_memory(memory)]
