"""Property tests for curvature matrices: anybody's inverse, rows and window against a dense oracle.

`check_inverse` and `check_rows` need NumPy alone; `strategies`, `InverseTests` and `WindowMachine` need Hypothesis,
``pip install "mfac_linalg[testing]"``.
"""

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .._errors import not_installed as _not_installed
from ._check_inverse import check_inverse as check_inverse
from ._check_inverse import default_problems as default_problems
from ._check_rows import check_rows as check_rows
from ._checks import CHECKS as CHECKS
from ._gradients import KINDS as KINDS
from ._oracle import LIMIT as LIMIT
from ._oracle import Oracle as Oracle
from ._oracle import tolerance as tolerance
from ._problems import Problem as Problem
from ._problems import make_problem as make_problem
from ._problems import right_hand_sides as right_hand_sides
from ._results import CheckError as CheckError
from ._results import CheckResult as CheckResult
from ._results import CheckResults as CheckResults

if _TYPE_CHECKING:
    from . import strategies as strategies
    from ._inverse_tests import InverseTests as InverseTests
    from ._window_machine import WindowMachine as WindowMachine

_BY_HYPOTHESIS = {"strategies": "strategies", "InverseTests": "_inverse_tests", "WindowMachine": "_window_machine"}

__all__ = [
    "CHECKS",
    "KINDS",
    "LIMIT",
    "CheckError",
    "CheckResult",
    "CheckResults",
    "InverseTests",
    "Oracle",
    "Problem",
    "WindowMachine",
    "check_inverse",
    "check_rows",
    "default_problems",
    "make_problem",
    "right_hand_sides",
    "strategies",
    "tolerance",
]
if _sys.modules.get("hypothesis", _find_spec) is None or _find_spec("hypothesis") is None:  # for `import *`
    __all__ = [_name for _name in __all__ if _name not in _BY_HYPOTHESIS]


def __getattr__(name: str) -> _Any:
    """Import what needs Hypothesis when it is asked for."""
    if name not in _BY_HYPOTHESIS:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        module = _import_module(f"{__name__}.{_BY_HYPOTHESIS[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "hypothesis":
            raise
        raise _not_installed(what=f"{__name__}.{name}", library="hypothesis", extra="testing") from error
    return module if name == "strategies" else getattr(module, name)


def __dir__() -> list[str]:
    """All names, without importing Hypothesis."""
    return sorted([*globals(), *_BY_HYPOTHESIS])
