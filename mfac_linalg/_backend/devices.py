"""Moving arrays between the devices of their library."""

import sys
from typing import Any

import array_api_compat as compat

from .._typing import Array
from .libraries import is_torch
from .sparse import is_sparse


def to_device(x: Array, device: Any) -> Array:
    """Return x on another device of its library; a sparse matrix stays on its own."""
    if is_sparse(x) and device == compat.device(x.data):
        return x
    if is_torch(x):  # whose `to` takes dtypes and tensors as well
        torch = sys.modules["torch"]
        if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
            msg = "not a torch.device, a string or an index"
            raise TypeError(msg)
        return x.to(device=device)
    return compat.to_device(x, device)
