"""The block form: M is block-diagonal, with a dual or primal form for each run of equal blocks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from .. import _backend
from .._backend.pytree import Part
from .._rows.batched import BatchedRows
from .._rows.scaled import ScaledRows
from .._typing import Array
from .diagonal import REDO_BELOW
from .dual import DualForm
from .primal import PrimalForm

SystemForm = DualForm | PrimalForm


@dataclass(frozen=True)
class Run(Part):
    """`count` blocks of `size` columns each, beginning at column `start`: one form, with a leading axis for a batch."""

    form: SystemForm
    start: int
    count: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.count * self.size

    @property
    def is_batch(self) -> bool:
        """Whether the form has a leading axis."""
        return self.form.capacitance.cholesky.ndim > 2

    def slice_rows(self, x: Array) -> Array:
        """The entries of x (d, k) in this run, (n, k), or (count, n, k) for a batch."""
        x = x[self.start : self.stop, :]
        return _backend.namespace(x).reshape(x, (self.count, self.size, x.shape[1])) if self.is_batch else x

    def broadcast(self, b: Array) -> Array:
        """B (m, k) for every block, (count, m, k) for a batch."""
        return _backend.namespace(b).broadcast_to(b, (self.count, *b.shape)) if self.is_batch else b

    def flatten(self, x: Array) -> Array:
        """The blocks of x one below the other: (count, n, k) as (count · n, k)."""
        if not self.is_batch:
            return x
        count, size, k = x.shape
        return _backend.namespace(x).reshape(x, (count * size, k))

    def sum_blocks(self, x: Array) -> Array:
        """The sum over the blocks."""
        return _backend.namespace(x).sum(x, axis=0) if self.is_batch else x

    def block(self, index: int) -> SystemForm:
        """The form of one block."""
        if not self.is_batch:
            return self.form
        rows = cast(BatchedRows, self.form.rows).block(index)
        batch = self.form.capacitance
        capacitance = replace(
            batch, scaled_gram_source=batch.scaled_gram[index, :, :], cholesky=batch.cholesky[index, :, :]
        )
        return replace(self.form, rows=rows, capacitance=capacitance, norm=self.form.norm[index, 0])


@dataclass(frozen=True)
class BlockForm(Part):
    """M = diag(M_1, M_2, …); vectors are split, results concatenated."""

    rows: ScaledRows  # S of all columns
    runs: tuple[Run, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        return self.rows.shape

    @property
    def dtype(self) -> Any:
        """The computing dtype of d-sized arrays."""
        return self.rows.dtype

    @property
    def sweeps(self) -> int:
        """The largest number of sweeps of a block."""
        return max(run.form.sweeps for run in self.runs)

    @property
    def arithmetic(self) -> str:
        """Name of the dtype whose precision bounds κ."""
        names = [run.form.arithmetic for run in self.runs]
        return "float32" if "float32" in names else "float64"

    def _concatenate_runs(self, function: Callable[[Run], Array]) -> Array:
        parts = [function(run) for run in self.runs]
        return _backend.namespace(parts[0]).concat(parts)

    def solve(self, u: Array) -> Array:
        """M u."""
        return self._concatenate_runs(lambda run: run.flatten(run.form.solve(run.slice_rows(u))))

    def solve_with_dual(self, u: Array) -> tuple[Array, Array]:
        """M u, and the duals a_b = S_b M_b u_b of all blocks, (blocks, m, k) float64."""
        answers = [(run, *run.form.solve_with_dual(run.slice_rows(u))) for run in self.runs]
        r = _backend.namespace(u).concat([run.flatten(r) for run, r, _ in answers])
        duals = [a if run.is_batch else a[None, :, :] for run, _, a in answers]
        return r, _backend.namespace(duals[0]).concat(duals)

    def quadratics(self, u: Array) -> Array:
        """The uᵀM u of each column u, float64."""
        return sum(run.sum_blocks(run.form.quadratics(run.slice_rows(u))) for run in self.runs)

    def dual(self, u: Array) -> Array:
        """S M u, Σ_b S_b M_b u_b (float64)."""
        return self.rows.project(self.solve(u))

    def solve_in_span(self, b: Array) -> Array:
        """M Sᵀ b."""
        return self._concatenate_runs(lambda run: run.flatten(run.form.solve_in_span(run.broadcast(b))))

    def solve_cross(self, other: "BlockForm", z: Array) -> Array:
        """M Sᵀ T z block by block, where T are the rows of another form of the same gradients and blocks."""
        pairs = zip(self.runs, other.runs, strict=True)
        parts = [run.flatten(run.form.solve_cross(run_of_other.form, run.slice_rows(z))) for run, run_of_other in pairs]
        return _backend.namespace(z).concat(parts)

    def cross_validate(self, other: "BlockForm", z: Array, shift: Array) -> tuple[Array, Array]:
        """‖e‖² − ‖a‖² and ‖b‖², (blocks,), of the residuals of each block's b = T z − shift."""
        pairs = zip(self.runs, other.runs, strict=True)
        found = [run.form.cross_validate(one.form, run.slice_rows(z), run.broadcast(shift)) for run, one in pairs]
        first, second = (_backend.namespace(shift).concat(list(parts)) for parts in zip(*found, strict=True))
        return first, second

    def apply_square_root(self, u: Array) -> Array:
        """M^½ u."""
        return self._concatenate_runs(lambda run: run.flatten(run.form.apply_square_root(run.slice_rows(u))))

    def path(self, u: Array, ratios: Array) -> Array:
        """Column k: (I + t_k diag(S_bᵀS_b))⁻¹ u for ratios t (k,)."""
        return self._concatenate_runs(lambda run: run.flatten(run.form.path(run.slice_rows(u), ratios)))

    def gram_matvec(self, z: Array, power: int = 0) -> Array:
        """diag(S_bᵀS_b) z · 2^−power."""
        return self._concatenate_runs(lambda run: run.flatten(run.form.gram_matvec(run.slice_rows(z), power)))

    def diagonal(self) -> Array:
        """The diagonal of M, float64."""
        return self._concatenate_runs(self._diagonal)

    def _diagonal(self, run: Run) -> Array:
        if not (run.is_batch and isinstance(run.form, DualForm)):
            return _flatten(run.form.diagonal())
        form, xp = run.form, _backend.namespace(run.form.capacitance.scaled_gram)
        if not _backend.on_host(form.capacitance.scaled_gram):
            return xp.concat([run.block(b).diagonal() for b in range(run.count)])
        scaled = cast(BatchedRows, form.rows).to_array()
        values = 1 - _backend.column_squares(form.float64_capacitance.half_solve(scaled))
        cancelled = _backend.read(xp.any(values < REDO_BELOW, axis=-1))
        parts = [run.block(b).diagonal() if cancelled[b] else values[b, :] for b in range(run.count)]
        return xp.concat(parts)

    def element(self, i: Array, j: Array, *, total: int | None = None) -> Array:
        """M_ij for flat index arrays; zero between blocks."""
        rows, columns = _read_index(i), _read_index(j)
        row_block, column_block = self._blocks_of(rows), self._blocks_of(columns)
        pieces, order = [], []
        for block in np.unique(row_block):
            places = np.flatnonzero((row_block == block) & (column_block == block))
            if len(places):
                form, start = self._block(block)
                local = (_backend.index_like(k[places] - start, like=i) for k in (rows, columns))
                pieces.append(form.element(*local))
                order.append(places)
        between = np.flatnonzero(row_block != column_block)
        pieces.append(self._zeros(between.shape))
        return _concatenate_at(pieces, [*order, between])

    def submatrix(self, i: Array, j: Array) -> Array:
        """M[i][:, j]."""
        rows, columns = _read_index(i), _read_index(j)
        row_block, column_block = self._blocks_of(rows), self._blocks_of(columns)
        strips, order = [self._zeros((0, len(columns)))], [np.zeros(0, np.int64)]
        for block in np.unique(row_block):
            form, start = self._block(block)
            row_places, column_places = np.flatnonzero(row_block == block), np.flatnonzero(column_block == block)
            local = [_backend.index_like(k - start, like=i) for k in (rows[row_places], columns[column_places])]
            outside = np.flatnonzero(column_block != block)
            inside = form.submatrix(*local) if len(column_places) else self._zeros((len(row_places), 0))
            zeros = self._zeros((len(row_places), len(outside)))
            strips.append(_concatenate_at([inside, zeros], [column_places, outside], axis=1))
            order.append(row_places)
        return _concatenate_at(strips, order)

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        like = self.rows.row_scale
        return _backend.zeros(shape, like=like, dtype=like.dtype)

    @property
    def _starts(self) -> np.ndarray:
        """The first column of every block."""
        return np.concatenate([run.start + run.size * np.arange(run.count) for run in self.runs])

    def _blocks_of(self, columns: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, columns, side="right") - 1

    def _block(self, block: int) -> tuple[SystemForm, int]:
        """The form of one block, and its first column."""
        for run in self.runs:
            if block < run.count:
                return run.block(int(block)), run.start + int(block) * run.size
            block -= run.count
        raise IndexError(block)

    def logdet(self) -> Array:
        """The logarithm of det M."""
        return sum(run.form.logdet() for run in self.runs)

    def spectrum(self) -> Array:
        """The min(m, n) eigenvalues of each S_bᵀS_b, together, descending."""
        values = self._concatenate_runs(lambda run: _flatten(run.form.spectrum()))
        xp = _backend.namespace(values)
        return xp.flip(xp.sort(values))

    def leverages(self) -> Array:
        """The diagonal of S M Sᵀ, the sum of that of S_b M_b S_bᵀ over the blocks, float64."""
        return sum(run.sum_blocks(run.form.leverages()) for run in self.runs)

    def trace_bound(self) -> Array:
        """A bound of ‖SᵀS‖: the largest trace of a block."""
        bounds = [_backend.namespace(run.form.capacitance.scaled_gram).max(run.form.trace_bound()) for run in self.runs]
        return _backend.namespace(bounds[0]).max(_backend.namespace(bounds[0]).stack(bounds))


def _read_index(index: Array) -> np.ndarray:
    """Indices on the host, where their blocks are found."""
    index = _backend.unwrapped(index)
    if not _backend.is_concrete(index):
        msg = "`i`, `j`, `rows` and `cols` must have values now, since they choose among blocks; got traced ones. "
        msg += "Ask for `columns`."
        raise TypeError(msg)
    return _backend.read(index)


def _flatten(x: Array) -> Array:
    return _backend.namespace(x).reshape(x, (-1,))


def _concatenate_at(pieces: list[Array], places: list[np.ndarray], *, axis: int = 0) -> Array:
    """The concatenation of pieces, with the entries of each at its `places`."""
    x = _backend.namespace(pieces[0]).concat(pieces, axis=axis)
    order = np.argsort(np.concatenate(places))
    return _backend.namespace(x).take(x, _backend.index_like(order, like=x), axis=axis)
