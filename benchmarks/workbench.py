"""Objects that the cases of one problem share: inverses, recursions and a float64 reference, each built once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from benchmarks.problems import Problem
from benchmarks.recursion import NumpyRecursion, TorchRecursion
from benchmarks.reference import Reference
from mfac_linalg import WoodburyRankOneInverse

EPS = float(np.finfo(np.float32).eps)
CONTRACT = 30
"""Backward errors may reach this many eps, and errors of elements this many eps/λ: the library's own contract."""


class WrongAnswerError(ArithmeticError):
    """A result before timing has an error over its bound."""


class Workbench:
    """The objects that the cases of one problem call, and the checks of what they return.

    Parameters
    ----------
    problem : Problem
        Sizes, damping and seed.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def build(self, **options: object) -> WoodburyRankOneInverse:
        """Build the library's inverse of the problem's own gradients."""
        return WoodburyRankOneInverse(self.problem.gradients, self.problem.damping, **options)

    def build_on_tensors(self) -> WoodburyRankOneInverse:
        """Build the library's inverse of PyTorch tensors that share the gradients' memory."""
        return WoodburyRankOneInverse(torch.from_numpy(self.problem.gradients), self.problem.damping, whiten=True)

    def build_over(self, gradients: np.ndarray) -> WoodburyRankOneInverse:
        """Build the library's inverse in the memory of `gradients`."""
        return WoodburyRankOneInverse(gradients, self.problem.damping, whiten=True, overwrite_gradients=True)

    def build_numpy_recursion(self) -> NumpyRecursion:
        """Run the paper's recursion in NumPy; the queries use the last one built, for it takes ten seconds."""
        self.numpy_recursion = NumpyRecursion(self.problem.gradients, self.problem.damping)
        return self.numpy_recursion

    def build_torch_recursion(self) -> TorchRecursion:
        """Run the paper's recursion in PyTorch, on the same memory; the queries use the last one built."""
        self.torch_recursion = TorchRecursion(torch.from_numpy(self.problem.gradients), self.problem.damping)
        return self.torch_recursion

    @cached_property
    def whitened(self) -> WoodburyRankOneInverse:
        """The library's inverse with W kept."""
        return self.build(whiten=True)

    @cached_property
    def unwhitened(self) -> WoodburyRankOneInverse:
        """The library's inverse on the caller's G."""
        return self.build(whiten=False)

    @cached_property
    def on_tensors(self) -> WoodburyRankOneInverse:
        """The library's inverse of PyTorch tensors with W kept."""
        return self.build_on_tensors()

    @cached_property
    def numpy_recursion(self) -> NumpyRecursion:
        """The recursion in NumPy."""
        return NumpyRecursion(self.problem.gradients, self.problem.damping)

    @cached_property
    def torch_recursion(self) -> TorchRecursion:
        """The recursion in PyTorch."""
        return TorchRecursion(torch.from_numpy(self.problem.gradients), self.problem.damping)

    @cached_property
    def reference(self) -> Reference:
        """The float64 reference."""
        return Reference(self.problem)

    def check_build(self, inverse: object, *, textbook: bool) -> float:
        """Check a fresh inverse by its product with a stored row, the hard kind of vector."""
        return self.check_stored_row(inverse.matvec(self.problem.stored_row), textbook=textbook)

    def check_build_on_tensors(self, inverse: object, *, textbook: bool) -> float:
        """Check a fresh inverse of tensors in the same way."""
        return self.check_stored_row(inverse.matvec(torch.from_numpy(self.problem.stored_row)), textbook=textbook)

    def check_random_vector(self, x: object, *, textbook: bool) -> float:
        """Check x = F⁻¹v for the random v."""
        return self._check_product(self.problem.random_vector, x, textbook=textbook)

    def check_stored_row(self, x: object, *, textbook: bool) -> float:
        """Check x = F⁻¹v for v a row of G."""
        return self._check_product(self.problem.stored_row, x, textbook=textbook)

    def check_block(self, x: object, *, textbook: bool) -> float:
        """Check X = F⁻¹V for the block of 64 vectors."""
        return self._check_product(self.problem.block, x, textbook=textbook)

    def check_diagonal(self, values: object, *, textbook: bool) -> float:
        """Check a sample of the diagonal."""
        every = np.arange(self.problem.dim)
        return self._check_elements(every, every, values, textbook=textbook)

    def check_pairs(self, values: object, *, textbook: bool) -> float:
        """Check a sample of the million elements."""
        return self._check_elements(*self.problem.pairs, values, textbook=textbook)

    def _check_product(self, v: np.ndarray, x: object, *, textbook: bool) -> float:
        """Return R = ‖v − Fx‖/(‖F‖‖x‖ eps), measured in float64; raise if it is over its bound."""
        ratio = self.reference.backward_error(v, np.asarray(x)) / EPS
        return self._within(ratio, "backward error / eps", textbook=textbook)

    def _check_elements(self, i: np.ndarray, j: np.ndarray, values: object, *, textbook: bool) -> float:
        """Return the largest error of about 1024 of the values (F⁻¹)_ij in eps/λ; raise if it is over its bound."""
        ratio = self.reference.element_error(i, j, values) / EPS
        return self._within(ratio, "error of elements / (eps/λ)", textbook=textbook)

    def _within(self, ratio: float, name: str, *, textbook: bool) -> float:
        """Hold the library to its contract, and the recursion, which subtracts from v/λ only once, to κ times it."""
        bound = CONTRACT * self.reference.kappa if textbook else CONTRACT
        if not ratio <= bound:
            msg = f"{name} must be at most {bound:.3g} at {self.problem}; got {ratio:.3g}."
            raise WrongAnswerError(msg)
        return ratio
