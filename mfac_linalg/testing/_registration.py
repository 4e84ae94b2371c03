"""Strategies for our classes, so that `hypothesis.strategies.from_type` knows them.

Imported where Hypothesis and this package are both there: by Hypothesis's entry point if this package was first, by
this package if Hypothesis was.
"""

from typing import Any

from hypothesis import strategies as st

import mfac_linalg

from ._problems import Problem


def _static(problem: Problem) -> mfac_linalg.WoodburyRankOneInverse:
    return mfac_linalg.WoodburyRankOneInverse(
        problem.gradients, problem.damping, weights=problem.weights, normalization=problem.normalization
    )


def _blocks(problem: Problem, size: int) -> mfac_linalg.BlockDiagonalInverse:
    return mfac_linalg.BlockDiagonalInverse(
        problem.gradients,
        problem.damping,
        block_sizes=min(size, problem.shape[1]),
        weights=problem.weights,
        normalization=problem.normalization,
    )


def _window(problem: Problem, spare: int) -> mfac_linalg.SlidingWindowInverse:
    window = problem.shape[0] + spare
    return mfac_linalg.SlidingWindowInverse.from_gradients(problem.gradients, problem.damping, window=window)


def _strategy(kind: type) -> st.SearchStrategy[Any]:
    from .strategies import problems  # when it is asked for: this module may be imported in the middle of that one

    plain = problems(vector=False, weighted=False, normalization="mean")
    found: dict[type, st.SearchStrategy[Any]] = {
        Problem: problems(),
        mfac_linalg.WoodburyRankOneInverse: st.builds(_static, problems()),
        mfac_linalg.BlockDiagonalInverse: st.builds(_blocks, problems(), st.integers(1, 8)),
        mfac_linalg.SlidingWindowInverse: st.builds(_window, plain, st.integers(0, 3)),
    }
    return found[kind]


def register() -> None:
    """Register a strategy for each class: inverses of generated problems in float64."""
    inverses = (
        mfac_linalg.WoodburyRankOneInverse,
        mfac_linalg.BlockDiagonalInverse,
        mfac_linalg.SlidingWindowInverse,
    )
    for kind in (Problem, *inverses):
        st.register_type_strategy(kind, _strategy)


register()
