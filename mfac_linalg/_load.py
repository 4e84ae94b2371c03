"""Any inverse from a file."""

from typing import Any

from . import _backend
from ._files.restore import restore
from ._inverse import Inverse
from ._static.blocks import BlockDiagonalInverse
from ._static.woodbury import WoodburyRankOneInverse
from ._window.inverse import SlidingWindowInverse

KINDS = {kind.__name__: kind for kind in (WoodburyRankOneInverse, SlidingWindowInverse, BlockDiagonalInverse)}


@_backend.outside_graphs
def load(path: Any, *, xp: Any = None, device: Any = None) -> Inverse:
    """Return the inverse that `save` wrote, of the class that it was.

    Parameters
    ----------
    path : str or path-like
        The file, or the folder that was built with `out`.
    xp : module, optional
        The array library to load it into; NumPy unless given, whichever library it was saved from.
    device : object, optional
        A device of that library.

    Returns
    -------
    WoodburyRankOneInverse, SlidingWindowInverse or BlockDiagonalInverse

    Raises
    ------
    InvalidFileError
        The file is cut off, changed by as little as one bit, of another kind, of a newer schema, or forged: its parts
        are not those of one inverse.
    OSError
        The file cannot be read, which says nothing of what is in it; or it is no regular file.
    TypeError
        `path` is none; `xp` or `device` cannot hold the arrays in their dtype.

    Notes
    -----
    Cost: one pass over the file (of a folder, whose rows then stay in it), one product with the rows, and a build for
    blocks. Nothing is unpickled, no size is believed before it is checked against the file's own, and nothing is used
    before all of it is checked: a file from a stranger has right checksums, too.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, mfac_linalg as ml
    >>> window = ml.SlidingWindowInverse.from_gradients(np.eye(2, 3), damping=1.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     window.save(f"{folder}/window.npz")
    ...     loaded = ml.load(f"{folder}/window.npz")
    >>> type(loaded).__name__, len(loaded)
    ('SlidingWindowInverse', 2)
    """
    return restore(path, KINDS, xp=xp, device=device)
