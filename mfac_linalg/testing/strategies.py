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
    """Return seeds for NumPy's generator."""
    return st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn, largest: int = 24, relations: Sequence[str] = RELATIONS) -> tuple[int, int]:
    """Return shapes (m, d), with each relation of m to d as often as the others.

    Parameters
    ----------
    draw
        Given by Hypothesis.
    largest : int
        Of m and of d; at least 3.
    relations : sequence of str
        Of "m = 1", "m < d", "m = d", "m > d" and "d = 1", those that may be drawn.
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
    """Return the kinds of gradients, the keys of `mfac_linalg.testing.KINDS`; they shrink towards the first."""
    return st.sampled_from(list(KINDS))


def kappas(decades: tuple[float, float] = (0.1, 3.0)) -> st.SearchStrategy[float]:
    """Return values of κ, log-uniform between two powers of ten.

    Parameters
    ----------
    decades : tuple of float
        The exponents of ten; the first above 0.
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
    draw
        Given by Hypothesis.
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
    """
    names = list(_right_hand_sides(problem, 0))
    return st.builds(lambda name, seed: _right_hand_sides(problem, seed)[name], st.sampled_from(names), seeds())


class Operation(NamedTuple):
    """One call of a window: `method(*arguments)`."""

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
    draw
        Given by Hypothesis.
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

    Examples
    --------
    >>> from mfac_linalg.testing import strategies
    >>> steps = strategies.operations(window=3, dim=5).example()  # doctest: +SKIP
    >>> for method, arguments in steps:  # doctest: +SKIP
    ...     getattr(window, method)(*arguments)
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
