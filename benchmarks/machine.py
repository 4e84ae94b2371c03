"""The limits of the machine, measured in the same run as the cases, and a description of the machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

import mfac_linalg
from benchmarks.neighbours import Clock, timed

PANEL_COLUMNS = 32_768
"""Columns of the m × p panel that the matrix products are timed on: far out of cache, and quick."""


@dataclass(frozen=True)
class Limits:
    """What the BLAS that NumPy uses can do on this machine, now; times are the best of several.

    Parameters
    ----------
    sgemm : float
        Flops per second of the fastest matrix product among 2048³ and the two shapes of a build,
        (m × p)(p × m) and (m × m)(m × p).
    project, combine : float
        Seconds of a plain BLAS pass over the (m, d) matrix: G v and Gᵀ a.
    read : float
        Bytes per second of the fastest of those two and of the dot product of all of G with itself.
    fresh : float
        Bytes per second of the first write to new memory of G's size: what the system takes to provide it, which any
        result of that size pays and no ratio leaves out.
    """

    sgemm: float
    project: float
    combine: float
    read: float
    fresh: float

    @property
    def one_pass(self) -> float:
        """Seconds of the faster of the two plain passes."""
        return min(self.project, self.combine)

    @property
    def two_passes(self) -> float:
        """Seconds of one plain pass each way, as a textbook product needs."""
        return self.project + self.combine

    def better(self, other: Limits) -> Limits:
        """Return the best of two measurements: a limit is what the machine reached at any time in the run."""
        return Limits(
            sgemm=max(self.sgemm, other.sgemm),
            project=min(self.project, other.project),
            combine=min(self.combine, other.combine),
            read=max(self.read, other.read),
            fresh=max(self.fresh, other.fresh),
        )


def _best(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    return min(timed(call, clock)[0].seconds for _ in range(repeats))


def _product_rate(left: np.ndarray, right: np.ndarray, repeats: int, clock: Clock) -> float:
    out = np.empty((left.shape[0], right.shape[1]), dtype=left.dtype)
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    return flops / _best(lambda: np.matmul(left, right, out=out), repeats, clock)


def measure(gradients: np.ndarray, *, repeats: int = 4, clock: Clock = "wall") -> Limits:
    """Measure the limits for gradients of this shape, on the gradients themselves.

    Parameters
    ----------
    gradients : numpy.ndarray, shape (m, d), float32
        G.
    repeats : int
        Calls of each kind; the best counts.
    clock : {"wall", "cpu"}
        The one that the cases are timed by.

    Returns
    -------
    Limits
        Rates and pass times.
    """
    m, d = gradients.shape
    panel = np.ascontiguousarray(gradients[:, :PANEL_COLUMNS])
    # Two different arrays: NumPy would see G Gᵀ of one array and call SYRK.
    other, square = panel.T.copy(), np.resize(panel, (2048, 2048))
    small = np.resize(panel, (m, m))
    v, a = np.ones(d, dtype=gradients.dtype), np.ones(m, dtype=gradients.dtype)
    flat = gradients.reshape(-1)
    calls = (lambda: gradients @ v, lambda: a @ gradients, lambda: flat @ flat)
    passes = [_best(call, repeats, clock) for call in calls]
    products = ((square, square.copy()), (panel, other), (small, panel))
    return Limits(
        sgemm=max(_product_rate(left, right, repeats, clock) for left, right in products),
        project=passes[0],
        combine=passes[1],
        read=gradients.nbytes / min(passes),
        fresh=gradients.nbytes / _best(lambda: np.empty_like(gradients).fill(1), 1, clock),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _blas() -> list[str]:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return [f"{config['name']} {config['version']}"]
    return [f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads" for pool in threadpool_info()]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, object]:
    """Return processor, core count, BLAS with its threads, versions and date, ready for JSON."""
    packages = ("numpy", "scipy", "torch", "array-api-compat")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "blas": _blas(),
        "versions": {"mfac_linalg": mfac_linalg.__version__} | {package: version(package) for package in packages},
    }
