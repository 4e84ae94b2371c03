"""Hypothesis strategies for curvature matrices: structure is drawn, and numbers come from a drawn seed.

So they shrink well: problems become few Gaussian gradients of few parameters, at a small κ, with one λ, unweighted.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ._gradients import KINDS
from ._problems import Problem, make_problem
from ._problems import right_hand_sides as _right_hand_sides

RELATIONS = ("m = 1", "m < d", "m = d", "m > d", "d = 1")
STEPS = 40  # values of κ between the bounds


def seeds() -> st.SearchStrategy[int]:
    """Return seeds for NumPy's generator.

    Returns
    -------
    strategy of int

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.seeds(), lambda seed: seed > 7)
    8
    """
    return st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn, largest: int = 24, relations: Sequence[str] = RELATIONS) -> tuple[int, int]:
    """Return shapes (m, d), with each relation of m to d as often as the others.

    Parameters
    ----------
    largest : int
        Of m and of d; at least 3.
    relations : sequence of str
        Of "m = 1", "m < d", "m = d", "m > d" and "d = 1", those that may be drawn.

    Returns
    -------
    strategy of tuple of int

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.shapes(relations=["m < d"]), lambda shape: True)
    (2, 3)
    """
    relation = draw(st.sampled_from(list(relations)))
    if relation == "m = 1":
        return 1, draw(st.integers(1, largest))
    if relation == "d = 1":
        return draw(st.integers(1, largest)), 1
    smaller = draw(st.integers(2, largest - 1))
    larger = draw(st.integers(smaller + 1, largest))
    return {"m < d": (smaller, larger), "m = d": (smaller, smaller), "m > d": (larger, smaller)}[relation]


def kinds() -> st.SearchStrategy[str]:
    """Return the kinds of gradients, the keys of `mfac_linalg.testing.KINDS`; they shrink towards the first.

    Returns
    -------
    strategy of str

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.kinds(), lambda kind: True)
    'gaussian'
    """
    return st.sampled_from(list(KINDS))


def kappas(decades: tuple[float, float] = (0.1, 3.0)) -> st.SearchStrategy[float]:
    """Return values of κ, log-uniform between two powers of ten.

    Parameters
    ----------
    decades : tuple of float
        The exponents of ten; the first above 0.

    Returns
    -------
    strategy of float

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.kappas((1, 5)), lambda kappa: True)
    10.0
    """
    return _powers_of_ten(decades)


def _powers_of_ten(decades: tuple[float, float]) -> st.SearchStrategy[float]:
    """Numbers of three digits, so that they can be read."""
    return st.integers(0, STEPS).map(lambda step: float(f"{10 ** np.interp(step, (0, STEPS), decades):.3g}"))


@st.composite
def problems(
    draw: st.DrawFn,
    dtype: str = "float64",
    decades: tuple[float, float] = (0.1, 3.0),
    largest: int = 24,
    relations: Sequence[str] = RELATIONS,
    **fixed: Any,
) -> Problem:
    """Return problems: gradients of any kind and shape, with the damping for a κ.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    decades : tuple of float
        Powers of ten between which κ lies.
    largest : int
        Of m and of d.
    relations : sequence of str
        Of m to d, as in `shapes`.
    **fixed
        Arguments of `make_problem` that are not drawn: ``vector=False, weighted=False, normalization="mean"`` for
        one λ and the mean of the gradients' outer products.

    Returns
    -------
    strategy of Problem

    Examples
    --------
    >>> import numpy as np, mfac_linalg as ml
    >>> from hypothesis import given, settings
    >>> from mfac_linalg.testing import strategies, tolerance
    >>> @settings(max_examples=20, deadline=None)
    ... @given(strategies.problems(vector=False, weighted=False, normalization="mean"))
    ... def test_trace(problem):
    ...     trace = ml.WoodburyRankOneInverse(problem.gradients, problem.damping).trace()
    ...     exact = np.trace(problem.oracle.inverse)
    ...     assert abs(trace - exact) <= tolerance(problem.eps, problem.oracle.kappa) * exact
    >>> test_trace()  # pytest does this
    """
    free: dict[str, Any] = {
        "kind": kinds(),
        "shape": shapes(largest, relations),
        "kappa": kappas(decades),
        "vector": st.booleans(),
        "weighted": st.booleans(),
        "normalization": st.sampled_from(["mean", "sum"]),
    }
    arguments: dict[str, Any] = {name: draw(strategy) for name, strategy in free.items() if name not in fixed}
    return make_problem(draw(seeds()), dtype=dtype, **arguments, **fixed)


def gradients(
    dtype: str = "float64", largest: int = 24, *, shape: tuple[int, int] | None = None, kind: str | None = None
) -> st.SearchStrategy[np.ndarray]:
    """Return gradients (m, d): decaying spectra, duplicates, zero rows and columns, wild scales.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    largest : int
        Of m and of d, if there is no `shape`.
    shape : tuple of int, optional
        (m, d).
    kind : str, optional
        One key of `mfac_linalg.testing.KINDS`.

    Returns
    -------
    strategy of numpy.ndarray, shape (m, d)

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.gradients("float32", shape=(2, 5)), lambda gradients: True).shape
    (2, 5)
    """
    return st.builds(
        lambda seed, shape, kind: KINDS[kind](np.random.default_rng(seed), *shape).astype(dtype),
        seeds(),
        shapes(largest) if shape is None else st.just(shape),
        kinds() if kind is None else st.just(kind),
    )


def dampings(
    dim: int | None = None, decades: tuple[float, float] = (-4.0, 1.0), dtype: str = "float64"
) -> st.SearchStrategy[Any]:
    """Return dampings: numbers, or arrays (dim,) over up to two decades.

    Parameters
    ----------
    dim : int, optional
        The length of an array; None for one λ.
    decades : tuple of float
        Powers of ten between which λ, or its geometric middle, lies.
    dtype : str
        Of the arrays.

    Returns
    -------
    strategy of float, or of numpy.ndarray, shape (dim,)

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import strategies
    >>> find(strategies.dampings(decades=(-2, 1)), lambda damping: True)
    0.01
    >>> find(strategies.dampings(dim=3), lambda damping: True).shape
    (3,)
    """
    scalars = _powers_of_ten(decades)
    if dim is None:
        return scalars
    profile = st.builds(lambda seed: 10 ** np.random.default_rng(seed).uniform(-1, 1, dim), seeds())
    return st.builds(lambda middle, values: (middle * values).astype(dtype), scalars, profile)


def right_hand_sides(problem: Problem) -> st.SearchStrategy[np.ndarray]:
    """Return the vectors (d,) that are hard for an inverse: rows, differences, singular vectors, orthogonal ones.

    Parameters
    ----------
    problem : Problem
        The matrix.

    Returns
    -------
    strategy of numpy.ndarray, shape (d,)

    Examples
    --------
    >>> from hypothesis import find
    >>> from mfac_linalg.testing import make_problem, strategies
    >>> vectors = strategies.right_hand_sides(make_problem(0, shape=(3, 5)))
    >>> find(vectors, lambda v: True).shape
    (5,)
    """
    names = list(_right_hand_sides(problem, 0))
    return st.builds(lambda name, seed: _right_hand_sides(problem, seed)[name], st.sampled_from(names), seeds())


class Operation(NamedTuple):
    """One call of a window: ``getattr(window, method)(*arguments)``.

    Parameters
    ----------
    method : str
        The name of a method.
    arguments : tuple
        What it is called with: an age, a gradient, both, or nothing.

    Examples
    --------
    >>> from mfac_linalg.testing.strategies import Operation
    >>> Operation("remove", (0,))
    Operation(method='remove', arguments=(0,))
    """

    method: str
    arguments: tuple[Any, ...]


@st.composite
def operations(
    draw: st.DrawFn,
    window: int,
    dim: int,
    dtype: str = "float64",
    methods: Sequence[str] = ("append", "replace", "remove", "clear"),
    most: int = 20,
) -> list[Operation]:
    """Return sequences of calls of a window over the newest gradients, each of them valid.

    Parameters
    ----------
    window : int
        How many gradients the window holds at most.
    dim : int
        The length d of a gradient.
    dtype : str
        Of the gradients.
    methods : sequence of str
        Of "append", "replace", "remove" and "clear", those that the window has.
    most : int
        The largest number of calls.

    Returns
    -------
    strategy of list of Operation

    Examples
    --------
    >>> import mfac_linalg as ml
    >>> from hypothesis import given, settings
    >>> from mfac_linalg.testing import strategies
    >>> @settings(max_examples=20, deadline=None)
    ... @given(strategies.operations(window=3, dim=5))
    ... def test_window(operations):
    ...     window = ml.SlidingWindowInverse(window=3, dim=5, damping=0.1)
    ...     for method, arguments in operations:
    ...         getattr(window, method)(*arguments)
    ...     assert len(window) <= 3
    >>> test_window()  # pytest does this
    """
    found: list[Operation] = []
    count = 0
    for _ in range(draw(st.integers(0, most))):
        allowed = [name for name in methods if count or name not in ("replace", "remove")]
        method = draw(st.sampled_from(allowed))
        arguments: tuple[Any, ...] = ()
        if method in ("replace", "remove"):
            arguments = (draw(st.integers(0, count - 1)),)
        if method in ("append", "replace"):
            arguments = (*arguments, draw(gradients(dtype, shape=(1, dim)))[0])
        found.append(Operation(method, arguments))
        count = {"append": min(window, count + 1), "remove": count - 1, "clear": 0}.get(method, count)
    return found
