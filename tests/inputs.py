"""The forms that gradients may be passed in: an array, a sparse matrix, a file, or rows of a class of the user."""

import tempfile
from typing import Any

import array_api_compat
import numpy as np
import scipy.sparse

from mfac_linalg import GradientRows


class ArrayRows(GradientRows):
    """The protocol in its simplest form, over an array of any library; sums and the Gram matrix in float64."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = array, tuple(array.shape)

    @property
    def xp(self) -> Any:
        """The array's library."""
        return array_api_compat.array_namespace(self.array)

    @property
    def wide(self) -> Any:
        """float64 where it is sure to be there."""
        sure = array_api_compat.is_numpy_array(self.array) or array_api_compat.is_torch_array(self.array)
        return self.xp.float64 if sure else self.array.dtype

    def gram(self) -> Any:
        wide = self.xp.astype(self.array, self.wide)
        return wide @ wide.T

    def project(self, v: Any) -> Any:
        return self.xp.astype(self.array, self.wide) @ self.xp.astype(v, self.wide)

    def combine(self, coefficients: Any) -> Any:
        return self.array.T @ coefficients

    def columns(self, j: np.ndarray) -> Any:
        index = self.xp.asarray(j.astype(np.int32), device=array_api_compat.device(self.array))
        return self.xp.take(self.array, index, axis=1)


class PanelledRows(ArrayRows):
    """The same with panels of its own choice, of uneven widths."""

    def panels(self) -> Any:
        yield self.array[:, :3]
        yield self.array[:, 3:]


class Dataset:
    """What h5py and zarr offer at least: shape, dtype and slices, which are copies; it counts the bytes it gives."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, part: Any) -> np.ndarray:
        found = np.array(self.array[part])
        self.read += found.nbytes
        return found

    @property
    def passes(self) -> float:
        """Bytes read over bytes stored."""
        return self.read / self.array.nbytes


def memory_map(array: np.ndarray) -> np.ndarray:
    """The array in a file that is deleted with the last reference to it."""
    with tempfile.TemporaryFile() as file:
        found = np.memmap(file, dtype=array.dtype, shape=array.shape)
    found[:] = array
    return found


INPUTS = {
    "array": lambda array: array,
    "csr": scipy.sparse.csr_array,
    "csc": scipy.sparse.csc_array,
    "coo": scipy.sparse.coo_matrix,
    "rows": ArrayRows,
    "panelled rows": PanelledRows,
    "dataset": Dataset,
    "memmap": memory_map,
}
"""Name to what makes it of an array."""


def dense(gradients: Any) -> Any:
    """The array again."""
    if isinstance(gradients, ArrayRows | Dataset):
        return gradients.array
    if isinstance(gradients, np.memmap):
        return np.array(gradients)
    return gradients.toarray() if scipy.sparse.issparse(gradients) else gradients
