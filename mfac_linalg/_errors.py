"""Exceptions, warnings and their messages."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

import numpy as np

from ._condition import largest_kappa

INNER = (__package__, "torch")  # packages whose frames are not the user's: PyTorch has some between two of ours


class FactorizationError(np.linalg.LinAlgError):
    """The m × m (or d × d) system could not be factored: the same class on every backend.

    Its message names m, κ and the likely causes. It is a `numpy.linalg.LinAlgError`.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> try:
    ...     ml.WoodburyRankOneInverse(np.array([[1e200, 1.0]]), damping=1.0)
    ... except ml.FactorizationError as error:
    ...     print(str(error)[:50])
    The 1 × 1 system of this inverse could not be fact
    """


class IllConditionedWarning(RuntimeWarning):
    """The condition number is beyond what the arithmetic in use can resolve; answers lose digits.

    Its message says what to do. ``warnings.simplefilter("error", ml.IllConditionedWarning)`` makes an error of it.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np, mfac_linalg as ml
    >>> gradients = np.random.default_rng(0).standard_normal((4, 30), dtype=np.float32)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     inverse = ml.WoodburyRankOneInverse(gradients, damping=1e-8)
    >>> caught[0].category.__name__, bool(inverse.kappa > 0.1 / np.finfo(np.float32).eps)
    ('IllConditionedWarning', True)
    """


class InvalidFileError(ValueError):
    """A file that `save` did not write, that is damaged, or that a newer version of the library wrote.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import mfac_linalg as ml
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "inverse.npz")
    ...     _ = path.write_bytes(b"not an archive")
    ...     try:
    ...         ml.load(path)
    ...     except ml.InvalidFileError as error:
    ...         print(type(error).__name__)
    InvalidFileError
    """


class FolderInUseError(ValueError):
    """Another build writes to the folder."""


class UnreadableRowsError(ValueError):
    """A source of gradients, or the target of W, raised an error of its own or returned something else than asked."""


@contextlib.contextmanager
def naming(argument: str) -> Iterator[None]:
    """Name an argument in an error that a user's object raises; errors of the system keep their class.

    So do errors that name an argument already, and exhausted memory of any device.
    """
    try:
        yield
    except Exception as failed:
        is_named, kind = str(failed).startswith("`"), type(failed).__name__
        if isinstance(failed, OSError | MemoryError) or is_named or "OutOfMemory" in kind:
            raise
        msg = f"`{argument}` must do what it is asked without an error; got {kind}: {str(failed)!s:.200}. "
        raise UnreadableRowsError(msg + "Correct it, or open the file that it is in.") from failed


def breakdown(*, size: int, kappa: float, dtype: object) -> FactorizationError:
    """Return the error of a factorisation that failed, with its likely causes in order."""
    msg = (
        f"The {size} × {size} system of this inverse could not be factored (kappa = ‖F‖/damping = {kappa:.3g}, "
        f"{dtype}). Likely causes, in order: (a) gradients so large that their Gram matrix "
        "overflows float64: divide gradients by s and damping by s²; (b) damping below the round-off of the Gram "
        'matrix: raise `damping` or pass precision="high".'
    )
    return FactorizationError(msg)


def not_installed(*, what: str, library: str, extra: str) -> ModuleNotFoundError:
    """Return the error of something whose library is missing, with the command that installs it."""
    msg = f'{what} needs {library}, which is not installed. Run pip install "mfac_linalg[{extra}]".'
    return ModuleNotFoundError(msg, name=library)


def unresolved_rows(dtype: object) -> FactorizationError:
    """Return the error of rows, weights and dampings that span more than their products can."""
    msg = (
        f"`gradients`, `weights` and `damping` must not differ so much among themselves that products of small rows of "
        f"much weight underflow in {dtype}; got such. Multiply each gradient by the root of its weight instead, or "
        "raise the smallest dampings."
    )
    return FactorizationError(msg)


def refuse_nonfinite_values(name: str) -> None:
    """Refuse an array for a nan or an infinity in it."""
    msg = f"`{name}` must be finite; got nan or infinity. Check the computation that made it."
    raise ValueError(msg)


def warn_if_unresolved(kappa: float, dtype: str) -> None:
    """Warn where κ is beyond what computing in dtype resolves."""
    if kappa <= largest_kappa(dtype):
        return
    cure = 'pass precision="high" or raise `damping`' if dtype == "float32" else "raise `damping`"
    msg = (
        f"kappa = ‖F‖/damping = {kappa:.3g} is beyond {largest_kappa(dtype):.2g}, the largest for which computing in "
        f"{dtype} keeps its backward error; answers may lose all digits: {cure}."
    )
    warnings.warn(msg, IllConditionedWarning, stacklevel=_caller_depth())


def warn_unsynced(folder: object, failed: OSError) -> None:
    """Warn of a file that is in place but whose folder could not be synced to the disk."""
    msg = f"The file in {folder} is complete, but a loss of power may undo it: {failed.strerror}. "
    warnings.warn(msg + "Check the disk.", RuntimeWarning, stacklevel=_caller_depth())


def _caller_depth() -> int:
    """Return the stack level of the first frame of a user, for a warning that points at that line."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in INNER:
        frame, depth = frame.f_back, depth + 1
    return depth
