"""Influence functions: the first-order effect of a training sample on a test loss, as products with F⁻¹."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from . import _backend
from . import _validation as check
from ._forms.state import State
from ._inverse import Inverse, check_inverse
from ._progress import Progress, reporter
from ._rows.kinds import rows_of
from ._rows.panels import slices
from ._rows.protocol import GradientRows
from ._rows.provided import ProvidedRows
from ._scaling.sqrt_damping import as_result
from ._typing import Array

BLOCK_SIZE = 64


@_backend.outside_graphs
def influence(
    inverse: Inverse,
    test_gradients: Array | GradientRows,
    train_gradients: Array | GradientRows | None = None,
    *,
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> Array:
    """T F⁻¹ Rᵀ, the influence of the samples with gradients r_i on the losses with gradients t_j.

    Entry (j, i) is t_jᵀ F⁻¹ r_i, with no other factor and no sign. If θ minimises (1/n) Σ_i ℓ_i(θ) (+ ½λ‖θ‖²) and F
    is its Hessian there, or stands for it, then to first order

    - leaving sample i out changes θ by + F⁻¹ r_i / n, and a test loss by + t_jᵀ F⁻¹ r_i / n;
    - giving it the weight (1 + ε)/n instead changes the test loss by − ε t_jᵀ F⁻¹ r_i / n;
    - leaving out a group changes it by the sum of their columns.

    A positive entry means that the sample helps: without it the test loss is larger.

    Parameters
    ----------
    inverse : Inverse
        `WoodburyRankOneInverse`, `SlidingWindowInverse` or `BlockDiagonalInverse`.
    test_gradients : array or GradientRows, shape (t, d)
        T, one gradient of a test loss per row, of the library, device and dtype of the inverse.
    train_gradients : array or GradientRows, shape (n, d), optional
        R, likewise. Unless given it is the G of the inverse, in its order (of a window: oldest first).
    block_size : int
        Gradients multiplied by F⁻¹ at a time: it bounds memory, and changes results by rounding only.
    progress : bool
        Show a progress bar over these blocks (needs tqdm).

    Returns
    -------
    array, shape (t, n)
        In the inverse's library and dtype; NumPy's for Dask.

    Raises
    ------
    TypeError
        Not an inverse, or arrays of another library, device or dtype.
    ValueError
        Another shape, no rows, or non-finite values in host arrays.
    OverflowError
        The result does not fit into `dtype` (host arrays).

    Notes
    -----
    Cost: F⁻¹ is applied to the fewer of the t and n gradients, 4sdm flops each for s sweeps; the product with the
    others takes 2tnd flops. O(d · block_size) memory in addition to arguments and result. For the stored rows the
    second product is not needed: G F⁻¹ t = C⁻¹ a with a the `dual_coefficients(t)`; for t > m it is T (F⁻¹ Gᵀ), by
    push-through.

    Accuracy: an error of at most 30 eps ‖F‖ ‖F⁻¹t‖ ‖F⁻¹r‖, and the rounding of the product, eps ‖r‖ ‖F⁻¹t‖ (‖t‖ ‖F⁻¹r‖
    where F⁻¹ is applied to the r).

    References
    ----------
    .. [1] P. W. Koh, P. Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017,
       arXiv:1703.04730, equations 1 and 2 (there with a minus: the effect of upweighting).
    .. [2] E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
       Information", NeurIPS 2021, arXiv:2107.03356, section 3.1 (F⁻¹).

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.influence import influence
    >>> rng = np.random.default_rng(0)
    >>> train, test = rng.standard_normal((8, 5)), rng.standard_normal((2, 5))
    >>> inverse = ml.WoodburyRankOneInverse(train, damping=0.1)
    >>> scores = influence(inverse, test)
    >>> bool(np.allclose(scores, test @ inverse.to_dense() @ train.T)), scores.shape
    (True, (2, 8))
    """
    state = check_inverse(inverse)._unchanged
    size = check.size("block_size", block_size)
    bar = _progress_bar(progress)
    tests = _check_rows("test_gradients", test_gradients, inverse)
    if train_gradients is None:
        return _influence_of_stored_rows(state, tests, size, bar)
    trains = _check_rows("train_gradients", train_gradients, inverse)
    if tests.shape[0] <= trains.shape[0]:
        return _multiply_blocks(partial(_apply_inverse, "test_gradients"), state, trains, _columns(tests, size, bar)).T
    return _multiply_blocks(partial(_apply_inverse, "train_gradients"), state, tests, _columns(trains, size, bar))


@_backend.outside_graphs
def self_influence(
    inverse: Inverse,
    gradients: Array | GradientRows | None = None,
    *,
    block_size: int = BLOCK_SIZE,
    progress: bool = False,
) -> Array:
    """g_iᵀ F⁻¹ g_i, the influence of each sample on its own loss, as sums of squares: never negative.

    Large values are outliers, or samples that the model has memorised. c_i g_iᵀ F⁻¹ g_i = h_i in [0, 1] is the leverage
    of a stored row: without it in F its self-influence is g_iᵀ F⁻¹ g_i/(1 − h_i).

    Parameters
    ----------
    inverse : Inverse
        As in `influence`.
    gradients : array or GradientRows, shape (n, d), optional
        One gradient per row. Unless given they are the stored rows, which needs no pass over them.
    block_size : int
        As in `influence`.
    progress : bool
        As in `influence`.

    Returns
    -------
    array, shape (n,)

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `influence`.

    Notes
    -----
    Cost: as n products, O(dmn), with O(d · block_size) memory. For the stored rows O(m³) from the m × m system alone
    (for m ≥ d and in blocks of B ≤ m columns O(dm min(d, B)), one pass over the rows).

    Accuracy: of rows that are passed, √κ eps relative, at worst. For the stored rows that of `element`: the error of
    h_i is that of the Gram matrix, some ½ κ eps at worst, with the eps of float64 where κ is large; for κ → 1, where
    h_i is small, it is relative. Pass the rows where that is not enough.

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from mfac_linalg.influence import self_influence
    >>> gradients = np.random.default_rng(0).standard_normal((8, 5))
    >>> gradients[3] *= 10
    >>> inverse = ml.WoodburyRankOneInverse(gradients, damping=0.1)
    >>> int(np.argmax(self_influence(inverse)))
    3
    """
    state = check_inverse(inverse)._unchanged
    size = check.size("block_size", block_size)
    bar = _progress_bar(progress)
    if gradients is None:
        return _backend.with_x64(State.row_quadratics, state)
    blocks = _columns(_check_rows("gradients", gradients, inverse), size, bar)
    quadratics = partial(State.quadratics, name="gradients")
    parts = [_backend.with_x64(quadratics, state, v) for v in blocks]
    return _backend.namespace(parts[0]).concat(parts)


def _influence_of_stored_rows(state: State, tests: Array | GradientRows, size: int, bar: Progress) -> Array:
    """T F⁻¹ Gᵀ: F⁻¹ times the rows of T, or T times F⁻¹ Gᵀ where m is smaller."""
    if tests.shape[0] > state.form.shape[0]:
        blocks = bar(slices(state.form.shape[0], size), "influence")
        return _multiply_blocks(_apply_inverse_to_stored, state, tests, blocks)
    project = partial(State.project, name="test_gradients")
    return _concatenate_columns([_backend.with_x64(project, state, v) for v in _columns(tests, size, bar)]).T


def _multiply_blocks(product: Callable[..., Array], state: State, many: Any, blocks: Iterable[Any]) -> Array:
    """H F⁻¹ V for the rows H of `many` and the columns V of all blocks, (rows, columns)."""
    rows = rows_of(many, streams=False)
    return _concatenate_columns([_backend.with_x64(product, state, rows, block) for block in blocks])


def _apply_inverse(name: str, state: State, rows: Any, v: Array) -> Array:
    """H F⁻¹ V, with float64 sums over d."""
    return _to_result(name, state, rows.project(state.solve(v, name)))


def _apply_inverse_to_stored(state: State, rows: Any, block: slice) -> Array:
    """H F⁻¹ g_i for some of the rows of G, as F⁻¹ Gᵀ E with columns E of the identity."""
    units = np.eye(state.form.shape[0], block.stop - block.start, -block.start)
    like = state.row_scale
    units = _backend.asarray(units, like=like, dtype=like.dtype)
    return _to_result("test_gradients", state, rows.project(state.solve_gradients(units, "test_gradients")))


def _to_result(name: str, state: State, values: Array) -> Array:
    return as_result(_backend.evaluate(values), name, like=state.form.rows.like, dtype=state.dtype)


def _concatenate_columns(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else _backend.namespace(parts[0]).concat(parts, axis=1)


def _progress_bar(progress: Any) -> Progress:
    check.flag("progress", progress)
    return reporter(progress)


def _columns(rows: Array | GradientRows, size: int, bar: Progress) -> Iterator[Array]:
    """Blocks of rows as columns, (d, k)."""
    for block in bar(slices(rows.shape[0], size), "influence"):
        yield _row_block(rows, block).T


def _row_block(rows: Any, block: slice) -> Array:
    """Some of the rows, as an array."""
    if _is_provided(rows):
        return _backend.with_x64(ProvidedRows.row_block, ProvidedRows.of(rows), block)
    return rows[block, :]


def _is_provided(rows: Any) -> TypeGuard[GradientRows]:
    """Whether rows are those of a `GradientRows` object."""
    return not _backend.is_array(rows) and isinstance(rows, GradientRows)


def _check_rows(name: str, gradients: Any, inverse: Inverse) -> Array | GradientRows:
    """Accept rows (k, d) of the inverse's library, device and dtype."""
    if _is_provided(gradients):
        rows = ProvidedRows.of(gradients)
        check.compatible(name, rows.like, inverse._like, inverse.dtype)
        if rows.shape[1] != inverse.dim:
            msg = f"`{name}` must have shape (k, {inverse.dim}) with k ≥ 1; got {rows.shape}. "
            raise ValueError(msg + "Pass gradients of the same parameters.")
        return gradients
    gradients = check.compatible(name, gradients, inverse._like, inverse.dtype)
    if gradients.ndim != 2 or gradients.shape[0] == 0 or gradients.shape[1] != inverse.dim:
        msg = f"`{name}` must have shape (k, {inverse.dim}) with k ≥ 1; got {check.describe(gradients)}. "
        raise ValueError(msg + "Pass one gradient per row, g[None, :] for a single one.")
    check.finite(name, gradients)
    return gradients
