"""Arrays of any library as NumPy's, and what may not change on the way through an inverse."""

from typing import Any

import numpy as np


def to_numpy(x: Any) -> np.ndarray:
    """A copy of an array of any library, in the host's memory."""
    for name in ("detach", "cpu", "get"):  # PyTorch's graph, PyTorch's device, CuPy's device
        if hasattr(x, name) and not isinstance(x, np.ndarray | dict):
            x = getattr(x, name)()
    try:
        return np.asarray(x).copy()
    except (TypeError, RuntimeError):  # a library that has DLPack alone, or a device
        return np.from_dlpack(x).copy()


def overwrite(x: Any) -> bool:
    """Write to every entry of an array; False where it cannot be written to."""
    if hasattr(x, "dask"):  # it is a graph: a write changes no memory
        return False
    try:
        x[...] = 1 + 2 * float(np.max(np.abs(to_numpy(x)), initial=0.0))
    except Exception:
        return False
    return True


def traits(x: Any) -> dict[str, str]:
    """Class, dtype, device and shape of an array, in words that can be compared."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    device = getattr(x, "device", "cpu")
    return {
        "type": kind,
        "dtype": str(getattr(x, "dtype", "none")),
        "device": str(device() if callable(device) else device),
        "shape": str(tuple(getattr(x, "shape", ()))),
    }
