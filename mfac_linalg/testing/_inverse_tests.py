"""`InverseTests`: the checks as a class of pytest tests over generated problems."""

import functools
import inspect
import unittest
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ._check_inverse import check_inverse
from ._problems import Problem
from .strategies import RELATIONS, problems


class InverseTests:
    """Tests of an inverse over generated problems, for pytest: subclass it and define `make_inverse`.

    Attributes
    ----------
    dtype : str
        Of the problems, "float32" or "float64".
    decades : tuple of float
        Powers of ten between which κ lies.
    largest : int
        Of m and of d.
    relations : sequence of str
        Of m to d, those that may be drawn: see `strategies.shapes`.
    options : mapping
        Arguments of `make_problem` that are not drawn. By default one λ, no weights and the mean; ``{}`` draws
        dampings per parameter, weights and both normalizations.
    expected_failures : mapping of str to str
        Names or patterns of checks that may fail, with the reason.
    redamp : callable or None
        ``redamp(self, inverse, damping)``, as in `check_inverse`.
    eps : float or None
        The error of one operation, in place of that of the dtype.

    Examples
    --------
    In a file of tests; ``test_invalid_arguments_are_refused = None`` in the class leaves one out:

    >>> import mfac_linalg as ml
    >>> from mfac_linalg.testing import InverseTests
    >>> class TestWoodbury(InverseTests):
    ...     def make_inverse(self, problem):
    ...         return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)

    The same for several options, ``@pytest.mark.parametrize("precision", ["default", "high"])`` before the class:

    >>> class TestPrecisions(InverseTests):
    ...     def make_inverse(self, problem, precision):
    ...         gradients, damping = problem.gradients, problem.damping
    ...         return ml.WoodburyRankOneInverse(gradients, damping, precision=precision)
    """

    dtype: ClassVar[str] = "float32"
    decades: ClassVar[tuple[float, float]] = (0.1, 5.0)
    largest: ClassVar[int] = 24
    relations: ClassVar[Sequence[str]] = RELATIONS
    options: ClassVar[Mapping[str, Any]] = {"vector": False, "weighted": False, "normalization": "mean"}
    expected_failures: ClassVar[Mapping[str, str]] = {}
    redamp: ClassVar[Any] = None
    eps: ClassVar[float | None] = None

    def make_inverse(self, problem: Problem, /, *values: Any) -> Any:
        """The inverse of a problem, which a subclass defines.

        Parameters
        ----------
        problem : Problem
            Gradients, damping, weights and normalization.
        *values
            Further arguments of a subclass's method are values of pytest, by name: of a class that is parametrized, or
            of fixtures whose scope is not the function.

        Returns
        -------
        object
            With `matvec` or `@`; or a function of v.

        Raises
        ------
        NotImplementedError
            If the subclass does not define it.
        """
        msg = "`make_inverse` must be defined: return the inverse for problem.gradients and problem.damping."
        raise NotImplementedError(msg)

    def asarray(self, x: np.ndarray, /, *values: Any) -> Any:
        """The array that the inverse takes for one of NumPy: override it for another library or device.

        Parameters
        ----------
        x : numpy.ndarray, shape (d,)
            A vector.
        *values
            As for `make_inverse`.

        Returns
        -------
        array, shape (d,)
            Here x itself.

        Examples
        --------
        >>> from mfac_linalg.testing import InverseTests
        >>> class TorchTests(InverseTests):
        ...     def asarray(self, x):
        ...         import torch
        ...
        ...         return torch.asarray(x, device="cuda")
        """
        return x

    def check(self, data: st.DataObject, /, *checks: str, **values: Any) -> None:
        """Draw a problem and make some of the checks, in a test of your own.

        Parameters
        ----------
        data : hypothesis.strategies.DataObject
            What ``@given(st.data())`` passes.
        *checks : str
            Names or patterns.
        **values
            Further arguments of `make_inverse` and `asarray`, each for the methods that name it.

        Raises
        ------
        CheckError
            If a check failed that was not expected to.
        unittest.SkipTest
            If the inverse offers nothing of what the checks ask for, such as `sample`.

        Examples
        --------
        >>> import mfac_linalg as ml
        >>> from hypothesis import given, settings, strategies as st
        >>> from mfac_linalg.testing import InverseTests
        >>> class TestWoodbury(InverseTests):
        ...     def make_inverse(self, problem):
        ...         return ml.WoodburyRankOneInverse(problem.gradients, problem.damping)
        ...
        ...     @settings(max_examples=5, deadline=None)
        ...     @given(st.data())
        ...     def test_rows(self, data):
        ...         self.check(data, "*: in span")
        >>> TestWoodbury().test_rows()  # pytest does this
        """
        problem = data.draw(problems(self.dtype, self.decades, self.largest, self.relations, **self.options))
        results = check_inverse(
            _with_values(self.make_inverse, values),
            problem,
            checks=checks,
            expected_failures=self.expected_failures,
            asarray=None if type(self).asarray is InverseTests.asarray else _with_values(self.asarray, values),
            redamp=self.redamp,
            eps=self.eps,
        )
        if not any(result.is_offered for result in results):
            raise unittest.SkipTest("; ".join(f"{result.check}: {result.message}" for result in results))

    def __init_subclass__(cls, **options: Any) -> None:
        """Give each subclass test functions of its own: Hypothesis keeps what it found by function."""
        super().__init_subclass__(**options)
        for name, checks in TESTS.items():
            if not any(name in vars(base) and vars(base)[name] not in _MADE for base in cls.__mro__):
                setattr(cls, name, _test(name, checks, _further(cls, "make_inverse", "asarray")))


