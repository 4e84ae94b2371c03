"""Rows of a user's `GradientRows` object."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _backend
from .. import _validation as check
from .._backend.pytree import Part
from .._errors import naming, refuse_nonfinite_values
from .._progress import Progress
from .._typing import Array
from .panels import column_slices, gram, scaled_squares
from .protocol import GradientRows

METHODS = ("gram", "project", "combine", "columns", "panels")


@dataclass(frozen=True)
class ProvidedRows(Part):
    """`Rows` by the five methods of a user's object; the shapes of their results are checked."""

    gradients: GradientRows
    like: Array  # (0, d), of the library, device and dtype of the object's results

    exponent = None
    fingerprint = None
    has_twin = False
    is_plain = False
    multiplies_by_entries = False
    can_change_dtype = False
    is_streamed = False
    is_movable = False

    @classmethod
    def of(cls, gradients: GradientRows) -> "ProvidedRows":
        """The rows of an object; its first column gives library, device and dtype."""
        m, d = check.provided_shape(gradients)
        for method in METHODS:
            check.function(f"gradients.{method}", getattr(gradients, method), "Write that method.")
        with naming("gradients.columns"):
            column = gradients.columns(np.zeros(1, np.int64))
        _require_shape("columns", column, (m, 1))
        check.computing("gradients.columns", column)
        return cls(gradients, _backend.empty((0, d), like=column, dtype=column.dtype))

    @property
    def source(self) -> Any:
        """The object: blocks may be views of its arrays."""
        return self.gradients

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return check.provided_shape(self.gradients)

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.like.dtype

    def with_dtype(self, dtype: Any) -> "ProvidedRows":
        """The same rows: their methods choose the dtype."""
        del dtype
        return self

    def unscaled(self) -> "ProvidedRows":
        """The same rows."""
        return self

    def largest(self) -> float:
        """Raise: the largest entry is needed to scale rows, and these cannot be scaled."""
        msg = "`gradients` must be finite, their squares neither huge nor tiny in their dtype; got others. "
        raise ValueError(msg + "Drop nan and infinity, or divide the gradients by s and `damping` by s².")

    def column_slices(self) -> list[slice]:
        """Column slices for `panel`; `blocks` uses the panels of the object instead."""
        return column_slices(*self.shape, self.dtype)

    def gram(self, column_scale: Array | None, progress: Progress) -> Array:
        """K = G diag(column_scale)² Gᵀ, (m, m), float64: by the object, or by its panels if columns are scaled."""
        m = self.shape[0]
        if column_scale is None:
            return _backend.to_float64(_require_shape("gram", self._call("gram"), (m, m)))
        return sum(gram(block * column_scale[columns, 0]) for columns, block in progress(self.blocks(), "gram"))

    def project(self, v: Array) -> Array:
        """G v, shape (m, k), float64."""
        return _backend.to_float64(_require_finite("project", self._call("project", v), (self.shape[0], v.shape[1])))

    def combine(self, a: Array) -> Array:
        """Gᵀ a, shape (d, k), for float64 a of shape (m, k)."""
        a = _backend.from_float64(a, like=self.like, dtype=self.dtype)
        shape = (self.shape[1], a.shape[1])
        total = self._require_dtype("combine", _require_finite("combine", self._call("combine", a), shape), shape)
        return _backend.copy_of(total)  # which is written over

    def columns(self, j: Array) -> Array:
        """G[:, j], shape (m, len(j)): a copy."""
        block = self._require_dtype("columns", self._call("columns", _backend.read(j)), (self.shape[0], j.shape[0]))
        return _backend.own_copy(block, source=self.source)

    def panel(self, columns: slice) -> Array:
        """G[:, columns]."""
        return self.columns(np.arange(self.shape[1])[columns])

    def row_block(self, rows: slice) -> Array:
        """G[rows, :]."""
        units = _backend.unit_columns(np.arange(self.shape[0])[rows], self.shape[0], like=np.empty(0), dtype=np.float64)
        return self.combine(units).T

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Column slices and G[:, columns], in the panels that the object chooses."""
        m, d = self.shape
        start, panels = 0, self._call("panels")
        if not isinstance(panels, Iterable) or getattr(panels, "ndim", 1) == 0:
            msg = f"`gradients.panels` must return panels in order; got {check.describe(panels)}. "
            raise TypeError(msg + "Yield blocks of columns.")
        for block in _iterate(panels):
            if not (_backend.is_array(block) and block.ndim == 2):
                msg = f"`gradients.panels` must give arrays of shape ({m}, p); got {check.describe(block)}. "
                raise ValueError(msg + "Correct that method.")
            stop = start + block.shape[1]
            yield slice(start, stop), self._require_dtype("panels", block, (m, stop - start))
            start = stop
        if start != d:
            msg = f"`gradients.panels` must give {d} columns in all; got {start}. Leave none out, and none twice."
            raise ValueError(msg)

    def squares(self, row_scale: Array) -> Array:
        """Σ_i (row_scale_i g_ij)² for each column j, shape (d,), float64."""
        return scaled_squares(self.blocks(), row_scale)

    def _call(self, method: str, *arguments: Any) -> Any:
        with naming(f"gradients.{method}"):
            return getattr(self.gradients, method)(*arguments)

    def _require_dtype(self, method: str, x: Any, shape: tuple[int, int]) -> Array:
        """Return x if it has the shape and the dtype of the rows."""
        _require_shape(method, x, shape)
        if x.dtype != self.dtype:
            msg = f"`gradients.{method}` must return {self.dtype}, the dtype of a column; got {x.dtype}. Cast it."
            raise TypeError(msg)
        return x


def _iterate(panels: Iterable[Array]) -> Iterator[Array]:
    """Each panel; errors of the object, which may compute it only now, name the method."""
    with naming("gradients.panels"):
        iterator = iter(panels)
    end = object()
    while True:
        with naming("gradients.panels"):
            block = next(iterator, end)
        if block is end:
            return
        yield block


def _require_shape(method: str, x: Any, shape: tuple[int, int]) -> Array:
    check.refuse_masked(f"gradients.{method}", x)
    if not _backend.is_array(x) or tuple(x.shape) != shape:
        got = f"shape {tuple(x.shape)}" if _backend.is_array(x) else type(x).__name__
        msg = f"`gradients.{method}` must return an array of shape {shape}; got {got}. Correct that method."
        raise ValueError(msg)
    check.refuse_masked(f"gradients.{method}", x)
    if not _backend.is_real(x):
        msg = f"`gradients.{method}` must return real numbers; got {check.describe(x)}. Correct that method."
        raise TypeError(msg)
    return x


def _require_finite(method: str, x: Any, shape: tuple[int, int]) -> Array:
    """Return x if it has this shape and is finite, as far as values can be read."""
    xp = _backend.namespace(_require_shape(method, x, shape))
    if _backend.on_host(x) and not bool(_backend.read(xp.all(xp.isfinite(x)))):
        refuse_nonfinite_values(f"gradients.{method}")
    return x
