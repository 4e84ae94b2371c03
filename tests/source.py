"""The package's source as syntax trees, for the tests that read it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mfac_linalg

ROOT = Path(mfac_linalg.__file__).parent
"""The package that is tested: of this repository, or installed from a wheel."""
REPOSITORY = Path(__file__).parents[1]
"""The folder of tests/, benchmarks/ and docs/; in `.ci/run` it is a copy without the package."""


def _name(path: Path) -> str:
    parts = ("mfac_linalg", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TEXTS = {_name(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
MODULES = {name: ast.parse(text) for name, text in TEXTS.items()}


def is_package(name: str) -> bool:
    """Whether a module is a folder's ``__init__``."""
    return (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").exists()


def imports(name: str) -> set[str]:
    """The modules of this package that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parts = parts[: len(parts) - node.level + is_package(name)]
                base = ".".join([*parts, base]).rstrip(".")
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= (members & MODULES.keys()) or {base}
    return {module for module in found if module in MODULES and module != name}


def docstring(node: ast.AST) -> ast.Expr | None:
    """The statement that is a docstring."""
    body = getattr(node, "body", [])
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        return body[0] if isinstance(body[0].value.value, str) else None
    return None


def functions(name: str) -> Iterator[ast.FunctionDef]:
    """Every function and method of a module, nested ones included."""
    return (node for node in ast.walk(MODULES[name]) if isinstance(node, ast.FunctionDef))


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of code in a function: without signature and docstring."""
    body = function.body[docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def chain(node: ast.AST) -> list[str]:
    """The words of a dotted name, from left to right; a call or an index in between ends it."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]
