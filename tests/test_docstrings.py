"""The docstrings of all public names, as the API reference shows them: sections, parameters, shapes, examples."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tests.source import MODULES

PUBLIC = {  # and what each needs
    "mfac_linalg": None,
    "mfac_linalg.influence": None,
    "mfac_linalg.jax": "jax",
    "mfac_linalg.plot": None,
    "mfac_linalg.pruning": None,
    "mfac_linalg.testing": "hypothesis",
    "mfac_linalg.testing.strategies": "hypothesis",
    "mfac_linalg.torch": "torch",
}
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns", "Notes", "References", "Examples")
"""In the order of numpydoc."""
NO_EXAMPLE = {
    "SymmetricOperator.rmatvec": "is `matvec`, by symmetry",
    "SymmetricOperator.rmatmat": "is `matmat`, by symmetry",
    "SlidingWindowState.tree_flatten_with_keys": "is called by JAX",
    "SlidingWindowState.tree_unflatten": "is called by JAX",
    "GradientRows.gram": "is defined in the example of its class",
    "GradientRows.project": "is defined in the example of its class",
    "GradientRows.combine": "is defined in the example of its class",
    "GradientRows.columns": "is defined in the example of its class",
    "GradientRows.panels": "has a default, which the example of its class uses",
    "InverseTests.make_inverse": "is defined in the example of its class",
    "WindowMachine.make_window": "is defined in the example of its class",
    "WindowMachine.gradient": "is called in the example of its class",
    "WindowMachine.give": "is called in the example of its class",
    "WindowMachine.expect": "is called in the example of its class",
    "Forward.rmatvec": "is `matvec`, by symmetry",
    "Forward.rmatmat": "is `matmat`, by symmetry",
}
"""Methods without an example of their own, and why."""
NO_SIGNATURE = {"Forward", "GradientRows", "FactorizationError", "IllConditionedWarning", "InvalidFileError"}
"""What users do not construct themselves: a property, a protocol and exceptions."""
LONGEST_EXAMPLE = 92
CHECKERS = re.compile(r"check|refuse\w*|require\w*|_one_or_more|_of_vector|_certificate|_accept|_vector_product")


class Name(NamedTuple):
    """A public class, function, method or property, and where it is defined."""

    module: str
    owner: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.module}.{self.qualified}"

    @property
    def qualified(self) -> str:
        """As `__qualname__`."""
        return f"{self.owner}.{self.name}".strip(".")

    @property
    def text(self) -> str:
        """The docstring, without indentation."""
        return inspect.getdoc(self.value) or ""

    @property
    def function(self) -> Any:
        """The function behind a class method or static method."""
        return self.value.__func__ if isinstance(self.value, classmethod | staticmethod) else self.value

    @property
    def sections(self) -> dict[str, list[str]]:
        """The lines of each section."""
        lines = self.text.splitlines()
        starts = [i for i, line in enumerate(lines[1:]) if line and set(line) == {"-"}]
        ends = [*starts, len(lines)][1:]
        return {lines[i]: lines[i + 2 : end] for i, end in zip(starts, ends, strict=True)}

    def entries(self, section: str) -> dict[str, str]:
        """The entries of a section, "name : type" or a type, by name."""
        heads = [line for line in self.sections.get(section, []) if line and not line.startswith(" ")]
        pairs = [head.partition(" : ")[::2] for head in heads]
        return {name.strip(): kind for names, kind in pairs for name in names.split(",")}

    @property
    def parameters(self) -> list[str]:
        """The parameters of the signature, as numpydoc writes them."""
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        found = inspect.signature(self.function).parameters.values()
        return [stars.get(each.kind, "") + each.name for each in found if each.name not in ("self", "cls")]


def is_property(value: Any) -> bool:
    return isinstance(value, property | cached_property)


def members(kind: type) -> Iterator[Name]:
    """The public methods and properties of a class that this package defines, without steps of a state machine."""
    for name in dir(kind):
        owner = next((base for base in kind.__mro__ if name in vars(base)), kind)
        value = vars(owner).get(name)
        is_method = is_property(value) or isinstance(value, classmethod | staticmethod) or inspect.isfunction(value)
        is_step = inspect.isfunction(value) and any(mark.startswith("hypothesis_stateful") for mark in vars(value))
        if name[0] != "_" and is_method and not is_step and owner.__module__.startswith("mfac_linalg"):
            yield Name(owner.__module__, owner.__name__, name, value)


def public_values(module: str) -> list[Any]:
    """The public classes and functions of a module, and the operator that `forward` is."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name for name, value in vars(found).items() if name[0] != "_" and getattr(value, "__module__", "") == module
    ]
    others = [importlib.import_module("mfac_linalg._forward").Forward] if module == "mfac_linalg" else []
    values = [*(getattr(found, name) for name in names), *others]
    return [value for value in values if inspect.isclass(value) or inspect.isroutine(value)]


def public_names() -> list[Name]:
    found = {}
    for module, needed in PUBLIC.items():
        if needed is None or find_spec(needed) is not None:
            for value in public_values(module):
                every = [Name(value.__module__, "", value.__name__, value)]
                every += members(value) if inspect.isclass(value) else []
                found |= {str(name): name for name in every}
    return [found[name] for name in sorted(found)]


