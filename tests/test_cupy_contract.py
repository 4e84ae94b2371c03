"""What can be proved about CuPy without a GPU: every name and keyword that the package uses is in the installed wheel.

``import cupy`` works without a driver; ``cupyx.scipy.linalg`` asks for CUDA's libraries, so a function that cannot be
imported is looked up in the wheel's source.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import warnings
from pathlib import Path

import pytest

from tests.source import MODULES, chain

BACKEND = ast.Module([tree for name, tree in MODULES.items() if name.split(".")[1:2] == ["_backend"]], [])


@pytest.fixture(scope="module")
def cupy():
    """CuPy, imported without its warning about a missing CUDA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", reason="needs cupy")


def imported_names():
    """(module, name, local name) of every ``from cupy... import``."""
    for node in ast.walk(BACKEND):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cupy"):
            yield from ((node.module, alias.name, alias.asname or alias.name, node) for alias in node.names)


def module_chains():
    """Dotted names that begin at ``sys.modules["cupy..."]``, or at a variable with that value, with their calls."""
    aliases = {}
    for node in ast.walk(BACKEND):
        if isinstance(node, ast.Assign) and (module := looked_up(node.value)):
            aliases.update({target.id: module for target in node.targets if isinstance(target, ast.Name)})
    calls = {id(node.func): node for node in ast.walk(BACKEND) if isinstance(node, ast.Call)}
    for node in ast.walk(BACKEND):
        if isinstance(node, ast.Attribute):
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            module = looked_up(root) or (aliases.get(root.id) if isinstance(root, ast.Name) else None)
            if module:
                yield ".".join([module, *chain(node)[1:]]), calls.get(id(node))


def looked_up(node):
    """The library in ``sys.modules["library"]``, if it is CuPy."""
    if not isinstance(node, ast.Subscript) or chain(node.value) != ["sys", "modules"]:
        return None
    name = getattr(node.slice, "value", "")
    return name if str(name).startswith("cupy") else None


def find(module, name):
    """The object itself, or its definition in the wheel's source where an import needs CUDA or hides keywords."""
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError:
        return definition(module, name)
    return definition(module, name) if takes_any_keyword(found) else found


def takes_any_keyword(function):
    """Whether the signature of a function ends in ``**``: that of a class whose calls make one of its subclasses."""
    with contextlib.suppress(TypeError, ValueError):
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        return inspect.Parameter.VAR_KEYWORD in kinds
    return False


def definition(module, name):
    """The syntax tree of a function or a class, following the re-exports of its package."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ClassDef) and node.name == name:  # calling it may make one of its subclasses
            others = [other for other in ast.walk(tree) if isinstance(other, ast.ClassDef)]
            node.subclasses = [other for other in others if name in {chain(base)[-1] for base in other.bases}]
            return node
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return definition(node.module, name)
    msg = f"{module} has no {name}"
    raise AttributeError(msg)


def source_of(module):
    """The file of a module, found without importing it."""
    top, *rest = module.split(".")
    folder = Path(importlib.util.find_spec(top).origin).parent.joinpath(*rest)
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def parameters(function):
    """Names of a function's parameters, imported or read as source; None where CuPy gives no signature."""
    if isinstance(function, ast.ClassDef):
        makers = [f for f in function.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        return set().union(*map(parameters, [*makers, *getattr(function, "subclasses", [])]))
    if isinstance(function, ast.FunctionDef):
        arguments = function.args
        return {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def accepts(function, call):
    """Whether a function takes the keywords of a call, which must be written out: `**` would hide them."""
    known = parameters(function)
    return known is None or {keyword.arg for keyword in call.keywords} <= known


def test_cupy_is_used_at_all():
    assert list(imported_names())


@pytest.mark.parametrize("entry", [pytest.param(e, id=f"{e[0]}.{e[1]}") for e in imported_names()])
def test_every_name_imported_from_cupy_exists(cupy, entry):
    module, name, *_ = entry
    assert find(module, name) is not None


@pytest.mark.parametrize("entry", [pytest.param(e, id=f"{e[0]}.{e[1]}") for e in imported_names()])
def test_every_keyword_given_to_an_imported_function_exists(cupy, entry):
    module, name, local, statement = entry
    users = [f for f in ast.walk(BACKEND) if isinstance(f, ast.FunctionDef) and statement in ast.walk(f)]
    calls = [c for f in users for c in ast.walk(f) if isinstance(c, ast.Call) and chain(c.func) == [local]]
    assert calls
    function = find(module, name)
    assert all(accepts(function, call) for call in calls)


@pytest.mark.parametrize("entry", [pytest.param(e, id=e[0]) for e in module_chains()])
def test_every_name_reached_through_a_module_exists(cupy, entry):
    dotted, call = entry
    module, *names = dotted.split(".")
    value = importlib.import_module(module)
    for name in names:
        value = getattr(value, name)
    assert call is None or accepts(value, call)


def standard_calls():
    """Names that the package takes from an array namespace: ``xp.name`` and ``namespace(x).name``, with their calls."""
    found = {}
    for module, tree in MODULES.items():
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            if is_namespace(node.value):
                found.setdefault((node.attr,), []).append((module, calls.get(id(node))))
            elif getattr(node.value, "attr", "") == "linalg" and is_namespace(node.value.value):
                found.setdefault(("linalg", node.attr), []).append((module, calls.get(id(node))))
    return found


def is_namespace(node):
    """Whether an expression is an array namespace by its name."""
    if isinstance(node, ast.Call):
        return chain(node.func)[-1] in ("namespace", "array_namespace")
    return isinstance(node, ast.Name) and node.id == "xp"


STANDARD = standard_calls()
ELSEWHERE = {"Device"}
"""Names that only array-api-strict is asked for."""


@pytest.mark.parametrize("names", [n for n in STANDARD if n[0] not in ELSEWHERE], ids=".".join)
def test_every_standard_name_and_keyword_exists_for_cupy(cupy, names):
    value = importlib.import_module("array_api_compat.cupy")
    for name in names:
        value = getattr(value, name)
    for module, call in STANDARD[names]:
        assert call is None or accepts(value, call), module
