"""Lazy arrays: Dask's, in chunks along d. Arrays of size m are one chunk, or NumPy's."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from .._typing import Array
from .kinds import is_masked, is_matrix
from .libraries import is_dask
from .sparse import is_sparse

FAN_IN = 8  # partial sums that one task adds


def is_lazy(x: object) -> bool:
    """Return whether x is lazy."""
    return is_dask(x)


def evaluate(x: Array) -> Array:
    """Return a small result, computed where it is lazy."""
    return np.asarray(x.compute())[()] if is_lazy(x) else x


def compute(x: Array, progress: Any, text: str) -> np.ndarray:
    """Compute x, with `progress` over the tasks of this process; a cluster has a dashboard."""
    if progress.bar is None:
        return np.asarray(x)
    from dask.callbacks import Callback

    tasks: Iterator[Any] = iter(())

    def start(_: Any, state: Any) -> None:
        nonlocal tasks
        count = sum(len(state[stage]) for stage in ("ready", "waiting", "running", "finished"))
        tasks = iter(progress(range(count), text))
        next(tasks, None)

    with Callback(start_state=start, posttask=lambda *_: next(tasks, None)):
        return np.asarray(x)


def as_lazy(x: Array, *, like: Array) -> Array:
    """Return a result of size d, in the chunks of like where that is lazy."""
    if not is_lazy(like) or is_lazy(x):
        return x
    return sys.modules["dask.array"].from_array(x, chunks=like.chunks[-1:])


def zeros(shape: tuple[int, ...], *, like: Array, dtype: Any) -> Array:
    """Return zeros (d, …) in the chunks of like (…, d)."""
    return align_chunks(sys.modules["dask.array"].zeros(shape, dtype=dtype), like=like)


def unit_columns(j: np.ndarray, *, like: Array, dtype: Any) -> Array:
    """Return the unit vectors e_j as columns (d, len(j)) in the chunks of like (…, d)."""
    positions = sys.modules["dask.array"].arange(like.shape[-1], chunks=like.chunks[-1:])
    return (positions[:, None] == j[None, :]).astype(dtype)


def standard_normal(shape: tuple[int, int], *, seed: int, like: Array, dtype: Any) -> Array:
    """Draw standard normal numbers (d, k), one stream for each chunk."""
    generator = sys.modules["dask.array"].random.default_rng(seed)
    return generator.standard_normal(shape, chunks=(like.chunks[1], (shape[1],)), dtype=dtype)


def entries(x: Array, j: np.ndarray) -> np.ndarray:
    """Return x[j] of a lazy vector, computed."""
    wanted, place = np.unique(j, return_inverse=True)
    return np.asarray(x[wanted].compute())[place]


def times_power(x: Array, power: Array) -> Array:
    """Return x · 2^power for lazy integers, in two steps."""
    return sys.modules["dask.array"].core.elemwise(_times_power, x, power, dtype=x.dtype)


def _times_power(x: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The same of a block, in any thread: entries that become 0 or infinite are found in the result."""
    half, one = power // 2, x.dtype.type(1)
    with np.errstate(all="ignore"):
        return x * np.ldexp(one, half) * np.ldexp(one, power - half)


def solve_triangular(solve: Callable[..., np.ndarray], lower: np.ndarray, b: Array) -> Array:
    """Return solve(lower, b) for a lazy b (n, k) and a factor of NumPy."""
    dask: Any = sys.modules["dask"]
    factor = dask.delayed(lower, pure=True)
    step = partial(_on_blocks, lambda b, lower: solve(lower, b))
    return dask.array.blockwise(step, "ab", b.rechunk(-1), "ab", factor, None, meta=np.empty((0, 0), lower.dtype))


def like_evaluated(like: Array) -> Array:
    """Return an array in the library of small arrays: NumPy's where like is lazy."""
    return np.empty((0, 0), like.dtype) if is_lazy(like) else like


