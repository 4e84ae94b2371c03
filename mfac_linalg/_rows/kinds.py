"""The class of rows for a user's gradients."""

from dataclasses import dataclass
from typing import Any

from .. import _backend
from .. import _validation as check
from .chunked import ChunkedRows
from .dense import DenseRows
from .fingerprint import Fingerprint
from .protocol import GradientRows
from .provided import ProvidedRows
from .sparse import SparseRows
from .streamed import StreamedRows, least_memory, width_read, width_within

AnyRows = DenseRows | SparseRows | ProvidedRows | StreamedRows | ChunkedRows


@dataclass(frozen=True)
class ComputePlace:
    """The user's choice of library, device, memory limit, precision and target of W; None for the default."""

    xp: Any = None
    device: Any = None
    memory_limit: int | None = None
    out: Any = None
    precision: Any = "default"
    shows_progress: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether the user chose a place."""
        return any(choice is not None for choice in (self.xp, self.device, self.memory_limit, self.out))


def rows_of(gradients: Any, place: ComputePlace = ComputePlace(), *, streams: bool = True) -> AnyRows:
    """Check gradients, and return their rows, computed in the dtype of the answers.

    Without `streams` a mapped file is an array like any other.
    """
    check.refuse_masked("gradients", gradients)
    gradients = _backend.resolved(gradients)
    check.described(gradients)
    if _backend.is_sparse(gradients):
        check.no_place(place)
        return SparseRows.of(gradients)
    if not _backend.is_array(gradients) and isinstance(gradients, GradientRows):
        check.no_place(place)
        return ProvidedRows.of(gradients)
    if _backend.is_lazy(gradients):
        check.no_place(place)
        return ChunkedRows.of(gradients)
    if streams and (place.is_chosen or _backend.is_on_disk(gradients) or _backend.is_sliceable(gradients)):
        return _streamed(check.streamed(gradients), place)
    check.gradients(gradients)
    return DenseRows(gradients, None, _backend.result_dtype(gradients), Fingerprint.of(gradients))


@_backend.in_plain_modes
def _streamed(gradients: Any, place: ComputePlace) -> StreamedRows:
    shape, name = tuple(gradients.shape), _backend.dtype_name(gradients.dtype)
    answers = "float64" if name == "float64" else "float32"
    like = check.as_compute_array(place.xp, answers, place.device, gradients)
    like = _backend.zeros((0, shape[1]), like=like, dtype=like.dtype)
    itemsize = {"float64": 8, "float32": 4}.get(name if place.out is None else answers, 2)
    if place.memory_limit is None:
        width = width_read(shape[0], itemsize)
    else:
        widened = place.precision == "high" and name != "float64"
        check.memory_limit(place.memory_limit, least_memory(shape, itemsize, widened=widened))
        width = width_within(place.memory_limit, shape, itemsize, widened=widened)
    fingerprint = Fingerprint.of(gradients)
    return StreamedRows(gradients, like, None, like.dtype, width, place.shows_progress, fingerprint)
