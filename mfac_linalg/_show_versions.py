"""What a report of a fault needs to say: versions, the machine, and how many threads there are."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

import numpy as np

from ._version import __version__

NEEDED = ("numpy", "scipy", "array-api-compat")
OPTIONAL = (
    *("torch", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x", "dask", "distributed", "array-api-strict"),
    *("h5py", "zarr", "ml_dtypes", "hypothesis", "tqdm", "matplotlib"),
)
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def show_versions(file: TextIO | None = None) -> None:
    """Print the versions of this package and of what it works with, the machine, and settings of threads.

    Parameters
    ----------
    file : file object, optional
        Where to; by default to the standard output.

    Notes
    -----
    Cost: milliseconds. Nothing is imported that is not imported yet.

    Examples
    --------
    >>> import mfac_linalg as ml
    >>> ml.show_versions()  # doctest: +ELLIPSIS
    mfac_linalg       ...
    python            ...
    """
    lines = {"mfac_linalg": __version__, **_machine(), **_packages()}
    lines |= {name: os.environ[name] for name in THREADS if name in os.environ}
    print("\n".join(f"{name:<22}{value}" for name, value in lines.items()), file=file or sys.stdout)


def _machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "BLAS of numpy": _blas(),
    }


def _blas() -> str:
    found = np.show_config(mode="dicts")
    blas = found.get("Build Dependencies", {}).get("blas", {}) if isinstance(found, dict) else {}
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _packages() -> dict[str, str]:
    """Versions by package; an optional one that is not installed is left out."""
    found = {}
    for name in (*NEEDED, *OPTIONAL):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
