"""The inverses of the tests of behaviour: a few problems times every library, device and dtype, each built once."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.testing import Oracle, Problem, make_problem, tolerance
from tests.backends import NUMPY, STATIC_FLAVOURS, Backend, eps, flavour_name
from tests.inputs import INPUTS

WIDE, SQUARE, TALL = (6, 14), (9, 9), (15, 7)


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of `make_problem` and of the constructor."""

    name: str
    problem: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name

    @property
    def is_rebuilt(self) -> bool:
        """Whether the inverse can be built again elsewhere: not from rows that only their author can move."""
        away = {"rows", "panelled rows", "dataset", "memmap"}
        return self.options.get("form") not in away and "memory_limit" not in self.options


GENERAL = {"vector": True, "weighted": True}
CASES = (
    Case("wide", {"shape": WIDE}),
    Case("wide-referenced", {"shape": WIDE}, {"whiten": False}),
    Case("wide-general", {"shape": WIDE, "normalization": "sum", **GENERAL}),
    Case("wide-general-referenced", {"shape": WIDE, **GENERAL}, {"whiten": False}),
    Case("wide-weights-high", {"shape": WIDE, "weighted": True}, {"precision": "high"}),
    Case("square", {"shape": SQUARE}),
    Case("square-general", {"shape": SQUARE, "normalization": "sum", **GENERAL}),
    Case("tall", {"shape": TALL}, {"whiten": True}),
    Case("tall-general-referenced", {"shape": TALL, **GENERAL}, {"whiten": False}),
    Case("tall-sum-high", {"shape": TALL, "normalization": "sum"}, {"precision": "high"}),
    Case("duplicates", {"shape": WIDE, "kind": "duplicates"}),
    Case("zero-rows", {"shape": WIDE, "kind": "zero rows"}, {"whiten": False}),
    Case("one-row", {"shape": (1, 8)}),
    Case("one-column", {"shape": (5, 1)}),
    Case("one-by-one", {"shape": (1, 1)}),
    Case("csr", {"shape": WIDE, "kind": "sparse"}, {"form": "csr"}),
    Case("csc-general", {"shape": WIDE, "kind": "sparse", **GENERAL}, {"form": "csc"}),
    Case("coo-tall-general", {"shape": TALL, "kind": "sparse", **GENERAL}, {"form": "coo"}),
    Case("rows", {"shape": WIDE}, {"form": "rows"}),
    Case("rows-general", {"shape": WIDE, **GENERAL}, {"form": "panelled rows"}),
    Case("rows-tall", {"shape": TALL}, {"form": "rows"}),
    Case("dataset", {"shape": WIDE}, {"form": "dataset"}),
    Case("dataset-general", {"shape": WIDE, **GENERAL}, {"form": "dataset", "precision": "high"}),
    Case("dataset-tall", {"shape": TALL}, {"form": "dataset"}),
    Case("memmap", {"shape": WIDE}, {"form": "memmap"}),
    Case("memmap-tall-general", {"shape": TALL, **GENERAL}, {"form": "memmap"}),
    Case("streamed", {"shape": WIDE}, {"memory_limit": 10**5}),
    Case("streamed-general", {"shape": WIDE, **GENERAL}, {"memory_limit": 10**5}),
    Case("streamed-tall", {"shape": TALL}, {"memory_limit": 10**5}),
)


ON_JAX = ("wide", "wide-general-referenced", "tall-general-referenced")
EVERYWHERE = (*ON_JAX, "wide-weights-high", "square", "one-row", "rows", "streamed")
"""The cases that every backend gets; NumPy gets all, JAX, which compiles for each shape, and Dask those of two."""


def runs_on(case: Case, backend: Backend) -> bool:
    """Whether a backend is asked for a case, and can build it."""
    possible = backend.has_float64 or case.options.get("precision") != "high"
    common = ON_JAX if backend.library in ("jax.numpy", "dask.array") else EVERYWHERE
    return possible and (backend is NUMPY or case.name in common)


BUILT = tuple((*flavour, case) for flavour in STATIC_FLAVOURS for case in CASES if runs_on(case, flavour[0]))
"""Every backend, dtype and case that go together."""


def built_name(which: tuple[Backend, str, Case]) -> str:
    """The pytest id of an entry of `BUILT`."""
    return f"{flavour_name(which[:2])}-{which[2]}"


def construct(problem: Problem, backend: Backend, *, form: str = "array", **options: Any) -> WoodburyRankOneInverse:
    """The inverse of a problem on a backend, its gradients handed over in one of the ways of `INPUTS`."""
    damping = problem.damping
    return WoodburyRankOneInverse(
        INPUTS[form](backend.asarray(problem.gradients)),
        damping if np.ndim(damping) == 0 else backend.asarray(damping),
        weights=None if problem.weights is None else backend.asarray(problem.weights),
        normalization=problem.normalization,
        **options,
    )


@dataclass(frozen=True, eq=False)
class Built:
    """An inverse and its oracle."""

    backend: Backend
    case: Case
    problem: Problem
    oracle: Oracle
    inverse: WoodburyRankOneInverse

    @property
    def dtype(self) -> str:
        return self.problem.dtype

    @property
    def is_scalar(self) -> bool:
        """Whether the damping is one number."""
        return np.ndim(self.problem.damping) == 0

    def vectors(self, *shape: int, seed: int = 1) -> np.ndarray:
        """Random NumPy data in the problem's dtype."""
        return np.random.default_rng(seed).standard_normal(shape).astype(self.dtype)

    def send(self, array: np.ndarray) -> Any:
        """To the backend."""
        return self.backend.asarray(array)

    def fetch(self, array: Any) -> np.ndarray:
        """From the backend."""
        return self.backend.to_numpy(array)

    def assert_close(self, actual: Any, expected: Any) -> None:
        """Same shape, and equal in norm to constant x eps x condition number."""
        self.assert_near(self.fetch(actual), expected)

    def assert_near(self, actual: np.ndarray, expected: Any) -> None:
        """`assert_close` for what is a NumPy array already."""
        assert actual.shape == np.shape(expected)
        condition = max(self.oracle.kappa, np.linalg.cond(self.oracle.forward))  # the damping has one of its own
        limit = tolerance(eps(self.dtype), condition)
        assert np.linalg.norm(actual - expected) <= limit * np.linalg.norm(expected)

    def assert_own(self, array: Any) -> None:
        """Same library, device and dtype as the gradients."""
        assert self.backend.is_own(array, self.dtype)


@functools.cache
def build(backend: Backend, dtype: str, case: Case) -> Built:
    """The inverse of a case, built once in a test run and never changed by a test."""
    problem = make_problem(3, dtype=dtype, **case.problem)
    return Built(backend, case, problem, problem.oracle, construct(problem, backend, **case.options))
