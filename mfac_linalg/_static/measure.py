"""The small matrix of a problem, S Sᵀ or SᵀS, and the numbers that a plan is made from."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from .. import _backend
from .. import _validation as check
from .._capacitance.system import largest_eigenvalue
from .._progress import SILENT, Progress
from .._rows.batched import BatchedRows
from .._rows.scaled import ScaledRows
from .._scaling.sqrt_damping import span
from .._typing import Array
from .plan import Facts, Measured
from .problem import Problem, ScaledProblem


@dataclass(frozen=True)
class System:
    """Scaled rows S and the small matrix that is to be factored; of a batch of blocks with a leading axis."""

    rows: ScaledRows | BatchedRows
    scaled_gram: Array  # S Sᵀ for m < d, SᵀS for m ≥ d
    largest_square: Any  # largest squared row of G diag(column_scale), largest diagonal entry for m ≥ d and of a batch
    norm: Any  # ‖S‖₂, (count, 1) of a batch
    gram_dtype: str  # that scaled_gram was computed in

    @classmethod
    def of(
        cls, rows: ScaledRows, progress: Progress = SILENT, *, gram: Array | None = None, float64_gram: bool = False
    ) -> "System":
        """The system of rows, by one pass over them, or from their Gram matrix G Gᵀ where it is known."""
        gram_dtype = "float64" if float64_gram else _backend.dtype_name(rows.dtype)
        source = rows.astype_float64() if float64_gram and gram is None else rows
        scaled_gram, squares = _small_matrix(source, gram, progress)
        xp = _backend.namespace(rows.row_scale)
        largest_square = xp.max(xp.linalg.diagonal(squares))
        return cls(rows, scaled_gram, largest_square, xp.sqrt(largest_eigenvalue(scaled_gram)), gram_dtype)

    @classmethod
    def of_batch(cls, rows: BatchedRows) -> "System":
        """The systems of equal blocks, in float64 where it exists."""
        scaled_gram = rows.scaled_gram()
        xp = _backend.namespace(scaled_gram)
        gram_dtype = "float64" if _backend.supports_float64(rows.like) else _backend.dtype_name(rows.dtype)
        norm = xp.sqrt(largest_eigenvalue(scaled_gram))[:, None]
        return cls(rows, scaled_gram, xp.max(xp.linalg.diagonal(scaled_gram)), norm, gram_dtype)

    @property
    def count(self) -> int:
        """Number of small matrices."""
        return self.rows.count if isinstance(self.rows, BatchedRows) else 1

    @cached_property
    def facts(self) -> Facts:
        """What a plan has to know of the rows."""
        m, d = self.rows.shape
        dtype = _backend.dtype_name(self.rows.dtype)
        if isinstance(self.rows, BatchedRows):
            return Facts(m, d, dtype, self.gram_dtype, can_widen=False, has_row_squares=False)
        return Facts(
            m,
            d,
            dtype,
            self.gram_dtype,
            is_scalable=self.rows.can_change_dtype or self.rows.multiplies_by_entries,
            can_widen=self.rows.can_change_dtype and _backend.supports_float64(self.rows.like),
            has_row_squares=m < d and self.rows.column_scale is None,
        )

    @property
    def gram_rows(self) -> ScaledRows | BatchedRows:
        """S in the dtype of the small matrix."""
        return self.rows if self.gram_dtype == _backend.dtype_name(self.rows.dtype) else self.rows.astype_float64()

    def with_rows(self, rows: ScaledRows) -> "System":
        """The same for rows divided by a power of two, which leaves S Sᵀ unchanged."""
        return replace(self, rows=rows)

    def with_float64_gram(self, progress: Progress = SILENT) -> "System":
        """Recompute S Sᵀ in float64, by another pass; the norm is unchanged."""
        scaled_gram, _ = _small_matrix(cast(ScaledRows, self.rows).astype_float64(), None, progress)
        return replace(self, scaled_gram=scaled_gram, gram_dtype="float64")


def _small_matrix(rows: ScaledRows, gram: Array | None, progress: Progress) -> tuple[Array, Array]:
    """S Sᵀ and the Gram matrix that it is scaled from; SᵀS twice for m ≥ d."""
    m, d = rows.shape
    if m >= d:
        scaled_gram = rows.normal_matrix()
        return scaled_gram, scaled_gram
    gram = rows.rows.gram(rows.column_scale, progress) if gram is None else gram
    return rows.row_scale * gram * rows.row_scale.T, gram


def measure(systems: Sequence[System], problem: Problem, scaled: ScaledProblem) -> tuple[list[System], list[Measured]]:
    """The systems with their norms as floats, and the numbers of each: one read of a device.

    Arguments that only a device knows are checked by the same read.
    """
    arguments = {"damping": problem.damping, "weights": problem.weights}
    unread = {name: x for name, x in arguments.items() if _backend.is_vector(x) and not _backend.on_host(x)}
    row_scale = scaled.row_scale
    xp = _backend.namespace(row_scale)
    flags = [_backend.to_float64(check.has_bad_entry(x)) for x in unread.values()]
    extent = [xp.max(row_scale), xp.min(row_scale)]
    if "damping" in unread:
        extent.append(_backend.to_device_of(span(problem.damping), like=row_scale))
    numbers = _read(flags + extent + _numbers_of(systems))
    for name, x in unread.items():
        if next(numbers):
            check.refuse_entries(name, x)
    return _with_numbers(systems, numbers, tuple(itertools.islice(numbers, len(extent))))


def measure_rescaled(systems: Sequence[System], before: Measured, exponent: int) -> tuple[list[System], list[Measured]]:
    """As `measure`, for the same arguments and gradients that were divided by 2^exponent."""
    extent = (before.largest_row_scale, before.smallest_row_scale, before.damping_span)
    return _with_numbers(systems, _read(_numbers_of(systems)), extent, exponent)


def read_norms(systems: Sequence[System]) -> list[System]:
    """The systems with their norms as floats where these can be read."""
    if not _backend.is_concrete(systems[0].largest_square):
        return list(systems)
    return _with_numbers(systems, _read(_numbers_of(systems)), (0.0, 0.0))[0]


def _numbers_of(systems: Sequence[System]) -> list[Array]:
    return [x for system in systems for x in (system.largest_square, system.norm)]


def _read(values: list[Array]) -> Iterator[float]:
    xp = _backend.namespace(values[-1])  # the library of small matrices
    return iter(_backend.read(xp.concat([xp.reshape(x, (-1,)) for x in values])).tolist())


def _with_numbers(
    systems: Sequence[System], numbers: Iterator[float], extent: tuple[float, ...], exponent: int | None = None
) -> tuple[list[System], list[Measured]]:
    """Each system with its norm, and its numbers: of itself, and the extent of row scales and damping, of all."""
    largest, smallest, damping_span = (*extent, 0.0)[:3]
    read, measured = [], []
    for system in systems:
        largest_square, norms = next(numbers), list(itertools.islice(numbers, system.count))
        norm: Any = np.array(norms)[:, None] if isinstance(system.rows, BatchedRows) else norms[0]
        read.append(System(system.rows, system.scaled_gram, system.largest_square, norm, system.gram_dtype))
        measured.append(Measured(largest_square, max(norms), largest, smallest, damping_span, exponent))
    return read, measured
