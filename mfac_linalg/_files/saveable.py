"""`save` and `load` of an inverse, as facts that JSON can represent and as arrays."""

import abc
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .._typing import Array
from .archive import save as save_archive
from .restore import restore


@_backend.methods_outside_graphs
class Saveable(abc.ABC):
    """An inverse that can be saved, by two hooks: `_to_parts` and `_from_parts`."""

    @property
    @abc.abstractmethod
    def kappa(self) -> Any:
        """κ, a number unless the inverse is traced."""

    @abc.abstractmethod
    def _to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The inverse as facts for JSON and as arrays."""

    @classmethod
    @abc.abstractmethod
    def _from_parts(cls, facts: dict[str, Any], arrays: dict[str, Array]) -> Self:
        """The inverse with these facts and arrays, as `_to_parts` returned them."""

    def save(self, path: Any) -> None:
        """Write the inverse to a file, from which `load` gives the same answers.

        They are so to the bit for windows and for gradients in one piece of memory of NumPy; where loading changes how
        they lie in memory, or factors blocks again, to rounding.

        Parameters
        ----------
        path : str or path-like
            An .npz archive, for `numpy.load` as well: no compression, no pickle, a SHA-256 for each array.

        Raises
        ------
        TypeError
            Gradients that only a user's object holds; a path that is none.
        OSError
            The file cannot be written; one of that name is left as it was. Also: what is there is no regular file.

        Warns
        -----
        RuntimeWarning
            The file is in its place, whole, and its folder could not be brought to the disk.

        Notes
        -----
        Cost: one pass over the rows, O(m²) more, no copy of the rows on the host. The file is written next to `path`,
        synced to the disk and renamed, so that the old or the new file is always there and complete. It keeps the mode
        and, where allowed, the owner of the old one. Remains of killed saves of this file are removed.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np, mfac_linalg as ml
        >>> inverse = ml.WoodburyRankOneInverse(np.ones((2, 3)), damping=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     inverse.save(f"{folder}/inverse.npz")
        ...     loaded = ml.load(f"{folder}/inverse.npz")
        >>> bool(np.array_equal(loaded.diagonal(), inverse.diagonal()))
        True
        """
        check.values("gradients", self.kappa)
        facts, arrays = self._to_parts()
        _backend.with_x64(save_archive, path, type(self).__name__, facts, arrays)

    @classmethod
    def load(cls, path: Any, *, xp: Any = None, device: Any = None) -> Self:
        """Return an inverse of this class from a file, as `mfac_linalg.load` does for any class.

        Parameters
        ----------
        path : str or path-like
            As in `mfac_linalg.load`.
        xp, device : optional
            As in `mfac_linalg.load`.

        Returns
        -------
        inverse of this class

        Raises
        ------
        InvalidFileError, OSError, TypeError
            As `mfac_linalg.load`; InvalidFileError also for a file of another class.

        Notes
        -----
        Cost: as `mfac_linalg.load`.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np, mfac_linalg as ml
        >>> inverse = ml.WoodburyRankOneInverse(np.ones((2, 3)), damping=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     inverse.save(f"{folder}/inverse.npz")
        ...     loaded = ml.WoodburyRankOneInverse.load(f"{folder}/inverse.npz")
        >>> loaded.shape
        (3, 3)
        """
        return restore(path, {cls.__name__: cls}, xp=xp, device=device)
