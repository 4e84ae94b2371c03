"""The arrays of a window under JAX, and pure functions that compute the arrays of the next step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.custom_batching import custom_vmap

from .. import _backend
from .._capacitance.system import Capacitance, largest_eigenvalue, sum_loses_digits
from .._condition import kappa_of
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.protocol import Form
from .._forms.state import State
from .._forms.sweeps import sweeps_for
from .._progress import SILENT
from .._rows.dense import DenseRows
from .._rows.panels import weigh
from .._rows.scaled import ScaledRows
from .._scaling.normalization import divisor_of
from .._scaling.powers_of_two import exponent, ldexp
from .._scaling.sqrt_damping import DampingScaling
from .._typing import Array
from .._window.options import WindowOptions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Arrays:
    """The arrays of a window, of the same shapes and dtypes at every step. The small arrays are float64."""

    rows: Array  # (window, d), by slot, each times 2^−exponent
    exponents: Array  # (window,) int32
    gram: Array  # (window, window): rows diag(column_scale)² rowsᵀ
    scaled_gram: Array  # B = S Sᵀ, or SᵀS where window ≥ d
    cholesky: Array  # the Cholesky factor of I + B
    norm: Array  # ‖S‖₂
    damping: Array  # () float64, or (d,)
    steps: Array  # () int32: gradients appended so far, reduced to less than two windows

    def __getstate__(self) -> dict[str, Any]:
        return {name: _backend.picklable(value) for name, value in vars(self).items()}


def with_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with float64 enabled, outside of ambient modes of JAX."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        arrays = (x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array) and _backend.is_concrete(x))
        with _backend.plain_modes(jax, like=next(arrays, None)):
            return function(*arguments, **options)

    return run


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for each set of options, with float64 enabled, under `vmap` too."""
    compiled = jax.jit(function, static_argnums=0)

    def run(options: WindowOptions, *arguments: Any) -> Any:
        call = custom_vmap(functools.partial(compiled, options))

        @call.def_vmap
        def batched(size: int, in_batched: Any, *arguments: Any) -> Any:
            axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched)
            mapped = jax.vmap(functools.partial(compiled, options), in_axes=axes, axis_size=size)
            results = with_float64(mapped)(*arguments)
            return results, jax.tree.map(lambda _: True, results)

        return call(*arguments)

    return with_float64(run)


@with_float64
def to_slots(rows: Array, window: int, count: int) -> Array:
    """The newest of `count` rows, (k, d), by slot: the row of step t is in slot t modulo the capacity."""
    missing = jnp.zeros((window - rows.shape[0], rows.shape[1]), rows.dtype)
    return jnp.roll(jnp.concatenate([rows, missing]), count % window if count > window else 0, axis=0)


def _compute_dtype(options: WindowOptions, rows: Array) -> Any:
    return jnp.float64 if options.precision == "high" else _backend.result_dtype(rows)


@_compile
def build(options: WindowOptions, rows: Array, damping: Any, count: int) -> Arrays:
    """All arrays from rows by slot."""
    rows, exponents = _normalize_rows(rows)
    none, scalar = jnp.zeros((0, 0), jnp.float64), jnp.zeros((), jnp.float64)
    steps = _wrap_steps(options, jnp.asarray(count, jnp.int32))
    return compute_gram(options, Arrays(rows, exponents, none, none, none, scalar, scalar, steps), damping)


def _normalize_rows(rows: Array) -> tuple[Array, Array]:
    """Rows times 2^−exponent, and the exponents; 0 for float16, whose squares fit into float32."""
    if rows.dtype == jnp.float16:
        return rows, jnp.zeros(rows.shape[0], jnp.int32)
    wide = _backend.cast(rows, _backend.result_dtype(rows))
    powers = exponent(wide, axis=1)
    return _backend.cast(ldexp(wide, -powers[:, None]), rows.dtype), powers


def _wrap_steps(options: WindowOptions, steps: Array) -> Array:
    """A number of steps, reduced to less than two windows so that it never overflows."""
    return jnp.where(steps < 2 * options.window, steps, options.window + steps % options.window)


@_compile
def append_row(options: WindowOptions, arrays: Arrays, g: Array) -> Arrays:
    """The arrays with g in the slot of the oldest gradient, and its new row and column of the Gram matrix."""
    slot = arrays.steps % options.window
    block, powers = _normalize_rows(g[None, :])
    rows = arrays.rows.at[slot].set(block[0, :])
    dtype = _compute_dtype(options, rows)
    g, column_scale = _backend.cast(block, dtype).T, _scaling(options, arrays).column_scale
    gram = DenseRows(rows, None, dtype).project(weigh(g, column_scale, dtype))[:, 0]
    arrays = replace(
        arrays,
        rows=rows,
        exponents=arrays.exponents.at[slot].set(powers[0]),
        gram=arrays.gram.at[slot, :].set(gram).at[:, slot].set(gram),
        steps=_wrap_steps(options, arrays.steps + 1),
    )
    return _factor(options, arrays)


