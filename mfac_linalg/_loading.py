"""Any inverse from a file."""

from typing import Any

from . import _backend, _folder
from ._blocks import BlockDiagonalInverse
from ._inverse import Inverse
from ._window import SlidingWindowInverse
from ._woodbury import WoodburyRankOneInverse

KINDS = {kind.__name__: kind for kind in (WoodburyRankOneInverse, SlidingWindowInverse, BlockDiagonalInverse)}


@_backend.outside_graphs
def load(path: Any, *, xp: Any = None, device: Any = None) -> Inverse:
    """Return the inverse that `save` wrote, of the class that it was.

    Parameters
    ----------
    path : str or path-like
        The file, or the folder that was built with `out`.
    xp : module, optional
        The array library to hold it in; NumPy unless given, whatever library it was saved from.
    device : object, optional
        A device of that library.

    Returns
    -------
    WoodburyRankOneInverse, SlidingWindowInverse or BlockDiagonalInverse

    Raises
    ------
    InvalidFileError
        The file is cut off, changed by as little as one bit, of another kind, or of a newer schema.
    OSError
        The file cannot be read.
    TypeError
        `xp` or `device` cannot hold the arrays in their dtype.

    Notes
    -----
    Cost: one pass over the file (of a folder, whose rows then stay in it), and a build for blocks. Nothing is
    unpickled, no size is believed before it is checked against the file's own.
    """
    return _folder.restore(path, KINDS, xp=xp, device=device)
