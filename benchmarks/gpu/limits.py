"""The limits of a device, by plain calls of the library that is measured, and how a call is timed on one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.libraries import Library

MOST_CALLS, FEWEST_CALLS, ENOUGH_SECONDS = 15, 5, 1.0
PRODUCT_SIZE, COPY_NUMBERS = 8192, 2**28
DRY_PRODUCT_SIZE, DRY_COPY_NUMBERS = 64, 2**12
CHECKED = 16
"""Rows and columns of a product that are computed again in float64."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the first, which compiles and allocates, and the median, fewest and number of the others.

    The clock starts when the device has nothing to do and stops when it has computed the result.
    """

    first: float
    seconds: float
    fewest: float
    calls: int

    def as_dict(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)


def timed(library: Library, call: Callable[[Any], Any], argument: Callable[[], Any] = lambda: None) -> Timing:
    """Time a call of what `argument` returns, which is not timed."""
    seconds: list[float] = []
    while len(seconds) <= FEWEST_CALLS or (len(seconds) <= MOST_CALLS and sum(seconds[1:]) < ENOUGH_SECONDS):
        given = argument()
        library.wait(given)
        start = time.perf_counter()
        result = call(given)
        library.wait(result)
        seconds.append(time.perf_counter() - start)
        del result  # before the next one is made, and not timed
    first, *others = seconds
    return Timing(first, statistics.median(others), min(others), len(others))


def of_device(library: Library) -> dict[str, dict[str, float]]:
    """The rates of a matrix product in full float32 and of a copy, in flops and in bytes read and written a second.

    The error of the product is relative to ‖A‖‖B‖ by entry, in float32's eps: about a thousand if it is TF32.
    """
    n = PRODUCT_SIZE if library.on_gpu else DRY_PRODUCT_SIZE
    a, b = library.normal((n, n), 1), library.normal((n, n), 2)
    product = timed(library, lambda _: library.product(a, b))
    few = slice(0, CHECKED)
    rows, columns = (library.to_numpy(x).astype(np.float64) for x in (a[few, :], b[:, few]))
    found = library.to_numpy(library.product(a, b)[few, few])
    sizes = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(columns, axis=0)
    error = np.max(np.abs(found - rows @ columns) / sizes) / np.finfo(np.float32).eps
    source = library.normal((COPY_NUMBERS if library.on_gpu else DRY_COPY_NUMBERS,), 3)
    target = library.normal((source.shape[0],), 4)
    copy = timed(library, lambda _: library.copy(source, target))
    return {
        "product": {
            "size": n,
            "flops_per_second": 2 * n**3 / product.seconds,
            "error": float(error),
            **product.as_dict(),
        },
        "copy": {
            "bytes": 8 * source.shape[0],
            "bytes_per_second": 8 * source.shape[0] / copy.seconds,
            **copy.as_dict(),
        },
    }


@dataclass(frozen=True)
class Plain:
    """Seconds of the plain work of one problem, by the library's own calls.

    Parameters
    ----------
    gram : float
        dm² flops, those of one triangle of G Gᵀ, at the rate of a matrix product.
    project, combine : float
        G v and Gᵀ a.
    """

    gram: float
    project: float
    combine: float

    @property
    def one_read(self) -> float:
        """The faster of the two reads of G."""
        return min(self.project, self.combine)

    @property
    def two_reads(self) -> float:
        """One each way."""
        return self.project + self.combine

    def as_dict(self) -> dict[str, float]:
        """The fields, and the reads."""
        return asdict(self) | {"one_read": self.one_read, "two_reads": self.two_reads}


def of_problem(library: Library, gradients: Any, flops_per_second: float) -> Plain:
    """Measure the plain work of gradients (m, d)."""
    m, d = gradients.shape
    v, a = library.normal((d,), 5), library.normal((m,), 6)
    project = timed(library, lambda _: library.product(gradients, v))
    combine = timed(library, lambda _: library.product(a, gradients))
    return Plain(d * m**2 / flops_per_second, project.seconds, combine.seconds)
