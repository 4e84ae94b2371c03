"""The shape of the package: imports go one way, libraries stay in one module, files and bodies stay small."""

import ast
import inspect
import re
import subprocess
import sys

import pytest

import mfac_linalg
from tests.source import MODULES, REPOSITORY, ROOT, TEXTS, body_lines, chain, docstring, functions, imports

pytestmark = pytest.mark.surroundings

LAYERS = (
    ("demo", "__main__"),
    ("testing", "plot"),
    ("torch", "jax"),
    ("pruning", "influence"),
    ("",),  # the package itself: its public names
    ("_load",),
    ("_static", "_window"),
    ("_inverse",),
    ("_forward",),
    ("_operator",),
    ("_forms",),
    ("_files",),
    ("_rows",),
    ("_capacitance",),
    ("_scaling", "_repr", "_second_moment"),
    ("_validation",),
    ("_backend",),
    ("_progress",),
    ("_show_versions",),
    ("_errors", "_typing", "_version"),
    ("_hypothesis_entry_point",),
    ("_condition",),
)
"""The rooms from the top down. A module imports from its own room and from rooms below, not from others in its row."""

LIBRARIES = ("torch", "jax", "cupy", "cupyx", "array_api_compat", "dask")
OPTIONAL = ("torch", "jax", "dask", "cupy", "hypothesis", "matplotlib", "tqdm", "sklearn")
CREATION = ("asarray", "arange", "empty", "eye", "full", "linspace", "ones", "zeros")
LONGEST_MODULE, LONGEST_BODY = 250, 40


def room(module):
    """The part of the package that a module is in: its folder, or itself."""
    return module.split(".")[1] if "." in module else ""


def layer(module):
    """The row of a module's room in `LAYERS`; None where it has none."""
    return next((index for index, names in enumerate(LAYERS) if room(module) in names), None)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_place_in_the_order(module):
    assert layer(module) is not None, f"{module} is in no row of LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    others = [other for other in imports(module) if room(other) != room(module)]
    assert not [other for other in others if layer(other) <= layer(module)]


def test_imports_have_no_cycle():
    remaining = {module: imports(module) for module in MODULES}
    while leaves := [module for module, needs in remaining.items() if not needs & remaining.keys()]:
        for module in leaves:
            del remaining[module]
    assert not remaining


PAGES = [REPOSITORY / "docs" / name for name in ("architecture.md", "theory.md")]
NAMES = {
    name
    for tree in MODULES.values()
    for node in ast.walk(tree)
    for name in [getattr(node, "name", None), getattr(node, "attr", None), getattr(node, "id", None)]
} | {part for module in MODULES for part in module.split(".")}


def mapped_files():
    """The files of the tree in docs/architecture.md."""
    tree = PAGES[0].read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    folder = ""
    for line in tree.splitlines()[1:]:
        if not line.startswith("    "):
            found = re.match(r"  (\w+)/(?!  \w)", line)
            folder = f"{found[1]}/" if found else ""
        yield from (folder + name for name in re.findall(r"\w+\.py", line))


def test_the_map_in_the_docs_names_every_module_of_the_core():
    public = ("torch", "jax", "pruning", "testing", "demo", "_backend", "_validation")
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")}
    files.add("_hypothesis_entry_point.py")  # in a wheel it lies beside the package
    core = {name for name in files if not name.startswith(public) and not name.endswith("/__init__.py")}
    assert set(mapped_files()) == core


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_name_functions_and_classes_that_exist(page):
    quoted = re.findall(r"`([A-Za-z_.]+)`", page.read_text(encoding="utf-8"))
    code = [name for name in quoted if re.fullmatch(r"(\w+\.)*(_\w+|[A-Z]\w*[a-z]\w*(\.\w+)?)", name)]
    assert len(code) > 10
    assert not [name for name in code if set(name.split(".")) - NAMES - {"mfac_linalg", "py", "md"}]


def test_the_public_names_are_all_there():
    assert all(hasattr(mfac_linalg, name) for name in mfac_linalg.__all__)


def test_every_name_without_underscore_is_public():
    names = {name for name, value in vars(mfac_linalg).items() if not name.startswith("_")}
    modules = {name for name in names if inspect.ismodule(getattr(mfac_linalg, name))}
    assert names - modules == set(mfac_linalg.__all__)


def test_the_public_names_are_sorted():
    assert list(mfac_linalg.__all__) == sorted(mfac_linalg.__all__)


@pytest.mark.parametrize("name", mfac_linalg.__all__)
def test_a_public_object_says_that_it_lives_in_the_package(name):
    assert getattr(mfac_linalg, name).__module__.partition(".")[0] == "mfac_linalg"


def test_importing_the_package_imports_no_optional_library():
    code = f"import sys, mfac_linalg; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def named_libraries(tree):
    """Array libraries that code names: as a module, a variable, or part of a function's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            words = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or ""] if not node.level else []
        elif isinstance(node, ast.Name | ast.Attribute):
            words = [node.id if isinstance(node, ast.Name) else node.attr]
        else:
            continue
        yield from (name for word in words for name in LIBRARIES if name in word.replace(".", "_").split("_"))


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[1:2] not in (["_backend"], ["torch"], ["jax"])])
def test_only_the_backend_module_names_an_array_library(module):
    assert set(named_libraries(MODULES[module])) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[1:2] != ["_backend"]])
def test_every_creation_call_names_its_device(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and chain(node.func) in [["xp", name] for name in CREATION]:
            assert "device" in {keyword.arg for keyword in node.keywords}, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short(module):
    """Beside its docstrings, which are the reference that users read."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(MODULES[module]) if isinstance(node, holders)]
    documented = [text for node in nodes if (text := docstring(node))]
    documentation = sum(text.end_lineno - text.lineno + 1 for text in documented)
    assert len(TEXTS[module].splitlines()) - documentation <= LONGEST_MODULE


@pytest.mark.parametrize("module", MODULES)
def test_bodies_are_short(module):
    long = {f.name: body_lines(f) for f in functions(module) if body_lines(f) > LONGEST_BODY}
    assert not long


def test_sizes_are_reported():
    """Shown by ``pytest -rP tests/test_architecture.py -k reported``."""
    for module, text in sorted(TEXTS.items(), key=lambda item: -item[1].count("\n")):
        bodies = [body_lines(function) for function in functions(module)] or [0]
        print(f"{module:40}{text.count(chr(10)):5} lines, longest body {max(bodies):3}")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is(module):
    assert docstring(MODULES[module]) is not None
