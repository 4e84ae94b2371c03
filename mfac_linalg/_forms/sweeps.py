"""Dual sweeps: (I + SᵀS)⁻¹u without the cancellation of u − Sᵀ A⁻¹ S u (docs/theory.md, "Dual sweeps")."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from .. import _backend
from .._condition import kappa_of, largest_kappa
from .._rows.protocol import RowMatrix
from .._rows.scaled import ScaledRows
from .._rows.whitened import WhitenedRows
from .._typing import Array

MAX_SWEEPS = 24  # duplicated rows at κ = 0.1/eps need up to twenty
HARMLESS = 1.5  # an amplification q of rounding that needs no look at the residual
CANCELLATION = 4.0  # up to which the residual in some rows decides, and q alone where values cannot be read
PUSH_THROUGH_CANCELLATION = 30.0  # the same for a sum Sᵀy, where nothing is subtracted from a vector
RESIDUAL_ROUNDINGS = 4.0  # of ‖F‖ ‖x‖: a residual at which sweeps end
SUM_ROUNDINGS = 2.0  # of ‖F‖ ‖x‖, that a float32 sum Sᵀy may leave
SAMPLE, SAMPLE_STEP = 16, 16  # rows at least, in which the residual is computed first, and at most so far apart
SMALL_SIZE = 2**17  # of S, for which the residual in all rows costs no more
MANY_COLUMNS = 4  # from which the residual of one costs much less than that of all
SLOW = 0.25  # a sweep that leaves more of the residual than this needs a better factor


def sweeps_for(kappa: float, dtype: str, *, float64_gram: bool) -> int:
    """Return the number of sweeps that bring the amplification κ down to order one where values cannot be read.

    The first sweep amplifies rounding by at most 2κ. Each further one multiplies the remaining error by γ κ ε, with ε
    of the dtype of the products. γ is 2 for float32, 0.2 with a Gram matrix in float64, and 4 for float64, where the
    factor of A is rounded in the same dtype (docs/theory.md).
    """
    if 2 * kappa <= CANCELLATION:
        return 1
    kappa = min(kappa, largest_kappa(dtype))
    gamma = 4.0 if dtype == "float64" else 0.2 if float64_gram else 2.0
    contraction = gamma * kappa * float(np.finfo(np.dtype(dtype)).eps)
    more = math.ceil(math.log(CANCELLATION / kappa) / math.log(contraction))
    return min(MAX_SWEEPS, 1 + max(1, more))


class Iterate(NamedTuple):
    """r and a after a sweep, and what tells how accurate they are."""

    r: Array
    a: Array
    projection: Array | None  # S r, where it is known
    size: Any  # ‖r‖, by column; None where it cannot be read
    step: Array  # δ
    before: Any  # ‖r‖ ahead of the step
    residual: Array  # S r − a ahead of the step


@dataclass(frozen=True)
class DualSweeps:
    """Sweeps of r and a towards a = S r. Each keeps r + Sᵀa, so that at the end r = (I + SᵀS)⁻¹(r + Sᵀa).

    Where values can be read, they end when q = (‖r‖ + ‖S‖ ‖δ‖)/‖r_after‖, or a sharper bound by rows, is harmless in
    every column, or else when the residual is small: for a moderate q in a sample of rows, and for many columns in a
    combination of them, otherwise in all rows and columns.
    Under `jit` they end when q ≤ `cancellation`. On a device, and in a batch of torch.func, there are always `sweeps`.
    """

    rows: RowMatrix
    solve: Callable[[Array], Array]
    norm: Any  # ‖S‖₂; (n, 1) for a batch of n
    sweeps: int
    cancellation: float = CANCELLATION
    row_norms: Callable[[], Array] | None = None  # ν, the norms of the rows of L, (m,), if they bound rounding
    sample_rows: Callable[[int, int], tuple[np.ndarray, RowMatrix]] | None = None  # for a look at the residual
    wide_rows: Callable[[], RowMatrix] | None = None  # S in float64, for a sum Sᵀy that would lose its digits
    better_solve: Callable[[Array], Array] | None = None  # by a float64 Gram matrix, where sweeps do not contract

    def from_zero(self, u: Array) -> tuple[Array, Array]:
        """From r = u, a = 0: (I + SᵀS)⁻¹u and its dual."""
        return self._continue(self._sweep(u, 0.0, None, _norms(u)), self.cancellation)

    def from_dual(self, y: Array, b: Array) -> tuple[Array, Array]:
        """From r = Sᵀy, y = A⁻¹b, which is (I + SᵀS)⁻¹Sᵀb: further sweeps follow if the sum Sᵀy cancels."""
        if self.rows.is_streamed:
            zero = _backend.zeros((self.rows.shape[1], y.shape[1]), like=self.rows.like, dtype=self.rows.dtype)
            r, projection = self._descend(zero, -y)
        else:
            r, projection = self.rows.combine(y), None
        size = _norms(r)
        if self.wide_rows is not None and self._rounding_shows(y, size):
            r, projection = _backend.cast(self.wide_rows().combine(y), self.rows.dtype), None
            size = _norms(r)
        limit = self.cancellation if self.row_norms is None else PUSH_THROUGH_CANCELLATION
        return self._continue(Iterate(r, b - y, projection, size, y, 0.0, b), limit)

    def _rounding_shows(self, y: Array, size: Any) -> bool:
        """Whether the rounding of Sᵀy, ε Σ_i ‖s_i‖ |y_i|, may be larger than SUM_ROUNDINGS of ‖F‖ ‖Sᵀy‖.

        No sweep would correct it: they solve for Sᵀb as it follows from this Sᵀy.
        """
        if self.row_norms is None or size is None or _backend.is_traced(size):
            return False
        allowed = SUM_ROUNDINGS * kappa_of(self.norm) * size
        if (math.sqrt(y.shape[-2]) * self.norm * _norms(y) <= allowed).all():  # Σ ‖s_i‖² ≤ m ‖S‖²
            return False
        norms = _read(self.row_norms())
        return bool((_weighted_sum(np.sqrt(np.maximum(norms * norms - 1, 0.0)), y) > allowed).any())

    def _descend(self, r: Array, delta: Array) -> tuple[Array, Array | None]:
        """Return r − Sᵀδ, and S times that where the rows give it in the same pass."""
        if self.rows.is_streamed:
            return cast(ScaledRows | WhitenedRows, self.rows).descend(r, delta)
        return _backend.subtract_over(r, self.rows.combine(delta)), None

    def _continue(self, now: Iterate, limit: float) -> tuple[Array, Array]:
        """Sweep until r and a are accurate; up to q = limit a part of the residual may tell."""
        if _backend.is_traced(now.size):
            return _backend.scan_until(self._is_done(now), self._traced_sweep, (now.r, now.a), self.sweeps - 1)
        can_read, sweeps, last = now.size is not None, self, now
        for _ in range(1, MAX_SWEEPS if can_read else self.sweeps):
            if can_read and self._is_accurate(now, limit):
                break
            y = self.rows.project(now.r) if now.projection is None else now.projection
            if can_read:
                size = _norms(y - now.a)
                is_solved = self._is_solved(now.size, size)
                if is_solved.all():
                    break
                if sweeps is self and self._is_slow(now, size, is_solved):
                    sweeps = replace(self, solve=cast(Any, self.better_solve))
                    if last is not now:  # r would keep the rounding of a sweep that made it larger
                        now, y = last, now.residual + last.a
            now, last = sweeps._sweep(now.r, now.a, y, now.size), now
        return now.r, now.a

    def _is_slow(self, now: Iterate, residual: Any, is_solved: np.ndarray) -> bool:
        """Whether the last sweep left much of a residual, whose norm is now this, and a better factor is there."""
        is_left = ~is_solved & (_read(residual) > SLOW * _read(_norms(now.residual)))
        return self.better_solve is not None and bool(is_left.any())

    def _is_accurate(self, now: Iterate, limit: float) -> bool:
        """Whether q, or q by rows, is harmless in every column, or up to `limit` and a part of the residual small."""
        norm = self.norm if isinstance(self.norm, float) else _read(self.norm)
        step = norm * _norms(now.step)
        if self.row_norms is not None and (now.before + step > HARMLESS * now.size).any():
            divisor = norm if isinstance(norm, float) else np.where(norm > 0, norm, 1.0)  # of a block without gradients
            step = np.minimum(step, _by_rows(_read(self.row_norms()), now.step) / divisor)
        amplified = now.before + step
        if (amplified <= min(HARMLESS, self.cancellation) * now.size).all():
            return True
        is_likely = now.projection is None and bool((amplified <= limit * now.size).all())
        if not is_likely or 1 < now.r.shape[-1] < MANY_COLUMNS or not self._is_solved_in_sample(now):
            return False
        return now.r.shape[-1] == 1 or self._is_solved_in_combination(now)

    def _is_solved(self, size: Any, residual: Any) -> np.ndarray:
        """Whether Sᵀ(S r − a) is the residual of a backward stable solution, by column; residual is ‖S r − a‖."""
        eps = float(np.finfo(_backend.dtype_name(self.rows.dtype)).eps)
        return _read(self.norm * residual <= RESIDUAL_ROUNDINGS * eps * kappa_of(self.norm) * size)

    def _is_solved_in_sample(self, now: Iterate) -> bool:
        """The same by some rows, evenly spaced, among them the one with the largest ν_i |δ_i|."""
        m, d = self.rows.shape
        if self.sample_rows is None or m < SAMPLE or m * d <= SMALL_SIZE:
            return False
        norms = np.ones(m) if self.row_norms is None else _read(self.row_norms())
        largest = int(np.argmax(norms * np.abs(_read(now.step)).max(axis=-1)))
        index, rows = self.sample_rows(largest, min(SAMPLE_STEP, m // SAMPLE))
        share = np.sum(norms[index] ** 2) / np.sum(norms**2)
        residual = _norms(rows.project(now.r) - now.a[index, :]) / np.sqrt(share)
        return bool(self._is_solved(now.size, residual).all())

    def _is_solved_in_combination(self, now: Iterate) -> bool:
        """Whether every column is, by the residual of a random combination of the r_j/‖r_j‖: each is a part of it."""
        weights = (_coefficients(now.r.shape[-1]) / np.where(now.size > 0, now.size, np.inf))[:, None]
        r, a = _backend.stop_gradient(now.r), _backend.stop_gradient(now.a)
        r = _backend.matmul(r, _backend.from_float64(weights, like=r, dtype=r.dtype))
        a = _backend.matmul(a, _backend.to_device_of(weights, like=a))
        return bool(self._is_solved(1.0, _norms(self.rows.project(r) - a)).all())

    def _sweep(self, r: Array, a: Any, y: Array | None, size: Any) -> Iterate:
        """The next iterate, from r, a, S r where it is known, and ‖r‖."""
        residual = (self.rows.project(r) if y is None else y) - a
        delta = self.solve(residual)
        r, y = self._descend(r, delta)
        return Iterate(r, a + delta, y, _norms(r), delta, size, residual)

    def _traced_sweep(self, r: Array, a: Array) -> tuple[Array, Array, Any]:
        now = self._sweep(r, a, None, _norms(r))
        return now.r, now.a, self._is_done(now)

    def _is_done(self, now: Iterate) -> Any:
        """Whether q is small in every column, traced."""
        is_small = now.before + self.norm * _norms(now.step) <= self.cancellation * now.size
        return _backend.namespace(is_small).all(is_small)


@functools.lru_cache(maxsize=8)
def _coefficients(count: int) -> np.ndarray:
    """Numbers of size 1 to 2 and either sign, so that residuals of several columns do not cancel by design."""
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], count) * rng.uniform(1.0, 2.0, count)


def _by_rows(norms: np.ndarray, delta: Array) -> np.ndarray:
    """‖ν‖ Σ_i ν_i |δ_i|, in place of ‖S‖² ‖δ‖: smaller where δ is that of few rows."""
    return np.sqrt(np.sum(norms * norms, axis=-1, keepdims=True)) * _weighted_sum(norms, delta)


def _weighted_sum(norms: np.ndarray, x: Array) -> np.ndarray:
    """Σ_i norms_i |x_i| for each column of x (…, m, k)."""
    return np.sum(norms[..., None] * np.abs(_read(x)), axis=-2)


def _read(x: Array) -> np.ndarray:
    return _backend.read(_backend.stop_gradient(x))


def _norms(x: Array) -> Any:
    """Column norms in float64: on the host, or traced; None on a device, where reading them would wait for it."""
    if _backend.is_numpy(x):
        return np.sqrt(_backend.column_squares(x))
    norms = _backend.column_norms(_backend.stop_gradient(x)) if _backend.on_host(x) or _backend.is_traced(x) else None
    if norms is None:
        return None
    return _backend.to_float64(norms) if _backend.is_traced(x) else _backend.read(norms).astype(np.float64)