TESTS = {
    "test_the_formula_is_right": ("right formula: *", "factor"),
    "test_answers_are_stable": ("stable: *",),
    "test_it_is_symmetric_and_positive": ("symmetric", "positive"),
    "test_its_diagonal_is_right": ("diagonal",),
    "test_samples_have_its_covariance": ("sample",),
    "test_another_damping_is_another_inverse": ("damping",),
    "test_order_and_units_do_not_matter": ("permutation", "scale"),
    "test_arguments_answers_and_dtypes_are_kept": ("inputs", "outputs", "dtype"),
    "test_any_layout_of_v_is_taken": ("layout",),
    "test_invalid_arguments_are_refused": ("refusal",),
}
"""The tests of a subclass, and the checks of each."""

_MADE: set[Any] = set()


def _further(cls: type, *methods: str) -> dict[str, inspect.Parameter]:
    """The parameters of methods of a class after self and the first, which pytest gives values."""
    found: dict[str, inspect.Parameter] = {}
    for name in methods:
        kept = inspect.getattr_static(cls, name)
        is_bound = isinstance(kept, staticmethod | classmethod) or not hasattr(type(kept), "__get__")
        further = _parameters(getattr(cls, name))[1 if is_bound else 2 :]
        named = [x for x in further if x.kind in _BY_NAME and x.default is inspect.Parameter.empty]
        found |= {x.name: x.replace(kind=inspect.Parameter.KEYWORD_ONLY) for x in named}
    return found


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those of a method; none of a builtin that does not tell."""
    try:
        return list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return []


def _with_values(method: Callable[..., Any], values: Mapping[str, Any]) -> Callable[..., Any]:
    named = {parameter.name for parameter in _parameters(method)}
    return functools.partial(method, **{name: value for name, value in values.items() if name in named})


def _test(name: str, checks: Sequence[str], further: Mapping[str, inspect.Parameter]) -> Callable[..., None]:
    def test(self: InverseTests, drawn_by_hypothesis: st.DataObject, **values: Any) -> None:
        self.check(drawn_by_hypothesis, *checks, **values)

    self, drawn, _ = inspect.signature(test).parameters.values()
    test.__signature__ = inspect.Signature([self, drawn, *further.values()])  # type: ignore[attr-defined]
    test.__name__, test.__qualname__ = name, f"InverseTests.{name}"
    test.__doc__ = f"Checks: {', '.join(checks)}."
    made = settings(deadline=None)(given(drawn_by_hypothesis=st.data())(test))
    _MADE.add(made)
    return made
