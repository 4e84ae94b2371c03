"""Which rows a user's gradients are."""

from typing import Any

from .. import _backend
from .._validation import check_gradients
from .dense import DenseRows
from .protocol import GradientRows
from .provided import ProvidedRows
from .sparse import SparseRows


def rows_of(gradients: Any) -> DenseRows | SparseRows | ProvidedRows:
    """Check gradients, and return their rows, computed in the dtype of the answers."""
    if _backend.is_sparse(gradients):
        return SparseRows.of(gradients)
    if not _backend.is_array(gradients) and isinstance(gradients, GradientRows):
        return ProvidedRows.of(gradients)
    check_gradients(gradients)
    return DenseRows(gradients, None, _backend.result_dtype(gradients))