NAMES = public_names()
CALLABLE = [name for name in NAMES if not is_property(name.value)]


def checks_arguments(name: Name) -> bool:
    """Whether a function raises, or calls what checks: its own body and the functions of its module it calls."""
    trees = {node.name: node for node in ast.walk(MODULES[name.module]) if isinstance(node, ast.FunctionDef)}
    todo, seen = [name.name], set()
    while todo:
        tree = trees.get(todo.pop())
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Raise) and node.exc is not None:
                return True
            called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            of = getattr(getattr(node, "func", None), "value", None)
            if called and (CHECKERS.match(called) or getattr(of, "id", "") == "check"):
                return True
            if called.startswith("_") and called not in seen:
                seen.add(called)
                todo.append(called)
    return False


def test_every_kind_of_public_name_is_found():
    found = {str(name) for name in NAMES}
    for expected in ("_static.woodbury.WoodburyRankOneInverse", "_inverse.Inverse.matvec", "_forward.Forward.trace"):
        assert f"mfac_linalg.{expected}" in found
    assert len(found) > 120


def test_the_exceptions_of_this_file_are_needed():
    missing = {name.qualified for name in CALLABLE if ">>>" not in name.text}
    there = {name.qualified for name in CALLABLE}
    assert set(NO_EXAMPLE) & there <= missing


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_docstring_begins_with_one_sentence(name):
    first, *rest = name.text.splitlines()
    assert first.endswith(".")
    assert not re.search(r"[.?!] [^a-z]", first), first
    assert not rest or not rest[0]


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_sections_are_those_of_numpydoc_in_its_order(name):
    lines = name.text.splitlines()
    heads = list(name.sections)
    assert [head for head in heads if head not in SECTIONS] == []
    ordered = [head for head in heads if head != "Attributes"]
    assert ordered == sorted(ordered, key=SECTIONS.index)
    for i, line in enumerate(lines):
        if line in SECTIONS:
            assert lines[i + 1] == "-" * len(line)
            assert not lines[i - 1]
            assert lines[i + 2].strip()


@pytest.mark.parametrize("name", [name for name in CALLABLE if name.name not in NO_SIGNATURE], ids=str)
def test_the_parameters_of_the_signature_are_documented_in_order_and_no_others(name):
    assert list(name.entries("Parameters")) == name.parameters


@pytest.mark.parametrize("name", CALLABLE, ids=str)
def test_a_parameter_has_a_type_and_a_description(name):
    lines = [line for line in name.sections.get("Parameters", []) if line]
    for head, below in pairwise([*lines, ""]):
        if not head.startswith(" "):
            assert " : " in head or head.startswith("*")
            assert below.startswith("    ")


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_a_type_of_arrays_has_a_shape(name):
    for section in ("Parameters", "Attributes", "Returns", "Yields"):
        for entry, kind in name.entries(section).items():
            if re.match(r"(array|numpy\.ndarray|torch\.Tensor|Tensor)\b", kind or entry):
                assert "shape" in kind or "shape" in " ".join(name.sections[section]), entry


@pytest.mark.parametrize("name", [name for name in CALLABLE if not inspect.isclass(name.value)], ids=str)
def test_what_is_returned_is_documented(name):
    returned = inspect.signature(name.function).return_annotation
    assert returned is not inspect.Signature.empty
    is_documented = {"Returns", "Yields"} & set(name.sections)
    assert bool(is_documented) == (returned is not None)


@pytest.mark.parametrize("name", [name for name in CALLABLE if not inspect.isclass(name.value)], ids=str)
def test_errors_of_arguments_are_documented(name):
    if name.parameters and checks_arguments(name):
        assert "Raises" in name.sections


@pytest.mark.parametrize("name", CALLABLE, ids=str)
def test_there_is_an_example(name):
    assert ">>> " in "\n".join(name.sections.get("Examples", [])) or name.qualified in NO_EXAMPLE


@pytest.mark.parametrize("name", CALLABLE, ids=str)
def test_an_example_fits_on_a_page(name):
    """Longer lines scroll on a page of 1,100 pixels with a menu on its left."""
    code = [line for line in name.sections.get("Examples", []) if line.startswith((">>>", "..."))]
    assert [line for line in code if len(line) > LONGEST_EXAMPLE] == []


@pytest.mark.parametrize("name", [name for name in CALLABLE if name.owner.endswith(("Inverse", "Forward"))], ids=str)
def test_a_method_of_an_operator_states_its_cost(name):
    assert "Cost" in "\n".join(name.sections.get("Notes", [])) or name.qualified in NO_EXAMPLE


@pytest.mark.parametrize(
    "name", [name for name in CALLABLE if not name.owner and name.name.endswith("Inverse")], ids=str
)
def test_a_class_states_parameters_cost_accuracy_and_normalization(name):
    for word in ("Parameters", "Notes", "Cost", "Accuracy", "References", "Examples", "normalization"):
        assert word in name.text
