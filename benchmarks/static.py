"""The cases of the static inverse, in the order in which they run: the recursions first, then the library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.cases import NO_TARGET, NUMPY, TORCH, Case, Limit, Target
from benchmarks.machine import Limits
from benchmarks.problems import Problem
from benchmarks.workbench import Workbench


def _flops(name: str, flops: Callable[[Problem], float]) -> Limit:
    return Limit(name, lambda problem, limits: flops(problem) / limits.sgemm)


def _pair_bytes(problem: Problem) -> float:
    return 2 * problem.num_gradients * problem.gradients.itemsize * len(problem.pairs[0])


def _two_passes(_: Problem, limits: Limits) -> float:
    return limits.two_passes


def _one_pass(_: Problem, limits: Limits) -> float:
    return limits.one_pass


FULL_BUILD = _flops("2dm² flops", lambda problem: 2 * problem.dim * problem.num_gradients**2)
GRAM_ONLY = _flops("dm² flops", lambda problem: problem.dim * problem.num_gradients**2)
TWO_PRODUCTS = _flops("4dmk flops", lambda problem: 4 * problem.num_gradients * problem.block.size)
TWO_PASSES = Limit("two passes", _two_passes)
ONE_PASS = Limit("one pass", _one_pass)
PAIR_READS = Limit("2m reads a pair", lambda problem, limits: _pair_bytes(problem) / limits.read)

BUILD = Target(ceiling=1 / 0.70, speedup=12, least_gradients=512)
GRAM = Target(speedup=12, least_gradients=512)

TENSORS = "mfac_linalg, W kept, PyTorch"

OWNERS: dict[str, Callable[[Workbench], object]] = {
    NUMPY: lambda bench: bench.numpy_recursion,
    TORCH: lambda bench: bench.torch_recursion,
    "mfac_linalg, W kept": lambda bench: bench.whitened,
    "mfac_linalg, G kept": lambda bench: bench.unwhitened,
    TENSORS: lambda bench: bench.on_tensors,
}
WHITENED = tuple(owner for owner in OWNERS if owner != "mfac_linalg, G kept")


def _prepare_in_place(bench: Workbench) -> Callable[[], object]:
    return partial(bench.build_over, bench.problem.gradients.copy())


def _builds() -> list[Case]:
    def case(subject: str, limit: Limit, prepare: Callable, target: Target = NO_TARGET) -> Case:
        tensors = subject in (TORCH, TENSORS)
        check = Workbench.check_build_on_tensors if tensors else Workbench.check_build
        return Case("build", subject, limit, prepare, check, target)

    return [
        case(NUMPY, FULL_BUILD, lambda bench: bench.build_numpy_recursion),
        case(TORCH, FULL_BUILD, lambda bench: bench.build_torch_recursion),
        case("mfac_linalg, W kept", FULL_BUILD, lambda bench: partial(bench.build, whiten=True), BUILD),
        case("mfac_linalg, W in place of G", FULL_BUILD, _prepare_in_place, BUILD),
        case("mfac_linalg, G kept", GRAM_ONLY, lambda bench: partial(bench.build, whiten=False), GRAM),
        case(TENSORS, FULL_BUILD, lambda bench: bench.build_on_tensors),
    ]


def _call(owner: str, method: str, inputs: Callable[[Problem], tuple[np.ndarray, ...]], bench: Workbench) -> Callable:
    instance, arguments = OWNERS[owner](bench), inputs(bench.problem)
    if owner in (TORCH, TENSORS):
        arguments = tuple(map(torch.from_numpy, arguments))
    return partial(getattr(instance, method), *arguments)


def _queries(
    name: str,
    method: str,
    inputs: Callable[[Problem], tuple[np.ndarray, ...]],
    limit: Limit,
    check: Callable[..., float],
    *,
    target: Target = NO_TARGET,
    owners: tuple[str, ...] = tuple(OWNERS),
) -> list[Case]:
    """Return one case per owner of the method; the target is for the library on NumPy arrays."""
    others = (NUMPY, TORCH, TENSORS)
    return [
        Case(name, owner, limit, partial(_call, owner, method, inputs), check, NO_TARGET if owner in others else target)
        for owner in owners
    ]


CASES: tuple[Case, ...] = (
    *_builds(),
    *_queries(
        "matvec, random v",
        "matvec",
        lambda problem: (problem.random_vector,),
        TWO_PASSES,
        Workbench.check_random_vector,
        target=Target(ceiling=1.25),
    ),
    *_queries(
        "matvec, stored row",
        "matvec",
        lambda problem: (problem.stored_row,),
        TWO_PASSES,
        Workbench.check_stored_row,
        target=Target(ceiling=2.5),
    ),
    *_queries(
        "matmat, k = 64",
        "matmat",
        lambda problem: (problem.block,),
        TWO_PRODUCTS,
        Workbench.check_block,
    ),
    *_queries(
        "diagonal",
        "diagonal",
        lambda _: (),
        ONE_PASS,
        Workbench.check_diagonal,
        target=Target(ceiling=2),
        owners=WHITENED,
    ),
    *_queries(
        "a million elements",
        "element",
        lambda problem: problem.pairs,
        PAIR_READS,
        Workbench.check_pairs,
        target=Target(most_seconds=3),
        owners=WHITENED,
    ),
)
