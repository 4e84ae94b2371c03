"""Inverses with defects that published code has or had, each in a few lines, for mfac_linalg.testing to find.

None of them is copied: each is the mistake alone, in NumPy.
"""

from dataclasses import dataclass

import numpy as np

from mfac_linalg.testing import Problem


class Textbook:
    """Woodbury as it is printed, (v − Gᵀ(GGᵀ + mλI)⁻¹Gv)/λ: right, and unstable where v is in the span of the rows."""

    def __init__(self, problem: Problem) -> None:
        self.gradients, self._damping = problem.gradients, problem.damping
        self.factor = self._factorize()

    def _capacitance(self) -> np.ndarray:
        return self.gradients @ self.gradients.T + np.float32(len(self.gradients) * self._damping) * np.eye(
            len(self.gradients), dtype=self.gradients.dtype
        )

    def _factorize(self) -> np.ndarray:
        return np.linalg.cholesky(self._capacitance())

    def _solve(self, b: np.ndarray) -> np.ndarray:
        return np.linalg.solve(self.factor.T, np.linalg.solve(self.factor, b))

    def matvec(self, v: np.ndarray) -> np.ndarray:
        return ((v - self.gradients.T @ self._solve(self.gradients @ v)) / self._damping).astype(v.dtype)


class ScaledTextbook(Textbook):
    """The same as a low rank plus a diagonal, with I + GGᵀ/(mλ): linear_operator's form, with the same cancellation."""

    def _capacitance(self) -> np.ndarray:
        m = len(self.gradients)
        scale = np.float32(m * self._damping)
        return np.eye(m, dtype=self.gradients.dtype) + self.gradients @ self.gradients.T / scale

    def matvec(self, v: np.ndarray) -> np.ndarray:
        scale = np.float32(len(self.gradients) * self._damping)
        correction = self.gradients.T @ (self._solve(self.gradients @ v) / scale)
        return ((v - correction) / self._damping).astype(v.dtype)


class RangeRestricted:
    """A pseudo-inverse of the low-rank part alone, plus λ: what is orthogonal to the gradients is lost."""

    def __init__(self, problem: Problem) -> None:
        _, s, self.basis = np.linalg.svd(problem.gradients, full_matrices=False)
        self.eigenvalues = s**2 / len(problem.gradients) + problem.damping

    def matvec(self, v: np.ndarray) -> np.ndarray:
        return (self.basis.T @ ((self.basis @ v) / self.eigenvalues)).astype(v.dtype)


class StaleFactors(Textbook):
    """The damping can be set, but the factor stays that of the old one."""

    @property
    def damping(self) -> float:
        return self._damping

    @damping.setter
    def damping(self, value: float) -> None:
        self._damping = value


class SingularSampler(Textbook):
    """Samples of N(0, F⁻¹) that are combinations of the gradients: their covariance is singular."""

    def sample(self, size: int, *, seed: int) -> np.ndarray:
        m = len(self.gradients)
        normal = np.random.default_rng(seed).standard_normal((size, m))
        _, s, basis = np.linalg.svd(self.gradients, full_matrices=False)
        return normal[:, : len(s)] @ (basis / np.sqrt(s**2 / m + self._damping)[:, None])


class IdentityOnFailure(Textbook):
    """Where the Cholesky factorization fails, or its pivots become small, F⁻¹ is taken to be I."""

    def _factorize(self) -> np.ndarray:
        capacitance = self._capacitance()
        try:
            factor = np.linalg.cholesky(capacitance)
        except np.linalg.LinAlgError:
            return np.full_like(capacitance, np.nan)
        is_sound = np.min(np.diag(factor)) > 1e-2 * np.max(np.diag(factor))
        return factor if is_sound else np.full_like(capacitance, np.nan)

    def matvec(self, v: np.ndarray) -> np.ndarray:
        return v.copy() if np.isnan(self.factor).any() else super().matvec(v)


class FactorOfM(Textbook):
    """Σ g_i g_iᵀ without the 1/m of the mean."""

    def _capacitance(self) -> np.ndarray:
        m = len(self.gradients)
        return self.gradients @ self.gradients.T + np.float32(self._damping) * np.eye(m, dtype=self.gradients.dtype)


class UpperForLower(Textbook):
    """The factor is upper triangular where a lower one is expected."""

    def _solve(self, b: np.ndarray) -> np.ndarray:
        upper = self.factor.T
        return np.linalg.solve(upper.T, np.linalg.solve(upper, b))


@dataclass(frozen=True)
class Defect:
    """A class, the check that is to find it, and where it was seen, if that is told."""

    make: type
    check: str
    seen: str = ""


DEFECTS = (
    Defect(Textbook, "stable: in span", "two pruning codes"),
    Defect(ScaledTextbook, "stable: in span", "linear_operator"),
    Defect(RangeRestricted, "right formula: orthogonal"),
    Defect(StaleFactors, "damping", "ISTA-DASLab-Optimizers"),
    Defect(SingularSampler, "sample"),
    Defect(IdentityOnFailure, "right formula: random"),
    Defect(FactorOfM, "factor"),
    Defect(UpperForLower, "right formula: in span"),
)
