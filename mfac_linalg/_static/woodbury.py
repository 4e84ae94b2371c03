"""The static inverse of a damped sum of rank-one terms."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .. import _backend
from .. import _validation as check
from .._backend.pytree import register
from .._errors import FactorizationError, UnreadableRowsError
from .._files.folder import WHITENED, Folder, Target, build_identity, is_finished, recorded_identity, require_same
from .._files.journal import SAMPLE, compared_columns, naming_out
from .._files.saveable import Saveable
from .._forms.dual import DualForm
from .._forms.state import State
from .._inverse import Inverse
from .._progress import reporter
from .._rows.fingerprint import require_unchanged
from .._rows.kinds import ComputePlace, rows_of
from .._rows.protocol import GivenRows
from .._scaling.normalization import divisor_of
from .._typing import Array
from .build import build
from .options import Options
from .problem import Problem
from .serialize import arguments_as_arrays, arguments_of, is_whitened_from, parts_of, state_of


@_backend.methods_outside_graphs
class WoodburyRankOneInverse(Inverse, Saveable):
    """F⁻¹ for F = Λ + Σ_i c_i g_i g_iᵀ with fixed gradients, never formed: c_i = w_i/m, or w_i for "sum".

    Λ is the diagonal matrix of the damping, λI for a number. Choose this class where the gradients are collected once.

    Parameters
    ----------
    gradients : array, shape (m, d), real floating
        One gradient per row, of any array-API library; answers come back in that library, on that device. A sparse
        matrix, a dataset in a file, `GradientRows` and Dask's arrays in chunks along d will do as well. float16
        and bfloat16 are stored as they are and computed in float32. They are kept by reference, unless whitened, and
        must not be changed: see Notes.
    damping : float or array, shape (d,)
        λ > 0, or one λ per parameter. Unit: that of squared gradients.
    weights : array, shape (m,), optional
        w_i > 0, not renormalised; 1 unless given.
    normalization : {"mean", "sum"}
        Whether the sum is divided by m, the number of gradients.
    whiten : bool, optional
        When to compute and store W = L⁻¹ S (m × d), with which an element costs O(m); without it, O(m²). Here
        S = C^½ G Λ^-½ with C = diag(c_i), and L is the Cholesky factor of I + S Sᵀ. True: in the build, in place of the
        gradients. False: never. None: when a query asks for d/2 elements or more at once; never for 16-bit gradients,
        whose W would be float32. For m ≥ d a d × d factor takes its place.
    precision : {"default", "high"}
        "high" computes in float64 by panels whatever the dtype of the gradients.
    overwrite_gradients : bool
        Write W over the gradients, so that no second m × d array exists; what is there then must not be changed.
    progress : bool
        Show a progress bar over the panels of the build and, where the rows are read by panels, over those of every
        later pass, two or more a product (needs tqdm).
    xp, device : optional
        Array library and device to compute with where the gradients stay elsewhere and travel by panels: those of
        vectors and answers. Unless given they are the gradients' own, and NumPy for what is no array.
    memory_limit : int, optional
        Bytes that the build and any query of one vector may use in addition to the gradients, which are read by panels
        as wide as that allows. Gradients in a file (`numpy.memmap`, datasets of h5py and zarr) are so without it, too.
    out : path-like, array or dataset, optional
        Where to write W, which is then read from there by panels: a folder, which becomes an inverse that
        `mfac_linalg.load` takes, or a writable (m, d) matrix in the dtype of the answers (`numpy.memmap`, datasets of
        h5py and zarr), which must not be changed. G is read twice and W written once.
    resume : bool
        Go on with the killed build that a folder `out` holds, from where it was half a minute before at most.

    Raises
    ------
    TypeError
        Not an array, another library, device or dtype than the gradients'.
    ValueError
        Wrong shape, non-finite or non-positive values, gradients that cannot be overwritten.
    FactorizationError
        The small system has no factor: gradients that overflow, or damping below round-off.
    InvalidFileError
        The journal in the folder to be resumed is damaged, or of other gradients.
    OSError
        A file cannot be read, or `out` not be written; what a folder holds by then can be resumed.

    Warns
    -----
    IllConditionedWarning
        κ is beyond what the arithmetic in use resolves.

    Notes
    -----
    Cost: build dm² + m³/3 flops and O(m²) memory, with whitening 2dm² flops and W; `matvec` O(dm + m²). The first query
    of entries, log det, spectrum or square root computes the Gram matrix of float32 rows again in float64 if κ > 250.

    Accuracy: ‖v − Fx‖ ≤ 30 eps ‖F‖ ‖x‖ in float32 for κ ≤ 0.1/eps, in float64 for κ ≤ 4.5e14, 0.1/eps too.

    Under JAX tracing values are not checked; under `vmap` the sweeps are those of the worst κ.

    Shared memory: of an array in the host's memory (NumPy's, a mapped file, a PyTorch tensor, the arrays of a SciPy
    matrix) that answers are read from, 32 entries are remembered, 8 of a file. Every query compares them and raises
    ValueError for a buffer that was refilled. A change of few entries is not seen, nor one on a device, in a dataset
    of h5py or zarr, in `GradientRows` or behind Dask.

    References
    ----------
    .. [1] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.1 (the static algorithm).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> gradients, v = np.random.default_rng(0).standard_normal((3, 5)), np.ones(5)
    >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
    >>> dense = np.linalg.inv(0.1 * np.eye(5) + gradients.T @ gradients / 3)
    >>> bool(np.allclose(inverse @ v, dense @ v))
    True
    >>> x = inverse.matvec_gradients(np.full(3, 1 / 3))  # of the mean gradient
    >>> bool(np.allclose(x, dense @ gradients.mean(axis=0)))
    True
    """

    def __init__(
        self,
        gradients: Array,
        damping: Any,
        *,
        weights: Array | None = None,
        normalization: str = "mean",
        whiten: bool | None = None,
        precision: str = "default",
        overwrite_gradients: bool = False,
        progress: bool = False,
        xp: Any = None,
        device: Any = None,
        memory_limit: int | None = None,
        out: Any = None,
        resume: bool = False,
    ) -> None:
        check.flag("progress", progress)
        out = check.as_out_path(out)
        rows = rows_of(gradients, ComputePlace(xp, device, memory_limit, out, precision, progress))
        dtype = _backend.result_dtype(rows.like)
        self._damping = check.damping(damping, rows.like, dtype)
        self._weights = check.weights(weights, rows.like, rows.shape[0])
        self._normalization = check.choice("normalization", normalization, ("mean", "sum"))
        self._precision = check.choice("precision", precision, ("default", "high"))
        check.flag("whiten", whiten, optional=True)
        check.flag("overwrite_gradients", overwrite_gradients)
        check.precision_available(precision, rows.like)
        if rows.is_streamed or not rows.can_change_dtype:
            check.no_dense_copy(whiten and out is None, overwrite_gradients)
        check.flag("resume", resume)
        check.out(out, resume, gradients, dtype, whiten=whiten, precision=precision)
        if not rows.can_change_dtype:
            check.computes("precision", precision, rows.dtype)
        if overwrite_gradients:
            check.overwritable(gradients, dtype, whiten, precision)
        register(rows.like, type(self))
        if whiten is None and (out is not None or overwrite_gradients):  # W has a place
            whiten = True
        options = Options(dtype, precision, whiten, overwrite_gradients, reporter(progress))
        if isinstance(out, Path):
            self._state = self._build_in_folder(out, rows, options, resume=resume)
        else:
            self._state = self._build_state(rows, options if out is None else replace(options, out=Target(out)))

    def _build_state(self, rows: GivenRows, options: Options) -> State:
        arguments = (rows, self._damping, self._weights, self._normalization, options)
        return _backend.with_x64(_build, *arguments)

    def _build_in_folder(self, path: Path, rows: GivenRows, options: Options, *, resume: bool) -> State:
        """Build with W in a folder, which becomes a saved inverse; `resume` loads one that is finished."""
        facts, arrays = arguments_as_arrays(None, self._damping, self._weights)
        rules = {"normalization": self._normalization, "precision": self._precision}
        asked = build_identity(rows, {**rules, **facts}, arrays)
        if resume and is_finished(path, "out"):
            place = {"xp": _backend.namespace(rows.like), "device": _backend.device(rows.like)}
            with naming_out(path):
                require_same(asked, recorded_identity(path), path)
                whole = replace(type(self).load(path, **place)._state, rows=rows)
            if not _backend.with_x64(is_whitened_from, whole, compared_columns(rows.shape[1])[SAMPLE]):
                require_same({"gradients": "these"}, {}, path)
            return whole
        if _backend.is_mapped_from(rows.gradients, path / WHITENED):
            msg = f"`out` must not be the folder that the gradients are in; got {path}. Pass another."
            raise ValueError(msg)
        folder = Folder(path, asked, resume=resume)
        options = replace(options, out=folder, progress=replace(options.progress, journal=folder))
        try:
            self._state = self._build_state(rows, options)
            facts, arrays = self._to_parts()
            folder.finish(type(self).__name__, facts, {name: x for name, x in arrays.items() if name != "whitened"})
        except UnreadableRowsError:  # reading again may give others
            raise
        except (ValueError, FactorizationError):
            folder.discard()  # whoever resumes would be refused again
            raise
        finally:
            folder.close()
        return self._state

    @property
    def _current(self) -> State:
        return self._state

    @property
    def damping(self) -> Any:
        """λ as a float, or a copy of the (d,) array it was given as."""
        return _backend.copy_of(self._damping) if _backend.is_array(self._damping) else self._damping

    @property
    def gradients(self) -> Array:
        """The gradients, shape (m, d): the caller's array, or a new one rebuilt from the whitened rows."""
        state = self._unchanged
        if state.whitened is not None:  # and answers from W, perhaps
            require_unchanged(state.rows)
        return _backend.with_x64(State.gradients, state)

    def with_damping(self, damping: Any) -> "WoodburyRankOneInverse":
        """Return a new inverse with another damping.

        For scalar dampings G is read again only where κ passes 0.1/eps, and by the first query that needs a float64
        Gram matrix of float32 rows.

        Parameters
        ----------
        damping : float or array, shape (d,)
            As in the constructor.

        Returns
        -------
        WoodburyRankOneInverse
            This one stays as it is.

        Raises
        ------
        TypeError, ValueError, FactorizationError
            As the constructor; ValueError also if the inverse has whitened rows in a file and no gradients.

        Notes
        -----
        Cost: O(m³), and O(dm²) where the rows are whitened; one Gram pass for vector damping or the case above.

        Examples
        --------
        >>> import numpy as np, mfac_linalg as ml
        >>> gradients = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=1.0)
        >>> inverse.with_damping(2.0).diagonal().round(3)
        array([0.417, 0.417, 0.4  ])
        """
        like = self._like
        new = object.__new__(type(self))
        new._damping = check.damping(damping, like, self.dtype)
        new._weights, new._normalization, new._precision = self._weights, self._normalization, self._precision
        state = self._unchanged
        whiten = False if state.form.rows.is_streamed else _whitening_of(state)
        if state.rows is None and state.form.rows.is_streamed:
            got = f"{damping!r:.60} and whitened rows in a file"
            msg = f"`gradients` must be available for another damping; got {got}. "
            raise ValueError(msg + "Build from the gradients again.")
        overwrite = whiten is True and state.rows is None
        options = Options(self.dtype, self._precision, whiten, overwrite)
        new._state = _backend.with_x64(_rebuild, state, new._damping, self._weights, self._normalization, options)
        return new

    def _to_parts(self) -> tuple[dict[str, Any], dict[str, Array]]:
        rules = {"normalization": self._normalization, "precision": self._precision}
        state = self._unchanged
        gradients = (
            None if state.rows is None or (state.whitened is not None and state.rows.is_streamed) else self.gradients
        )
        given, own = arguments_as_arrays(gradients, self._damping, self._weights), parts_of(state)
        return {**rules, **given[0], **own[0]}, {**given[1], **own[1]}

    @classmethod
    def _from_parts(cls, facts: dict[str, Any], arrays: dict[str, Array]) -> Self:
        new = object.__new__(cls)
        new._normalization, new._precision = facts["normalization"], facts["precision"]
        gradients, new._damping, new._weights = arguments_of(facts, arrays)
        new._state = state_of(gradients, new._damping, new._weights, facts, arrays)
        register(new._like, cls)
        return new

    def _map_arrays(self, move: Callable[[Array], Array]) -> Self:
        rows = self._state.rows
        if not (rows.is_movable if rows is not None else not self._state.form.rows.is_streamed):
            kind = "whitened rows in a file" if rows is None else type(rows.gradients).__name__
            msg = f"`gradients` must be in memory here; got {kind}. "
            msg += "Build again, from other rows or with another `xp` and `device`."
            raise TypeError(msg)
        damping, weights = (move(x) if _backend.is_vector(x) else x for x in (self._damping, self._weights))
        return type(self)(
            move(self.gradients),
            damping,
            weights=weights,
            normalization=self._normalization,
            whiten=_whitening_of(self._state),
            precision=self._precision,
        )


def _whitening_of(state: State) -> bool | None:
    """Whether an inverse is whitened, or, for None, will be on demand."""
    if state.whitened is not None:
        return True
    return None if isinstance(state.form, DualForm) and state.form.on_demand_dtype is not None else False


def _problem(rows: GivenRows, damping: Any, weights: Any, normalization: str) -> Problem:
    return Problem(rows, damping, weights, divisor_of(normalization, rows.shape[0]))


def _build(rows: GivenRows, damping: Any, weights: Any, normalization: str, options: Options) -> State:
    return build(_problem(rows, damping, weights, normalization), options)


def _rebuild(state: State, damping: Any, weights: Any, normalization: str, options: Options) -> State:
    gram = None if _backend.is_vector(damping) else state.gram()
    rows = rows_of(state.gradients()) if state.rows is None else state.rows.unscaled()
    problem = _problem(rows, damping, weights, normalization)
    return build(problem, options, gram, float64_gram=state.float64_gram)
