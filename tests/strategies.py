"""Hypothesis strategies over `problems`: the structure is drawn, the numbers come from a drawn seed."""

import numpy as np
from hypothesis import strategies as st

from tests.problems import KINDS, Problem, make_problem

SHAPES = ("m < d", "m = d", "m > d", "m = 1", "d = 1")


def seeds() -> st.SearchStrategy[int]:
    """A seed for NumPy's generator."""
    return st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn, largest: int = 24) -> tuple[int, int]:
    """(m, d), each relation of `SHAPES` equally likely, neither above `largest`."""
    relation = draw(st.sampled_from(SHAPES))
    if relation == "m = 1":
        return 1, draw(st.integers(1, largest))
    if relation == "d = 1":
        return draw(st.integers(1, largest)), 1
    smaller = draw(st.integers(2, largest - 1))
    larger = draw(st.integers(smaller + 1, largest))
    return {"m < d": (smaller, larger), "m = d": (smaller, smaller), "m > d": (larger, smaller)}[relation]


@st.composite
def problems(
    draw: st.DrawFn, dtype: str = "float64", decades: tuple[float, float] = (0.1, 3.0), largest: int = 24, **fixed
) -> Problem:
    """A `Problem` whose condition number is log-uniform between the given powers of ten."""
    free = {
        "kind": st.sampled_from(sorted(KINDS)),
        "shape": shapes(largest),
        "kappa": st.integers(0, 40).map(lambda step: float(10 ** np.interp(step, (0, 40), decades))),
        "vector": st.booleans(),
        "weighted": st.booleans(),
        "normalization": st.sampled_from(["mean", "sum"]),
    }
    arguments = {name: draw(strategy) for name, strategy in free.items() if name not in fixed}
    return make_problem(draw(seeds()), dtype=dtype, **arguments, **fixed)