def evaluate_with_like(x: Any, name: str, *, like: Array) -> tuple[Any, Array]:
    """Return a small argument, computed where like is lazy, and the array that it has to be like."""
    return (evaluate(of_declared_dtype(x, name)), like_evaluated(like)) if is_lazy(like) else (x, like)


def has_plain_chunks(x: Array) -> bool:
    """Return whether the chunks of a lazy array are NumPy's, of known sizes."""
    return isinstance(x._meta, np.ndarray) and not any(np.isnan(size) for sizes in x.chunks for size in sizes)


def of_declared_dtype(x: Array, name: str) -> Array:
    """Return x; if it is lazy the dtype of every chunk is checked when that is computed, under the argument's name."""
    if not is_lazy(x):
        return x
    return x.map_blocks(partial(chunk_of_dtype, x.dtype, name), dtype=x.dtype, meta=x._meta)


def chunk_of_dtype(declared: np.dtype[Any], name: str, part: Any) -> Any:
    """Return a chunk, of the declared dtype in any byte order."""
    if part.dtype.type is not declared.type:
        msg = f"`{name}` must have chunks of the dtype that it declares, {declared}; got one of {part.dtype}. "
        raise TypeError(msg + "Name the `dtype` of what map_blocks gives.")
    return part


def without_empty_chunks(x: Array) -> Array:
    """Return a lazy array without its empty chunks."""
    chunks = tuple(tuple(size for size in sizes if size) or (0,) for sizes in x.chunks)
    return x if chunks == x.chunks else x.rechunk(chunks)


def align_chunks(x: Array, *, like: Array) -> Array:
    """Return a lazy x (d, …) in the chunks of like (…, d); another without empty chunks, one in memory as it is."""
    if not is_lazy(x):
        return x
    if x.ndim == 0 or x.shape[0] != like.shape[-1]:
        return without_empty_chunks(x)
    return x.rechunk((like.chunks[-1], *((size,) for size in x.shape[1:])))


def optimize_graph(x: Array) -> Array:
    """Return a lazy array whose chunks are one task each, where that is possible."""
    return sys.modules["dask"].optimize(x)[0]


def rekey_graph(matrix: Array, *operands: Array) -> Array:
    """Return a matrix of the same chunks under new keys, for its product with these operands.

    Under its old keys a chunk would stay in memory from one pass to the next. Chunks in memory already are used.
    """
    names = [x.name for x in operands if is_lazy(x)]
    if not names:
        return matrix
    from dask._task_spec import Alias, DataNode, convert_legacy_graph
    from dask.base import clone_key, tokenize

    seed = tokenize(matrix.name, *names)
    graph = convert_legacy_graph(dict(matrix.__dask_graph__()))
    renamed = {key: clone_key(key, seed) for key, node in graph.items() if not isinstance(node, DataNode)}
    nodes = {renamed.get(key, key): node.substitute(renamed, key=renamed.get(key)) for key, node in graph.items()}
    name = clone_key(matrix.name, seed)
    for key in sys.modules["dask"].core.flatten(matrix.__dask_keys__()):
        nodes.setdefault((name, *key[1:]), Alias((name, *key[1:]), key))
    return sys.modules["dask.array"].Array(nodes, name, matrix.chunks, meta=matrix._meta)


def map_blocks(
    function: Callable[..., Any], matrix: Array, given: Sequence[Any], *, tail: tuple[int, ...], dtype: Any
) -> Array:
    """Return function(block, *given) of shape (width, *tail) for the column blocks of a matrix, one below the other.

    `given` are lazy arrays (d, …), cut like the matrix, or anything else, which every block gets whole.
    """
    return _by_blocks(function, matrix, given, tail=tail, dtype=dtype)


