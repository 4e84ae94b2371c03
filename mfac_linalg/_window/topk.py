"""How a window keeps the largest entries of its gradients, and what becomes of the rest."""

from typing import Any

from .. import _validation as check
from .._repr import as_table

ADDRESSED = 2**16  # columns of a block, so that an index in it takes 16 bits
STORED = ("float16", "bfloat16", "float32")


class TopK:
    """Each gradient of a window as its largest entries, block by block: c = topk(g + e), e ← g + e − c.

    A choice for `SlidingWindowInverse`; it holds no gradients and never changes. F is that of the rows c that are kept.

    Parameters
    ----------
    density : float
        In (0, 1]: a block of B parameters keeps its ⌈density · B⌉ entries of largest magnitude.
    block_size : int
        1 to 65,536 consecutive parameters, so that an index in a block takes 16 bits; the last block may be shorter.
    dtype : {None, "float16", "bfloat16", "float32"}
        Of the values that are kept; None is that of the gradients. Rows are stored times a power of two where their
        dtype asks for it: any gradient fits.
    error_feedback : bool
        Whether what is not kept of a gradient, the rounding of its values included, is added to the next. It costs one
        vector of d numbers in the dtype of the answers. False drops the rest.

    Raises
    ------
    TypeError
        Arguments of another kind.
    ValueError
        Values out of range.

    Notes
    -----
    Cost: ⌈density · d⌉ (2 + b) bytes a row for values of b bytes, and d numbers for e in the whole window.

    With ``density=1`` and no other dtype the window is that of whole gradients, at 1 + 2/b times its memory.

    References
    ----------
    .. [1] I.-V. Modoranu, A. Kalinov, E. Kurtic, E. Frantar, D. Alistarh, "Error Feedback Can Accurately Compress
       Preconditioners", ICML 2024, arXiv:2306.06098 (sparse M-FAC).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> half = ml.TopK(0.5, block_size=3)
    >>> window = ml.SlidingWindowInverse(4, 6, damping=0.1, compression=half)
    >>> window.append(np.array([1.0, -3.0, 2.0, 0.5, 0.0, 0.25]))
    >>> window.append(np.zeros(6))
    >>> window.gradients.tolist()
    [[0.0, -3.0, 2.0, 0.5, 0.0, 0.25], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """

    def __init__(
        self, density: float, *, block_size: int = ADDRESSED, dtype: Any = None, error_feedback: bool = True
    ) -> None:
        check.flag("error_feedback", error_feedback)
        self._density = check.fraction("density", density, "Pass 1.0 to keep all.")
        self._block_size = check.size("block_size", block_size)
        if self._block_size > ADDRESSED:
            msg = f"`block_size` must be at most {ADDRESSED}; got {block_size}. Indices in a block have 16 bits."
            raise ValueError(msg)
        self._dtype = None if dtype is None else check.choice("dtype", check.name_of_dtype(dtype), STORED)
        self._error_feedback = error_feedback

    @property
    def density(self) -> float:
        """Share of the entries that is kept."""
        return self._density

    @property
    def block_size(self) -> int:
        """Parameters of a block."""
        return self._block_size

    @property
    def dtype(self) -> str | None:
        """Name of the dtype of the values; None for that of the gradients."""
        return self._dtype

    @property
    def error_feedback(self) -> bool:
        """Whether what is not kept is added to the next gradient."""
        return self._error_feedback

    def _as_dict(self) -> dict[str, Any]:
        return {name[1:]: value for name, value in vars(self).items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopK) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        facts = {"block_size": ADDRESSED, "dtype": None, "error_feedback": True}
        changed = [f"{name}={getattr(self, name)!r}" for name, usual in facts.items() if getattr(self, name) != usual]
        return f"TopK({', '.join([f'{self.density:g}', *changed])})"

    def _repr_html_(self) -> str:
        dtype = "that of the gradients" if self.dtype is None else self.dtype
        facts = {"density": f"{self.density:g}", "block size": f"{self.block_size:,}", "dtype of the values": dtype}
        return as_table("TopK", {**facts, "error feedback": "yes" if self.error_feedback else "no"})


def check_compression(compression: Any) -> TopK | None:
    """Accept a TopK, or None for rows as they are."""
    if not (compression is None or isinstance(compression, TopK)):
        msg = f"`compression` must be None or a TopK; got {check.describe(compression)}. Pass mfac_linalg.TopK(0.01)."
        raise TypeError(msg)
    return compression