@_compile
def replace_damping(options: WindowOptions, arrays: Arrays, damping: Any) -> Arrays:
    """The arrays with another, checked damping."""
    if arrays.damping.ndim or _backend.is_vector(damping):
        return compute_gram(options, arrays, damping)
    return _factor(options, replace(arrays, damping=jnp.asarray(damping, jnp.float64)))


@_compile
def compute_gram(options: WindowOptions, arrays: Arrays, damping: Any) -> Arrays:
    """The arrays with another damping, and the Gram matrix computed from scratch with its column scale."""
    damping = damping if _backend.is_vector(damping) else jnp.asarray(damping, jnp.float64)
    arrays = replace(arrays, damping=damping)
    rows = DenseRows(arrays.rows, None, _compute_dtype(options, arrays.rows))
    return _factor(options, replace(arrays, gram=rows.gram(_scaling(options, arrays).column_scale, SILENT)))


def _factor(options: WindowOptions, arrays: Arrays) -> Arrays:
    """The arrays with the capacitance matrix and its Cholesky factor computed from the Gram matrix."""
    scaled = _scaled_rows(options, arrays)
    scale = scaled.row_scale
    scaled_gram = scaled.normal_matrix() if options.window >= options.dim else scale * arrays.gram * scale.T
    capacitance = Capacitance.factor(scaled_gram)
    cholesky = jnp.full_like(scaled_gram, jnp.nan) if capacitance is None else capacitance.cholesky
    return replace(arrays, scaled_gram=scaled_gram, cholesky=cholesky, norm=jnp.sqrt(largest_eigenvalue(scaled_gram)))


def _scaling(options: WindowOptions, arrays: Arrays) -> DampingScaling:
    return DampingScaling.of(arrays.damping, _compute_dtype(options, arrays.rows))


def _scaled_rows(options: WindowOptions, arrays: Arrays) -> ScaledRows:
    """S, in the order of slots: row s has age index (s − steps) mod window, 0 for the oldest."""
    window, scaling = options.window, _scaling(options, arrays)
    count = jnp.clip(arrays.steps, 1, window)
    divisor = divisor_of(options.normalization, count, window)
    by_age = jnp.asarray(options.weights(window))
    weights = by_age[(jnp.arange(window) - arrays.steps) % window] / divisor
    scale = ldexp(jnp.sqrt(weights) / jnp.sqrt(scaling.scale), arrays.exponents)[:, None]
    return ScaledRows(DenseRows(arrays.rows, None, _compute_dtype(options, arrays.rows)), scale, scaling.column_scale)


def norm_as_float(arrays: Arrays) -> Any:
    """‖S‖₂, as a float where it is on the host."""
    is_known = arrays.norm.ndim == 0 and _backend.on_host(arrays.norm)
    return float(arrays.norm) if is_known else arrays.norm


@with_float64
def state_of(options: WindowOptions, arrays: Arrays) -> State:
    """The `State` of a window, with floats for scalars on the host, so that sweeps can stop at convergence."""
    norm = norm_as_float(arrays)
    is_known = isinstance(norm, float) and np.isfinite(norm)
    kappa = kappa_of(norm)
    rows, scaling = _scaled_rows(options, arrays), _scaling(options, arrays)
    float64_gram = _backend.dtype_name(rows.dtype) == "float64"
    capacitance = Capacitance(arrays.scaled_gram, arrays.cholesky)
    if options.window >= options.dim:
        if is_known and sum_loses_digits(norm):
            capacitance = Capacitance.of_rows(arrays.scaled_gram, rows.row_blocks())
        form: Form = PrimalForm(rows, capacitance, norm)
    else:
        sweeps = sweeps_for(kappa if is_known else np.inf, _backend.dtype_name(rows.dtype), float64_gram=float64_gram)
        form = DualForm(rows, None, capacitance, norm, sweeps)
    dtype = _backend.result_dtype(arrays.rows)
    row_scale = ldexp(rows.row_scale, -arrays.exponents[:, None])
    return State(form, scaling, row_scale, None, kappa, dtype, float64_gram, _slots_by_age(arrays))


def _slots_by_age(arrays: Arrays) -> Array:
    """The slot of each row, oldest first: the oldest is in the slot that is overwritten next."""
    return (arrays.steps + jnp.arange(arrays.rows.shape[0], dtype=jnp.int32)) % arrays.rows.shape[0]


@with_float64
def rows_by_age(arrays: Arrays) -> Array:
    """The stored gradients, oldest first."""
    slots = _slots_by_age(arrays)
    rows = _backend.cast(arrays.rows[slots], _backend.result_dtype(arrays.rows))
    return _backend.cast(ldexp(rows, arrays.exponents[slots][:, None]), arrays.rows.dtype)
