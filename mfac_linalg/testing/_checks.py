"""Every check of an inverse, by name."""

import functools
from collections.abc import Callable

from . import _answers, _behaviour, _redamping
from ._answers import Measured
from ._exam import Exam
from ._problems import GROUPS

CHECKS: dict[str, Callable[[Exam], Measured]] = {
    **{f"right formula: {group}": functools.partial(_answers.right_formula, group) for group in GROUPS},
    **{f"stable: {group}": functools.partial(_answers.stable, group) for group in GROUPS},
    **{check.__name__: check for check in (_answers.factor, _answers.symmetric, _answers.positive)},
    **{check.__name__: check for check in (_answers.diagonal, _answers.sample)},
    **{check.__name__: check for check in (_redamping.damping, _behaviour.permutation, _behaviour.scale)},
    **{check.__name__: check for check in (_behaviour.inputs, _behaviour.outputs, _behaviour.layout)},
    **{check.__name__: check for check in (_behaviour.dtype, _behaviour.refusal)},
}
"""The checks of `check_inverse`, in the order in which they are made."""