def sum_blocks(
    function: Callable[..., Any],
    matrix: Array,
    given: Sequence[Any],
    *,
    shape: tuple[int, ...],
    add: Callable[[list[np.ndarray]], np.ndarray] = sum,  # type: ignore[assignment]  # of arrays
) -> Array:
    """Return Σ function(block, *given), float64 of a shape, over the column blocks, always by the same tree.

    `add` makes one of some parts, (1, *shape) each, where that is no sum.
    """
    parts = _by_blocks(partial(_with_block_axis, function), matrix, given, tail=shape, dtype=np.float64, width=1)
    return sys.modules["dask.array"].reduction(
        parts,
        chunk=_identity_chunk,
        combine=partial(_sum_parts, add),
        aggregate=partial(_sum_parts, add, keepdims=False),
        axis=0,
        concatenate=False,
        split_every=FAN_IN,
        dtype=np.float64,
        meta=np.empty((0,) * len(shape)),
    )


def map_and_sum_blocks(
    function: Callable[..., Any], matrix: Array, given: Sequence[Any], *, tail: tuple[int, ...], dtype: Any, shape: Any
) -> tuple[Array, Array]:
    """Return both for a function that returns both: each block is read once for the two."""
    pairs = _by_blocks(function, matrix, given, tail=(), dtype=object)
    first = _by_blocks(partial(_component, 0), pairs, (), tail=tail, dtype=dtype)
    return first, sum_blocks(partial(_component, 1), pairs, (), shape=shape)


def _by_blocks(
    function: Callable[..., Any],
    matrix: Array,
    given: Sequence[Any],
    *,
    tail: tuple[int, ...],
    dtype: Any,
    width: int | None = None,
) -> Array:
    dask: Any = sys.modules["dask"]
    dim, letters = matrix.shape[-1], iter("abcdefghijklmopqrstuvwxyz")  # n is the axis of blocks
    operands: list[Any] = [matrix, "".join(next(letters) for _ in matrix.shape[1:]) + "n"]
    for x in given:
        if not is_lazy(x):
            operands += [dask.delayed(x, pure=True), None]
            continue
        cut = x.ndim > 0 and x.shape[0] == dim
        x = align_chunks(x, like=matrix) if cut else x.rechunk(-1)
        operands += [x, ("n" if cut else next(letters)) + "".join(next(letters) for _ in x.shape[1:])]
    new = {next(letters): size for size in tail}
    return sys.modules["dask.array"].blockwise(
        partial(_on_blocks, function),
        "n" + "".join(new),
        *operands,
        new_axes=new,
        adjust_chunks=None if width is None else {"n": width},
        meta=np.empty((0,) * (1 + len(tail)), dtype),
    )


def _on_blocks(function: Callable[..., Any], *parts: Any) -> Any:
    """Call a function with blocks, each of which comes in a list for every axis that it has alone."""
    with np.errstate(all="ignore"):
        return function(*map(_unwrap_block, parts))


def _unwrap_block(part: Any) -> Any:
    """The block, in aligned memory: products with one from another process would round otherwise."""
    while isinstance(part, list):
        (part,) = part
    if is_masked(part) or is_matrix(part) or is_sparse(part):
        msg = f"`gradients` and vectors must have plain NumPy arrays as chunks; got a {type(part).__name__}. "
        raise TypeError(msg + "Convert them with map_blocks, and name the `meta` of what that gives.")
    return np.require(part, requirements="A") if isinstance(part, np.ndarray) else part


def _with_block_axis(function: Callable[..., Any], *parts: Any) -> np.ndarray:
    return function(*parts)[None, ...]


def _identity_chunk(part: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    del axis, keepdims
    return part


def _sum_parts(add: Any, parts: Any, axis: Any, keepdims: bool) -> np.ndarray:
    """Add arrays one by one: a sum over an axis depends on how the arrays lie in memory, which a transfer changes."""
    del axis
    total = add(_flatten_lists(parts))
    return total if keepdims else total[0]


def _flatten_lists(parts: Any) -> Any:
    return [leaf for part in parts for leaf in _flatten_lists(part)] if isinstance(parts, list) else [parts]


def _component(which: int, pairs: Any) -> Any:
    return pairs[which]
