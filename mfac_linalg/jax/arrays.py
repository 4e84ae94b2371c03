"""The arrays of a window under JAX, and the pure functions that take one step of it to the next."""

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
from .._forms.dual import DualForm
from .._forms.primal import PrimalForm
from .._forms.state import State
from .._forms.sweeps import sweeps_for
from .._progress import reporter
from .._rows.dense import DenseRows
from .._rows.panels import weigh
from .._rows.scaled import ScaledRows
from .._scaling.damping import DampingScaling
from .._scaling.powers import exponent, ldexp
from .._typing import Array
from .._window.options import WindowOptions


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Arrays:
    """What changes from step to step; every shape and dtype stays. The small arrays are float64."""

    rows: Array  # (window, d) in slots, each times 2^−exponent
    exponents: Array  # (window,) int32
    gram: Array  # (window, window): rows diag(column_scale)² rowsᵀ
    scaled_gram: Array  # B = S Sᵀ, or SᵀS where window ≥ d
    cholesky: Array  # the Cholesky factor of I + B
    norm: Array  # ‖S‖₂
    damping: Array  # () float64, or (d,)
    steps: Array  # () int32: gradients taken in so far, less multiples of the window that leave it full

    def __getstate__(self) -> dict[str, Any]:
        return {name: _backend.picklable(value) for name, value in vars(self).items()}


def wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with float64 switched on, in plain modes."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        arrays = (x for x in jax.tree.leaves(arguments) if isinstance(x, jax.Array) and _backend.is_concrete(x))
        with _backend.plain_modes(jax, like=next(arrays, None)):
            return function(*arguments, **options)

    return run


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for each set of rules, in float64 and plain modes, also where JAX batches it later on."""
    compiled = jax.jit(function, static_argnums=0)

    def run(rules: WindowOptions, *arguments: Any) -> Any:
        call = custom_vmap(functools.partial(compiled, rules))

        @call.def_vmap
        def batched(size: int, in_batched: Any, *arguments: Any) -> Any:
            axes = jax.tree.map(lambda yes: 0 if yes else None, in_batched)
            made = wide(jax.vmap(functools.partial(compiled, rules), in_axes=axes, axis_size=size))(*arguments)
            return made, jax.tree.map(lambda _: True, made)

        return call(*arguments)

    return wide(run)


@wide
def in_slots(rows: Array, window: int, count: int) -> Array:
    """The newest of `count` rows, (k, d), in the slots of a window: that of step t in slot t modulo the capacity."""
    missing = jnp.zeros((window - rows.shape[0], rows.shape[1]), rows.dtype)
    return jnp.roll(jnp.concatenate([rows, missing]), count % window if count > window else 0, axis=0)


def _computing(rules: WindowOptions, rows: Array) -> Any:
    return jnp.float64 if rules.precision == "high" else _backend.result_dtype(rows)


@_compiled
def build(rules: WindowOptions, rows: Array, damping: Any, count: int) -> Arrays:
    """All arrays from rows in their slots."""
    rows, exponents = _normalised(rows)
    none, scalar = jnp.zeros((0, 0), jnp.float64), jnp.zeros((), jnp.float64)
    steps = _counted(rules, jnp.asarray(count, jnp.int32))
    return measured(rules, Arrays(rows, exponents, none, none, none, scalar, scalar, steps), damping)


def _normalised(rows: Array) -> tuple[Array, Array]:
    """Rows times 2^−exponent, and the exponents: 0 for float16, whose squares fit float32 and whose range is short."""
    if rows.dtype == jnp.float16:
        return rows, jnp.zeros(rows.shape[0], jnp.int32)
    wide = _backend.cast(rows, _backend.result_dtype(rows))
    powers = exponent(wide, axis=1)
    return _backend.cast(ldexp(wide, -powers[:, None]), rows.dtype), powers


def _counted(rules: WindowOptions, steps: Array) -> Array:
    """A number of steps, kept under two windows so that it never overflows."""
    return jnp.where(steps < 2 * rules.window, steps, rules.window + steps % rules.window)


@_compiled
def appended(rules: WindowOptions, arrays: Arrays, g: Array) -> Arrays:
    """The row of the oldest gradient, and its products, overwritten."""
    slot = arrays.steps % rules.window
    block, powers = _normalised(g[None, :])
    rows = arrays.rows.at[slot].set(block[0, :])
    computing = _computing(rules, rows)
    g, column_scale = _backend.cast(block, computing).T, _metric(rules, arrays).column_scale
    gram = DenseRows(rows, None, computing).project(weigh(g, column_scale, computing))[:, 0]
    changed = replace(
        arrays,
        rows=rows,
        exponents=arrays.exponents.at[slot].set(powers[0]),
        gram=arrays.gram.at[slot, :].set(gram).at[:, slot].set(gram),
        steps=_counted(rules, arrays.steps + 1),
    )
    return _factored(rules, changed)


@_compiled
def damped(rules: WindowOptions, arrays: Arrays, damping: Any) -> Arrays:
    """Under another, checked damping."""
    if arrays.damping.ndim or _backend.is_vector(damping):
        return measured(rules, arrays, damping)
    return _factored(rules, replace(arrays, damping=jnp.asarray(damping, jnp.float64)))


@_compiled
def measured(rules: WindowOptions, arrays: Arrays, damping: Any) -> Arrays:
    """The same with the Gram matrix made anew, in the metric of that damping."""
    damping = damping if _backend.is_vector(damping) else jnp.asarray(damping, jnp.float64)
    arrays = replace(arrays, damping=damping)
    rows = DenseRows(arrays.rows, None, _computing(rules, arrays.rows))
    return _factored(rules, replace(arrays, gram=rows.gram(_metric(rules, arrays).column_scale, reporter(False))))


def _factored(rules: WindowOptions, arrays: Arrays) -> Arrays:
    """With the small system of these rows and this damping."""
    scaled = _scaled_rows(rules, arrays)
    scale = scaled.row_scale
    scaled_gram = scaled.normal_matrix() if rules.window >= rules.dim else scale * arrays.gram * scale.T
    capacitance = Capacitance.factor(scaled_gram)
    cholesky = jnp.full_like(scaled_gram, jnp.nan) if capacitance is None else capacitance.cholesky
    return replace(arrays, scaled_gram=scaled_gram, cholesky=cholesky, norm=jnp.sqrt(largest_eigenvalue(scaled_gram)))


def _metric(rules: WindowOptions, arrays: Arrays) -> DampingScaling:
    return DampingScaling.of(arrays.damping, _computing(rules, arrays.rows))


def _scaled_rows(rules: WindowOptions, arrays: Arrays) -> ScaledRows:
    """S, in the order of slots: row s has age index (s − steps) mod window, 0 for the oldest."""
    window, scaling = rules.window, _metric(rules, arrays)
    held = jnp.clip(arrays.steps, 1, window)
    divisor: Any = {"mean": held, "sum": 1, "window": window}[rules.normalization]
    by_age = jnp.asarray(rules.weights(window))
    weights = by_age[(jnp.arange(window) - arrays.steps) % window] / divisor
    scale = ldexp(jnp.sqrt(weights) / jnp.sqrt(scaling.scale), arrays.exponents)[:, None]
    return ScaledRows(DenseRows(arrays.rows, None, _computing(rules, arrays.rows)), scale, scaling.column_scale)


def known_norm(arrays: Arrays) -> Any:
    """‖S‖₂ as a float where reading it costs nothing."""
    known = arrays.norm.ndim == 0 and _backend.on_host(arrays.norm)
    return float(arrays.norm) if known else arrays.norm


@wide
def inverse_of(rules: WindowOptions, arrays: Arrays) -> State:
    """The inverse as a value; its numbers are floats where they can be read, so that products stop when done."""
    norm = known_norm(arrays)
    read = isinstance(norm, float) and np.isfinite(norm)
    kappa = 1 + norm * norm
    rows, scaling = _scaled_rows(rules, arrays), _metric(rules, arrays)
    float64_gram = _backend.dtype_name(rows.dtype) == "float64"
    capacitance = Capacitance(arrays.scaled_gram, arrays.cholesky)
    if rules.window >= rules.dim:
        if read and sum_loses_digits(norm):
            capacitance = Capacitance.of_rows(arrays.scaled_gram, rows.row_blocks())
        form: Any = PrimalForm(rows, capacitance, norm)
    else:
        sweeps = sweeps_for(kappa if read else np.inf, _backend.dtype_name(rows.dtype), float64_gram=float64_gram)
        form = DualForm(rows, None, capacitance, norm, sweeps)
    dtype = _backend.result_dtype(arrays.rows)
    row_scale = ldexp(rows.row_scale, -arrays.exponents[:, None])
    return State(form, scaling, row_scale, None, kappa, dtype, float64_gram, _slots_by_age(arrays))


def _slots_by_age(arrays: Arrays) -> Array:
    """The slot of each row, the oldest first: the next one to be overwritten holds the oldest."""
    return (arrays.steps + jnp.arange(arrays.rows.shape[0], dtype=jnp.int32)) % arrays.rows.shape[0]


@wide
def rows_by_age(arrays: Arrays) -> Array:
    """The gradients held, oldest first."""
    slots = _slots_by_age(arrays)
    rows = _backend.cast(arrays.rows[slots], _backend.result_dtype(arrays.rows))
    return _backend.cast(ldexp(rows, arrays.exponents[slots][:, None]), arrays.rows.dtype)
