"""Messages to those who install the package: missing libraries, the extras, the page of a package index."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, version
from importlib.util import find_spec

import numpy as np
import pytest
from packaging.requirements import Requirement

import mfac_linalg as ml
from tests.source import REPOSITORY as ROOT
from tests.source import ROOT as PACKAGE
from tests.source import TEXTS

pytestmark = pytest.mark.surroundings

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = DECLARED["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {
    "scikit-learn": "sklearn",
    "array-api-strict": "array_api_strict",
    "cupy-cuda12x": "cupy",
    "cupy-cuda13x": "cupy",
    "pytest-benchmark": "pytest_benchmark",
    "pytest-xdist": "xdist",
}


def library(requirement):
    """The module that a requirement brings."""
    name = re.match(r"[\w.-]+", requirement)[0]
    return IMPORTED_AS.get(name, name)


@pytest.mark.parametrize(
    ("call", "library", "extra"),
    [
        ("import mfac_linalg.torch", "torch", "torch"),
        ("from mfac_linalg.torch import MFAC", "torch", "torch"),
        ("import mfac_linalg.jax", "jax", "jax"),
        ("from mfac_linalg.jax import scale_by_mfac", "jax", "jax"),
        (
            "import numpy; from mfac_linalg import plot; plot.influence(numpy.ones(3))",
            "matplotlib",
            "viz",
        ),
        (
            "import numpy, mfac_linalg as ml; ml.WoodburyRankOneInverse(numpy.ones((2, 3)), 1.0, progress=True)",
            "tqdm",
            "progress",
        ),
    ],
)
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(call, library, extra):
    code = f"import sys; sys.modules[{library!r}] = None\n{call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith(f'needs {library}, which is not installed. Run pip install "mfac_linalg[{extra}]".')


def test_another_failure_in_an_optional_module_is_not_blamed_on_its_library(monkeypatch):
    pytest.importorskip("torch", reason="needs torch")
    for name in [name for name in sys.modules if name.startswith("mfac_linalg.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(ml, "_second_moment", raising=False)
    monkeypatch.setitem(sys.modules, "mfac_linalg._second_moment", None)
    with pytest.raises(ModuleNotFoundError, match=r"_second_moment"):
        import mfac_linalg.torch  # noqa: F401


def test_bfloat16_of_numpy_names_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    window = ml.SlidingWindowInverse(2, 8, 0.1, compression=ml.TopK(0.5, dtype="bfloat16"))
    with pytest.raises(TypeError, match=r"needs ml_dtypes, which is not installed\. Run pip install .*\[bfloat16\]"):
        window.append(np.ones(8))


def test_every_extra_that_the_package_names_is_one():
    named = {extra for text in TEXTS.values() for extra in re.findall(r"mfac_linalg\[(\w+)\]", text)}
    assert named
    assert named <= EXTRAS.keys() | {"extra"}


def find_names():
    """What code of this repository imports, and its strings: some libraries are asked for by name."""
    for path in [p for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks") for p in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield (node.module or "").partition(".")[0]
            elif isinstance(node, ast.Constant) and path.name != "test_installation.py":
                yield node.value


def test_every_extra_brings_what_some_code_imports():
    used = set(find_names()) | {"pytest_benchmark", "xdist"}  # by a fixture, by an option
    unused = {extra: r for extra, wanted in EXTRAS.items() for r in wanted if library(r) not in used}
    assert not unused


def test_what_an_extra_names_is_imported_under_that_name_where_it_is_installed():
    wanted = [Requirement(text) for extra in EXTRAS.values() for text in extra]
    installed = {each.name: each for each in wanted if list(Distribution.discover(name=each.name))}
    assert {"pytest", "hypothesis"} <= installed.keys()
    assert not [name for name in installed if find_spec(library(name)) is None]
    too_old = [name for name, each in installed.items() if not each.specifier.contains(version(name), prereleases=True)]
    assert not too_old


def long_description():
    """README.md as pyproject.toml has it rewritten for a package index."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in DECLARED["tool"]["hatch"]["metadata"]["hooks"]["custom"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_the_page_of_a_package_index_has_no_link_or_picture_that_only_the_repository_has():
    page, readme = long_description(), (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((.*?)\)", page)) == set(re.findall(r"\]\((https?:.*?)\)", readme))
    assert "<img" not in page
    assert "docs/theory.md derives all of it" in page
    assert page.count("```") == readme.count("```")


@pytest.mark.parametrize(
    "page",
    sorted([ROOT / "README.md", *ROOT.glob("*/*.md"), *ROOT.glob("docs/howto/*.md")]),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_and_pictures_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\((?!https?:|#)(.*?)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target.partition("#")[0]).exists(), target
